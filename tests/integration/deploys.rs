//! Deploys that are larger, or more often, than the ordinary ones.

use crate::harness::site::Site;

/// More processes than a socket buffer holds messages for.
#[test]
fn hundreds_of_workers_are_committed() {
    let site = Site::alone("hundreds");
    site.build("1")
        .file(
            "app.py",
            "def application(environ, start_response):\n    start_response('204 No Content', [])\n    return []\n",
        )
        .make();
    site.flip("1");
    site.set("server.workers", "1").set("app.preload", "true").set("server.boot_timeout", "'10m'");
    let master = site.start();
    for (workers, surge) in [(280, "'100%'"), (400, "'auto'")] {
        site.set("server.workers", &workers.to_string()).set("reload.max_surge", surge);
        let output = master.cli(&["reload"]);
        assert!(output.ok(), "{workers} workers, max_surge = {surge}: {output}");
        assert_eq!(master.wait_workers(workers).len(), workers);
        // Down again, so that two large generations are never there at the same time.
        site.set("server.workers", "1").set("reload.max_surge", "1");
        master.reload();
        master.wait_drained();
    }
    master.stop();
}
