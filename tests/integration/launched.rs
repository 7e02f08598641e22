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

/// An ignored signal stays ignored over exec; a handler does not.
#[test]
fn subprocesses_of_an_application_have_the_default_signals() {
    let app = "import subprocess\n\n\
               def application(environ, start_response):\n\
               \x20   text = subprocess.check_output(['grep', '-E', 'Sig(Ign|Blk)', '/proc/self/status'])\n\
               \x20   start_response('200 OK', [('Content-Length', str(len(text)))])\n\
               \x20   return [text]\n";
    let site = Site::with_source("subprocess_signals", app);
    let master = site.start();
    let text = master.connect().get_ok("/").text();
    let mask = |field: &str| {
        let line = text.lines().find(|line| line.starts_with(field)).expect("proc(5) has it");
        u64::from_str_radix(line.split_whitespace().nth(1).expect("a mask"), 16).expect("a number")
    };
    // Python itself ignores PIPE and XFSZ, and restores them in its subprocesses. 32 and 33 are the C library's own: it
    // lets nobody touch them, so they are as this test's starter had them.
    let own = 0b11 << 31;
    assert_eq!((mask("SigBlk"), mask("SigIgn") & !own), (0, 0), "{text}");
}
