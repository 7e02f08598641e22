//! What whoever starts the master leaves to it: blocked signals. What the application's own subprocesses get from it.

use nix::sys::signal::{SigSet, SigmaskHow, Signal};

use crate::harness::master::Launch;
use crate::harness::process::status_field;
use crate::harness::site::Site;
use crate::harness::wait_for;

/// A launcher that blocks signals in its threads and executes from one of them.
#[test]
fn a_master_started_with_all_signals_blocked_hears_them() {
    let site = Site::with_releases("blocked_signals", 2);
    let launch = Launch {
        before_exec: Some(Box::new(|| {
            // Async-signal-safe: one system call.
            nix::sys::signal::sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::all()), None)?;
            Ok(())
        })),
        ..Launch::default()
    };
    let master = site.launch(launch);
    let before = master.wait_serving();
    let worker = before[0].pid;
    assert_eq!(status_field(worker, "SigBlk:").as_deref(), Some("0000000000000000"), "a worker has them blocked");
    // HUP, and CHLD: the old workers are reaped.
    site.flip("2");
    master.hup();
    master.wait_log("generation gen=2 committed");
    master.wait_settled();
    wait_for("the end of the old workers", || {
        let children = master.children();
        children.iter().all(|child| before.iter().all(|old| old.pid != child.pid)).then_some(())
    });
    master.signal(Signal::SIGTTIN);
    master.wait_workers(3);
    master.stop();
}
