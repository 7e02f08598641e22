//! Signals that reach the master, its workers or its terminal, by intent or not.

use std::fs::File;
use std::io::Write;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::sys::signal::{kill, Signal};
use nix::unistd::Pid;

use crate::harness::client::{self, head};
use crate::harness::load::Load;
use crate::harness::master::{Launch, Master};
use crate::harness::site::Site;
use crate::harness::{wait_for, wait_within};

fn signal_workers(master: &Master, signal: Signal) {
    for worker in master.workers() {
        kill(Pid::from_raw(worker.pid), signal).expect("a serving worker is there");
    }
}

#[test]
fn a_window_resize_does_nothing() {
    let site = Site::with_releases("winch", 1);
    let master = site.start();
    let before = master.wait_serving();
    let load = Load::on(&master.address()).start();
    // A resize reaches the whole foreground process group.
    for signal in [Signal::SIGWINCH, Signal::SIGPIPE] {
        master.signal(signal);
        signal_workers(&master, Signal::SIGWINCH);
    }
    load.wait_answers(50);
    load.stop().assert_no_failures();
    assert_eq!(master.workers(), before);
    master.assert_quiet_log();
}

#[test]
fn hup_and_usr2_to_workers_and_templates_do_nothing() {
    let site = Site::with_releases("hup_workers", 1);
    let master = site.start();
    let before = master.wait_serving();
    let template = master.status().and_then(|status| status.serving()).expect("it serves").template_pid;
    let load = Load::on(&master.address()).start();
    for signal in [Signal::SIGHUP, Signal::SIGUSR2] {
        signal_workers(&master, signal);
        kill(Pid::from_raw(template), signal).expect("the template is there");
    }
    load.wait_answers(50);
    load.stop().assert_no_failures();
    assert_eq!(master.workers(), before);
    assert_eq!(master.status().and_then(|status| status.serving()).expect("it serves").template_pid, template);
    master.assert_quiet_log();
}

/// What `pkill -HUP forkmaster` does: master, template and workers at once.
#[test]
fn hup_to_everybody_is_one_reload() {
    let site = Site::with_releases("pkill_hup", 1);
    site.release("2");
    let master = site.start();
    let load = Load::on(&master.address()).closing(3).keeping(3).start();
    site.flip("2");
    for process in site.processes() {
        process.signal(Signal::SIGHUP);
    }
    master.wait_log("generation gen=2 rolling -> serving");
    load.wait_answers(30);
    load.stop().assert_no_failures();
    assert_eq!(master.get("/").text(), "2");
}

#[test]
fn term_to_a_worker_drains_and_replaces_it() {
    let site = Site::with_releases("term_worker", 1);
    let master = site.start();
    let before = master.wait_serving();
    let mut running = master.connect();
    running.must_send(head("GET", "/sleep?s=1", &[]));
    master.get("/");
    let load = Load::on(&master.address()).closing(3).keeping(3).start();
    signal_workers(&master, Signal::SIGTERM);
    assert_eq!(running.expect_answer().text(), "1");
    wait_for("two other workers", || {
        let now = master.workers();
        (now.len() == 2 && now.iter().all(|worker| before.iter().all(|old| old.pid != worker.pid))).then_some(())
    });
    load.wait_answers(30);
    load.stop().assert_no_failures();
}

#[test]
fn int_and_quit_to_a_worker_end_it_and_it_is_replaced() {
    for signal in [Signal::SIGINT, Signal::SIGQUIT] {
        let site = Site::with_releases("int_worker", 1);
        let master = site.start();
        let victim = master.wait_serving().remove(0);
        kill(Pid::from_raw(victim.pid), signal).expect("a serving worker is there");
        wait_for("a replacement", || {
            let now = master.workers();
            (now.len() == 2 && now.iter().all(|worker| worker.pid != victim.pid)).then_some(())
        });
        assert_eq!(master.get("/").text(), "1");
    }
}

#[test]
fn ctrl_c_in_a_terminal_stops_the_master_and_interrupts_no_worker() {
    let site = Site::with_releases("ctrl_c", 1);
    let (mut keyboard, terminal) = open_terminal();
    let tty = terminal.as_raw_fd();
    let launch = Launch {
        terminal: Some(terminal.try_clone().expect("a descriptor can be duplicated")),
        before_exec: Some(Box::new(move || {
            // A session of its own with the terminal as its controlling one: what a shell's login did.
            // SAFETY: both are system calls without memory of ours and async-signal-safe.
            if unsafe { libc::setsid() } < 0 || unsafe { libc::ioctl(tty, libc::TIOCSCTTY, 0) } < 0 {
                return Err(std::io::Error::last_os_error());
            }
            Ok(())
        })),
        ..Launch::default()
    };
    // The terminal is not a file, so the log goes to one by configuration.
    site.set("log.error", "'forkmaster.log'");
    let master = site.launch(launch);
    master.wait_serving();
    let log = || std::fs::read_to_string(site.path().join("forkmaster.log")).unwrap_or_default();
    let workers = master.workers();

    // Ctrl-C is a byte; the line discipline makes it SIGINT for the foreground process group (termios(3), ISIG).
    keyboard.write_all(b"\x03").expect("the terminal takes it");
    let exit = master.wait_exit();
    assert_eq!(exit.code(), Some(0), "log: {}", log());
    let left = wait_within(Duration::from_secs(2), || site.processes().is_empty().then_some(()));
    assert!(left.is_some(), "workers outlived Ctrl-C: {workers:?}");
    assert!(!log().contains("KeyboardInterrupt"), "a worker was interrupted: {}", log());
    assert!(!log().contains("Traceback"), "{}", log());
}

#[test]
fn a_resized_terminal_does_nothing() {
    let site = Site::with_releases("resize", 1);
    let (keyboard, terminal) = open_terminal();
    let tty = terminal.as_raw_fd();
    let launch = Launch {
        terminal: Some(terminal.try_clone().expect("a descriptor can be duplicated")),
        before_exec: Some(Box::new(move || {
            // SAFETY: as above.
            if unsafe { libc::setsid() } < 0 || unsafe { libc::ioctl(tty, libc::TIOCSCTTY, 0) } < 0 {
                return Err(std::io::Error::last_os_error());
            }
            Ok(())
        })),
        ..Launch::default()
    };
    site.set("log.error", "'forkmaster.log'");
    let master = site.launch(launch);
    let before = master.wait_serving();
    let size = libc::winsize { ws_row: 10, ws_col: 20, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: TIOCSWINSZ reads a winsize, which outlives the call.
    assert_eq!(unsafe { libc::ioctl(keyboard.as_raw_fd(), libc::TIOCSWINSZ, &size) }, 0);
    assert_eq!(master.workers(), before);
    assert!(master.exited().is_none());
}

/// A pseudo terminal: what a terminal emulator holds, and what the program gets.
fn open_terminal() -> (File, File) {
    let (mut ours, mut theirs) = (-1, -1);
    let (no_name, no_modes, no_size) = (std::ptr::null_mut(), std::ptr::null(), std::ptr::null());
    // SAFETY: openpty writes two descriptors; the other pointers may be null (openpty(3)).
    let opened = unsafe { libc::openpty(&mut ours, &mut theirs, no_name, no_modes, no_size) };
    assert_eq!(opened, 0, "openpty: {}", std::io::Error::last_os_error());
    // SAFETY: openpty succeeded, so it is an open descriptor that nobody else owns.
    let ours = unsafe { OwnedFd::from_raw_fd(ours) };
    // SAFETY: as above.
    let theirs = unsafe { OwnedFd::from_raw_fd(theirs) };
    (ours.into(), theirs.into())
}

#[test]
fn usr1_reopens_the_log_file() {
    let site = Site::with_releases("usr1", 1);
    site.set("log.error", "'forkmaster.log'");
    let master = site.start();
    let log = site.path().join("forkmaster.log");
    std::fs::rename(&log, site.path().join("forkmaster.1.log")).expect("logrotate renames it");
    master.signal(Signal::SIGUSR1);
    wait_for("a new log file", || log.exists().then_some(()));
    master.reload();
    wait_for("lines in the new log file", || {
        std::fs::read_to_string(&log).ok()?.contains("generation gen=2").then_some(())
    });
}

/// A signal inside the application makes some database drivers cancel a query (uWSGI issue 1375): drain and stop are
/// messages.
#[test]
fn a_reload_sends_no_signal_into_the_application() {
    let site = Site::new("no_signal");
    let app = "import ctypes, os\nfrom good import application as good\n\
               def application(environ, start_response):\n\
               \x20   if environ['PATH_INFO'] != '/select':\n\
               \x20       return good(environ, start_response)\n\
               \x20   # poll(2) without the retry on EINTR that Python's own functions do; signals would make it return -1.\n\
               \x20   returned = ctypes.CDLL(None).poll(None, 0, 1500)\n\
               \x20   start_response('200 OK', [('Content-Length', str(len(str(returned))))])\n\
               \x20   return [str(returned).encode()]\n";
    site.build("1").file("good.py", &crate::harness::site::app_source("app.py")).file("app.py", app).make();
    site.release("2");
    site.flip("1");
    let master = site.start();
    let mut running = master.connect();
    running.must_send(head("GET", "/select", &[]));
    master.get("/");
    site.flip("2");
    master.reload();
    assert_eq!(running.expect_answer().text(), "0", "poll was interrupted");
}

#[test]
fn signal_handlers_of_the_application_win_and_run() {
    let site = Site::new("app_handlers");
    let app = "import os, signal, time\nfrom good import application as good\n\
               seen = []\nsignal.signal(signal.SIGUSR2, lambda *_: seen.append('usr2'))\n\
               def application(environ, start_response):\n\
               \x20   if environ['PATH_INFO'] == '/alarm':\n\
               \x20       signal.signal(signal.SIGALRM, lambda *_: seen.append('alarm'))\n\
               \x20       signal.setitimer(signal.ITIMER_REAL, 0.05)\n\
               \x20       time.sleep(0.2)\n\
               \x20   if environ['PATH_INFO'] in ('/alarm', '/seen'):\n\
               \x20       body = ' '.join(seen).encode()\n\
               \x20       start_response('200 OK', [('Content-Length', str(len(body)))])\n\
               \x20       return [body]\n\
               \x20   return good(environ, start_response)\n";
    site.build("1").file("good.py", &crate::harness::site::app_source("app.py")).file("app.py", app).make();
    site.flip("1");
    site.set("server.workers", "1");
    let master = site.start();
    let address = master.address();
    assert_eq!(client::get(&address, "/alarm").expect("it is answered").text(), "alarm");
    let asked = Instant::now();
    signal_workers(&master, Signal::SIGUSR2);
    wait_for("the application's own handler", || {
        client::get(&address, "/seen").ok()?.text().contains("usr2").then_some(())
    });
    assert!(asked.elapsed() < Duration::from_secs(2), "{:?}", asked.elapsed());
}
