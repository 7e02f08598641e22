//! HTTP/1.1 to the letter: the corpus of raw requests against the whole server, with what the application saw in
//! its environ; PROXY headers; large bodies with little memory.

pub mod corpus;

use std::io::Write;
use std::time::Duration;

use serde_json::Value;

use crate::harness::client::{head, Address, Connection, Failure, Response};
use crate::harness::machine::Machine;
use crate::harness::master::Master;
use crate::harness::process;
use crate::harness::site::Site;
use crate::harness::wait_for;
use corpus::{Answer, Case, Seen};

/// Tells what it saw: the strings of its environ (as latin-1, which JSON carries), and the body.
const ECHO: &str = r#"
import hashlib, json, os

def application(environ, start_response):
    body = environ["wsgi.input"].read()
    seen = {key: value for key, value in environ.items() if isinstance(value, str)}
    seen["body"] = hashlib.sha256(body).hexdigest()
    seen["bytes"] = len(body)
    seen["pid"] = os.getpid()
    answer = json.dumps(seen).encode()
    start_response("200 OK", [("Content-Type", "application/json"), ("Content-Length", str(len(answer)))])
    return [answer]
"#;

fn sha256(bytes: &[u8]) -> String {
    use std::process::{Command, Stdio};
    let mut child =
        Command::new("sha256sum").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("coreutils are there");
    child.stdin.take().expect("a pipe").write_all(bytes).expect("it reads to the end");
    let output = child.wait_with_output().expect("it ends");
    String::from_utf8_lossy(&output.stdout).split_whitespace().next().expect("it prints the hash first").to_string()
}

fn check_seen(name: &str, seen: &Seen, response: &Response) {
    assert_eq!(response.status, 200, "{name}: {}", response.text());
    if seen.method == "HEAD" {
        return;
    }
    let environ = response.json();
    assert_eq!(environ["REQUEST_METHOD"], seen.method, "{name}");
    assert_eq!(environ["RAW_URI"], seen.target, "{name}");
    assert_eq!(environ["bytes"], seen.body.len(), "{name}: length of the body");
    // One process a body is dear: hashes only of those that are worth it.
    if seen.body.len() > 20 {
        assert_eq!(environ["body"], sha256(&seen.body), "{name}: the body");
    }
    for (key, expected) in &seen.environ {
        let expected = expected.as_ref().map_or(Value::Null, |value| Value::String(value.clone()));
        assert_eq!(environ[key], expected, "{name}: {key} in {environ}");
    }
}

/// Sends the pieces, reads the answers, and looks what becomes of the connection.
fn run(address: &Address, case: &Case, pieces: &[&[u8]]) {
    let name = &case.name;
    let mut connection = Connection::to(address);
    for piece in pieces {
        match connection.send(piece) {
            Ok(()) => {}
            // A client that said `close`, or whose request was refused long ago, may find nobody.
            Err(Failure::Reset) if !case.kept => break,
            Err(failure) => panic!("{name}: {failure}"),
        }
    }
    if case.ends {
        connection.finish_sending().unwrap_or_else(|failure| panic!("{name}: {failure}"));
    }
    for answer in &case.answers {
        let to_head = match answer {
            Answer::Seen(seen) => seen.method == "HEAD",
            Answer::Refused(_) => case.bytes.starts_with(b"HEAD "),
        };
        let response = if to_head { connection.read_to_head() } else { connection.read() };
        let response = response.unwrap_or_else(|failure| panic!("{name}: {failure}"));
        let waits = String::from_utf8_lossy(&case.bytes).to_ascii_lowercase().contains("expect:");
        assert!(response.interim.is_empty() || (waits && response.interim == [100]), "{name}: {response:?}");
        match answer {
            Answer::Seen(seen) => check_seen(name, seen, &response),
            Answer::Refused(status) => {
                assert!(
                    response.status == *status && response.closes(),
                    "{name}: {} {}",
                    response.status,
                    response.text()
                );
                assert_eq!(response.header("Content-Type"), Some("text/plain; charset=utf-8"), "{name}");
            }
        }
    }
    if case.kept {
        connection.must_send(head("GET", "/last", &[("Connection", "close")]));
        let last = connection.read().unwrap_or_else(|failure| panic!("{name}: the request after it: {failure}"));
        assert_eq!((last.status, last.json()["PATH_INFO"].as_str()), (200, Some("/last")), "{name}");
    }
    let rest = connection.read_available(Duration::from_secs(30));
    assert!(matches!(&rest, Ok(bytes) if bytes.is_empty()) || (pieces.len() > 1 && rest.is_err()), "{name}: {rest:?}");
}

#[test]
fn the_corpus_against_the_whole_server() {
    let site = Site::with_source("corpus", ECHO);
    site.set("server.threads", "2");
    let master = site.start();
    let address = master.address();
    let cases = corpus::cases();
    println!("{} raw requests", cases.len());
    assert!(cases.len() >= 300);
    // Two clients at a time, or one core would do nothing.
    std::thread::scope(|scope| {
        for half in 0..2 {
            let (cases, address) = (&cases, &address);
            scope.spawn(move || {
                for case in cases.iter().skip(half).step_by(2) {
                    run(address, case, &[&case.bytes]);
                    // Long ones byte by byte at their ends only; the rest of them is all the same.
                    let (start, rest) = case.bytes.split_at(case.bytes.len().min(500));
                    let (middle, end) = rest.split_at(rest.len().saturating_sub(500));
                    let pieces: Vec<&[u8]> = start.chunks(1).chain(middle.chunks(997)).chain(end.chunks(1)).collect();
                    run(address, case, &pieces);
                }
            });
        }
    });
    let log = master.log();
    assert!(!log.contains("Traceback") && !log.contains("panicked"), "{log}");
    // Lines that clients cause are limited in rate, and what is left out is counted.
    assert!(log.contains("that clients caused left out: more than 200 at once or 20 a second"), "{log}");
}

#[test]
fn the_line_of_a_refusal_names_the_setting_that_would_allow_it() {
    let site = Site::with_source("refusal_lines", ECHO);
    let master = site.start();
    let refused = |status| {
        let mut cases = corpus::cases().into_iter();
        cases.find(|case| matches!(case.answers[..], [corpus::Answer::Refused(code)] if code == status))
    };
    for (status, line) in
        [(414, "414 request line too long (limit_request_line)"), (413, "413 request body too large (max_body)")]
    {
        let case = refused(status).expect("the corpus has one");
        run(&master.address(), &case, &[&case.bytes]);
        master.wait_log(line);
    }
}

/// As found: each of them joined all of them anew, for 20 s.
#[test]
fn thousands_of_fields_of_one_name_keep_no_thread() {
    let site = Site::with_source("one_name", ECHO);
    site.set("http.limit_request_fields", "'none'").set("http.limit_request_head", "'1MiB'");
    site.set("server.request_timeout", "'5s'");
    let master = site.start();
    let many = vec![("X-A", "b"); 30_000];
    let answer = Connection::to(&master.address()).ask(head("GET", "/", &many));
    assert_eq!(answer.status, 200);
    assert_eq!(answer.json()["HTTP_X_A"], vec!["b"; 30_000].join(","));
}

/// The header that HAProxy sends with `send-proxy-v2-ssl` for a client that came by TLS.
fn proxy_v2() -> Vec<u8> {
    let addresses = [192, 0, 2, 7, 10, 0, 0, 1, 0xdc, 4, 1, 0xbb];
    let ssl = [0x20, 0, 5, 1, 0, 0, 0, 0];
    let length = (addresses.len() + ssl.len()) as u16;
    [b"\r\n\r\n\0\r\nQUIT\n\x21\x11", &length.to_be_bytes()[..], &addresses, &ssl].concat()
}

#[test]
fn a_proxy_header_names_the_client() {
    let site = Site::with_source("proxy_protocol", ECHO);
    // One address with, one without: what is not configured is not looked for.
    site.set("server.bind", "['unix:proxied.sock', 'unix:plain.sock']");
    site.set("http.proxy_protocol", "{ 'unix:proxied.sock' = 'v2' }");
    let master = site.start();
    let (proxied, plain) =
        (Address::Unix(site.path().join("proxied.sock")), Address::Unix(site.path().join("plain.sock")));
    let mut connection = Connection::to(&proxied);
    connection.must_send(proxy_v2());
    for _ in 0..2 {
        let environ = connection.get_ok("/").json();
        assert_eq!(
            (environ["REMOTE_ADDR"].as_str(), environ["REMOTE_PORT"].as_str()),
            (Some("192.0.2.7"), Some("56324"))
        );
        assert_eq!(
            (environ["wsgi.url_scheme"].as_str(), environ["SERVER_PORT"].as_str()),
            (Some("https"), Some("443"))
        );
    }
    assert_eq!(Connection::to(&proxied).get("/").expect("it is answered").status, 400);
    assert_eq!(Connection::to(&plain).get("/").expect("it is answered").status, 200);
    let mut connection = Connection::to(&plain);
    assert_eq!(connection.ask([proxy_v2(), head("GET", "/", &[])].concat()).status, 400);
    master.wait_log("400 this address expects a PROXY header first (proxy_protocol)");
}

#[test]
fn only_trusted_proxies_may_name_their_clients() {
    let site = Site::with_source("proxy_trust", ECHO);
    site.set("http.proxy_protocol", "'v1'").set("http.forwarded_allow_ips", "['192.0.2.1']");
    let master = site.start();
    let line = "PROXY TCP4 192.0.2.7 10.0.0.1 56324 443\r\n";
    let mut connection = master.connect();
    connection.must_send(line);
    assert_eq!(connection.get("/").expect("it is answered").status, 403);
    master.wait_log("403 not a proxy that may name its clients (forwarded_allow_ips)");
    // A reload changes it, on the same listener.
    site.set("http.forwarded_allow_ips", "['127.0.0.0/8']");
    master.reload();
    let mut connection = master.connect();
    connection.must_send(line);
    let environ = connection.get_ok("/").json();
    assert_eq!(
        (environ["REMOTE_ADDR"].as_str(), environ["wsgi.url_scheme"].as_str()),
        (Some("192.0.2.7"), Some("http"))
    );
}

/// A body in a file that is read in pieces, and files, lists and generators as answers.
const BULK: &str = r#"
import hashlib, os

SIZE = 100 * 1000 * 1000
PATH = os.path.join(os.path.dirname(os.path.abspath(__file__)), "large.bin")

def upload(environ):
    digest, count = hashlib.sha256(), 0
    while True:
        piece = environ["wsgi.input"].read(65536)
        if not piece:
            return [f"{digest.hexdigest()} {count} {os.getpid()}".encode()], []
        digest.update(piece)
        count += len(piece)

def stream():
    with open(PATH, "rb") as file:
        while piece := file.read(65536):
            yield piece

def application(environ, start_response):
    kind = environ["PATH_INFO"]
    if kind == "/upload":
        body, headers = upload(environ)
    elif kind == "/file":
        body, headers = environ["wsgi.file_wrapper"](open(PATH, "rb")), [("Content-Length", str(SIZE))]
    elif kind == "/stream":
        body, headers = stream(), []
    elif kind == "/sized":
        body, headers = stream(), [("Content-Length", str(SIZE))]
    else:
        body, headers = [str(os.getpid()).encode()], []
    start_response("200 OK", headers)
    return body
"#;

const BULK_BYTES: usize = 100_000_000;

/// What a worker may need beyond the configured buffers.
const GROWTH_MAX: u64 = 8 * 1024 * 1024;

/// Peak resident memory of a process, in bytes; `reset` begins a new peak (proc(5), clear_refs).
fn peak_bytes(pid: i32) -> u64 {
    let field = process::status_field(pid, "VmHWM:").expect("the worker runs");
    field.split_whitespace().next().and_then(|number| number.parse::<u64>().ok()).expect("a number of kB") * 1024
}

fn reset_peak(pid: i32) {
    std::fs::write(format!("/proc/{pid}/clear_refs"), "5").expect("it is a process of ours");
}

fn bulk_site(name: &str) -> (Site, Master, Vec<u8>) {
    let site = Site::alone(name);
    let release = site.build("1").file("app.py", BULK).make();
    site.flip("1");
    // Buffers that are small beside the bodies, and one worker, so that it is known which one to watch.
    site.set("server.workers", "1").set("http.body_memory", "'512KiB'").set("server.response_buffer", "'2MiB'");
    let body: Vec<u8> = (0..BULK_BYTES as u32).map(|at| (at.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    std::fs::write(release.join("large.bin"), &body).expect("it is our directory");
    let master = site.start();
    (site, master, body)
}

fn worker_pid(master: &Master) -> i32 {
    master.wait_serving();
    master.get("/").text().parse().expect("the application tells its pid")
}

#[test]
fn a_hundred_megabytes_up_with_little_memory() {
    let (_site, master, body) = bulk_site("bulk_up");
    let pid = worker_pid(&master);
    let hash = sha256(&body);
    for coding in ["plain", "chunked"] {
        reset_peak(pid);
        let before = peak_bytes(pid);
        let mut connection = master.connect();
        if coding == "plain" {
            connection.must_send(head("POST", "/upload", &[("Content-Length", &BULK_BYTES.to_string())]));
            connection.must_send(&body);
        } else {
            connection.must_send(head("POST", "/upload", &[("Transfer-Encoding", "chunked")]));
            for (number, piece) in body.chunks(40_000).enumerate() {
                // Sizes of chunks vary, so that they never lie the same way in the reads.
                let (one, other) = piece.split_at(number % piece.len());
                for part in [one, other].into_iter().filter(|part| !part.is_empty()) {
                    let chunk = [format!("{:x}\r\n", part.len()).as_bytes(), part, b"\r\n"].concat();
                    connection.must_send(chunk);
                }
            }
            connection.must_send("0\r\n\r\n");
        }
        assert_eq!(connection.expect_answer().text(), format!("{hash} {BULK_BYTES} {pid}"));
        let growth = peak_bytes(pid).saturating_sub(before);
        println!("100 MB up, {coding}: peak memory of the worker +{} KiB", growth / 1024);
        assert!(growth < GROWTH_MAX + 512 * 1024, "{coding}: {growth} bytes more");
    }
}

#[test]
fn a_hundred_megabytes_down_with_little_memory() {
    let (_site, master, body) = bulk_site("bulk_down");
    let pid = worker_pid(&master);
    for target in ["/stream", "/sized", "/file"] {
        reset_peak(pid);
        let before = peak_bytes(pid);
        let mut connection = master.connect();
        let response = connection.get(target).expect("it is answered");
        assert_eq!(response.header("Transfer-Encoding").is_some(), target == "/stream", "{target}");
        assert!(response.body == body, "{target}: {} bytes", response.body.len());
        let growth = peak_bytes(pid).saturating_sub(before);
        println!("100 MB down, {target}: peak memory of the worker +{} KiB", growth / 1024);
        assert!(growth < GROWTH_MAX + 2 * 1024 * 1024, "{target}: {growth} bytes more");
    }
}

/// Bytes that a process has read by read(2) and its like into memory of its own (proc(5), rchar): sendfile from a
/// file counts too, so this is about system calls.
fn calls_of(trace: &str, name: &str) -> usize {
    trace.lines().filter(|line| line.contains(&format!("{name}("))).count()
}

#[test]
fn a_file_is_sent_without_copying_it() {
    let (site, master, body) = bulk_site("sendfile");
    let pid = worker_pid(&master);
    let trace = site.path().join("strace.txt");
    let mut strace = std::process::Command::new(Machine::get().program("strace"))
        .args(["-f", "-e", "trace=read,pread64,readv,mmap,sendfile,sendmsg,sendto,write,pwrite64", "-s", "0", "-o"])
        .arg(&trace)
        .args(["-p", &pid.to_string()])
        .stdin(std::process::Stdio::null())
        .stderr(std::process::Stdio::null())
        .spawn()
        .expect("strace is there");
    let tracer = strace.id().to_string();
    wait_for("strace", || (process::status_field(pid, "TracerPid:")? == tracer).then_some(()));
    let mut connection = master.connect();
    assert!(connection.get_ok("/file").body == body);
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(strace.id() as i32), nix::sys::signal::Signal::SIGINT)
        .expect("it is our child");
    strace.wait().expect("it ends");
    let trace = std::fs::read_to_string(trace).expect("strace wrote it");
    let copied: usize = ["read", "pread64", "readv", "write", "pwrite64", "sendmsg", "sendto"]
        .iter()
        .flat_map(|name| trace.lines().filter(move |line| line.contains(&format!(" {name}("))))
        .filter_map(|line| line.rsplit("= ").next()?.split_whitespace().next()?.parse::<usize>().ok())
        .sum();
    println!("100 MB by {} calls of sendfile, {copied} bytes through user space", calls_of(&trace, "sendfile"));
    assert!(calls_of(&trace, "sendfile") > 0 && copied < 100_000, "{copied} bytes were copied");
}
