//! Nothing makes the master wait: logs that nobody reads, FIFOs without a reader, a user database that hangs. And
//! what it opens by name gives nobody rights that they do not have.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::{chown, symlink, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use nix::fcntl::OFlag;
use nix::poll::{poll, PollFd, PollFlags, PollTimeout};
use nix::sys::signal::Signal;
use nix::sys::stat::Mode;

use crate::harness::client::{self, Address};
use crate::harness::machine::{can_change_users, Machine};
use crate::harness::master::{binary, run, Launch, Master};
use crate::harness::process;
use crate::harness::site::{copy_binary_to, Site};
use crate::harness::{wait_for, wait_within};

/// What is at once for a master that waits for nothing, on a busy machine.
const AT_ONCE: Duration = Duration::from_secs(10);

const NOBODY: u32 = 65534;

fn site(name: &str) -> Site {
    let site = Site::new(name);
    site.release("1");
    site.flip("1");
    site.set("server.workers", "1").set("server.bind", "['unix:app.sock']");
    site
}

/// One whose release an unprivileged user can run.
fn public_site(name: &str) -> Site {
    let site = Site::new(name);
    site.build("1").python(Machine::get().public_python()).make();
    site.flip("1");
    site.set("server.workers", "1").set("server.bind", "['unix:app.sock']");
    site.set("server.user", "'nobody'").set("server.group", "'nogroup'");
    site
}

fn get(site: &Site, target: &str) -> client::Response {
    let address = Address::Unix(site.path().join("app.sock"));
    client::get(&address, target).unwrap_or_else(|failure| panic!("GET {target}: {failure}"))
}

/// Its reading and its writing end.
fn pipe() -> (OwnedFd, OwnedFd) {
    nix::unistd::pipe2(OFlag::O_CLOEXEC).expect("a pipe can be made")
}

/// A launch with one of the standard streams replaced.
fn with_stream(stream: i32, pipe: &OwnedFd) -> Launch {
    with_streams([(stream, pipe.as_raw_fd())])
}

fn with_streams<const COUNT: usize>(streams: [(i32, i32); COUNT]) -> Launch {
    let replace = move || {
        for (stream, fd) in streams {
            // SAFETY: dup2(2) is async-signal-safe; the pipe is open in the child as it is here.
            if unsafe { libc::dup2(fd, stream) } == -1 {
                return Err(std::io::Error::last_os_error());
            }
        }
        Ok(())
    };
    Launch { before_exec: Some(Box::new(replace)), ..Launch::default() }
}

/// Fills a pipe. O_NONBLOCK is set on a description of our own, not on the one that the master has.
fn fill(pipe: &OwnedFd) -> usize {
    let path = format!("/proc/self/fd/{}", pipe.as_raw_fd());
    let own = OpenOptions::new().write(true).custom_flags(libc::O_NONBLOCK).open(path);
    let mut own = own.expect("our own pipe can be opened again");
    let mut bytes = 0;
    for size in [4096, 1] {
        while let Ok(written) = own.write(&vec![b'\n'; size]) {
            bytes += written;
        }
    }
    bytes
}

/// What comes out of a pipe until a text is in it.
fn read_until(pipe: &OwnedFd, text: &str) -> String {
    let mut seen = Vec::new();
    let mut bytes = vec![0; 65536];
    wait_for(text, || {
        let mut fds = [PollFd::new(pipe.as_fd(), PollFlags::POLLIN)];
        let mut found = false;
        while !found && poll(&mut fds, PollTimeout::ZERO).expect("our own pipe can be waited for") > 0 {
            let read = nix::unistd::read(pipe, &mut bytes).expect("our own pipe can be read");
            let looked_at = seen.len().saturating_sub(text.len());
            seen.extend_from_slice(&bytes[..read]);
            found = String::from_utf8_lossy(&seen[looked_at..]).contains(text);
        }
        found.then_some(())
    });
    String::from_utf8_lossy(&seen).into_owned()
}

fn assert_alive(master: &Master) {
    let began = Instant::now();
    let health = master.cli(&["health", "--live"]);
    assert!(health.ok() && began.elapsed() < AT_ONCE, "{health}");
}

fn end_by_term(master: &Master) {
    master.term();
    let status = wait_within(AT_ONCE, || master.exited()).expect("TERM ends it");
    assert_eq!(status.code(), Some(0));
}

/// A log driver that stopped, a `| tee` that hangs.
#[test]
fn a_stderr_that_nobody_reads_stops_nothing_and_lost_lines_are_counted() {
    let site = site("unread_stderr");
    let (read, write) = pipe();
    let master = site.launch(with_stream(2, &write));
    let worker = master.wait_serving().remove(0);
    fill(&write);
    drop(write);
    process::Process::of(worker.pid).expect("it runs").signal(Signal::SIGKILL);
    wait_for("another worker", || master.workers().iter().any(|serving| serving.pid != worker.pid).then_some(()));
    assert_eq!(get(&site, "/").release(), "1");
    assert_alive(&master);
    master.reload();
    // Refusals of 900 KB each: the line of a syntax error is shown. A client that knows the socket does not read it.
    let good = fs::read_to_string(site.config_path()).expect("it was written");
    site.config(&format!("{good}there = is no such {}\n", "key".repeat(300_000)));
    for _ in 0..3 {
        let refused = run(site.path(), &["reload", "--socket", "control.sock"]);
        assert!(!refused.ok() && refused.text().contains("not valid TOML"), "{:?}", refused.code);
    }
    site.config(&good);
    assert_alive(&master);
    let text = read_until(&read, " lost: the log could not be written in time\n");
    let shown = || text.lines().map(|line| line.chars().take(200).collect::<String>() + "\n").collect::<String>();
    assert!(text.contains("reload refused, nothing has changed"), "what fits comes all the same: {}", shown());
    master.reload();
    read_until(&read, "committed after=");
    end_by_term(&master);
}

/// Any scanner sends bad requests, and each is a line.
#[test]
fn a_thousand_bad_requests_with_full_logs_keep_no_good_one_waiting() {
    let site = site("unread_logs");
    site.set("log.access", "'-'");
    let (errors, error_log) = pipe();
    let (_accesses, access_log) = pipe();
    let master = site.launch(with_streams([(2, error_log.as_raw_fd()), (1, access_log.as_raw_fd())]));
    let worker = master.wait_serving().remove(0);
    fill(&error_log);
    fill(&access_log);
    drop((error_log, access_log));
    let address = Address::Unix(site.path().join("app.sock"));
    for number in 0..1000 {
        let mut connection = client::Connection::open(&address).expect("it accepts");
        connection.send("GET / HTTP/1.1\r\nHost: a b\r\n\r\n").expect("it can be sent");
        assert_eq!(connection.read().expect("it is answered").status, 400);
        if number % 10 == 0 {
            assert_eq!(get(&site, "/").release(), "1");
        }
        if number == 500 {
            process::Process::of(worker.pid).expect("it runs").signal(Signal::SIGKILL);
            wait_for("another worker", || {
                master.workers().iter().any(|serving| serving.pid != worker.pid).then_some(())
            });
        }
    }
    assert_alive(&master);
    // Whoever reads at last has what fitted.
    read_until(&errors, " INFO  refused ");
    master.reload();
    read_until(&errors, "generation gen=2 committed");
    assert_eq!(get(&site, "/").release(), "1");
    end_by_term(&master);
}

#[test]
fn a_full_stderr_does_not_keep_a_start_from_failing_nor_the_end_from_coming() {
    let site = site("unread_stderr_at_start");
    site.set("app.module", "'no_such_module'");
    let (read, write) = pipe();
    fill(&write);
    let master = site.launch(with_stream(2, &write));
    assert!(wait_within(AT_ONCE, || master.exited()).is_some_and(|status| status.code() != Some(0)));
    site.set("app.there_is_no_such_key", "1");
    let master = site.launch(with_stream(2, &write));
    assert_eq!(wait_within(AT_ONCE, || master.exited()).and_then(|status| status.code()), Some(78));
    drop(read);
}

#[test]
fn fifos_without_a_reader_are_opened_at_start_and_at_usr1() {
    let site = site("fifos");
    let fifo = |name: &str| {
        let path = site.path().join(name);
        nix::unistd::mkfifo(&path, Mode::from_bits_truncate(0o600)).expect("a FIFO can be made");
        path
    };
    let (error, access) = (fifo("error.fifo"), fifo("access.fifo"));
    site.set("log.error", "'error.fifo'").set("log.access", "'access.fifo'").set("log.access_format", "'%(U)s'");
    let master = site.start();
    for target in ["/info", "/"] {
        get(&site, target);
        master.signal(Signal::SIGUSR1);
        assert_alive(&master);
    }
    master.reload();
    get(&site, "/info");
    // Whoever reads at last has what fitted.
    let wait_text = |path: &Path, text: &str| {
        let mut file = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path).expect("a FIFO opens");
        let (mut seen, mut bytes) = (Vec::new(), [0; 65536]);
        wait_for(text, || {
            if let Ok(read) = file.read(&mut bytes) {
                seen.extend_from_slice(&bytes[..read]);
            }
            String::from_utf8_lossy(&seen).contains(text).then_some(())
        });
    };
    wait_text(&error, "generation gen=2 committed");
    wait_text(&access, "/info\n");
    end_by_term(&master);
}

#[test]
fn a_pid_file_that_is_a_fifo_or_holds_no_pid_is_refused() {
    let site = site("pid_fifo");
    site.set("server.pidfile", "'app.pid'");
    let path = site.path().join("app.pid");
    nix::unistd::mkfifo(&path, Mode::from_bits_truncate(0o600)).expect("a FIFO can be made");
    let code = |master: &Master| wait_within(AT_ONCE, || master.exited()).and_then(|status| status.code());
    let master = site.spawn();
    assert_eq!(code(&master), Some(78), "{}", master.log());
    let why = format!("[server] pidfile {} cannot be written: it is not a regular file", path.display());
    assert!(master.log().contains(&why), "{}", master.log());
    fs::remove_file(&path).expect("it is ours");
    site.write("app.pid", "root:x:0:0\n");
    let master = site.spawn();
    assert_eq!(code(&master), Some(78), "{}", master.log());
    assert_eq!(fs::read_to_string(&path).expect("it is there"), "root:x:0:0\n");
}

#[test]
fn a_log_in_a_directory_that_is_not_there_is_a_fault_of_the_configuration() {
    let site = site("no_log_directory");
    for key in ["log.error", "log.access"] {
        site.set(key, "'none/app.log'");
        let master = site.spawn();
        let status = wait_within(AT_ONCE, || master.exited()).expect("it does not start");
        assert_eq!(status.code(), Some(78), "{}", master.log());
        site.unset(key);
    }
}

/// CVE-2016-1247: the application's user moves its log away and puts a link to another file there.
#[test]
fn a_link_in_the_applications_directory_opens_nothing_that_it_may_not_open() {
    if !can_change_users() {
        return;
    }
    let site = public_site("links");
    let logs = site.path().join("logs");
    fs::create_dir(&logs).expect("it is our directory");
    chown(&logs, Some(NOBODY), Some(NOBODY)).expect("root may");
    site.set("log.access", "'logs/access.log'").set("log.error", "'logs/error.log'");
    let precious = site.write("precious", "secret\n");
    fs::set_permissions(&precious, fs::Permissions::from_mode(0o600)).expect("it is our file");
    let master = site.start();
    let owner = |name: &str| logs.join(name).metadata().map(|meta| meta.uid()).ok();
    assert_eq!((owner("access.log"), owner("error.log")), (Some(NOBODY), Some(NOBODY)));
    for name in ["access", "error"] {
        fs::rename(logs.join(format!("{name}.log")), logs.join(format!("{name}.1"))).expect("a user may do that");
        symlink(&precious, logs.join(format!("{name}.log"))).expect("a user may do that");
        std::os::unix::fs::lchown(logs.join(format!("{name}.log")), Some(NOBODY), None).expect("root may");
    }
    master.signal(Signal::SIGUSR1);
    let errors = logs.join("error.1");
    for text in ["ERROR log cannot be reopened: Permission denied", "ERROR access log cannot be reopened: Permission"] {
        wait_for(text, || fs::read_to_string(&errors).ok()?.contains(text).then_some(()));
    }
    let refused = master.cli(&["reload"]);
    assert!(refused.text().contains("cannot be opened: Permission denied (with the rights of uid 65534"), "{refused}");
    get(&site, "/");
    assert_eq!(fs::read_to_string(&precious).expect("it is ours"), "secret\n");
    end_by_term(&master);
    // Nor at a start, nor as a pid file.
    site.unset("log.access").unset("log.error").set("server.pidfile", "'logs/error.log'");
    let master = site.spawn();
    let status = wait_within(AT_ONCE, || master.exited()).expect("it does not start");
    assert_eq!(status.code(), Some(77), "{}", master.log());
    assert_eq!(fs::read_to_string(&precious).expect("it is ours"), "secret\n");
}

/// The application's environment has nothing that its user could not read.
#[test]
fn an_env_file_is_read_with_the_rights_of_its_directory() {
    if !can_change_users() {
        return;
    }
    let site = public_site("env_file");
    let precious = site.write("precious", "DB_PASSWORD=hunter2\n");
    fs::set_permissions(&precious, fs::Permissions::from_mode(0o600)).expect("it is our file");
    let own = site.path().join("own");
    fs::create_dir(&own).expect("it is our directory");
    chown(&own, Some(NOBODY), Some(NOBODY)).expect("root may");
    symlink(&precious, own.join(".env")).expect("a user may do that");
    site.set("app.env_file", "'own/.env'");
    let master = site.spawn();
    let status = wait_within(AT_ONCE, || master.exited()).expect("it does not start");
    assert_eq!(status.code(), Some(78), "{}", master.log());
    assert!(master.log().contains("Permission denied (with the rights of uid 65534"), "{}", master.log());
    // A link that the user may follow is followed, and a file of root's in a directory of root's is read by root.
    fs::set_permissions(&precious, fs::Permissions::from_mode(0o644)).expect("it is our file");
    let master = site.start();
    assert_eq!(get(&site, "/info").json()["environ"]["DB_PASSWORD"], "hunter2");
    fs::set_permissions(&precious, fs::Permissions::from_mode(0o600)).expect("it is our file");
    site.set("app.env_file", "'precious'");
    master.reload();
    assert_eq!(get(&site, "/info").json()["environ"]["DB_PASSWORD"], "hunter2");
    // A link may have come with the code that root has unpacked: it leads nowhere that the application may not go.
    for (written, link) in [("linked.env", "linked.env"), ("conf/.env", "conf")] {
        let link = site.path().join(link);
        if written.contains('/') {
            let secrets = site.path().join("secrets");
            fs::create_dir(&secrets).expect("it is our directory");
            fs::rename(&precious, secrets.join(".env")).expect("it is our file");
            symlink(&secrets, &link).expect("it is our directory");
        } else {
            symlink(&precious, &link).expect("it is our directory");
        }
        site.set("app.env_file", &format!("'{written}'"));
        let refused = master.cli(&["reload"]);
        assert_eq!(refused.code, Some(1), "{refused}");
        let why =
            format!("Permission denied (with the rights of uid 65534, since {} is a symbolic link)", link.display());
        assert!(refused.text().contains(&why), "{refused}");
    }
}

#[test]
fn the_level_debug_reaches_the_masters_own_lines() {
    let site = Site::new("debug");
    let orphan = "import os\n\ndef application(environ, start_response):\n    child = os.fork()\n    if child == 0:\n        \
                  os.fork()\n        os._exit(0)\n    os.waitpid(child, 0)\n    start_response('200 OK', [])\n    return []\n";
    site.build("1").file("orphan.py", orphan).make();
    site.flip("1");
    site.set("server.workers", "1").set("server.bind", "['unix:app.sock']").set("app.module", "'orphan'");
    site.set("log.level", "'debug'");
    let master = site.start();
    get(&site, "/");
    master.wait_log("DEBUG reaped pid=* left behind by the application");
    site.set("log.level", "'trace'");
    master.reload();
    assert!(!master.log().contains(" TRACE "), "others' details: {}", master.log());
    // stderr has no name by which it could be opened again.
    let mark = master.mark();
    master.signal(Signal::SIGUSR1);
    master.reload();
    assert!(!master.log_after(mark).contains("log reopened"), "{}", master.log());
}

/// A user database that hangs as long as a file is there.
struct HangingUsers {
    library: PathBuf,
    hangs: PathBuf,
    entered: PathBuf,
}

impl HangingUsers {
    fn new(site: &Site) -> HangingUsers {
        let source = site.write(
            "users.c",
            r#"
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <pwd.h>
#include <stdlib.h>
#include <unistd.h>
int getpwnam_r(const char *name, struct passwd *entry, char *bytes, size_t size, struct passwd **found) {
    const char *hangs = getenv("TEST_USERS_HANG"), *entered = getenv("TEST_USERS_ENTERED");
    while (hangs && access(hangs, F_OK) == 0) {
        close(open(entered, O_WRONLY | O_CREAT, 0644));
        usleep(10000);
    }
    int (*next)(const char *, struct passwd *, char *, size_t, struct passwd **) = dlsym(RTLD_NEXT, "getpwnam_r");
    return next(name, entry, bytes, size, found);
}
"#,
        );
        let library = site.path().join("users.so");
        let built = Command::new("cc").args(["-shared", "-fPIC", "-o"]).arg(&library).arg(&source).arg("-ldl").status();
        assert!(built.is_ok_and(|status| status.success()), "cc cannot build {}", source.display());
        HangingUsers { library, hangs: site.path().join("hangs"), entered: site.path().join("entered") }
    }

    fn launch(&self) -> Launch {
        let text = |path: &Path| path.to_str().expect("plain characters").to_owned();
        Launch::default()
            .env("LD_PRELOAD", &text(&self.library))
            .env("TEST_USERS_HANG", &text(&self.hangs))
            .env("TEST_USERS_ENTERED", &text(&self.entered))
    }

    fn hang(&self) {
        File::create(&self.hangs).expect("a file can be made");
    }

    fn wait_entered(&self) {
        wait_for("a look-up that hangs", || self.entered.exists().then_some(()));
    }
}

#[test]
fn term_ends_a_start_whose_user_is_not_found_in_time() {
    if !can_change_users() {
        return;
    }
    let site = public_site("hanging_start");
    let users = HangingUsers::new(&site);
    users.hang();
    let master = site.launch(users.launch());
    users.wait_entered();
    end_by_term(&master);
}

/// LDAP is down while somebody deploys.
#[test]
fn a_reload_whose_user_is_not_found_in_time_keeps_nobody_waiting_and_says_what_hung() {
    if !can_change_users() {
        return;
    }
    let site = public_site("hanging_reload");
    let users = HangingUsers::new(&site);
    let master = site.launch(users.launch());
    let worker = master.wait_serving().remove(0);
    users.hang();
    // One that comes back in time: the deploy is late and nothing else is.
    master.hup();
    users.wait_entered();
    process::Process::of(worker.pid).expect("it runs").signal(Signal::SIGKILL);
    wait_for("another worker", || master.workers().iter().any(|serving| serving.pid != worker.pid).then_some(()));
    assert_eq!(get(&site, "/").release(), "1");
    assert_alive(&master);
    // HUPs meanwhile are one more reload, however many they are.
    for _ in 0..5 {
        master.hup();
        assert_alive(&master);
    }
    fs::remove_file(&users.hangs).expect("it is there");
    master.wait_log("generation gen=3 committed");
    assert_eq!(master.log_lines("generation gen=* release=*").len(), 3, "{}", master.log());
    // One that does not: whoever asked hears why.
    users.hang();
    let refused = run(site.path(), &["reload", "--socket", "control.sock"]);
    assert_eq!(refused.code, Some(1), "{refused}");
    let reason = "reading the configuration took longer than 30 s: looking up user nobody (NSS)";
    assert!(refused.text().contains(reason), "{refused}");
    master.wait_log(&format!("ERROR reload refused, nothing has changed: {reason}"));
    // The next one has another thread, and TERM waits for neither.
    master.hup();
    assert_alive(&master);
    end_by_term(&master);
}

/// An exec waits for all threads of the process, and one of them may hang in the kernel.
/// As found: whoever asked heard nothing for 30 s, and nothing was ever logged again.
#[test]
fn a_reading_that_panics_refuses_the_reload_at_once_and_the_log_goes_on() {
    let site = site("unwaiting_panic");
    let master = site.launch(Launch::default().env("FORKMASTER_MUTANT", "reading-panics"));
    master.wait_serving();
    for _ in 0..2 {
        let mark = master.mark();
        let output = master.cli(&["reload"]);
        let said = output.stderr.contains("reading the configuration failed: it has panicked");
        assert!(output.code == Some(1) && said, "{output}");
        master.wait_log_after(mark, "as the mutant wants it");
    }
    assert_alive(&master);
}

#[test]
fn a_reading_that_hangs_refuses_an_upgrade() {
    if !can_change_users() {
        return;
    }
    let site = public_site("hanging_upgrade");
    let users = HangingUsers::new(&site);
    let (real, called) = (binary(), site.path().join("called"));
    symlink(&real, &called).expect("a link of the site");
    let master = site.launch(Launch { binary: Some(called.clone()), ..users.launch() });
    master.wait_serving();
    users.hang();
    master.hup();
    users.wait_entered();
    // The new binary itself finds its user.
    fs::remove_file(&called).expect("it is there");
    site.write("called", &format!("#!/bin/sh\nexec env -u LD_PRELOAD {} \"$@\"\n", real.display()));
    fs::set_permissions(&called, fs::Permissions::from_mode(0o755)).expect("it is ours");
    let refused = run(site.path(), &["upgrade", "--socket", "control.sock"]);
    let reason = "reading the configuration takes longer than 1 s, and an exec would wait for it";
    assert!(refused.code == Some(1) && refused.stderr.contains(reason), "{refused}");
    fs::remove_file(&users.hangs).expect("it is there");
    master.wait_log("generation gen=2 committed");
    let upgraded = run(site.path(), &["upgrade", "--socket", "control.sock"]);
    assert!(upgraded.ok(), "{upgraded}");
    assert_eq!(get(&site, "/").release(), "1");
    end_by_term(&master);
}

#[test]
fn the_log_settings_of_a_refused_release_are_refused_with_it() {
    let site = site("refused_log");
    site.set("log.error", "'a.log'").set("app.module", "'app'");
    let master = site.start();
    let text = |name: &str| fs::read_to_string(site.path().join(name)).unwrap_or_default();
    site.set("log.error", "'b.log'").set("log.level", "'error'").set("app.module", "'no_such_module'");
    assert_eq!(master.cli(&["reload"]).code, Some(1));
    master.signal(Signal::SIGTTIN);
    master.wait_workers(2);
    let wait_text = |name: &str, part: &str| wait_for(part, || text(name).contains(part).then_some(()));
    wait_text("a.log", "scaled by +1");
    assert_eq!(text("b.log"), "", "nothing was logged there");
    master.signal(Signal::SIGUSR1);
    wait_text("a.log", "log reopened");
    assert_eq!(text("b.log"), "");
    // A good one takes them over when it commits.
    site.set("app.module", "'app'").set("log.level", "'info'");
    master.reload();
    wait_text("b.log", " committed after=");
    assert!(!text("a.log").contains("gen=3 committed"), "{}", text("a.log"));
    // One rule for both: a log that cannot be opened refuses the reload.
    for key in ["log.error", "log.access"] {
        site.set(key, "'app.sock'");
        let refused = master.cli(&["reload"]);
        let path = site.path().join("app.sock");
        let what = format!("[log] {} {}", &key[4..], path.display());
        let reason = format!("{what} cannot be opened: it is neither a file nor a FIFO nor a device");
        assert!(!refused.ok() && refused.text().contains(&reason), "{refused}");
        site.set(key, "'b.log'");
    }
}

/// A FIFO by name whose reader stopped: it is full, as a pipe for stderr may be.
#[test]
fn an_error_log_that_is_a_full_fifo_by_name_stops_nothing() {
    let site = site("full_fifo");
    let path = site.path().join("error.fifo");
    nix::unistd::mkfifo(&path, Mode::from_bits_truncate(0o600)).expect("a FIFO can be made");
    let reader = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(&path).expect("a FIFO opens");
    site.set("log.error", "'error.fifo'");
    let master = site.start();
    let writer = OwnedFd::from(OpenOptions::new().write(true).open(&path).expect("it has a reader"));
    fill(&writer);
    for _ in 0..3 {
        let mut bad = client::Connection::to(&Address::Unix(site.path().join("app.sock")));
        bad.must_send("GET / HTTP/1.1\r\nHost: a b\r\n\r\n");
        assert_eq!(bad.expect_answer().status, 400);
        assert_eq!(get(&site, "/").text(), "1");
    }
    let worker = master.wait_serving()[0].pid;
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(worker), Signal::SIGKILL).expect("it is there");
    wait_for("another worker", || master.workers().iter().any(|new| new.pid != worker).then_some(()));
    master.reload();
    master.signal(Signal::SIGUSR1);
    assert_alive(&master);
    drop(writer);
    // So few lines wait for a reader; none is lost.
    let text = read_until(&OwnedFd::from(reader), "log reopened");
    assert!(text.contains("generation gen=2 committed") && !text.contains(" lost: "), "{text}");
    end_by_term(&master);
}

/// A master that is not root has no rights to give up: what others put in a public directory is refused all the same.
#[test]
fn a_master_that_is_not_root_follows_nobodys_link_either() {
    if !can_change_users() {
        return;
    }
    let site = public_site("links_without_root");
    site.unset("server.user").unset("server.group");
    let binary = copy_binary_to(&site);
    let (own, public) = (site.path().join("own"), site.path().join("public"));
    for (directory, mode) in [(&own, 0o700), (&public, 0o1777)] {
        fs::create_dir(directory).expect("it is our directory");
        fs::set_permissions(directory, fs::Permissions::from_mode(mode)).expect("it is ours");
    }
    chown(&own, Some(NOBODY), Some(NOBODY)).expect("root may");
    site.set("server.bind", "['unix:own/app.sock']").set("control.socket", "'own/control.sock'");
    // A file of the master's own user, which somebody else would have it write to.
    let precious = own.join("precious");
    fs::write(&precious, "secret\n").expect("root may");
    chown(&precious, Some(NOBODY), Some(NOBODY)).expect("root may");
    for name in ["access.log", "error.log", "app.pid"] {
        symlink(&precious, public.join(name)).expect("a link can be made");
        std::os::unix::fs::lchown(public.join(name), Some(10001), None).expect("root may");
    }
    let start = |key: &str, name: &str| {
        site.set(key, &format!("'public/{name}'"));
        let through = ["setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups", "--"];
        let master = site.launch(Launch {
            through: through.iter().map(|word| (*word).to_string()).collect(),
            binary: Some(binary.clone()),
            ..Launch::default()
        });
        let status = wait_within(AT_ONCE, || master.exited());
        site.unset(key);
        let said = master.log();
        assert!(said.contains("is a symbolic link that somebody else has made (uid 10001)"), "{key}: {said}");
        assert_eq!(status.and_then(|status| status.code()), Some(77), "{key}: {said}");
    };
    start("log.access", "access.log");
    start("log.error", "error.log");
    start("server.pidfile", "app.pid");
    assert_eq!(fs::read_to_string(&precious).expect("it is ours"), "secret\n");
}
