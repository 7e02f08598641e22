//! The table of ends: every way in which a request can end, what its client sees, its one line in the access log, and what is
//! counted; by GET and HEAD, HTTP/1.1 and 1.0, direct and behind nginx.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::PathBuf;
use std::time::Duration;

use nix::sys::signal::{kill, Signal};
use nix::unistd::Pid;

use crate::harness::client::Address;
use crate::harness::master::Master;
use crate::harness::site::Site;
use crate::harness::{wait_for, WAIT};
use crate::proxies;

/// What happens to the request.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Way {
    /// Nothing: it is asked, and what comes is read.
    Asked,
    /// Its client resets the connection while it waits for a thread.
    LeftBefore,
    /// The same while the application has it.
    LeftDuring,
    /// The same when a part of the answer is there.
    LeftAfter,
    /// The application raises when a part of the answer is there.
    RaisedAfter,
    /// Its worker is killed from outside.
    Killed,
    /// The same when a part of the answer is there.
    KilledAfter,
    /// It waits for a thread, and cannot move to another worker, when its own is given up for what runs there.
    Retired,
    /// It waits for a thread for longer than it may.
    Shed,
    /// The same, and its client has left.
    ShedAndLeft,
}

struct Row {
    name: &'static str,
    way: Way,
    target: &'static str,
    /// What the client sees, direct and behind nginx.
    direct: &'static str,
    nginx: &'static str,
    /// Status and end in the access log; none: it has no line.
    line: Option<(&'static str, &'static str)>,
    counted: Counts,
}

/// Requests that the application answered, those that got 504, those that ended with their worker.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Counts {
    requests: u64,
    timed_out: u64,
    lost: u64,
}

const ANSWERED: Counts = Counts { requests: 1, timed_out: 0, lost: 0 };
const TIMED_OUT: Counts = Counts { requests: 1, timed_out: 1, lost: 0 };
const LOST: Counts = Counts { requests: 0, timed_out: 0, lost: 1 };
const NOTHING: Counts = Counts { requests: 0, timed_out: 0, lost: 0 };

const ROWS: [Row; 13] = [
    row("answered", Way::Asked, "/", ["200 whole"; 2], Some(("200", "complete")), ANSWERED),
    row("raised", Way::Asked, "/fail", ["500 whole"; 2], Some(("500", "complete")), ANSWERED),
    row("raised after", Way::RaisedAfter, "/parts?raise=1", ["200 cut"; 2], Some(("200", "cut")), ANSWERED),
    row("refused", Way::Asked, "/large-body", ["413 whole"; 2], Some(("413", "refused")), NOTHING),
    row("timed out", Way::Asked, "/sleep?s=60", ["504 whole"; 2], Some(("504", "request-timeout")), TIMED_OUT),
    row("timed out in C", Way::Asked, "/hold?s=60", ["504 whole"; 2], Some(("504", "request-timeout")), TIMED_OUT),
    row("crashed", Way::Asked, "/crash", ["nothing", "502 whole"], Some(("-", "worker-died")), LOST),
    row("killed", Way::Killed, "/until", ["nothing", "502 whole"], Some(("-", "worker-died")), LOST),
    row("killed after", Way::KilledAfter, "/parts", ["200 cut"; 2], Some(("-", "worker-died")), LOST),
    row("retired", Way::Retired, "/body", ["503 whole", ""], Some(("503", "refused")), NOTHING),
    row("client gone before", Way::LeftBefore, "/big", ["", ""], None, NOTHING),
    row("client gone during", Way::LeftDuring, "/until", ["", ""], Some(("200", "client-left")), ANSWERED),
    row("client gone after", Way::LeftAfter, "/big?bytes=30000000", ["", ""], Some(("200", "client-left")), ANSWERED),
];

/// With a limit for waiting.
const SHED: [Row; 2] = [
    row("shed", Way::Shed, "/", ["503 whole", ""], Some(("503", "refused")), NOTHING),
    row("shed, and gone", Way::ShedAndLeft, "/", ["", ""], Some(("503", "client-left")), NOTHING),
];

/// In a maintenance.
const PAUSED: [Row; 2] = [
    row("turned away", Way::Asked, "/", ["503 whole"; 2], Some(("503", "refused")), NOTHING),
    row("an upload, turned away", Way::Asked, "/body", ["503 whole"; 2], Some(("503", "refused")), NOTHING),
];

const fn row(
    name: &'static str,
    way: Way,
    target: &'static str,
    [direct, nginx]: [&'static str; 2],
    line: Option<(&'static str, &'static str)>,
    counted: Counts,
) -> Row {
    Row { name, way, target, direct, nginx, line, counted }
}

impl Row {
    /// There is no part of an answer without content.
    fn can_be(&self, method: &str) -> bool {
        match self.way {
            Way::LeftAfter | Way::RaisedAfter | Way::KilledAfter => method != "HEAD",
            Way::Asked
            | Way::LeftBefore
            | Way::LeftDuring
            | Way::Killed
            | Way::Retired
            | Way::Shed
            | Way::ShedAndLeft => true,
        }
    }
}

struct Table {
    site: Site,
    master: Master,
    log: PathBuf,
    lines: usize,
    files: usize,
    is_paused: bool,
}

fn site(name: &str) -> Site {
    let site = Site::with_releases(name, 1);
    site.set("server.workers", "1").set("server.threads", "1").set("http.max_body", "'20KiB'");
    // Whatever else is slow is so because the machine is.
    site.set("server.request_timeout", "'5m'").set("server.graceful_timeout", "'1s'");
    site.set("server.request_timeouts", "{ '/sleep' = '1s', '/hold' = '1s' }");
    site.set("log.access", "'access.log'").set("log.access_format", "'%(m)s %(U)s %(H)s %(s)s %(X)s'");
    site.set("log.access_refused", "true");
    site
}

impl Table {
    fn new(site: Site) -> Table {
        let (master, log) = (site.start(), site.path().join("access.log"));
        Table { site, master, log, lines: 0, files: 0, is_paused: false }
    }

    fn pause(&mut self) {
        self.is_paused = true;
        self.site.write("page.html", "back soon");
        let output = self.master.cli(&["pause", "--maintenance", "page.html"]);
        assert!(output.ok(), "{output}");
        self.master.wait_log("maintenance *: clients get 503 and wait no longer");
    }

    fn counts(&self) -> Counts {
        let status = self.master.status().expect("it answers").0;
        let count = |name: &str| status[name].as_u64().unwrap_or_else(|| panic!("{name} in {status}"));
        Counts { requests: count("requests"), timed_out: count("timed_out"), lost: count("lost") }
    }

    fn wait_busy(&self) {
        wait_for("the application to have it", || {
            let status = self.master.status()?.0;
            (status["generations"][0]["workers"].as_array()?.iter().any(|worker| worker["busy"] == 1)).then_some(())
        });
    }

    /// The new lines, of which there must be so many in the end.
    fn new_lines(&mut self, count: usize) -> Vec<String> {
        let lines = wait_for("the lines", || {
            let text = std::fs::read_to_string(&self.log).unwrap_or_default();
            let lines: Vec<String> = text.lines().skip(self.lines).map(str::to_owned).collect();
            (lines.len() >= count).then_some(lines)
        });
        self.lines += lines.len();
        lines
    }

    /// A connection that the worker has: it is taken while a thread is free, and its next request may then have to wait.
    fn kept(&mut self, address: SocketAddr) -> TcpStream {
        let mut stream = connect(address);
        stream.write_all(b"GET / HTTP/1.1\r\nHost: h\r\n\r\n").expect("it is open");
        let mut seen = Vec::new();
        while !seen.ends_with(b"\r\n\r\n1") {
            let mut byte = [0];
            stream.read_exact(&mut byte).expect("an answer");
            seen.push(byte[0]);
        }
        self.new_lines(1);
        stream
    }

    fn file(&mut self) -> PathBuf {
        self.files += 1;
        self.site.path().join(format!("end-{}", self.files))
    }

    /// One row, by one kind of request; what `address` is makes the difference between direct and not.
    fn check(&mut self, row: &Row, method: &str, version: &str, address: SocketAddr, sees: &str, upstream: &str) {
        let name = format!("{}, {method} by HTTP/{version}", row.name);
        let expected = if self.is_paused { "paused" } else { "serving" };
        // While the service is paused none serves.
        let worker = wait_for("the only worker", || match &self.master.status()?.serving()?.workers[..] {
            [worker] if worker.state == expected => Some(worker.pid),
            _others => None,
        });
        let waits = match row.way {
            Way::LeftBefore | Way::Retired | Way::Shed | Way::ShedAndLeft => true,
            Way::Asked | Way::LeftDuring | Way::LeftAfter | Way::RaisedAfter | Way::Killed | Way::KilledAfter => false,
        };
        let waiting = waits.then(|| self.kept(address));
        let before = self.counts();
        let path = row.target.split('?').next().expect("a path");
        let file = self.file();
        let busy = waiting.map(|waiting| {
            let target = match row.way {
                Way::Retired => "/sleep?s=60".to_owned(),
                _ => format!("/until?file={}", file.display()),
            };
            let busy = ask(connect(address), "GET", &target, "1.1");
            self.wait_busy();
            (waiting, busy)
        });
        let target = match row.way {
            Way::Killed | Way::KilledAfter | Way::LeftDuring => format!("{path}?file={}", file.display()),
            Way::Asked
            | Way::LeftBefore
            | Way::LeftAfter
            | Way::RaisedAfter
            | Way::Retired
            | Way::Shed
            | Way::ShedAndLeft => row.target.to_owned(),
        };
        let mut others = 0;
        let seen = match (row.way, busy) {
            (Way::LeftBefore, Some((waiting, mut busy))) => {
                reset(ask(waiting, method, &target, version));
                // Longer than a request waits before the kernel is asked for its client.
                std::thread::sleep(Duration::from_millis(150));
                std::fs::write(&file, "").expect("it can be made");
                assert_eq!(see(&mut busy, "GET"), "200 whole", "{name}");
                others = 1;
                String::new()
            }
            (Way::Retired, Some((waiting, mut busy))) => {
                let seen = see(&mut ask(waiting, method, &target, version), method);
                assert_eq!(see(&mut busy, "GET"), "504 whole", "{name}");
                others = 1;
                seen
            }
            (Way::Shed, Some((waiting, mut busy))) => {
                let seen = see(&mut ask(waiting, method, &target, version), method);
                std::fs::write(&file, "").expect("it can be made");
                assert_eq!(see(&mut busy, "GET"), "200 whole", "{name}");
                others = 1;
                seen
            }
            (Way::ShedAndLeft, Some((waiting, mut busy))) => {
                let mark = self.master.mark();
                let waiting = ask(waiting, method, &target, version);
                wait_read(&waiting);
                reset(waiting);
                self.master.wait_log_after(mark, "refused * 503 all workers are busy (queue_timeout)");
                std::fs::write(&file, "").expect("it can be made");
                assert_eq!(see(&mut busy, "GET"), "200 whole", "{name}");
                others = 1;
                String::new()
            }
            (Way::LeftDuring, _) => {
                let client = ask(connect(address), method, &target, version);
                self.wait_busy();
                reset(client);
                std::fs::write(&file, "").expect("it can be made");
                String::new()
            }
            (Way::LeftAfter, _) => {
                let mut client = ask(connect(address), method, &target, version);
                client.read_exact(&mut [0; 10_000]).expect("a part");
                reset(client);
                String::new()
            }
            (Way::Killed | Way::KilledAfter, _) => {
                let mut client = ask(connect(address), method, &target, version);
                self.wait_busy();
                if row.way == Way::KilledAfter {
                    // What was seen of it is seen below, too.
                    client.peek(&mut [0]).expect("a part");
                }
                kill(Pid::from_raw(worker), Signal::SIGKILL).expect("it runs");
                see(&mut client, method)
            }
            (Way::Asked | Way::RaisedAfter | Way::LeftBefore | Way::Retired | Way::Shed | Way::ShedAndLeft, _) => {
                see(&mut ask(connect(address), method, &target, version), method)
            }
        };
        assert_eq!(seen, sees, "{name}");
        let lines = self.new_lines(usize::from(row.line.is_some()) + others);
        let expected = row.line.map(|(status, how)| format!("{method} {path} HTTP/{upstream} {status} {how}"));
        let is_other = |line: &&String| {
            let others = ["GET /until HTTP/1.1 200 complete", "GET /sleep HTTP/1.1 504 request-timeout"];
            !waits || !others.contains(&line.as_str())
        };
        let found: Vec<&String> = lines.iter().filter(is_other).collect();
        assert_eq!(found, expected.iter().collect::<Vec<_>>(), "{name}");
        if row.way == Way::Retired || (row.counted != ANSWERED && row.counted != NOTHING) {
            // A replacement is there, and all that can be said of the old one has been said.
            self.master.wait_log(&format!("worker gen=1 slot=0 pid={worker} * -> gone"));
        }
        let wanted = Counts {
            requests: before.requests + row.counted.requests + others as u64,
            timed_out: before.timed_out + row.counted.timed_out + u64::from(row.way == Way::Retired),
            lost: before.lost + row.counted.lost,
        };
        wait_for(&format!("the counts of {name}, {wanted:?}"), || (self.counts() == wanted).then_some(()));
    }
}

fn connect(address: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect_timeout(&address, WAIT).expect("it accepts");
    stream.set_read_timeout(Some(WAIT)).expect("setsockopt");
    stream
}

fn ask(mut stream: TcpStream, method: &str, target: &str, version: &str) -> TcpStream {
    // What is refused, and what is more than a request may have that moves to another worker.
    let body = match target {
        "/large-body" => 30_000,
        "/body" => 18_000,
        _ => 0,
    };
    let length = if body > 0 { format!("Content-Length: {body}\r\n") } else { String::new() };
    let request = format!("{method} {target} HTTP/{version}\r\nHost: h\r\nConnection: close\r\n{length}\r\n");
    stream.write_all(request.as_bytes()).expect("it is open");
    stream.write_all(&vec![b'x'; body]).expect("it is open");
    stream
}

/// All that was sent has been read at the other end, on this machine (proc_net(5), rx_queue).
fn wait_read(client: &TcpStream) {
    let ours = format!("0100007F:{:04X}", client.local_addr().expect("it is connected").port());
    wait_for("it to be read", || {
        let sockets = std::fs::read_to_string("/proc/net/tcp").ok()?;
        let other_end = sockets.lines().find(|line| line.split_whitespace().nth(2) == Some(ours.as_str()))?;
        other_end.split_whitespace().nth(4)?.ends_with(":00000000").then_some(())
    });
}

fn reset(stream: TcpStream) {
    let socket = socket2::Socket::from(stream);
    socket.set_linger(Some(Duration::ZERO)).expect("setsockopt");
}

/// The status, and whether the answer was whole.
fn see(stream: &mut TcpStream, method: &str) -> String {
    let mut all = Vec::new();
    let outcome = stream.read_to_end(&mut all);
    let text = String::from_utf8_lossy(&all);
    let Some((head, body)) = text.split_once("\r\n\r\n") else { return "nothing".to_owned() };
    let length: Option<usize> =
        head.lines().find_map(|line| line.to_ascii_lowercase().strip_prefix("content-length: ")?.parse().ok());
    let whole = outcome.is_ok()
        && match length {
            _ if method == "HEAD" => body.is_empty(),
            Some(length) => body.len() == length,
            None => body.ends_with("0\r\n\r\n"),
        };
    format!("{} {}", &head[9..12], if whole { "whole" } else { "cut" })
}

const KINDS: [(&str, &str); 3] = [("GET", "1.1"), ("GET", "1.0"), ("HEAD", "1.1")];

#[test]
fn every_end_is_seen_told_and_counted() {
    let mut table = Table::new(site("ends_direct"));
    let Address::Tcp(address) = table.master.address() else { panic!("not TCP") };
    for row in &ROWS {
        for (method, version) in KINDS {
            if row.can_be(method) {
                table.check(row, method, version, address, row.direct, version);
            }
        }
    }
    table.pause();
    for row in &PAUSED {
        for (method, version) in KINDS {
            table.check(row, method, version, address, row.direct, version);
        }
    }
    assert_eq!(table.master.status().expect("it answers").0["turned_away"], 2 * KINDS.len());
    table.master.stop();
    assert!(table.new_lines(0).is_empty());
}

#[test]
fn who_waits_too_long_is_refused_told_and_counted() {
    let site = site("ends_shed");
    // A client that leaves has to do so before its request is refused, on a machine where others run, too.
    site.set("server.queue_timeout", "'2s'");
    let mut table = Table::new(site);
    let Address::Tcp(address) = table.master.address() else { panic!("not TCP") };
    for row in &SHED {
        for (method, version) in KINDS {
            table.check(row, method, version, address, row.direct, version);
        }
    }
    assert_eq!(table.master.status().expect("it answers").0["shed"], 2 * KINDS.len());
}

/// nginx asks by HTTP/1.0 unless told otherwise.
#[test]
fn every_end_is_seen_told_and_counted_behind_nginx() {
    let mut table = Table::new(site("ends_nginx"));
    let Address::Tcp(upstream) = table.master.address() else { panic!("not TCP") };
    let (_nginx, address) = proxies::nginx(&table.site, upstream);
    for row in ROWS.iter().filter(|row| !row.nginx.is_empty()) {
        for (method, version) in KINDS.iter().filter(|(method, _)| row.can_be(method)) {
            table.check(row, method, version, address, row.nginx, "1.0");
        }
    }
    table.pause();
    for row in &PAUSED {
        for (method, version) in KINDS {
            table.check(row, method, version, address, row.nginx, "1.0");
        }
    }
}

/// nginx tells by closing its connection that its client has left, and half-closed clients do that too: so such a request is run.
/// Who does not take the answer is known to have gone.
#[test]
fn clients_that_leave_nginx_are_told_of_where_that_can_be_known() {
    let mut table = Table::new(site("ends_nginx_left"));
    let Address::Tcp(upstream) = table.master.address() else { panic!("not TCP") };
    let (_nginx, address) = proxies::nginx(&table.site, upstream);
    for (method, version) in KINDS {
        for (moment, path, end) in
            [("before", "/", "complete"), ("during", "/until", "complete"), ("after", "/parts", "client-left")]
        {
            if moment == "after" && method == "HEAD" {
                continue;
            }
            let (before, file) = (table.counts(), table.file());
            let query = format!("?file={}", file.display());
            let busy = (moment == "before").then(|| {
                let busy = ask(connect(upstream), "GET", &format!("/until{query}"), "1.1");
                table.wait_busy();
                busy
            });
            let mut client = ask(connect(address), method, &format!("{path}{query}"), version);
            match moment {
                // It lies in the kernel's queue.
                "before" => wait_upstream(upstream, ESTABLISHED, 2),
                _ => table.wait_busy(),
            }
            if moment == "after" {
                client.read_exact(&mut [0; 10_000]).expect("a part");
            }
            reset(client);
            wait_upstream(upstream, CLOSE_WAIT, 1);
            std::fs::write(&file, "").expect("it can be made");
            let mut lines = vec![format!("{method} {path} HTTP/1.0 200 {end}")];
            if let Some(mut busy) = busy {
                assert_eq!(see(&mut busy, "GET"), "200 whole");
                lines.insert(0, "GET /until HTTP/1.1 200 complete".to_owned());
            }
            let wanted = Counts { requests: before.requests + lines.len() as u64, ..before };
            assert_eq!(table.new_lines(lines.len()), lines, "{moment}, {method} by HTTP/{version}");
            wait_for("the counts", || (table.counts() == wanted).then_some(()));
        }
    }
}

/// States of a connection in proc_net_tcp(5).
const ESTABLISHED: &str = "01";
const CLOSE_WAIT: &str = "08";

/// Waits for so many connections to the service that are in this state, seen from there.
fn wait_upstream(upstream: SocketAddr, state: &str, count: usize) {
    let ours = format!("0100007F:{:04X}", upstream.port());
    wait_for(&format!("{count} connections in state {state}"), || {
        let sockets = std::fs::read_to_string("/proc/net/tcp").ok()?;
        let is_one = |line: &&str| {
            let fields: Vec<&str> = line.split_whitespace().take(4).collect();
            matches!(fields[..], [_, local, _, found] if local == ours && found == state)
        };
        (sockets.lines().filter(is_one).count() >= count).then_some(())
    });
}

/// The service stops: what ends in time is answered, the rest is cut and told of by the master.
#[test]
fn a_stop_ends_requests_and_tells_so() {
    for (way, in_time) in [("in time", true), ("too late", false)] {
        for (method, version, behind_nginx) in
            [("GET", "1.1", false), ("GET", "1.0", false), ("HEAD", "1.1", false), ("GET", "1.1", true)]
        {
            let mut table = Table::new(site("ends_stop"));
            let Address::Tcp(upstream) = table.master.address() else { panic!("not TCP") };
            let nginx = behind_nginx.then(|| proxies::nginx(&table.site, upstream));
            let address = nginx.as_ref().map_or(upstream, |(_, address)| *address);
            let (version_seen, cut) = if behind_nginx { ("1.0", "502 whole") } else { (version, "nothing") };
            let file = table.file();
            let mut client = ask(connect(address), method, &format!("/until?file={}", file.display()), version);
            table.wait_busy();
            table.master.term();
            if in_time {
                std::fs::write(&file, "").expect("it can be made");
            }
            assert_eq!(see(&mut client, method), if in_time { "200 whole" } else { cut }, "{way}");
            table.master.wait_exit();
            let end = if in_time { "200 complete" } else { "- worker-died" };
            assert_eq!(table.new_lines(1), [format!("{method} /until HTTP/{version_seen} {end}")], "{way}");
        }
    }
}
