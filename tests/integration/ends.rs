//! The table of ends: every way in which a request can end, what its client sees, its one line in the access log, and what is
//! counted; by GET and HEAD, HTTP/1.1 and 1.0, direct and behind nginx.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use nix::sys::signal::{kill, Signal};
use nix::unistd::Pid;

use crate::harness::client::Address;
use crate::harness::machine::Machine;
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
    /// Its worker is killed from outside.
    Killed,
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

const ROWS: [Row; 10] = [
    row("answered", Way::Asked, "/", ["200 whole"; 2], Some(("200", "complete")), ANSWERED),
    row("raised", Way::Asked, "/fail", ["500 whole"; 2], Some(("500", "complete")), ANSWERED),
    row("refused", Way::Asked, "/large-body", ["413 whole"; 2], None, NOTHING),
    row("timed out", Way::Asked, "/sleep?s=60", ["504 whole"; 2], Some(("504", "request-timeout")), TIMED_OUT),
    row("timed out in C", Way::Asked, "/hold?s=60", ["504 whole"; 2], Some(("504", "request-timeout")), TIMED_OUT),
    row("crashed", Way::Asked, "/crash", ["nothing", "502 whole"], Some(("-", "worker-died")), LOST),
    row("killed", Way::Killed, "/until", ["nothing", "502 whole"], Some(("-", "worker-died")), LOST),
    row("client gone before", Way::LeftBefore, "/big", ["", ""], None, NOTHING),
    row("client gone during", Way::LeftDuring, "/until", ["", ""], Some(("200", "client-left")), ANSWERED),
    row("client gone after", Way::LeftAfter, "/big?bytes=30000000", ["", ""], Some(("200", "client-left")), ANSWERED),
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

struct Table {
    site: Site,
    master: Master,
    log: PathBuf,
    lines: usize,
    files: usize,
}

fn site(name: &str) -> Site {
    let site = Site::with_releases(name, 1);
    site.set("server.workers", "1").set("server.threads", "1").set("http.max_body", "'1KiB'");
    // Whatever else is slow is so because the machine is.
    site.set("server.request_timeout", "'5m'").set("server.graceful_timeout", "'1s'");
    site.set("server.request_timeouts", "{ '/sleep' = '1s', '/hold' = '1s' }");
    site.set("log.access", "'access.log'").set("log.access_format", "'%(m)s %(U)s %(H)s %(s)s %(X)s'");
    site
}

impl Table {
    fn new(name: &str) -> Table {
        let site = site(name);
        let (master, log) = (site.start(), site.path().join("access.log"));
        Table { site, master, log, lines: 0, files: 0 }
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
        let worker = self.master.wait_serving().remove(0).pid;
        let waiting = (row.way == Way::LeftBefore).then(|| self.kept(address));
        let before = self.counts();
        let path = row.target.split('?').next().expect("a path");
        let file = self.file();
        let busy = waiting.map(|waiting| {
            let busy = ask(connect(address), "GET", &format!("/until?file={}", file.display()), "1.1");
            self.wait_busy();
            (waiting, busy)
        });
        let target = match row.way {
            Way::Killed | Way::LeftDuring => format!("{path}?file={}", file.display()),
            Way::Asked | Way::LeftBefore | Way::LeftAfter => row.target.to_owned(),
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
            (Way::Killed, _) => {
                let mut client = ask(connect(address), method, &target, version);
                self.wait_busy();
                kill(Pid::from_raw(worker), Signal::SIGKILL).expect("it runs");
                see(&mut client, method)
            }
            (Way::Asked | Way::LeftBefore, _) => see(&mut ask(connect(address), method, &target, version), method),
        };
        assert_eq!(seen, sees, "{name}");
        let lines = self.new_lines(usize::from(row.line.is_some()) + others);
        let expected = row.line.map(|(status, how)| format!("{method} {path} HTTP/{upstream} {status} {how}"));
        let found: Vec<&String> =
            lines.iter().filter(|line| !line.starts_with("GET /until HTTP/1.1 200 complete")).collect();
        assert_eq!(found, expected.iter().collect::<Vec<_>>(), "{name}");
        if row.counted != ANSWERED && row.counted != NOTHING {
            // A replacement is there, and all that can be said of the old one has been said.
            self.master.wait_log(&format!("worker gen=1 slot=0 pid={worker} * -> gone"));
        }
        let wanted = Counts {
            requests: before.requests + row.counted.requests + others as u64,
            timed_out: before.timed_out + row.counted.timed_out,
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
    let length = if target == "/large-body" { "Content-Length: 2000\r\n" } else { "" };
    let request = format!("{method} {target} HTTP/{version}\r\nHost: h\r\nConnection: close\r\n{length}\r\n");
    stream.write_all(request.as_bytes()).expect("it is open");
    if !length.is_empty() {
        stream.write_all(&[b'x'; 2000]).expect("it is open");
    }
    stream
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
    let mut table = Table::new("ends_direct");
    let Address::Tcp(address) = table.master.address() else { panic!("not TCP") };
    for row in &ROWS {
        for (method, version) in KINDS {
            // There is no part of an answer without content.
            if !(row.way == Way::LeftAfter && method == "HEAD") {
                table.check(row, method, version, address, row.direct, version);
            }
        }
    }
    table.master.stop();
    assert!(table.new_lines(0).is_empty());
}

/// nginx asks by HTTP/1.0 unless told otherwise. That its client has left it tells by closing its connection, which half-closed
/// clients do too, so such a request is run.
#[test]
fn every_end_is_seen_told_and_counted_behind_nginx() {
    let mut table = Table::new("ends_nginx");
    let Address::Tcp(upstream) = table.master.address() else { panic!("not TCP") };
    let user = Command::new("id").arg("-un").output().expect("id is there");
    let user = String::from_utf8_lossy(&user.stdout).trim().to_owned();
    let (_nginx, addresses) = proxies::start(&table.site, 1, |ports| {
        let config = format!(
            "daemon off; worker_processes 1; pid nginx.pid; error_log stderr crit;\n\
             events {{ worker_connections 256; }}\n\
             http {{ access_log off; client_body_temp_path nginx-body; proxy_temp_path nginx-proxy; \
             fastcgi_temp_path nginx-fastcgi; uwsgi_temp_path nginx-uwsgi; scgi_temp_path nginx-scgi;\n\
             server {{ listen {}; location / {{ proxy_pass http://{upstream}; proxy_read_timeout 300s; }} }} }}\n",
            ports[0]
        );
        table.site.write("nginx.conf", &config);
        let mut command = Command::new(Machine::get().program("nginx"));
        command.arg("-p").arg(table.site.path());
        command.args(["-e", "stderr", "-c", "nginx.conf", "-g", &format!("user {user};")]);
        command
    });
    let Address::Tcp(address) = addresses[0] else { panic!("not TCP") };
    for row in ROWS.iter().filter(|row| row.way == Way::Asked || row.way == Way::Killed) {
        for (method, version) in KINDS {
            table.check(row, method, version, address, row.nginx, "1.0");
        }
    }
}

/// The service stops: what ends in time is answered, the rest is cut and told of by the master.
#[test]
fn a_stop_ends_requests_and_tells_so() {
    for (way, in_time) in [("in time", true), ("too late", false)] {
        for (method, version) in KINDS {
            let mut table = Table::new("ends_stop");
            let Address::Tcp(address) = table.master.address() else { panic!("not TCP") };
            let file = table.file();
            let mut client = ask(connect(address), method, &format!("/until?file={}", file.display()), version);
            table.wait_busy();
            table.master.term();
            if in_time {
                std::fs::write(&file, "").expect("it can be made");
            }
            assert_eq!(see(&mut client, method), if in_time { "200 whole" } else { "nothing" }, "{way}");
            table.master.wait_exit();
            let end = if in_time { "200 complete" } else { "- worker-died" };
            assert_eq!(table.new_lines(1), [format!("{method} /until HTTP/{version} {end}")], "{way}");
        }
    }
}
