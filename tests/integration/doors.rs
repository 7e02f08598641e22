//! What an operator meets at the doors: output that nobody reads, masters that do not answer, other versions, and
//! strangers at the control socket.

use std::collections::BTreeSet;
use std::fs;
use std::io::{BufRead, BufReader, IoSlice, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::signal::Signal;
use nix::sys::socket::{sendmsg, ControlMessage, MsgFlags};

use crate::harness::client::{head, Connection};
use crate::harness::machine::{can_change_users, Machine};
use crate::harness::master::{binary, run, Launch, Master};
use crate::harness::site::{copy_binary_to, Site};
use crate::harness::wait_for;

fn one_release(name: &str) -> Site {
    let site = Site::new(name);
    site.release("1");
    site.flip("1");
    site
}

/// Runs a line of shell in which `$FORKMASTER` is the program and `$CONFIG` the site's file.
fn shell(site: &Site, line: &str) -> Output {
    let mut shell = Command::new("bash");
    shell.args(["-o", "pipefail", "-c", line]).current_dir(site.path()).env_clear();
    shell.env("PATH", "/usr/local/bin:/usr/bin:/bin").env("FORKMASTER", binary()).env("CONFIG", site.config_path());
    shell.stdin(Stdio::null()).output().expect("there is a shell")
}

#[track_caller]
fn assert_ended(site: &Site, line: &str, code: i32) {
    let output = shell(site, line);
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(code), "{line}: {stderr}");
    assert!(!stderr.contains("panicked"), "{line}: {stderr}");
}

/// A reader that had enough, or a full disk, changes nothing of what was done.
#[test]
fn the_exit_code_is_the_outcome_whoever_reads_the_output() {
    let site = one_release("output");
    let master = site.start();
    for verb in ["reload", "status", "status --json", "health", "check", "config show"] {
        assert_ended(&site, &format!("$FORKMASTER {verb} -c $CONFIG | true"), 0);
        assert_ended(&site, &format!("$FORKMASTER {verb} -c $CONFIG > /dev/full"), 0);
        assert_ended(&site, &format!("$FORKMASTER {verb} -c $CONFIG >&- 2>&-"), 0);
    }
    site.build("bad").app("broken/missing_dependency.py").make();
    site.flip("bad");
    assert_ended(&site, "$FORKMASTER reload -c $CONFIG > /dev/full 2> /dev/full", 1);
    assert_ended(&site, "$FORKMASTER reload -c $CONFIG 2>&1 | true", 1);
    assert_ended(&site, "$FORKMASTER check -c /nonexistent/app.toml 2> /dev/full", 78);
    assert_eq!(master.get("/").text(), "1");
}

#[test]
fn status_shows_what_each_busy_worker_runs() {
    let site = one_release("running");
    let master = site.start();
    let mut running = Connection::to(&master.address());
    running.must_send(head("GET", "/sleep?s=20", &[]));
    let json = wait_for("the request in status", || {
        let status: serde_json::Value = serde_json::from_str(&master.cli(&["status", "--json"]).stdout).ok()?;
        let workers = status["generations"][0]["workers"].as_array()?;
        workers.iter().find_map(|worker| worker["running"].get(0)).cloned()
    });
    assert_eq!((&json["method"], &json["path"]), (&"GET".into(), &"/sleep".into()));
    assert!(json["age_s"].as_f64().is_some_and(|age| (0.0..20.0).contains(&age)), "{json}");
    let text = master.cli(&["status"]).stdout;
    assert!(text.lines().any(|line| line.starts_with("    ") && line.ends_with(" s GET /sleep")), "{text}");
}

/// A site whose master takes the usual places for its control socket, under a name that nobody else has.
fn usual_places(name: &str) -> Site {
    let site = Site::new(name);
    site.build("1").python(Machine::get().public_python()).make();
    site.flip("1");
    let unique = site.path().file_name().expect("it has a name").to_string_lossy().replace('.', "");
    site.unset("control.socket");
    site.set("name", &format!("'{unique}'"));
    site
}

fn name_of(site: &Site) -> String {
    site.path().file_name().expect("it has a name").to_string_lossy().replace('.', "")
}

/// Where the log says that the control socket is.
#[track_caller]
fn control_socket(master: &Master) -> PathBuf {
    let line = master.wait_log("control socket at *");
    line.split_once("control socket at ").map(|(_, path)| path.into()).expect("the line ends with it")
}

/// The program where every user can start it.
fn public_binary(site: &Site) -> PathBuf {
    match site.path().join("forkmaster") {
        copied if copied.exists() => copied,
        _missing => copy_binary_to(site),
    }
}

/// Runs the program as another user.
fn as_user(site: &Site, uid: u32, args: &[&str]) -> Output {
    let mut command = Command::new(Machine::get().program("setpriv"));
    command.args(["--reuid", &uid.to_string(), "--regid", &uid.to_string(), "--clear-groups", "--"]);
    command.arg(public_binary(site)).args(args).env_clear().current_dir("/");
    command.output().expect("setpriv can be started")
}

/// A server of another user's at this path, as `nc -lkU` would be, that answers each line with `answer`.
struct Stranger(Child);

impl Stranger {
    fn listening(uid: u32, path: &Path, answer: &str) -> Stranger {
        let directory = path.parent().expect("it is in a directory");
        fs::create_dir_all(directory).expect("it can be made");
        nix::unistd::chown(directory, Some(uid.into()), Some(uid.into())).expect("root may");
        let program = "import socket, sys\n\
                       s = socket.socket(socket.AF_UNIX)\n\
                       s.bind(sys.argv[1])\n\
                       s.listen(8)\n\
                       while True:\n\
                       \x20   c, _ = s.accept()\n\
                       \x20   try:\n\
                       \x20       if c.recv(4096): c.sendall(sys.argv[2].encode() + b'\\n')\n\
                       \x20   except OSError: pass\n";
        let mut command = Command::new(Machine::get().program("setpriv"));
        command.args(["--reuid", &uid.to_string(), "--regid", &uid.to_string(), "--clear-groups", "--"]);
        command.arg(&Machine::get().public_python().executable).args(["-c", program]).arg(path).arg(answer);
        let child = command.env_clear().current_dir("/").spawn().expect("setpriv can be started");
        wait_for("the stranger's socket", || path.exists().then_some(()));
        Stranger(child)
    }
}

impl Drop for Stranger {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// A name is no proof: whoever serves under it must be root, the client itself, or whom the configuration names.
#[test]
fn a_strangers_server_is_not_believed() {
    if !can_change_users() {
        return;
    }
    let site = usual_places("stranger");
    let path = site.path().join("theirs").join(format!("{}.sock", name_of(&site)));
    let hostile = "{\"ok\":true,\"v\":1,\"pid\":1,\"state\":\"\u{9b}2Jrunning\",\"ready\":true,\"generation\":43,\
                   \"took_s\":1.23,\"name\":\"\\u001b]0;owned\\u0007\"}";
    let _stranger = Stranger::listening(10001, &path, hostile);
    let config = site.config_path();
    let config = config.to_str().expect("plain characters");
    for verb in [&["status"][..], &["reload"], &["stop"], &["wait", "ready", "--timeout", "300ms"]] {
        let output = run(site.path(), &[verb, &["-c", config]].concat());
        let expected = if verb[0] == "wait" { Some(124) } else { Some(3) };
        assert_eq!(output.code, expected, "{verb:?}: {output}");
        let belongs = format!("{}: belongs to uid 10001, who is neither root nor you", path.display());
        assert!(output.stderr.contains(&belongs), "{verb:?}: {output}");
    }
    assert_eq!(run(site.path(), &["health", "--live", "-c", config]).code, Some(1));
    // Who names the socket talks to it, and what it says does nothing to the terminal.
    let socket = path.to_str().expect("plain characters");
    for args in [&["status", "--socket", socket][..], &["status", "--json", "--socket", socket]] {
        let output = run(site.path(), args);
        assert!(output.ok() && output.stdout.contains("owned"), "{output}");
        let acts = |character: char| character.is_control() && character != '\n';
        assert!(!output.text().chars().any(acts), "{output}");
    }
}

/// Nobody can keep a service from starting by taking its places first.
#[test]
fn a_stranger_in_the_usual_places_keeps_no_service_from_starting() {
    if !can_change_users() {
        return;
    }
    const UID: u32 = 23451;
    let site = usual_places("taken");
    let theirs = PathBuf::from(format!("/tmp/forkmaster-{UID}"));
    let ours = PathBuf::from(format!("/dev/shm/forkmaster-{UID}"));
    let _stranger = Stranger::listening(10001, &theirs.join(format!("{}.sock", name_of(&site))), "{}");
    let through = ["setpriv", "--reuid", "23451", "--regid", "23451", "--clear-groups", "--"];
    let master = site.launch(Launch {
        through: through.iter().map(|word| word.to_string()).collect(),
        binary: Some(public_binary(&site)),
        ..Launch::default()
    });
    master.wait_log("generation gen=1 rolling -> serving");
    assert_eq!(control_socket(&master).parent(), Some(ours.as_path()));
    let config = site.config_path();
    let config = config.to_str().expect("plain characters");
    let output = as_user(&site, UID, &["reload", "-c", config]);
    assert!(output.status.success(), "{}", text(&output));
    master.term();
    assert_eq!(master.wait_exit().code(), Some(0));
    let left = fs::read_dir(&ours).map(|entries| entries.flatten().map(|entry| entry.path()).collect::<Vec<_>>());
    assert_eq!(left.unwrap_or_default(), Vec::<PathBuf>::new());
    let _ = fs::remove_dir_all(&theirs);
    let _ = fs::remove_dir_all(&ours);
}

/// Clients that only connect and close, from many processes and without a pause.
#[test]
fn knocking_without_end_holds_nothing_up_and_fills_no_log() {
    let site = one_release("knocking");
    let master = site.start();
    let socket = site.path().join("control.sock");
    // Not even the owner's mode keeps a stranger from knocking here.
    fs::set_permissions(&socket, fs::Permissions::from_mode(0o666)).expect("it is our directory");
    let program = "import socket, sys, time\n\
                   while True:\n\
                   \x20   s = socket.socket(socket.AF_UNIX)\n\
                   \x20   try: s.connect(sys.argv[1])\n\
                   \x20   except ConnectionError: time.sleep(0.001)\n\
                   \x20   s.close()\n";
    let knock = |uid: u32| {
        let mut command = Command::new(Machine::get().program("setpriv"));
        command.args(["--reuid", &uid.to_string(), "--regid", &uid.to_string(), "--clear-groups", "--"]);
        command.arg(&Machine::get().public_python().executable).args(["-c", program]).arg(&socket);
        Stranger(command.env_clear().current_dir("/").stderr(Stdio::null()).spawn().expect("setpriv can be started"))
    };
    let uids = if can_change_users() { [0, 10001, 10001] } else { [nix::unistd::geteuid().as_raw(); 3] };
    let knockers = uids.map(knock);
    for _ in 0..3 {
        let health = master.cli(&["health"]);
        assert!(health.ok() && health.took < Duration::from_secs(5), "{health}");
        let reload = master.cli(&["reload"]);
        assert!(reload.ok(), "{reload}");
    }
    assert_eq!(master.get("/").text(), "1");
    let asked = Instant::now();
    master.term();
    assert_eq!(master.wait_exit().code(), Some(0));
    assert!(asked.elapsed() < Duration::from_secs(10), "{:?}", asked.elapsed());
    drop(knockers);
    let lines = master.log_lines("control client turned away").len();
    assert!(lines < 20, "{lines} lines about strangers");
}

/// A passed TCP socket that lingers makes the last close(2) wait. The master is not the one who waits.
#[test]
fn a_passed_descriptor_that_lingers_holds_nothing_up() {
    let site = one_release("lingering");
    let master = site.start();
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port is free");
    let mut lingering = std::net::TcpStream::connect(listener.local_addr().expect("it has one")).expect("it accepts");
    let (_unread, _) = listener.accept().expect("it was connected to");
    socket2::SockRef::from(&lingering).set_linger(Some(Duration::from_secs(600))).expect("an option of TCP");
    lingering.set_nonblocking(true).expect("a flag");
    while lingering.write(&[0; 65536]).is_ok() {}
    let control = UnixStream::connect(site.path().join("control.sock")).expect("it listens");
    let descriptors = [lingering.as_raw_fd()];
    let rights = [ControlMessage::ScmRights(&descriptors)];
    let line = [IoSlice::new(b"{\"command\":\"status\"}\n")];
    let sent = sendmsg::<()>(control.as_raw_fd(), &line, &rights, MsgFlags::empty(), None);
    // EPERM from Linux 6.16 on; before, it arrives, and a thread of the master's closes it.
    assert!(matches!(sent, Ok(_) | Err(Errno::EPERM)), "{sent:?}");
    // The last copy must be the master's, if it has one: this process would wait as well.
    std::mem::forget(lingering.try_clone().expect("a descriptor can be duplicated"));
    drop(control);
    let health = master.cli(&["health", "--live"]);
    assert!(health.ok(), "{health}");
    let reload = master.cli(&["reload"]);
    assert!(reload.ok(), "{reload}");
    socket2::SockRef::from(&lingering).set_linger(Some(Duration::ZERO)).expect("an option of TCP");
}

/// systemd sends TERM after `ExecStop=forkmaster stop --no-wait`: that is no second TERM.
#[test]
fn a_term_after_stop_cuts_no_request() {
    let site = one_release("stop_then_term");
    let master = site.start();
    let mut running = Connection::to(&master.address());
    running.must_send(head("GET", "/sleep?s=2", &[]));
    wait_for("the request", || master.cli(&["status"]).stdout.contains("GET /sleep").then_some(()));
    let stop = master.cli(&["stop", "--no-wait"]);
    assert!(stop.ok(), "{stop}");
    master.term();
    assert_eq!(running.expect_answer().status, 200);
    assert_eq!(master.wait_exit().code(), Some(0));
}

/// Two starts at once over what a killed master has left: one runs, the other says why it does not.
#[test]
fn of_two_starts_at_once_one_runs() {
    let site = one_release("two_starts");
    site.set("server.workers", "1");
    let socket = site.path().join("control.sock");
    // As older versions left it.
    site.write("control.1.tmp", "");
    for round in 0..20 {
        let masters = [site.spawn(), site.spawn()];
        let loser = wait_for("one of the two to end", || masters.iter().position(|master| master.exited().is_some()));
        assert_eq!(masters[loser].wait_exit().code(), Some(75), "round {round}");
        let why = masters[loser].log();
        assert!(why.contains("another master of this name is running"), "round {round}: {why}");
        let winner = &masters[1 - loser];
        winner.wait_log("control socket at *");
        assert!(UnixStream::connect(&socket).is_ok(), "round {round}: the winner cannot be reached");
        assert!(winner.exited().is_none(), "round {round}");
        winner.signal(Signal::SIGKILL);
        winner.wait_exit();
        // A killed master leaves both; the next round starts over them.
        assert!(socket.exists() && site.path().join("control.lock").exists());
    }
}

/// Requests as other versions write them.
#[test]
fn other_versions_are_understood_or_told_so() {
    let site = one_release("versions");
    let master = site.start();
    let ask = |line: &str| {
        let mut stream = UnixStream::connect(site.path().join("control.sock")).expect("it listens");
        stream.set_read_timeout(Some(Duration::from_secs(30))).expect("a timeout can be set");
        stream.write_all(line.as_bytes()).and_then(|()| stream.write_all(b"\n")).expect("it can be sent");
        let mut answer = String::new();
        BufReader::new(stream).read_line(&mut answer).expect("it answers");
        serde_json::from_str::<serde_json::Value>(&answer).unwrap_or_else(|error| panic!("{answer}: {error}"))
    };
    assert_eq!(ask("{\"command\":\"status\"}")["ok"], true);
    assert_eq!(ask("{\"v\":1,\"command\":\"status\",\"requests\":true}")["ready"], true);
    assert_eq!(ask("{\"v\":1,\"command\":\"wait_ready\",\"for\":\"workers\"}")["ok"], true);
    let reload = ask("{\"v\":1,\"command\":\"reload\",\"canary\":{\"workers\":1}}");
    assert_eq!((&reload["ok"], &reload["generation"]), (&true.into(), &2.into()), "{reload}");
    let version = env!("CARGO_PKG_VERSION");
    let unknown = ask("{\"v\":1,\"command\":\"teleport\"}");
    assert_eq!(unknown["reason"], format!("this master is {version} and does not know `teleport`"));
    let other = ask("{\"v\":2,\"command\":\"status\"}");
    assert_eq!(other["ok"], false, "{other}");
    assert_eq!(master.get("/").text(), "1");
}

/// The directory that the service manager gives is in the service's environment only.
#[test]
fn a_client_finds_the_socket_without_the_services_environment() {
    let site = usual_places("runtime_directory");
    fs::create_dir(site.path().join("run")).expect("it can be made");
    let directory = site.path().join("run");
    let launch = Launch::default().env("RUNTIME_DIRECTORY", directory.to_str().expect("plain characters"));
    let master = site.launch(launch);
    master.wait_log("generation gen=1 rolling -> serving");
    assert_eq!(control_socket(&master), directory.join(format!("{}.sock", name_of(&site))));
    let reload = master.cli(&["reload"]);
    assert!(reload.ok(), "{reload}");
    let list = run(site.path(), &["list"]);
    let row = list.stdout.lines().find(|line| line.starts_with(&name_of(&site))).map(str::to_owned);
    let row = row.unwrap_or_else(|| panic!("it is not listed: {list}"));
    let columns: Vec<&str> = row.split_whitespace().collect();
    let socket = control_socket(&master);
    let uid = nix::unistd::geteuid().to_string();
    let pid = master.pid().to_string();
    assert_eq!(columns[1..], [&pid, &uid, "running", socket.to_str().expect("plain characters")]);
    let stop = master.cli(&["stop"]);
    assert!(stop.ok(), "{stop}");
    assert_eq!(fs::read_dir(&directory).map(|entries| entries.count()).ok(), Some(0), "files are left behind");
}

/// Root's deploy script, and a service that runs as somebody else.
#[test]
fn root_finds_a_master_of_whom_the_configuration_names() {
    if !can_change_users() {
        return;
    }
    let site = usual_places("nobodys");
    let config = site.config_path();
    // As root with a user for the workers, then all as that user.
    site.set("server.user", "'nobody'");
    let master = site.start();
    let reload = master.cli(&["reload"]);
    assert!(reload.ok(), "{reload}");
    master.term();
    assert_eq!(master.wait_exit().code(), Some(0));
    let through = ["setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups", "--"];
    let launch = || Launch {
        through: through.iter().map(|word| word.to_string()).collect(),
        binary: Some(public_binary(&site)),
        ..Launch::default()
    };
    let master = site.launch(launch());
    master.wait_log("generation gen=1 rolling -> serving");
    let reload = master.cli(&["reload"]);
    assert!(reload.ok(), "[server] user names it: {reload}");
    // Neither the file's owner nor its text names nobody.
    site.unset("server.user");
    let reload = master.cli(&["reload"]);
    assert_eq!(reload.code, Some(3), "{reload}");
    assert!(reload.stderr.contains("belongs to uid 65534, who is neither root nor you, nor the owner or the `user` of the configuration; --socket"), "{reload}");
    nix::unistd::chown(&config, Some(65534.into()), None).expect("root may");
    let reload = master.cli(&["reload"]);
    assert!(reload.ok(), "its owner runs it: {reload}");
    // A stranger is not let in, and is told by whom.
    let output = as_user(&site, 10001, &["reload", "-c", config.to_str().expect("plain characters")]);
    assert!(!output.status.success() && text(&output).contains("forkmaster-65534"), "{}", text(&output));
}

/// Containers of a pod share /tmp and the network, and have the same paths inside. Each has its own master.
#[test]
fn two_containers_that_share_tmp_do_not_meet() {
    if !can_change_users() {
        return;
    }
    let site = usual_places("pod");
    // No /run to write to: the places that are left are shared.
    let script = "mount -t tmpfs -o ro none /run && exec \"$@\"";
    let unshare = Machine::get().program("unshare").to_str().expect("plain characters").to_string();
    let through =
        [&unshare, "--mount", "--pid", "--fork", "--kill-child=TERM", "--mount-proc", "sh", "-c", script, "sh"];
    let launch = || Launch { through: through.iter().map(|word| word.to_string()).collect(), ..Launch::default() };
    let (first, second) = (site.launch(launch()), site.launch(launch()));
    for master in [&first, &second] {
        master.wait_log("generation gen=1 rolling -> serving");
    }
    let places: BTreeSet<PathBuf> = [&first, &second].map(control_socket).into_iter().collect();
    let starts: Vec<&str> =
        places.iter().filter_map(|path| ["/dev/shm/", "/tmp/"].into_iter().find(|top| path.starts_with(top))).collect();
    assert_eq!(starts, ["/dev/shm/", "/tmp/"], "{places:?}");
    // As `docker exec` would.
    let inside = |master: &Master, args: &[&str]| {
        let pid = master.children().first().map(|child| child.pid.to_string()).expect("unshare has a child");
        let mut command = Command::new("nsenter");
        command.args(["--target", &pid, "--mount", "--pid", "--"]).arg(binary()).args(args);
        command.args(["-c", site.config_path().to_str().expect("plain characters")]);
        command.env_clear().env("PATH", "/usr/bin:/bin").current_dir("/").output().expect("nsenter can be started")
    };
    for (master, other) in [(&first, &second), (&second, &first)] {
        let mark = other.mark();
        let output = inside(master, &["reload"]);
        assert!(output.status.success(), "{}", text(&output));
        master.wait_log("generation gen=2 rolling -> serving");
        assert!(!other.log_after(mark).contains("-> proving"), "the reload went next door");
        let output = inside(master, &["status"]);
        assert!(text(&output).contains(" pid 1: running"), "{}", text(&output));
    }
    // A container without a master stops nobody's.
    let mut command = Command::new(&unshare);
    command.args(["--mount", "--pid", "--fork", "--mount-proc"]).arg(binary()).args(["stop", "--now"]);
    let config = site.config_path();
    let output = command.arg("-c").arg(&config).env_clear().current_dir("/").output().expect("unshare can be started");
    assert_eq!(output.status.code(), Some(3), "{}", text(&output));
    assert!(text(&output).contains("is a master of another container"), "{}", text(&output));
    // The end of pid 1 ends everything in its namespace (pid_namespaces(7)), but not the client that waits for it.
    let output = inside(&second, &["stop"]);
    assert!(output.status.success(), "{}: {}", output.status, text(&output));
    second.wait_exit();
    assert_eq!(first.get("/").text(), "1");
}

/// systemd's PrivateTmp=: the kernel lists the socket, and the file is nowhere to be seen.
#[test]
fn a_socket_in_a_private_directory_is_told_so() {
    if !can_change_users() {
        return;
    }
    let site = usual_places("private");
    fs::create_dir(site.path().join("run")).expect("it can be made");
    let directory = site.path().join("run");
    let directory = directory.to_str().expect("plain characters");
    let script = format!("mount -t tmpfs none {directory} && exec \"$@\"");
    let unshare = Machine::get().program("unshare").to_str().expect("plain characters").to_string();
    let through = [&unshare, "--mount", "sh", "-c", &script, "sh"];
    let launch = Launch { through: through.iter().map(|word| word.to_string()).collect(), ..Launch::default() };
    let master = site.launch(launch.env("RUNTIME_DIRECTORY", directory));
    control_socket(&master);
    let output = master.cli(&["status"]);
    assert_eq!(output.code, Some(3), "{output}");
    assert!(output.stderr.contains("private /tmp") && output.stderr.contains("RuntimeDirectory="), "{output}");
}

#[test]
fn wait_ready_waits_for_a_master_that_is_not_there_yet() {
    let site = one_release("wait_early");
    let config = site.config_path();
    let config = config.to_str().expect("plain characters");
    let output = run(site.path(), &["wait", "ready", "--timeout", "300ms", "-c", config]);
    assert_eq!(output.code, Some(124), "{output}");
    assert!(output.stderr.contains("not ready within the time given: no running master found"), "{output}");
    let directory = site.path();
    let master = std::thread::scope(|scope| {
        let waiting = scope.spawn(|| run(directory, &["wait", "ready", "--timeout", "60s", "-c", config]));
        let master = site.spawn();
        let output = waiting.join().expect("it does not panic");
        assert!(output.ok(), "{output}");
        master
    });
    assert!(master.status().is_some_and(|status| status.ready()));
    master.term();
    assert_eq!(master.wait_exit().code(), Some(0));
    // One that ends before it is ready is not waited for any longer, and that is told.
    site.build("2").import_s(60.0).make();
    site.flip("2");
    let master = site.spawn();
    master.wait_log("control socket at *");
    let mut waiting = Command::new(binary());
    waiting.args(["wait", "ready", "--timeout", "60s", "-c", config]).stdin(Stdio::null()).stdout(Stdio::null());
    let waiting = waiting.stderr(Stdio::piped()).env_clear().spawn().expect("it can be started");
    // It has a socket: it is connected.
    let descriptors = PathBuf::from(format!("/proc/{}/fd", waiting.id()));
    wait_for("the client's connection", || {
        let open = fs::read_dir(&descriptors).ok()?.flatten().filter_map(|entry| fs::read_link(entry.path()).ok());
        open.map(|target| target.to_string_lossy().into_owned()).find(|target| target.starts_with("socket:"))
    });
    master.signal(Signal::SIGINT);
    let output = waiting.wait_with_output().expect("it ends");
    assert_eq!(output.status.code(), Some(1), "{}", text(&output));
    assert!(text(&output).contains("not ready: the master "), "{}", text(&output));
}

#[test]
fn a_master_that_does_not_answer_is_told_so() {
    let site = one_release("stopped");
    let master = site.start();
    master.signal(Signal::SIGSTOP);
    let output = master.cli(&["status"]);
    assert_eq!(output.code, Some(124), "{output}");
    assert!(output.stderr.contains("does not answer within 10 s"), "{output}");
    let health = master.cli(&["health", "--live"]);
    assert_eq!(health.code, Some(1), "{health}");
    master.signal(Signal::SIGCONT);
    assert!(master.cli(&["health", "--live"]).ok());
}
