//! Programs that somebody holds up while they are being executed, as a file server does that has stopped answering: the master
//! answers and serves meanwhile, and ends them like any other process. Fanotify (fanotify(7)) is that somebody here.

use std::fs;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use crate::harness::machine::{can_mount, not_tested};
use crate::harness::master::{binary, run, Launch, Master};
use crate::harness::site::Site;
use crate::harness::wait_for;

/// What is at once for a master that waits for nothing, on a busy machine.
const AT_ONCE: Duration = Duration::from_secs(10);

/// Nobody gets on with the exec of one file before this lets them go on.
struct Held {
    group: OwnedFd,
    asked: Vec<libc::fanotify_event_metadata>,
}

impl Held {
    /// None: this machine cannot do it.
    fn file(path: &Path) -> Option<Held> {
        if !can_mount() {
            return None;
        }
        let flags = libc::FAN_CLASS_CONTENT | libc::FAN_CLOEXEC | libc::FAN_NONBLOCK;
        // SAFETY: takes two numbers.
        let group = unsafe { libc::fanotify_init(flags, libc::O_RDONLY as libc::c_uint) };
        if group < 0 {
            not_tested(&format!("fanotify_init: {}", std::io::Error::last_os_error()));
            return None;
        }
        // SAFETY: the kernel has just made it for us.
        let group = unsafe { OwnedFd::from_raw_fd(group) };
        let name = std::ffi::CString::new(path.as_os_str().as_bytes()).expect("no NUL");
        let (add, what) = (libc::FAN_MARK_ADD, libc::FAN_OPEN_EXEC_PERM);
        // SAFETY: the path is NUL-terminated and lives.
        let marked = unsafe { libc::fanotify_mark(group.as_raw_fd(), add, what, libc::AT_FDCWD, name.as_ptr()) };
        if marked < 0 {
            not_tested(&format!("fanotify_mark: {}", std::io::Error::last_os_error()));
            return None;
        }
        Some(Held { group, asked: Vec::new() })
    }

    /// Somebody is executing it; returns who.
    #[track_caller]
    fn wait(&mut self) -> i32 {
        let size = size_of::<libc::fanotify_event_metadata>();
        wait_for("an exec that is held", || {
            let mut bytes = [0u8; 1024];
            let read = nix::unistd::read(&self.group, &mut bytes).ok()?;
            for event in bytes[..read].chunks_exact(size) {
                // SAFETY: the kernel has written a structure of that size there; it has no invalid values.
                self.asked.push(unsafe { std::ptr::read_unaligned(event.as_ptr().cast()) });
            }
            self.asked.last().map(|event| event.pid)
        })
    }

    fn let_go(self) {}
}

impl Drop for Held {
    fn drop(&mut self) {
        for event in &self.asked {
            let answer = libc::fanotify_response { fd: event.fd, response: libc::FAN_ALLOW };
            // SAFETY: a plain structure that lives.
            let bytes = unsafe { std::slice::from_raw_parts((&raw const answer).cast::<u8>(), size_of_val(&answer)) };
            // Whoever was held may have been killed.
            let _ = nix::unistd::write(&self.group, bytes);
            // SAFETY: the kernel has opened it for us with the event.
            drop(unsafe { OwnedFd::from_raw_fd(event.fd) });
        }
    }
}

#[track_caller]
fn answers(master: &Master, release: &str) {
    let began = Instant::now();
    let status = master.cli(&["status"]);
    assert!(status.ok() && began.elapsed() < AT_ONCE, "{status}");
    assert_eq!(master.get("/").text(), release);
}

fn executable_of(pid: i32) -> PathBuf {
    fs::read_link(format!("/proc/{pid}/exe")).unwrap_or_default()
}

fn is_gone(pid: i32) -> Option<()> {
    (!Path::new(&format!("/proc/{pid}")).exists()).then_some(())
}

#[test]
fn a_service_or_a_command_whose_exec_hangs_holds_nobody_up() {
    let site = Site::with_releases("held_service", 1);
    let tool = site.release_path("1").canonicalize().expect("it is there").join("tool");
    fs::copy("/bin/sleep", &tool).expect("a program can be copied");
    let Some(mut held) = Held::file(&tool) else { return };
    site.set("service", "[{ name = 'ticker', command = ['./tool', '1000'] }]");
    let master = site.start();
    let pid = held.wait();
    answers(&master, "1");
    assert_ne!(executable_of(pid), tool);
    // A deploy ends it as it ends any other.
    master.reload();
    wait_for("the end of what is held", || is_gone(pid));
    let second = held.wait();
    answers(&master, "1");
    // While one hangs the command of a pause may hang as well, no longer than it was given.
    let output = master.cli(&["reload", "--pause", "--timeout", "1s", "--", "./tool", "0"]);
    assert_eq!(output.code, Some(1), "{output}");
    answers(&master, "1");
    held.let_go();
    wait_for("the program", || (executable_of(second) == tool).then_some(()));
    master.stop();
    master.assert_nothing_left();
}

#[test]
fn a_release_whose_python_hangs_in_its_exec_holds_nobody_up() {
    let site = Site::with_releases("held_template", 2);
    // An inode of its own: other tests execute the machine's Python.
    let python = site.release_path("2").join("venv/bin/python");
    let real = python.canonicalize().expect("a virtualenv has a Python");
    fs::remove_file(&python).expect("it is a link");
    fs::copy(real, &python).expect("a program can be copied");
    let Some(mut held) = Held::file(&python) else { return };
    let master = site.start();
    site.flip("2");
    let directory = site.path().to_path_buf();
    let asks = thread::spawn(move || run(&directory, &["reload", "-c", "app.toml"]));
    let pid = held.wait();
    answers(&master, "1");
    // A later reload wins, and what hangs is killed.
    site.flip("1");
    master.reload();
    let output = asks.join().expect("the client does not panic");
    assert!(output.code == Some(1) && output.stderr.contains("superseded"), "{output}");
    wait_for("the end of what is held", || is_gone(pid));
    held.let_go();
    site.flip("2");
    master.reload();
    answers(&master, "2");
    master.stop_clean();
}

/// A program of its own inode, whose exec is held.
fn held_tool(site: &Site, of: &str) -> Option<(PathBuf, Held)> {
    let tool = site.path().join("tool");
    fs::copy(of, &tool).expect("a program can be copied");
    let held = Held::file(&tool)?;
    Some((tool, held))
}

#[test]
fn a_hook_whose_exec_hangs_holds_nobody_up_and_is_killed_when_its_time_is_over() {
    let site = Site::with_releases("held_hook", 2);
    let Some((tool, mut held)) = held_tool(&site, "/bin/true") else { return };
    for hook in ["on_ready", "on_reload", "on_exit"] {
        site.set(&format!("hooks.{hook}"), &format!("[{:?}]", tool.display().to_string()));
    }
    site.set("hooks.command_timeout", "'2s'");
    let master = site.start();
    let first = held.wait();
    answers(&master, "1");
    assert_ne!(executable_of(first), tool);
    // Each waits for the one before, and no deploy waits for any of them.
    site.flip("2");
    master.reload();
    answers(&master, "2");
    master.wait_log("hook on_ready gen=1 result=ready pid=* has not ended within command_timeout (2.0s): killed");
    master.wait_log("hook on_reload gen=2 result=committed pid=* has not ended within command_timeout (2.0s): killed");
    wait_for("the end of what is held", || is_gone(first));
    answers(&master, "2");
    // Nor does the end, beyond its time.
    let began = Instant::now();
    master.term();
    assert_eq!(master.wait_exit().code(), Some(0));
    assert!(began.elapsed() < AT_ONCE, "{:?}", began.elapsed());
    master.wait_log("hook on_exit * has not ended within command_timeout (2.0s): killed");
    master.assert_nothing_left();
    held.let_go();
}

#[test]
fn a_new_binary_whose_exec_hangs_is_not_waited_for_beyond_its_time() {
    let site = Site::with_releases("held_upgrade", 1);
    let (binaries, current) = (site.path().join("bin"), site.path().join("bin/forkmaster"));
    fs::create_dir(&binaries).expect("a directory can be made");
    std::os::unix::fs::symlink(binary(), &current).expect("a link can be made");
    let master = site.launch(Launch { binary: Some(current.clone()), ..Launch::default() });
    master.wait_serving();
    let Some((tool, mut held)) = held_tool(&site, &binary().to_string_lossy()) else { return };
    fs::remove_file(&current).expect("it is ours");
    std::os::unix::fs::symlink(&tool, &current).expect("a link can be made");
    let refused = |reason: &str, options: &[&str]| {
        let output = master.cli(&[&["upgrade"], options].concat());
        assert!(output.code == Some(1) && output.stderr.contains(reason), "{reason}: {output}");
    };
    let trial = thread::scope(|scope| {
        let asks = scope.spawn(|| refused("the new binary has not said within 3.0s", &["--timeout", "3s"]));
        let trial = held.wait();
        answers(&master, "1");
        refused("an upgrade is under way already", &[]);
        asks.join().expect("it is refused");
        trial
    });
    wait_for("the end of what is held", || is_gone(trial));
    answers(&master, "1");
    // A stop does not wait for it either.
    let second = thread::scope(|scope| {
        let asks = scope.spawn(|| refused("told to stop", &[]));
        let second = held.wait();
        assert_ne!(second, trial);
        master.term();
        asks.join().expect("it is refused");
        second
    });
    assert_eq!(master.wait_exit().code(), Some(0));
    wait_for("the end of what is held", || is_gone(second));
    master.assert_nothing_left();
    held.let_go();
}
