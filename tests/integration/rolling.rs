//! A roll in waves, where not all new workers fit beside the old ones. One step is in `deploys`.

use crate::harness::cgroup::Cgroup;
use crate::harness::load::Load;
use crate::harness::machine::{can_mount, not_tested};
use crate::harness::site::{app_source, Site};

/// Room for two workers beside the old ones: they come in waves of two, and the kernel kills nobody.
#[test]
fn a_memory_cgroup_with_room_for_two_more_workers() {
    if !can_mount() {
        return;
    }
    const MIB: u64 = 1 << 20;
    let site = Site::alone("waves");
    let app = app_source("app.py").replacen("import ctypes\n", "import ctypes\nWEIGHT = b'x' * (64 << 20)\n", 1);
    for release in ["1", "2"] {
        site.build(release).file("app.py", &app).make();
    }
    site.flip("1");
    site.set("server.workers", "6");
    let Some(cgroup) = Cgroup::with_limit(&site, 4096 * MIB) else {
        return not_tested("it needs a memory cgroup that can be made");
    };
    let master = site.launch(cgroup.launch());
    master.wait_workers(6);
    master.get("/");
    // The candidate and the template take some 100 MiB of it before the decision. A worker counts a quarter more than it
    // has, and a tenth of what is free is kept.
    let limit = cgroup.usage() + 100 * MIB + 250 * MIB;
    cgroup.set_limit(limit).expect("it is ours");
    let load = Load::on(&master.address()).closing(2).start();
    load.wait_answers(20);
    site.flip("2");
    master.reload();
    load.wait_answers(20);
    load.stop().assert_no_failures();
    master.wait_log("generation gen=2 rolling: 2 at once (* MiB each, * free): not all 6 fit beside the old ones");
    assert_eq!(cgroup.kills(), 0, "{}", master.log());
    master.wait_serving();
    master.stop();
}
