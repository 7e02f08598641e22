//! `[log] access_refused`: a line of the access log for each way in which the server itself refuses a request.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::path::Path;

use crate::harness::client::{head, Address, Connection};
use crate::harness::site::Site;
use crate::harness::{wait_for, WAIT};

/// Where the request goes to.
#[derive(Clone, Copy)]
enum Door {
    Plain,
    /// It wants a PROXY header, and believes its peers.
    Proxied,
    /// It wants one, and believes nobody.
    Untrusting,
}

struct Row {
    door: Door,
    sent: String,
    status: u16,
    /// The request as the text form shows it; method and path as the JSON form does.
    request: &'static str,
    read: Option<(&'static str, &'static str)>,
}

/// Of a first line that could not be read.
const LINE_BYTES_MAX: usize = 1024;

/// A head in which nothing is wrong says for whom it comes and what it is called.
const FIELDS: &str = "Host: h\r\nX-Forwarded-For: 192.0.2.9\r\nX-Request-Id: abc\r\n";

fn rows() -> Vec<Row> {
    let unread = |door, sent: &str, status, request| Row { door, sent: sent.to_owned(), status, request, read: None };
    let plain = |sent: &str, status, request| unread(Door::Plain, sent, status, request);
    let headless = |sent: &str, status, request, read| Row { read: Some(read), ..plain(sent, status, request) };
    let many = "X: y\r\n".repeat(40);
    let long = "x".repeat(3000);
    vec![
        plain("\u{16}\u{3}\u{1}", 400, r"\x16\x03\x01"),
        plain("GET /a b HTTP/1.1\r\nHost: h\r\n\r\n", 400, "GET /a b HTTP/1.1"),
        headless("GET /no-host?q HTTP/1.1\r\n\r\n", 400, "GET /no-host?q HTTP/1.1", ("GET", "/no-host")),
        headless("HEAD /head HTTP/1.1\r\n\r\n", 400, "HEAD /head HTTP/1.1", ("HEAD", "/head")),
        plain("GET / HTTP/3.0\r\nHost: h\r\n\r\n", 505, "GET / HTTP/3.0"),
        plain("GET /slow", 408, "GET /slow"),
        headless("GET /slower HTTP/1.0\r\nHo", 408, "GET /slower HTTP/1.0", ("GET", "/slower")),
        plain(&format!("GET /{long}"), 414, "GET /xxx"),
        headless(&format!("GET /many HTTP/1.1\r\n{many}"), 431, "GET /many HTTP/1.1", ("GET", "/many")),
        headless(
            "PUT /coding HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: br, chunked\r\n\r\n",
            501,
            "PUT /coding HTTP/1.1",
            ("PUT", "/coding"),
        ),
        headless(
            "PUT /expect HTTP/1.1\r\nHost: h\r\nExpect: x\r\n\r\n",
            417,
            "PUT /expect HTTP/1.1",
            ("PUT", "/expect"),
        ),
        headless(
            &format!("PUT /large HTTP/1.1\r\n{FIELDS}Content-Length: 9000000\r\n\r\n"),
            413,
            "PUT /large HTTP/1.1",
            ("PUT", "/large"),
        ),
        headless(
            &format!("PUT /full HTTP/1.1\r\n{FIELDS}Content-Length: 4000000\r\n\r\n"),
            503,
            "PUT /full HTTP/1.1",
            ("PUT", "/full"),
        ),
        headless(
            &format!("PUT /body HTTP/1.1\r\n{FIELDS}Content-Length: 10\r\n\r\nxx"),
            408,
            "PUT /body HTTP/1.1",
            ("PUT", "/body"),
        ),
        headless(
            &format!("PUT /chunk HTTP/1.1\r\n{FIELDS}Transfer-Encoding: chunked\r\n\r\nx"),
            400,
            "PUT /chunk HTTP/1.1",
            ("PUT", "/chunk"),
        ),
        Row {
            door: Door::Proxied,
            ..headless("GET /direct HTTP/1.1\r\nHost: h\r\n\r\n", 400, "GET /direct HTTP/1.1", ("GET", "/direct"))
        },
        unread(Door::Proxied, "PROXY TCP4 nobody\r\n", 400, "PROXY TCP4 nobody"),
        unread(Door::Untrusting, "PROXY TCP4 1.2.3.4 1.2.3.5 6 7\r\n", 403, "PROXY TCP4 1.2.3.4 1.2.3.5 6 7"),
    ]
}

/// What the server answers: its status and the length of its body.
fn refused(stream: &mut (impl Read + Write), sent: &str) -> (u16, usize) {
    stream.write_all(sent.as_bytes()).expect("it is open");
    let mut all = Vec::new();
    stream.read_to_end(&mut all).expect("it is answered and closed");
    let text = String::from_utf8(all).expect("plain text");
    let (head, body) = text.split_once("\r\n\r\n").unwrap_or_else(|| panic!("no answer to {sent:?}: {text:?}"));
    (head[9..12].parse().expect("a status"), body.len())
}

const WAITS: &str = r#"
import os
import time

END = os.path.join(os.getcwd(), "..", "..", "end")


def application(environ, start_response):
    while environ["PATH_INFO"] == "/hold" and not os.path.exists(END):
        time.sleep(0.005)
    start_response("200 OK", [("Content-Length", "0")])
    return []
"#;

const TEXT: &str = r#"%(h)s "%(r)s" %(s)s %(B)s %(X)s %({host}i)s %(I)s"#;

fn lines(log: &Path, count: usize) -> Vec<String> {
    wait_for("the lines", || {
        let text = std::fs::read_to_string(log).unwrap_or_default();
        (text.lines().count() >= count).then(|| text.lines().map(str::to_owned).collect())
    })
}

#[test]
fn each_way_of_refusal_has_a_line_where_it_is_asked_for() {
    let site = Site::with_source("refusals", WAITS);
    site.set("server.bind", "['unix:plain.sock', 'unix:proxied.sock', '127.0.0.1:0']");
    site.set("http.proxy_protocol", "{ 'unix:proxied.sock' = 'v1', '127.0.0.1:0' = 'v1' }");
    site.set("http.forwarded_allow_ips", "['unix']").set("http.request_id_header", "'X-Request-Id'");
    site.set("server.workers", "1").set("server.threads", "1").set("server.queue_timeout", "'200ms'");
    site.set("http.header_timeout", "'200ms'").set("http.body_timeout", "'200ms'");
    site.set("http.limit_request_line", "2000").set("http.limit_request_fields", "20");
    site.set("http.max_body", "'8MB'").set("server.temp_limit", "'2MB'");
    site.set("log.access", "'access.log'").set("log.access_refused", "true");
    let log = site.path().join("access.log");
    let (plain, proxied) = (site.path().join("plain.sock"), site.path().join("proxied.sock"));
    let mut master = None;
    for is_json in [false, true] {
        site.set("log.access_format", &if is_json { "'json'".to_owned() } else { format!("'{TEXT}'") });
        let master = master.get_or_insert_with(|| site.start());
        if is_json {
            master.reload();
            std::fs::remove_file(site.path().join("end")).expect("it was made");
            std::fs::write(&log, "").expect("it is there");
        }
        let untrusting = master.addresses().into_iter().find_map(|address| match address {
            Address::Tcp(address) => Some(address),
            Address::Unix(_) => None,
        });
        let untrusting = untrusting.expect("an address");
        let mut rows = rows();
        let mut bytes = Vec::new();
        for row in &rows {
            let seen = match row.door {
                Door::Plain => refused(&mut UnixStream::connect(&plain).expect("it accepts"), &row.sent),
                Door::Proxied => refused(&mut UnixStream::connect(&proxied).expect("it accepts"), &row.sent),
                Door::Untrusting => {
                    let mut stream = TcpStream::connect_timeout(&untrusting, WAIT).expect("it accepts");
                    refused(&mut stream, &row.sent)
                }
            };
            assert_eq!(seen.0, row.status, "{:?}", row.sent);
            bytes.push(seen.1);
        }
        // The last way: it waits too long for the only thread.
        let late = format!("GET /late HTTP/1.1\r\n{FIELDS}Connection: close\r\n\r\n");
        let mut waiting = Connection::to(&Address::Unix(plain.clone()));
        waiting.get_ok("/first");
        let mut holding = Connection::to(&Address::Unix(plain.clone()));
        holding.must_send(head("GET", "/hold", &[]));
        wait_for("it to run", || {
            let status = master.status()?.0;
            status["generations"].as_array()?.iter().any(|gen| gen["workers"][0]["busy"] == 1).then_some(())
        });
        let answer = waiting.ask(&late);
        assert_eq!(answer.status, 503);
        bytes.push(answer.body.len());
        std::fs::write(site.path().join("end"), "").expect("it can be made");
        assert_eq!(holding.expect_answer().status, 200);
        let (door, read) = (Door::Plain, Some(("GET", "/late")));
        rows.push(Row { door, sent: late, status: 503, request: "GET /late HTTP/1.1", read });

        // Besides those: `/first` and `/hold`.
        let lines = lines(&log, rows.len() + 2);
        let others = ["/first HTTP/1.1", "/hold HTTP/1.1", "\"path\":\"/first\"", "\"path\":\"/hold\""];
        let lines: Vec<String> =
            lines.into_iter().filter(|line| !others.iter().any(|other| line.contains(other))).collect();
        assert_eq!(lines.len(), rows.len(), "{lines:#?}");
        for ((row, line), bytes) in rows.iter().zip(lines).zip(bytes) {
            let Row { status, request, .. } = row;
            let is_known = row.sent.contains(FIELDS);
            let (client, host, id) = if is_known { ("192.0.2.9", "h", "abc") } else { ("127.0.0.1", "-", "-") };
            if is_json {
                let line: serde_json::Value = serde_json::from_str(&line).expect("an object");
                let told = |name: &str| line[name].as_str().unwrap_or("-").to_owned();
                let (method, path) = row.read.unwrap_or(("-", "-"));
                let names = ["remote_addr", "method", "path", "ended", "host", "request_id"];
                let host = if row.sent.contains("/direct") { "-" } else { host };
                assert_eq!(names.map(told), [client, method, path, "refused", host, id], "{line}");
                assert_eq!((&line["status"], &line["bytes"]), (&(*status).into(), &bytes.into()), "{line}");
                let first = row.sent.split('\r').next().expect("a part");
                let raw = row.read.is_none().then(|| &first[..first.len().min(LINE_BYTES_MAX)]);
                assert_eq!(line["request"].as_str(), raw, "{line}");
                let waited = line["queued_s"].as_f64().expect("a number");
                assert_eq!(waited >= 0.2, row.sent.contains("/late"), "{line}");
            } else {
                let line = line.replace(&"x".repeat(LINE_BYTES_MAX - "GET /".len()), "xxx");
                assert_eq!(line, format!("{client} \"{request}\" {status} {bytes} refused {host} {id}"));
            }
        }
    }
}
