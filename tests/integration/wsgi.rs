//! PEP 3333 in every form that an application may take, and in those that it may not: `tests/apps/wsgi_forms.py` has
//! the forms, here is what a client and the log must see of each.

use std::time::Duration;

use crate::harness::client::{head, Address, Connection, Failure, Response};
use crate::harness::machine::Machine;
use crate::harness::master::Master;
use crate::harness::site::Site;
use crate::harness::wait_for;

/// How long a connection that must close may take: longer than the lingering close waits for the client's end.
const CLOSE: Duration = Duration::from_secs(10);

/// What is expected of one form.
struct Case {
    form: &'static str,
    status: u16,
    body: Body,
    framing: Framing,
    /// The connection serves another request.
    keeps: bool,
    /// A line of the log; none: the log stays quiet about it.
    log: Option<&'static str>,
    /// How often its iterable is closed.
    closed: u32,
}

enum Body {
    Is(&'static str),
    /// Cut off after this.
    CutAfter(&'static str),
}

#[derive(Clone, Copy, PartialEq)]
enum Framing {
    Length,
    Chunked,
    /// Neither: there is no body.
    None,
}

const FAILED: Body = Body::Is("Internal Server Error\n");

fn good(form: &'static str, framing: Framing, body: &'static str) -> Case {
    Case { form, status: 200, body: Body::Is(body), framing, keeps: true, log: None, closed: 0 }
}

/// A logged 500 of ours, of which the client learns nothing.
fn failed(form: &'static str, log: &'static str) -> Case {
    Case { form, status: 500, body: FAILED, framing: Framing::Length, keeps: false, log: Some(log), closed: 0 }
}

/// The beginning has gone out; the rest never comes, and the connection ends so that the client can tell.
fn cut(form: &'static str, framing: Framing, sent: &'static str, log: &'static str) -> Case {
    Case { form, status: 200, body: Body::CutAfter(sent), framing, keeps: false, log: Some(log), closed: 1 }
}

impl Case {
    fn status(mut self, status: u16) -> Case {
        self.status = status;
        self
    }

    fn closed(mut self) -> Case {
        self.closed = 1;
        self
    }

    fn keeps(mut self, keeps: bool) -> Case {
        self.keeps = keeps;
        self
    }

    fn logs(mut self, line: &'static str) -> Case {
        self.log = Some(line);
        self
    }
}

/// Forms that are right; each must be so with wsgiref.validate around it too.
fn good_forms() -> Vec<Case> {
    use Framing::{Chunked, Length, None};
    vec![
        good("one", Length, "one"),
        good("one_in_a_tuple", Length, "one"),
        good("one_by_len", Length, "one").closed(),
        good("proxied", Chunked, "proxied").closed(),
        good("blanks_around_values", Length, "blanks"),
        good("several", Chunked, "ab"),
        good("several_with_length", Length, "ab"),
        good("nothing", Length, ""),
        good("nothing_generated", Length, "").closed(),
        good("generated", Chunked, "012").closed(),
        good("started_by_the_first_piece", Chunked, "late").closed(),
        good("empty_pieces_before_start", Chunked, "late"),
        good("written", Chunked, "abc").closed(),
        good("written_with_length", Length, "ab"),
        good("no_content", None, "").status(204),
        good("not_modified", None, "").status(304),
        good("odd_status", Length, "odd").status(299),
        good("file_from_the_middle", Length, "5678901234").status(206),
        good("file_that_is_none", Chunked, "0123456789"),
        good("file_without_size", Chunked, "Linux\n"),
        good("file_that_counts", Chunked, "0123456789").closed(),
        good("started_again_before", Length, "second").status(503),
        good("started_with_no_exc_info", Length, "fine"),
        good("errors", Length, "one").logs("errors: one of several"),
        good("errors_printed", Length, "one").logs("errors: printed 1 2"),
    ]
}

/// Forms that break a rule.
fn bad_forms() -> Vec<Case> {
    use Framing::{Chunked, Length, None};
    let header = |form, log| failed(form, log);
    vec![
        good("no_content_with_body", None, "").status(204).closed(),
        good("started_by_names", Length, "second").status(503),
        good(
            "started_by_wrong_names",
            Length,
            "start_response() has no argument 'header'; start_response() has two values for 'status'; start_response() lacks \
             'headers'; start_response() takes at most 3 arguments, 4 were given; start_response() lacks 'status'",
        ),
        cut(
            "too_short",
            Length,
            "123",
            "bad response to GET /too_short: the body has 3 bytes, its Content-Length says 10",
        ),
        // The client gets what was declared.
        good("too_long", Length, "123").closed().keeps(false).logs("bad response to GET /too_long: the body is longer"),
        good("endless_beyond_length", Length, "123")
            .closed()
            .keeps(false)
            .logs("bad response to GET /endless_beyond_length: the body is longer"),
        good("written_beyond_length", Length, "123").keeps(false).logs("ValueError: write() of more bytes than"),
        good("reset_content", Length, "").status(205),
        good("too_long_in_one", Length, "123").keeps(false).logs("GET /too_long_in_one: the body is longer"),
        good("len_that_lies", Length, "123").keeps(false).logs("GET /len_that_lies: the body is longer"),
        failed("started_twice", "RuntimeError: start_response was called again without exc_info"),
        cut("started_again_after", Chunked, "first", "ValueError: too late to say"),
        failed("raises_at_once", "RuntimeError: secret at once"),
        failed("raises_after_start", "RuntimeError: secret after start"),
        failed("raises_at_the_first_piece", "RuntimeError: secret at the first piece").closed(),
        cut("raises_in_the_middle", Chunked, "begun", "RuntimeError: secret in the middle"),
        cut("raises_in_the_middle_of_a_length", Length, "begun", "RuntimeError: secret before its end"),
        // All of the body had been sent.
        good("raises_at_close", Length, "done").closed().keeps(false).logs("RuntimeError: secret at close"),
        failed("exits", "SystemExit: secret exit"),
        failed("interrupted", "KeyboardInterrupt: secret interrupt"),
        failed("never_starts", "RuntimeError: the application returned output without calling start_response").closed(),
        failed("never_starts_and_says_nothing", "RuntimeError: the application returned output without calling"),
        failed("returns_none", "TypeError: 'NoneType' object is not iterable"),
        failed("returns_text", "TypeError: the application's output must be bytes, not str").closed(),
        failed("returns_bytes", "TypeError: the application's output must be bytes, not int"),
        header("bad_hop_by_hop", "ValueError: header Connection: hop-by-hop headers are the server's"),
        good("says_close", Length, "closing").keeps(false).logs("header \"connection\" is dropped"),
        good("says_keep_alive", Length, "keeping").logs("header \"keep-alive\" is dropped"),
        header("bad_transfer_encoding", "ValueError: header Transfer-Encoding: hop-by-hop"),
        header("bad_line_feed", "ValueError: header X-Other: control character"),
        header("bad_carriage_return", "ValueError: header X-Other: control character"),
        header("bad_nul", "ValueError: header X-Other: control character"),
        header("bad_unicode", "UnicodeEncodeError: 'latin-1' codec can't encode"),
        header("bad_name", "ValueError: header name \"X Other\" is not a token"),
        header("bad_name_latin", "ValueError: header name * is not a token"),
        header("bad_name_empty", "ValueError: header name \"\" is not a token"),
        header("bad_bytes", "TypeError: a header's value must be a str, not bytes"),
        header("bad_number", "TypeError: a header's value must be a str, not int"),
        header("bad_triple", "TypeError: response headers must be a list of tuples"),
        header("bad_none", "TypeError: 'NoneType' object is not iterable"),
        header("bad_two_lengths", "ValueError: more than one Content-Length header"),
        header("bad_length", "ValueError: header X: control character"),
        header("bad_length_sign", "ValueError: Content-Length \"+6\""),
        header("bad_status_number", "TypeError: the status must be a str, not int"),
        header("bad_status_bytes", "TypeError: the status must be a str, not bytes"),
        header("bad_status_word", "ValueError: status \"OK\" is not three digits and a reason"),
        header("bad_status_interim", "ValueError: status \"103 Early Hints\": an interim answer"),
        header("bad_status_line", "ValueError: status * is not three digits and a reason"),
        header("bad_status_unicode", "UnicodeEncodeError: 'latin-1' codec can't encode"),
    ]
}

/// One process, so that the forms' counters are of one; small bodies in memory, others in a file.
fn forms(name: &str) -> Site {
    let site = Site::new(name);
    site.build("1").app("wsgi_forms.py").make();
    site.flip("1");
    site.set("server.workers", "1").set("server.threads", "2").set("http.body_memory", "'1KiB'");
    // `streaming` is about those that come as they are read.
    site.set("http.stream_bodies", "'never'");
    site
}

fn text_of(master: &Master, target: &str) -> String {
    master.get(target).text()
}

/// Reads one answer whose end may be missing: the head, the part of the body that came, and whether it was cut.
fn read_answer(connection: &mut Connection) -> (Response, bool) {
    connection.read_partly().unwrap_or_else(|failure| panic!("{failure}"))
}

fn check(master: &Master, case: &Case, target: &str, framing: bool) {
    let mark = master.mark();
    let closed_before: u32 = text_of(master, &format!("/closed/{}", case.form)).parse().expect("a number");
    let mut connection = master.connect();
    connection.must_send(head("GET", target, &[]));
    let (response, was_cut) = read_answer(&mut connection);
    assert_eq!(response.status, case.status, "{target}");
    let (expected, cut) = match case.body {
        Body::Is(text) => (text, false),
        Body::CutAfter(text) => (text, true),
    };
    assert_eq!((response.text().as_str(), was_cut), (expected, cut), "{target}: {:?}", response.headers);
    let secret = response.headers.iter().any(|(name, value)| name == "X-Secret" || value.contains("secret"));
    assert!(case.status != 500 || !secret, "{target} leaks {:?}", response.headers);
    if framing {
        let sees = match (response.header("Content-Length"), response.header("Transfer-Encoding")) {
            (Some(_), None) => Framing::Length,
            (None, Some("chunked")) => Framing::Chunked,
            (None, None) => Framing::None,
            (length, coding) => panic!("{target}: Content-Length {length:?}, Transfer-Encoding {coding:?}"),
        };
        assert!(sees == case.framing, "{target}: {:?}", response.headers);
    }
    if case.keeps {
        assert!(!response.closes(), "{target}: {:?}", response.headers);
        assert_eq!(connection.get_ok("/one").text(), "one", "after {target}");
    } else {
        assert!(was_cut || connection.closed_within(CLOSE), "{target} leaves the connection open");
    }
    match case.log {
        Some(line) => drop(master.wait_log_after(mark, line)),
        None => {
            let log = master.log_after(mark);
            let loud =
                log.lines().find(|line| line.contains(" ERROR ") || line.contains(" WARN ") || line.contains("Error"));
            assert!(loud.is_none(), "{target}: {loud:?}");
        }
    }
    let closed: u32 = text_of(master, &format!("/closed/{}", case.form)).parse().expect("a number");
    assert_eq!(closed - closed_before, case.closed, "{target}: close() was called so often");
}

#[test]
fn every_form_of_an_answer_and_again_with_a_validator() {
    let site = forms("wsgi_good");
    let master = site.start();
    for case in good_forms() {
        check(&master, &case, &format!("/{}", case.form), true);
    }
    // The validator wants start_response before any piece, the specification only before one that is not empty; and
    // a file that it wraps is no file, so that nothing ends where the length says.
    let not_validated = ["empty_pieces_before_start", "file_from_the_middle"];
    for case in good_forms().iter().filter(|case| !not_validated.contains(&case.form)) {
        check(&master, case, &format!("/v/{}", case.form), false);
    }
    let log = master.log();
    assert!(!log.contains("garbage collected without being closed"), "{log}");
}

#[test]
fn what_an_application_may_not_do_is_logged_and_leaks_nothing() {
    let site = forms("wsgi_bad");
    let master = site.start();
    for case in bad_forms() {
        check(&master, &case, &format!("/{}", case.form), true);
    }
    // The line of the log says which request of which generation it was.
    let mark = master.mark();
    assert_eq!(master.get("/raises_at_once?a=%0a").status, 500);
    master.wait_log_after(mark, "ERROR worker gen=1 slot=0 pid=* exception in GET /raises_at_once?a=%0a");
    master.wait_log_after(mark, "Traceback (most recent call last):");
    assert_eq!(text_of(&master, "/pid"), master.workers()[0].pid.to_string(), "no worker was lost over it");
}

#[test]
fn heads_and_http_1_0_clients_get_the_same_answers_framed_for_them() {
    let site = forms("wsgi_versions");
    let master = site.start();
    let mut connection = master.connect();
    for (form, length) in
        [("one", Some("3")), ("several_with_length", Some("2")), ("generated", None), ("file", Some("200000"))]
    {
        connection.must_send(head("HEAD", &format!("/{form}"), &[]));
        let response = connection.read_to_head().expect("it is answered");
        assert_eq!((response.status, response.header("Content-Length")), (200, length), "{form}");
    }
    assert_eq!(connection.get_ok("/one").text(), "one");
    for (target, length, body) in [("/generated", false, "012"), ("/one", true, "one"), ("/nothing", true, "")] {
        let mut connection = master.connect();
        connection.must_send(format!("GET {target} HTTP/1.0\r\n\r\n"));
        let (response, was_cut) = read_answer(&mut connection);
        assert!(!was_cut && response.closes() && response.header("Transfer-Encoding").is_none(), "{target}");
        assert_eq!((response.header("Content-Length").is_some(), response.text().as_str()), (length, body), "{target}");
        assert!(connection.closed_within(CLOSE));
    }
    // Only the end of the connection ends such a body, so a clean end would pass for the whole.
    let mut connection = master.connect();
    connection.must_send("GET /raises_in_the_middle HTTP/1.0\r\n\r\n");
    match connection.read() {
        Err(Failure::Reset | Failure::Cut(_)) => {}
        other => panic!("a half body passes for a whole one: {other:?}"),
    }
    let mut connection = master.connect();
    assert_eq!(
        connection.ask("GET /one HTTP/1.0\r\nConnection: keep-alive\r\n\r\n").header("Connection"),
        Some("keep-alive")
    );
    assert_eq!(connection.get_ok("/one").text(), "one");
}

#[test]
fn files_are_sent_whole_and_by_the_kernel() {
    let site = forms("wsgi_files");
    let master = site.start();
    let whole = "0123456789".repeat(20_000);
    let trace = Sendfile::count(&master);
    let mut connection = master.connect();
    for (form, length) in [("file", true), ("file_without_length", true), ("file_as_it_is", false)] {
        let response = connection.get_ok(&format!("/{form}"));
        assert!(response.text() == whole, "{form}: {} bytes", response.body.len());
        assert_eq!(response.header("Content-Length").is_some(), length, "{form}");
    }
    let calls = trace.stop();
    assert!(calls >= 2, "sendfile was called {calls} times");
    let mark = master.mark();
    connection.must_send(head("GET", "/file_too_short", &[]));
    let (response, was_cut) = read_answer(&mut connection);
    assert!(was_cut && response.text() == whole);
    master.wait_log_after(mark, "the body has 200000 bytes, its Content-Length says 300000");
}

/// As found: the line did not say which request it was.
#[test]
fn a_file_that_shrinks_is_told_with_its_request() {
    let site = forms("wsgi_shrinking");
    let master = site.start();
    let mut connection = master.connect();
    connection.must_send(head("GET", "/file_that_shrinks?x=\"", &[]));
    assert_eq!(text_of(&master, "/shrinks_now"), "it is short");
    let (response, was_cut) = read_answer(&mut connection);
    assert!(was_cut && response.status == 200);
    master.wait_log(
        r#"the file that answers GET /file_that_shrinks?x=\" cannot be sent to its end: it is shorter than it was"#,
    );
}

/// strace on the worker: counts sendfile(2).
struct Sendfile(std::process::Child, std::path::PathBuf);

impl Sendfile {
    fn count(master: &Master) -> Sendfile {
        let output = std::env::temp_dir().join(format!("fm-sendfile-{}", master.pid()));
        let worker = master.workers()[0].pid.to_string();
        let child = std::process::Command::new(Machine::get().program("strace"))
            .args(["-f", "-e", "trace=sendfile", "-p", &worker, "-o"])
            .arg(&output)
            .stderr(std::process::Stdio::null())
            .spawn()
            .expect("strace starts");
        // It attaches to one thread after the other.
        let threads = std::path::Path::new("/proc").join(&worker).join("task");
        wait_for("strace to attach", || {
            let untraced = std::fs::read_dir(&threads).ok()?.flatten().any(|thread| {
                std::fs::read_to_string(thread.path().join("status")).is_ok_and(|text| text.contains("TracerPid:\t0\n"))
            });
            (!untraced).then_some(())
        });
        Sendfile(child, output)
    }

    fn stop(mut self) -> usize {
        let pid = nix::unistd::Pid::from_raw(self.0.id() as i32);
        // INT: it detaches and ends.
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGINT).expect("it is our child");
        self.0.wait().expect("it is our child");
        let text = std::fs::read_to_string(&self.1).unwrap_or_default();
        let _ = std::fs::remove_file(&self.1);
        text.matches("sendfile(").count()
    }
}

#[test]
fn the_body_is_read_in_every_way_and_beyond_its_end() {
    let site = forms("wsgi_input");
    let master = site.start();
    let mut connection = master.connect();
    let small = "one\ntwo\r\n\nlonger than four\nlast";
    let large: String = (0..1500).map(|number| format!("line {number}\n")).collect::<String>() + &"x".repeat(20_000);
    for body in [small.to_owned(), large, String::new()] {
        let lines: Vec<String> = body.split_inclusive('\n').map(str::to_owned).collect();
        let pieces = |size: usize| -> Vec<String> {
            body.as_bytes().chunks(size).map(|piece| String::from_utf8_lossy(piece).into_owned()).collect()
        };
        let in_fours = lines.iter().flat_map(|line| {
            line.as_bytes().chunks(4).map(|piece| String::from_utf8_lossy(piece).into_owned()).collect::<Vec<_>>()
        });
        let mut hinted = 0;
        let first: String = lines
            .iter()
            .take_while(|line| {
                let enough = hinted >= 5;
                hinted += line.len();
                !enough
            })
            .cloned()
            .collect();
        let rest = lines.iter().skip(first.split_inclusive('\n').count()).cloned();
        let empty = String::new;
        let cases: Vec<(&str, Vec<String>)> = vec![
            ("input_read", pieces(1000)),
            ("input_read_more_than_there_is", vec![body.clone(), empty()]),
            ("input_read_all", vec![body.clone(), empty(), empty(), empty()]),
            ("input_readline", lines.clone()),
            ("input_readline_sized", in_fours.collect()),
            ("input_readlines", lines.clone()),
            ("input_readlines_hint", [first.clone()].into_iter().chain(rest).collect()),
            ("input_iterated", lines.clone()),
            ("input_as_a_file", lines.clone()),
        ];
        // Those of an empty body have nothing to go back in.
        let cases = cases.into_iter().filter(|(form, _)| *form != "input_as_a_file" || !body.is_empty());
        for (form, expected) in cases {
            for chunked in [false, true] {
                // The validator allows no read without a size.
                let validated = !matches!(form, "input_read_all" | "input_readline_sized" | "input_as_a_file");
                for target in [Some(format!("/{form}")), validated.then(|| format!("/v/{form}"))].into_iter().flatten()
                {
                    let request = if chunked {
                        let mut request = head("POST", &target, &[("Transfer-Encoding", "chunked")]);
                        for piece in body.as_bytes().chunks(700) {
                            request.extend(format!("{:x}\r\n", piece.len()).into_bytes());
                            request.extend(piece);
                            request.extend(b"\r\n");
                        }
                        request.extend(b"0\r\n\r\n");
                        request
                    } else {
                        let length = body.len().to_string();
                        [head("POST", &target, &[("Content-Length", &length)]), body.clone().into_bytes()].concat()
                    };
                    let response = connection.ask(request);
                    assert_eq!(response.status, 200, "{target}: {}", response.text());
                    let got: Vec<String> = serde_json::from_slice(&response.body).expect("it is JSON");
                    assert!(got == expected, "{target}, {} bytes, chunked: {chunked}", body.len());
                }
            }
        }
    }
    for _ in 0..4 {
        assert_eq!(connection.get_ok("/input_sought_in_nothing").text(), "7");
    }
    // Whatever an application leaves unread does not become the next request.
    for _ in 0..2 {
        assert_eq!(connection.post("/input_ignored", &[b'G'; 5000]).expect("it is answered").text(), "ignored");
    }
    // And what it keeps stays what it was.
    assert_eq!(connection.post("/input_kept", b"mine").expect("it is answered").text(), "first");
    assert_eq!(connection.post("/input_kept", b"another's").expect("it is answered").text(), "mine");
}

/// As found: bodies of 16 to 512 KiB, which lie in memory that is used again, read as empty later.
#[test]
fn a_body_that_the_application_keeps_stays_what_it_was() {
    let site = forms("wsgi_body_kept");
    site.set("server.threads", "1").set("http.body_memory", "'512KiB'");
    let master = site.start();
    let mut connection = master.connect();
    for length in [1_000, 16_384, 16_385, 100_000, 500_000, 600_000] {
        let body = vec![b'x'; length];
        assert_eq!(connection.post("/input_taken_away", &body).expect("it is answered").text(), "one");
        assert_eq!(connection.post("/input_ignored", &body).expect("it is answered").text(), "ignored");
        assert_eq!(connection.get_ok("/input_of_before").text(), length.to_string());
    }
}

#[test]
fn what_is_kept_of_a_request_does_nothing_to_the_next() {
    let site = forms("wsgi_kept");
    let master = site.start();
    let mut connection = master.connect();
    assert_eq!(connection.get_ok("/kept_start_response").text(), "kept");
    let outcome = connection.get_ok("/kept_start_response").text();
    assert_eq!(outcome, "this request is over; this request is over");
}

/// A target that comes again and again stands in what environs are copied from.
#[test]
fn each_request_has_its_own_target() {
    let site = forms("wsgi_targets");
    let master = site.start();
    let mut connection = master.connect();
    let plain = "/target_of /target_of /target_of ";
    let with_query = "/target_of /target_of?a=b /target_of?a=b a=b";
    let encoded = "/target_of /%74arget_of /%74arget_of ";
    let targets = [("/target_of", plain), ("/target_of?a=b", with_query), ("/%74arget_of", encoded)];
    // Each follows on each, once and several times.
    for order in [&[0, 0, 0, 0][..], &[1, 0, 1, 0, 2], &[2, 2, 2, 0, 0, 1, 1, 1, 0], &[0, 0, 2, 0, 1, 0, 0, 0]] {
        for &index in order {
            let (target, expected) = targets[index];
            assert_eq!(connection.get_ok(target).text(), expected, "{target} of {order:?}");
        }
    }
}

#[test]
fn the_environ_is_complete() {
    let site = forms("wsgi_environ");
    let socket = site.path().join("app.sock");
    site.set("server.bind", "['127.0.0.1:0', 'unix:app.sock']").set("http.forwarded_allow_ips", "[]");
    let master = site.start();
    let Address::Tcp(address) = master.address() else { panic!("a TCP address comes first") };
    let mut connection = master.connect();
    let ask = |connection: &mut Connection, target: &str, fields: &[(&str, &str)]| {
        connection.ask(head("GET", target, fields)).json()
    };
    let environ = ask(
        &mut connection,
        "/v/environ_of?a=b%20c&d",
        &[
            ("X-Custom", "one"),
            ("X-Custom", "two"),
            ("Cookie", "a=1"),
            ("Cookie", "b=2"),
            ("X_Under", "x"),
            ("Proxy", "evil"),
        ],
    );
    let expected = [
        ("REQUEST_METHOD", "GET"),
        ("SCRIPT_NAME", ""),
        ("PATH_INFO", "/v/environ_of"),
        ("QUERY_STRING", "a=b%20c&d"),
        ("RAW_URI", "/v/environ_of?a=b%20c&d"),
        ("REQUEST_URI", "/v/environ_of?a=b%20c&d"),
        ("SERVER_PROTOCOL", "HTTP/1.1"),
        ("SERVER_NAME", "127.0.0.1"),
        ("SERVER_PORT", &address.port().to_string()),
        ("SERVER_SOFTWARE", concat!("forkmaster/", env!("CARGO_PKG_VERSION"))),
        ("REMOTE_ADDR", "127.0.0.1"),
        ("wsgi.url_scheme", "http"),
        ("HTTP_HOST", "localhost"),
        ("HTTP_X_CUSTOM", "one,two"),
        ("HTTP_COOKIE", "a=1; b=2"),
    ];
    for (name, value) in expected {
        assert_eq!(environ[name], value, "{name}");
    }
    let port: u16 = environ["REMOTE_PORT"].as_str().and_then(|port| port.parse().ok()).expect("it is a number");
    assert!(port > 0);
    for (name, value) in [
        ("wsgi.multithread", true),
        ("wsgi.multiprocess", false),
        ("wsgi.run_once", false),
        ("wsgi.input_terminated", true),
    ] {
        assert_eq!(environ[name], value, "{name}");
    }
    assert_eq!(environ["wsgi.version"], serde_json::json!([1, 0]));
    for absent in ["CONTENT_LENGTH", "CONTENT_TYPE", "HTTP_CONTENT_LENGTH", "HTTP_X_UNDER", "HTTP_PROXY"] {
        assert!(environ.get(absent).is_none(), "{absent}");
    }
    connection.must_send(
        [
            head("POST", "/v/environ_of", &[("Content-Type", "text/x"), ("Transfer-Encoding", "chunked")]),
            b"3\r\nabc\r\n0\r\nX-Trailer: t\r\n\r\n".to_vec(),
        ]
        .concat(),
    );
    let environ = connection.expect_answer().json();
    assert_eq!((environ["CONTENT_LENGTH"].as_str(), environ["CONTENT_TYPE"].as_str()), (Some("3"), Some("text/x")));
    assert!(environ.get("HTTP_TRANSFER_ENCODING").is_none() && environ.get("HTTP_X_TRAILER").is_none());
    // Decoded once, bytes as the characters of the same number.
    let environ = ask(&mut connection, "/environ_of/%E2%82%AC%2541%2F?%41", &[]);
    assert_eq!(environ["PATH_INFO"], "/environ_of/\u{e2}\u{82}\u{ac}%41/");
    assert_eq!((environ["QUERY_STRING"].as_str(), environ["wsgi.url_scheme"].as_str()), (Some("%41"), Some("http")));
    // A Unix socket has no addresses; what applications rely on is there all the same.
    let mut unix = Connection::to(&Address::Unix(socket));
    let environ = ask(&mut unix, "/v/environ_of", &[]);
    assert_eq!((environ["REMOTE_ADDR"].as_str(), environ.get("REMOTE_PORT")), (Some("127.0.0.1"), None));
    assert_eq!((environ["SERVER_NAME"].as_str(), environ["SERVER_PORT"].as_str()), (Some("localhost"), Some("80")));
}

#[test]
fn clients_that_leave_end_the_iteration_and_nothing_else() {
    let site = forms("wsgi_leave");
    site.set("server.response_buffer", "'128KiB'");
    let master = site.start();
    let mark = master.mark();
    for form in ["endless", "v/endless", "endless_written"] {
        let name = form.trim_start_matches("v/");
        let before: u32 = text_of(&master, &format!("/closed/{name}")).parse().expect("a number");
        let mut connection = master.connect();
        connection.must_send(head("GET", &format!("/{form}"), &[]));
        let begun = connection.read_available(Duration::from_secs(10)).expect("it begins");
        assert!(begun.starts_with(b"HTTP/1.1 200"), "{form}");
        drop(connection);
        wait_for("close()", || {
            let closed: u32 = text_of(&master, &format!("/closed/{name}")).parse().expect("a number");
            (closed > before).then(|| assert_eq!(closed, before + 1, "{form} was closed more than once"))
        });
    }
    // The worker has both its threads back, and no exception was invented.
    assert_eq!(text_of(&master, "/pid"), master.workers()[0].pid.to_string());
    let log = master.log_after(mark);
    assert!(!log.contains("Error") && !log.contains(" ERROR "), "{log}");
}

#[test]
fn pieces_are_seen_as_they_are_produced() {
    let site = forms("wsgi_steps");
    let master = site.start();
    for target in ["/stepped", "/v/stepped"] {
        let mut streaming = master.connect();
        streaming.must_send(head("GET", target, &[]));
        for number in 0..4 {
            // This piece is here, and the application waits to be told to go on.
            let seen = streaming.read_past(&format!("step {number}\n"));
            assert!(!seen.contains(&format!("step {}", number + 1)), "{seen}");
            assert_eq!(text_of(&master, "/go/stepped"), "gone");
        }
        let seen = streaming.read_past("0\r\n\r\n");
        assert!(!seen.contains("nobody"), "{seen}");
    }
}

/// Flask's and Django's own behaviours that depend on the server.
#[test]
fn flask_streams_reads_chunks_sends_files_and_survives_a_leaver() {
    let site = Site::new("wsgi_flask");
    site.build("1").app("flask_forms.py").make();
    site.flip("1");
    site.set("app.venv", &format!("{:?}", Machine::get().venv("flask")));
    frameworks(&site);
}

#[test]
fn django_streams_reads_chunks_sends_files_and_survives_a_leaver() {
    let site = Site::new("wsgi_django");
    site.build("1").app("django_forms.py").make();
    site.flip("1");
    site.set("app.venv", &format!("{:?}", Machine::get().venv("django")));
    frameworks(&site);
}

fn frameworks(site: &Site) {
    site.set("server.workers", "1").set("server.threads", "2").set("server.response_buffer", "'128KiB'");
    let master = site.start();
    let mut streaming = master.connect();
    streaming.must_send(head("GET", "/stream", &[]));
    for number in 0..4 {
        let seen = streaming.read_past(&format!("step {number}\n"));
        assert!(!seen.contains(&format!("step {}", number + 1)), "{seen}");
        assert_eq!(text_of(&master, "/go"), "gone");
    }
    let mut connection = master.connect();
    connection.must_send(
        [
            head("POST", "/echo", &[("Transfer-Encoding", "chunked")]),
            b"5\r\nhello\r\n6\r\n world\r\n0\r\n\r\n".to_vec(),
        ]
        .concat(),
    );
    assert_eq!(connection.expect_answer().text(), "hello world");
    let file = connection.get_ok("/file");
    assert_eq!((file.status, file.body.len(), file.header("Content-Length")), (200, 200_000, Some("200000")));
    let range = connection.ask(head("GET", "/file", &[("Range", "bytes=5-14")]));
    if range.status == 206 {
        assert_eq!(range.text(), "5678901234");
    } else {
        assert_eq!((range.status, range.body.len()), (200, 200_000), "Django's FileResponse knows no ranges");
    }
    for (fields, secure) in [(&[][..], "False"), (&[("X-Forwarded-Proto", "https")][..], "True")] {
        assert_eq!(connection.ask(head("GET", "/secure", fields)).text(), secure);
    }
    let mark = master.mark();
    let mut leaver = master.connect();
    leaver.must_send(head("GET", "/endless", &[]));
    assert!(!leaver.read_available(Duration::from_secs(10)).expect("it begins").is_empty());
    drop(leaver);
    wait_for("the generator's end", || (text_of(&master, "/left") == "1").then_some(()));
    let log = master.log_after(mark);
    assert!(!log.contains("Error") && !log.contains(" ERROR "), "{log}");
}
