//! An application, or a neighbour on the machine, that wants more than it may have: root's rights over other
//! processes, the master's ear, the master's time. Each test runs an attack and shows that it was made, that it got
//! nothing, and what stopped it.
//!
//! As root the application is user nobody's; without root everything runs as the tests' user, and what an application
//! may do to its own user's processes anyway is not asked there.

use std::fs;
use std::io::{IoSlice, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{chown, PermissionsExt};
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use nix::sys::socket::{sendmsg, ControlMessage, MsgFlags};

use crate::harness::client::{get, Address};
use crate::harness::machine::{can_change_users, Machine};
use crate::harness::master::{run_with, Launch, Master, Worker};
use crate::harness::process::Process;
use crate::harness::site::{copy_binary_to, Site};
use crate::harness::wait_for;

const NOBODY: u32 = 65534;

/// Far below the time for which a lingering close(2) would wait here.
const AT_ONCE: Duration = Duration::from_secs(60);

/// For how long close(2) of a hostile descriptor waits: longer than any test.
const LINGER: Duration = Duration::from_secs(600);

/// Who the service and its application are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum As {
    /// A master as root, `[server] user = "nobody"`.
    RootWithUser,
    /// Everything as nobody, or as whoever runs the tests without root.
    Unprivileged,
}

impl As {
    fn each(test: impl Fn(As)) {
        if can_change_users() {
            test(As::RootWithUser);
        }
        test(As::Unprivileged);
    }

    /// A site whose release "1" has this application; beside it a file `report`, to which the application may write.
    fn site(self, name: &str, app: &str) -> Site {
        let site = Site::new(name);
        let source = format!("{HOSTILE}{app}").replace("REPORT", &format!("{:?}", site.path().join("report")));
        site.build("1").python(Machine::get().public_python()).file("app.py", &source).make();
        site.flip("1");
        let report = site.write("report", "");
        fs::set_permissions(&report, fs::Permissions::from_mode(0o666)).expect("it is our file");
        if self == As::RootWithUser {
            site.set("server.user", "'nobody'");
        }
        site
    }

    /// How commands and the master are started. After the last change of the settings.
    fn launch(self, site: &Site) -> Launch {
        if self == As::RootWithUser || !nix::unistd::geteuid().is_root() {
            return Launch::default();
        }
        for path in [site.path().to_path_buf(), site.config_path()] {
            chown(&path, Some(NOBODY), Some(NOBODY)).expect("root may");
        }
        let setpriv = Machine::get().program("setpriv").to_str().expect("plain characters");
        let through = [setpriv, "--reuid=65534", "--regid=65534", "--clear-groups", "--"];
        let through = through.iter().map(|word| (*word).to_string()).collect();
        Launch { through, binary: Some(copy_binary_to(site)), ..Launch::default() }
    }
}

/// What the hostile applications have in common.
const HOSTILE: &str = r#"
import json, os, socket, struct, threading

def channels():
    """Every channel to the master that this process holds."""
    found = []
    for fd in os.listdir("/proc/self/fd"):
        try:
            copy = socket.socket(fileno=os.dup(int(fd)))
        except OSError:
            continue
        if copy.family == socket.AF_UNIX and copy.type == socket.SOCK_SEQPACKET:
            found.append(copy)
        else:
            copy.close()
    return found

def report(line):
    with open(REPORT, "a") as file:
        file.write(line + "\n")

def lingering(seconds):
    """A TCP socket whose last close(2) waits: bytes that the peer never reads, and SO_LINGER."""
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    listener.listen(1)
    ours = socket.create_connection(listener.getsockname())
    theirs, _ = listener.accept()
    ours.setblocking(False)
    try:
        while True:
            ours.send(b"x" * 65536)
    except BlockingIOError:
        pass
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, seconds))
    return ours, (theirs, listener)

def answer(start_response, text):
    start_response("200 OK", [("Content-Length", str(len(text))), ("X-Pid", str(os.getpid()))])
    return [text.encode()]

"#;

/// A process that no application may harm.
struct Victim(Child);

impl Victim {
    fn new() -> Victim {
        let child = Command::new("sleep").arg("600").stdin(Stdio::null()).spawn();
        Victim(child.expect("coreutils are there"))
    }

    fn pid(&self) -> u32 {
        self.0.id()
    }

    #[track_caller]
    fn assert_lives(&mut self) {
        let ended = self.0.try_wait().expect("it is our child");
        assert_eq!(ended, None, "the application had a process killed that is not its own");
    }
}

impl Drop for Victim {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn report(site: &Site) -> String {
    fs::read_to_string(site.path().join("report")).unwrap_or_default()
}

#[track_caller]
fn assert_answers(master: &Master) {
    let began = Instant::now();
    let health = master.cli(&["health", "--live"]);
    assert!(health.ok() && began.elapsed() < AT_ONCE, "the master is held up: {health}");
}

/// The first step of a deploy runs code that nobody has looked at yet: what it says of pids is nothing to kill by.
#[test]
fn check_boot_kills_no_process_that_an_application_names() {
    let app = r#"
with open(os.path.join(os.path.dirname(REPORT), "victim")) as file:
    VICTIM = int(file.read())
for channel in channels():
    for pid in [VICTIM, -1, 0, 1, os.getppid()]:
        channel.send(json.dumps({"Hello": {"pid": pid}}).encode())
    report("sent by uid %d" % os.getuid())

def application(environ, start_response):
    return answer(start_response, "ok")
"#;
    As::each(|who| {
        let mut victim = Victim::new();
        let site = who.site("check_boot_names_a_pid", app);
        site.write("victim", &victim.pid().to_string());
        let launch = who.launch(&site);
        let config = site.config_path();
        let checked = run_with(site.path(), &["check", "--boot", "-c", config.to_str().expect("plain")], launch);
        assert!(report(&site).contains("sent by uid "), "{who:?}: nothing was attacked: {checked}");
        victim.assert_lives();
        // The introductions were read, and the kernel's word counted.
        assert!(checked.ok(), "{who:?}: {checked}");
    });
}

/// With `preload` the application's fork handlers run where the channels of its workers are. Whatever they claim, a
/// worker is the process that the kernel names, and the end of a template is the template's.
#[test]
fn fork_handlers_that_claim_other_pids_change_no_book() {
    let app = r#"
TEMPLATE = os.getpid()
with open(os.path.join(os.path.dirname(REPORT), "victim")) as file:
    VICTIM = int(file.read())
OWN = {os.fstat(channel.fileno()).st_ino for channel in channels()}

def claim(moment):
    for channel in channels():
        if os.fstat(channel.fileno()).st_ino in OWN:
            continue
        for pid in [TEMPLATE, VICTIM, os.getppid(), 1, -1]:
            try:
                channel.send(json.dumps({"Hello": {"pid": pid}}).encode())
                report(moment)
            except OSError:
                pass

os.register_at_fork(
    before=lambda: claim("before"),
    after_in_parent=lambda: claim("parent"),
    after_in_child=lambda: claim("child"),
)

def application(environ, start_response):
    if environ["PATH_INFO"] == "/kill":
        os.kill(TEMPLATE, 9)
    return answer(start_response, "ok")
"#;
    As::each(|who| {
        let mut victim = Victim::new();
        let site = who.site("false_claims", app);
        site.write("victim", &victim.pid().to_string());
        site.set("app.preload", "true").set("server.workers", "1").set("server.graceful_timeout", "'10m'");
        let master = site.launch(who.launch(&site));
        let worker = master.wait_serving().remove(0);
        assert!(!report(&site).is_empty(), "{who:?}: nothing was attacked");
        assert_eq!(master.get("/").pid(), worker.pid, "{who:?}: the books have another process's pid");
        let template = master.wait_settled().template_pid;
        assert_ne!(worker.pid, template);
        // What stopped it: the packets came from the template, says the kernel, and that name is taken.
        let taken = format!("worker gen=1 slot=0 pid=*: pid {template} is somebody else's, or another one was known");
        master.wait_log(&taken);
        // The template's end is nobody else's, and the next one can fork.
        let mark = master.mark();
        master.get("/kill");
        master.wait_log_after(mark, "template gen=1 * -> gone cause=\"SIGKILL\"");
        let next = master.wait_or_exit("another template", || {
            let now = master.status()?.serving()?.template_pid;
            (now != 0 && now != template).then_some(now)
        });
        Process::of(worker.pid).expect("the worker lives on").signal(Signal::SIGKILL);
        let replaced = master.wait_or_exit("another worker", || {
            let now = master.workers();
            (now.len() == 1 && now[0].pid != worker.pid).then(|| now[0].pid)
        });
        assert_eq!(master.get("/").pid(), replaced);
        assert_ne!(replaced, next);
        victim.assert_lives();
        // A process that is missing in the books would be waited for as long as graceful_timeout says.
        master.stop();
        victim.assert_lives();
    });
}

/// Everything that a worker holds and shares, used for the worst, and all that it may not touch, tried.
#[test]
fn an_application_that_lies_and_kills_gets_its_workers_replaced_and_nothing_else() {
    let app = r#"
import ctypes

def scoreboards():
    for line in open("/proc/self/maps"):
        where, may = line.split()[:2]
        if "forkmaster-scoreboard" in line and "w" in may:
            start, end = (int(part, 16) for part in where.split("-"))
            yield start, end - start

def outcome(act):
    try:
        return act() or "done"
    except OSError as error:
        return type(error).__name__

def traced(pid):
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.ptrace(16, pid, None, None) == 0:  # PTRACE_ATTACH
        return "attached"
    raise OSError(ctypes.get_errno(), "ptrace")

def kin(master):
    """The template and the other workers."""
    for pid in map(int, filter(str.isdigit, os.listdir("/proc"))):
        try:
            stat = open("/proc/%d/stat" % pid).read().rsplit(")", 1)[1].split()
        except OSError:
            continue
        if int(stat[1]) == master and pid != os.getpid():
            yield pid

LIES = [b"\xff" * 64, b"{", b"[]", b"null", b'"Serving"', b'"Draining"', b'"Drained"', b'{"Hello":{"pid":1}}', b"x" * 60000,
        b'{"Ready":{"pid":-1}}', b'{"Stacks":{"text":"x"}}']

def application(environ, start_response):
    master = os.getppid()
    found = {}
    if environ["PATH_INFO"] == "/master":
        found["kill"] = outcome(lambda: os.kill(master, 9))
        found["mem"] = outcome(lambda: open("/proc/%d/mem" % master, "r+b").close())
        found["ptrace"] = outcome(lambda: traced(master))
        found["fd"] = outcome(lambda: os.listdir("/proc/%d/fd" % master) and None)
    if environ["PATH_INFO"] == "/cells":
        for fill in (0xff, 0x5a):
            for start, length in scoreboards():
                ctypes.memset(start, fill, length)
                report("/cells")
    if environ["PATH_INFO"] == "/lies":
        found["sent"] = 0
        report("/lies")
        for channel in channels():
            for lie in LIES * 3:
                try:
                    channel.send(lie, socket.MSG_DONTWAIT)
                    found["sent"] += 1
                except OSError:
                    pass
    if environ["PATH_INFO"] == "/kin":
        for pid in list(kin(master)):
            found[str(pid)] = outcome(lambda: os.kill(pid, 9))
            report("/kin")
    return answer(start_response, json.dumps(found))
"#;
    As::each(|who| {
        let mut victim = Victim::new();
        let site = who.site("lies_and_kills", app);
        site.set("server.graceful_timeout", "'2s'").set("status.bind", "['unix:status.sock']");
        let master = site.launch(who.launch(&site));
        master.wait_serving();
        let ask = |path: &str| master.get(path).json();
        if who == As::RootWithUser {
            for (what, got) in ask("/master").as_object().expect("an object") {
                assert_eq!(got, "PermissionError", "{what}");
            }
        }
        for path in ["/cells", "/lies", "/kin"] {
            let before = master.workers();
            // Who lies is killed before it can answer.
            let found = get(&master.address(), path).map_or(serde_json::Value::Null, |answer| answer.json());
            assert!(report(&site).contains(path), "{who:?} {path}: nothing was attacked");
            if path == "/kin" {
                let killed = |worker: &&Worker| found[worker.pid.to_string()] == "done";
                assert_eq!(before.iter().filter(killed).count(), 1, "{who:?}: {found}");
                for worker in before.iter().filter(killed) {
                    wait_for("it to be gone", || {
                        master.workers().iter().all(|one| one.pid != worker.pid).then_some(())
                    });
                }
            }
            assert_answers(&master);
            // It looks at what they wrote, and shows it.
            assert!(master.status().is_some(), "{who:?} {path}");
            let metrics = get(&Address::Unix(site.path().join("status.sock")), "/metrics").expect("a page");
            assert_eq!(metrics.status, 200);
            // Whatever they are taken for, there are as many workers as there should be before long, and they serve.
            wait_for("workers", || {
                (master.workers().iter().filter(|one| one.state == "serving").count() == 2).then_some(())
            });
            let served = wait_for("an answer", || get(&master.address(), "/").ok().map(|answer| answer.text()));
            assert_eq!(served, "{}", "{who:?} {path}");
            victim.assert_lives();
        }
        // A good release makes everything good again.
        site.build("2").python(Machine::get().public_python()).make();
        site.flip("2");
        assert!(master.cli(&["reload"]).ok(), "{who:?}: {}", master.log());
        assert_eq!(master.get("/").text(), "2");
        assert!(!master.log().contains("panicked"), "{who:?}: {}", master.log());
        master.stop();
        victim.assert_lives();
    });
}

/// A descriptor whose last close(2) waits, sent to the master by a worker.
#[test]
fn a_worker_cannot_make_the_master_wait_in_close() {
    let app = r#"
KEPT = []

def application(environ, start_response):
    if environ["PATH_INFO"] == "/send":
        outcomes = []
        for channel in channels():
            ours, rest = lingering(600)
            KEPT.append(rest)
            try:
                socket.send_fds(channel, [b'"Serving"'], [ours.fileno()])
                outcomes.append("sent")
            except OSError as error:
                outcomes.append(type(error).__name__)
            # This process must not wait either: the thread that has the last copy does.
            threading.Thread(target=ours.close, daemon=True).start()
        return answer(start_response, " ".join(outcomes))
    return answer(start_response, "ok")
"#;
    As::each(|who| {
        let site = who.site("lingering_from_a_worker", app);
        site.set("server.graceful_timeout", "'2s'");
        let master = site.launch(who.launch(&site));
        master.wait_serving();
        let outcomes = master.connect().get_ok("/send").text();
        assert!(!outcomes.is_empty(), "{who:?}: nothing was attacked");
        if passed_rights_can_be_refused() {
            // Workers may send descriptors to each other, through the handoff queue, from which the master never reads.
            let mut outcomes: Vec<&str> = outcomes.split(' ').collect();
            outcomes.sort_unstable();
            assert_eq!(outcomes, ["PermissionError", "PermissionError", "sent"], "{who:?}");
        }
        assert_answers(&master);
        assert_eq!(master.get("/").text(), "ok");
        master.term();
        assert_eq!(master.wait_exit().code(), Some(0));
    });
}

/// The same over the control socket, by whoever may connect to it.
#[test]
fn a_control_client_cannot_make_the_master_wait_in_close() {
    let site = Site::with_releases("lingering_from_a_client", 1);
    let master = site.start();
    let mut kept = Vec::new();
    for bytes in [&b"x"[..], b"{\"command\":\"status\"}\n"] {
        let client = UnixStream::connect(site.path().join("control.sock")).expect("the master listens there");
        let (ours, rest) = lingering();
        let sent = send_with(&client, bytes, &ours);
        if passed_rights_can_be_refused() {
            assert_eq!(sent, Err(nix::errno::Errno::EPERM), "the control socket takes descriptors");
        }
        kept.push(rest);
        let_go(ours, sent);
        drop(client);
        assert_answers(&master);
    }
    master.stop_clean();
    drop(kept);
}

/// And over an HTTP listener that is a Unix socket: there it would be a worker that waits.
#[test]
fn an_http_client_cannot_make_a_worker_wait_in_close() {
    let site = Site::with_releases("lingering_over_http", 1);
    site.set("server.bind", "['127.0.0.1:0', 'unix:app.sock']").set("server.workers", "1");
    let master = site.start();
    let client = UnixStream::connect(site.path().join("app.sock")).expect("the worker listens there");
    let (ours, rest) = lingering();
    let sent = send_with(&client, b"GET / HTTP/1.1\r\n", &ours);
    if passed_rights_can_be_refused() {
        assert_eq!(sent, Err(nix::errno::Errno::EPERM), "an HTTP listener takes descriptors");
    }
    let_go(ours, sent);
    let asked = Instant::now();
    assert_eq!(master.get("/").text(), "1");
    assert!(asked.elapsed() < AT_ONCE, "the worker was held up for {:?}", asked.elapsed());
    drop((client, rest));
    master.stop();
}

/// Whoever binds the name first is not the master: a client believes root and its own user, nobody else.
#[test]
fn a_client_does_not_believe_a_server_of_another_user() {
    if !can_change_users() {
        return;
    }
    let site = Site::new("false_server");
    site.build("1").python(Machine::get().public_python()).make();
    site.flip("1");
    // A directory in which everybody may bind, and the abstract name that earlier versions had.
    let place = site.path().join("public");
    fs::create_dir(&place).expect("it is our directory");
    fs::set_permissions(&place, fs::Permissions::from_mode(0o1777)).expect("it is our directory");
    site.set("name", "'shopx'").set("control.socket", "'public/control.sock'");
    let socket = place.join("control.sock");
    let _false = FalseServer::new(&[socket.to_str().expect("plain characters"), "\\0forkmaster/0/shopx"]);
    let config = site.config_path();
    let config = config.to_str().expect("plain characters");
    for verb in [&["reload"][..], &["status"], &["health", "--live"], &["stop"], &["wait", "ready", "--timeout", "2s"]]
    {
        let output = run_with(site.path(), &[verb, &["-c", config]].concat(), Launch::default());
        assert!(!output.ok(), "{verb:?} believed user nobody: {output}");
        assert!(!output.text().contains('\u{1b}'), "{verb:?} prints what nobody says: {output}");
        assert!(output.text().contains("65534"), "{verb:?} does not say whose server that is: {output}");
    }
}

/// A name that somebody else has taken keeps no master from starting.
#[test]
fn nobody_keeps_a_master_from_starting_by_taking_its_name() {
    let site = As::Unprivileged.site("taken_name", "def application(e, s):\n    return answer(s, 'ok')\n");
    let uid = if nix::unistd::geteuid().is_root() { NOBODY } else { nix::unistd::geteuid().as_raw() };
    site.set("name", "'shopx'").unset("control.socket");
    let _false = FalseServer::new(&[&format!("\\0forkmaster/{uid}/shopx")]);
    let mut launch = As::Unprivileged.launch(&site);
    launch.env.push(("XDG_RUNTIME_DIR".into(), site.path().to_string_lossy().into_owned()));
    let master = site.launch(launch);
    master.wait_log("generation gen=1 committed");
    assert_eq!(master.get("/").text(), "ok");
    master.stop();
}

/// A program of nobody's that listens at some addresses and answers every verb as a master would.
struct FalseServer(Child);

impl FalseServer {
    fn new(addresses: &[&str]) -> FalseServer {
        let program = r#"
import json, os, selectors, socket, sys
if os.getuid() == 0:
    os.setgroups([]); os.setgid(65534); os.setuid(65534)
listening = selectors.DefaultSelector()
for address in sys.argv[1:]:
    server = socket.socket(socket.AF_UNIX)
    server.bind(address.replace("\\0", "\0"))
    server.listen(5)
    listening.register(server, selectors.EVENT_READ)
print("listening", flush=True)
while True:
    for key, _ in listening.select():
        client, _ = key.fileobj.accept()
        try:
            command = json.loads(client.recv(65536)).get("command")
            answer = {"ok": True, "generation": 43, "took_s": 1.23, "ready": True, "state": "running",
                      "name": "shop\x1b]0;owned\x07", "pid": 1, "generations": [], "listeners": []}
            client.sendall(json.dumps(answer).encode() + b"\n")
        except Exception:
            pass
        client.close()
"#;
        let python = &Machine::get().public_python().executable;
        let mut command = Command::new(python);
        command.arg("-c").arg(program).args(addresses).current_dir("/");
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().expect("Python can be started");
        let mut said = String::new();
        let stdout = child.stdout.as_mut().expect("a pipe");
        std::io::BufRead::read_line(&mut std::io::BufReader::new(stdout), &mut said).expect("it says so");
        assert_eq!(said, "listening\n");
        FalseServer(child)
    }
}

impl Drop for FalseServer {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A TCP socket whose last close(2) waits, and its peer, which reads nothing.
fn lingering() -> (TcpStream, (TcpStream, TcpListener)) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("some port is free");
    let address = listener.local_addr().expect("a bound socket has an address");
    let mut ours = TcpStream::connect(address).expect("we listen");
    let (theirs, _) = listener.accept().expect("we have connected");
    ours.set_nonblocking(true).expect("a socket can be");
    while ours.write(&[0; 65536]).is_ok() {}
    let ours = socket2::Socket::from(ours);
    ours.set_linger(Some(LINGER)).expect("a socket can linger");
    (TcpStream::from(ours), (theirs, listener))
}

fn send_with(stream: &UnixStream, bytes: &[u8], socket: &TcpStream) -> nix::Result<usize> {
    let fds = [socket.as_raw_fd()];
    let rights = [ControlMessage::ScmRights(&fds)];
    sendmsg::<()>(stream.as_raw_fd(), &[IoSlice::new(bytes)], &rights, MsgFlags::MSG_NOSIGNAL, None)
}

/// Closes our copy: if the other end has one now, its close(2) is the last one and waits. If not, ours would.
fn let_go(ours: TcpStream, sent: nix::Result<usize>) {
    let ours = socket2::Socket::from(ours);
    if sent.is_err() {
        ours.set_linger(None).expect("a socket need not linger");
    }
}

/// Whether the kernel has SO_PASSRIGHTS (Linux 6.16). Where it has not, a descriptor arrives and is closed where that
/// may wait.
fn passed_rights_can_be_refused() -> bool {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").expect("Linux has it");
    let mut numbers = release.split(|byte: char| !byte.is_ascii_digit()).filter_map(|part| part.parse::<u32>().ok());
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0)) >= (6, 16)
}

/// The log and the master's time are not the application's: what makes no sense is told once, and whoever said it is replaced.
#[test]
fn an_application_that_never_stops_talking_to_the_master_fills_no_log() {
    let app = r#"
import time

FLOODS = {
    # In the name of the worker, by a process that is none.
    "/hello": b'{"Hello":{"pid":1}}',
    "/drained": b'{"Drained":{"threads":["none"]}}',
    "/nonsense": b"{",
}

def application(environ, start_response):
    flood = FLOODS.get(environ["PATH_INFO"])
    # Copies, since a child of a worker closes what it has of the master's. The handoff queue is among them.
    copies = channels() if flood else []
    if flood and os.fork() == 0:
        end = time.monotonic() + 60
        for _ in range(2000):
            for copy in list(copies):
                try:
                    copy.send(flood, socket.MSG_DONTWAIT)
                except BlockingIOError:
                    time.sleep(0.001)
                except OSError:
                    copies.remove(copy)
            if time.monotonic() > end:
                break
        report("over")
        os._exit(0)
    return answer(start_response, "")
"#;
    let who = As::Unprivileged;
    let site = who.site("talks", app);
    site.set("server.graceful_timeout", "'1s'").set("server.workers", "1");
    let master = site.launch(who.launch(&site));
    for (flood, line) in [("/hello", "not believed"), ("/drained", "no daemons: none"), ("/nonsense", "its channel: ")]
    {
        let pid = master.get("/").pid();
        site.write("report", "");
        master.get(flood);
        wait_for("the flood's end", || {
            let report = fs::read_to_string(site.path().join("report")).expect("it is there");
            report.contains("over").then_some(())
        });
        assert!(master.cli(&["status"]).ok());
        wait_for("another worker", || (master.get("/").pid() != pid).then_some(()));
        let lines = master.log().lines().filter(|logged| logged.contains(line)).count();
        assert_eq!(lines, 1, "{flood}: {}", master.log());
    }
    master.stop();
}
