//! Maintenances: clients of a paused service get 503 rather than wait, past `--max` or at once with a page; and the application
//! sees none of them.

use std::thread;

use nix::sys::signal::{kill, Signal};
use nix::sys::stat::Mode;
use nix::unistd::{mkfifo, Pid};

use crate::harness::client::{self, head, Address, Connection, Response};
use crate::harness::master::{run, Master};
use crate::harness::site::Site;
use crate::harness::wait_for;

const TEXT: &str = "Service Unavailable: the service is paused\n";

#[track_caller]
fn assert_away(answer: &Response, body: &str, content_type: &str) {
    assert_eq!((answer.status, answer.text().as_str()), (503, body), "{answer:?}");
    let fields = [answer.header("Content-Type"), answer.header("Retry-After"), answer.header("Connection")];
    assert_eq!(fields, [Some(content_type), Some("10"), Some("close")]);
}

#[track_caller]
fn text_is_shown(answer: &Response) {
    assert_away(answer, TEXT, "text/plain; charset=utf-8");
}

fn state(master: &Master) -> String {
    master.status().map_or_else(String::new, |status| status.0["state"].as_str().unwrap_or_default().to_owned())
}

fn turned_away(master: &Master) -> u64 {
    master.status().and_then(|status| status.0["turned_away"].as_u64()).unwrap_or(0)
}

/// Ends all workers, which are paused and not serving.
fn kill_all(master: &Master) {
    let workers = master.status().and_then(|status| status.serving()).expect("one generation is there").workers;
    assert!(!workers.is_empty() && workers.iter().all(|worker| worker.state == "paused"), "{workers:?}");
    for worker in workers {
        kill(Pid::from_raw(worker.pid), Signal::SIGKILL).unwrap();
    }
}

/// Clients whose connections are idle.
fn idle(master: &Master, count: usize) -> Vec<Connection> {
    let mut clients: Vec<Connection> = (0..count).map(|_| master.connect()).collect();
    for client in &mut clients {
        assert_eq!(client.ask(head("GET", "/", &[])).status, 200);
    }
    clients
}

#[test]
fn past_max_whoever_waits_and_whoever_comes_gets_503_until_resume() {
    let site = Site::with_releases("maintenance_max", 2);
    site.set("log.access", "'access.log'").set("log.access_format", "'%(h)s %(m)s %(U)s %(s)s %(B)s %(a)s %(X)s'");
    site.set("http.forwarded_allow_ips", "['127.0.0.1']").set("server.health_path", "'/-/up'");
    site.set("status.bind", "['unix:status.sock']");
    let master = site.start();
    let door = Address::Unix(site.path().join("status.sock"));
    let page = |path: &str| client::get(&door, path).unwrap_or_else(|failure| panic!("{path}: {failure}"));
    let mut kept = idle(&master, 3);
    let output = master.cli(&["pause", "--max", "500ms"]);
    assert!(output.ok() && output.stdout.contains("clients wait for 0.5 s, then get 503"), "{output}");
    // They wait first: in their sockets, in the queue, and in the backlog.
    let mut waiting: Vec<Connection> = kept.drain(..2).chain([master.connect()]).collect();
    for client in &mut waiting {
        client.must_send(head("GET", "/waits", &[]));
    }
    for mut client in waiting {
        text_is_shown(&client.expect_answer());
    }
    assert_eq!(state(&master), "maintenance");
    master.wait_log("maintenance after=5*ms: clients get 503 and wait no longer");
    for mut client in kept {
        text_is_shown(&client.ask(head("GET", "/idle", &[("X-Forwarded-For", "203.0.113.9"), ("User-Agent", "a b")])));
    }
    let lines = |count: usize| {
        wait_for("all lines of the access log", || {
            let text = std::fs::read_to_string(site.path().join("access.log")).ok()?;
            let lines: Vec<String> = text.lines().filter(|line| line.contains(" 503 ")).map(str::to_owned).collect();
            (lines.len() >= count).then_some(lines)
        })
    };
    // A worker that is killed keeps what it has not written yet.
    lines(4);
    // One that is born meanwhile says the same.
    kill_all(&master);
    text_is_shown(&master.get("/"));
    // And those of a release that commits meanwhile.
    site.flip("2");
    master.reload();
    let post = [head("POST", "/", &[("Content-Length", "3")]), b"abc".to_vec()].concat();
    text_is_shown(&master.connect().ask(post));
    let mut asks = master.connect();
    let answer = asks.ask(head("GET", "/-/up", &[]));
    assert_eq!((answer.status, answer.text().as_str()), (503, "paused\n"));
    let ready = page("/readyz");
    assert_eq!(ready.status, 503);
    assert!(ready.text().contains("maintenance: clients get 503"), "{}", ready.text());
    let metrics = page("/metrics").text();
    for line in ["forkmaster_requests_turned_away_total 6\n", "forkmaster_paused 1\n", "forkmaster_maintenance 1\n"] {
        assert!(metrics.contains(line), "{line}: {metrics}");
    }
    assert_eq!(turned_away(&master), 6);
    assert!(master.cli(&["resume"]).ok());
    assert_eq!(master.get("/").text(), "2");
    let lines = lines(6);
    assert_eq!(lines.len(), 6, "{lines:#?}");
    let bytes = TEXT.len();
    for line in [format!("127.0.0.1 GET /waits 503 {bytes} - "), format!("203.0.113.9 GET /idle 503 {bytes} a\\x20b ")]
    {
        assert!(lines.iter().any(|found| found.starts_with(&line)), "{line}: {lines:#?}");
    }
    master.stop();
}

#[test]
fn a_page_is_read_once_and_shown_by_all_workers_whenever_they_are_born() {
    let site = Site::with_releases("maintenance_page", 1);
    let master = site.start();
    let here = site.path().join("pages");
    std::fs::create_dir(&here).unwrap();
    mkfifo(&here.join("fifo.html"), Mode::from_bits_truncate(0o600)).unwrap();
    std::fs::write(here.join("large.html"), "x".repeat(256 * 1024 + 1)).unwrap();
    for (name, words) in [
        ("none.html", "the page cannot be read: "),
        ("fifo.html", "fifo.html is not a regular file"),
        ("large.html", "large.html is larger than 256 KiB"),
        (".", "is not a regular file"),
    ] {
        let name = format!("pages/{name}");
        for verb in [&["pause"][..], &["reload", "--pause"]] {
            let output = master.cli(&[verb, &["--maintenance", &name]].concat());
            assert!(output.code == Some(1) && output.stderr.contains(words), "{name}: {output}");
        }
    }
    assert!(master.log_lines("pausing").is_empty() && master.get("/").text() == "1");
    let output = master.cli(&["reload", "--max", "1s"]);
    assert!(output.code == Some(2) && output.stderr.contains("reload --pause"), "{output}");
    // As the asker sees it, wherever the master was started.
    let body = "<h1>Back at noon</h1>".repeat(5000);
    std::fs::write(here.join("soon.html"), &body).unwrap();
    let output = run(&here, &["pause", "-c", "../app.toml", "--maintenance", "soon.html"]);
    assert!(output.ok() && output.stdout.contains("clients get 503 until"), "{output}");
    std::fs::remove_file(here.join("soon.html")).unwrap();
    assert_away(&master.get("/"), &body, "text/html; charset=utf-8");
    let mut asks = master.connect();
    asks.must_send(head("HEAD", "/", &[("Connection", "close")]));
    let rest = asks.read_past("\r\n\r\n");
    let length = format!("\r\nContent-Length: {}\r\n", body.len());
    assert!(rest.starts_with("HTTP/1.1 503 ") && rest.contains(&length) && rest.ends_with("\r\n\r\n"), "{rest}");
    kill_all(&master);
    assert_away(&master.get("/"), &body, "text/html; charset=utf-8");
    // Other terms: another page, or to wait again.
    std::fs::write(here.join("noon.txt"), "at noon\n").unwrap();
    assert!(master.cli(&["pause", "--maintenance", "pages/noon.txt"]).ok());
    assert_away(&master.get("/"), "at noon\n", "text/plain; charset=utf-8");
    assert!(master.cli(&["pause"]).ok() && state(&master) == "paused");
    let mut waits = master.connect();
    waits.must_send(head("GET", "/", &[]));
    assert!(master.cli(&["resume"]).ok());
    assert_eq!(waits.expect_answer().text(), "1");
    master.stop();
}

#[test]
fn a_paused_reload_shows_its_page_while_the_command_runs() {
    let site = Site::with_releases("maintenance_reload", 2);
    site.write("soon.html", "back soon");
    let master = site.start();
    site.flip("2");
    for (command, code, serves) in [("exit 1", 1, "1"), ("exit 0", 0, "2")] {
        let command = format!("while ! test -e ../../go; do sleep 0.02; done; {command}");
        let words = ["reload", "--pause", "--maintenance", "soon.html", "--", "sh", "-c", &command];
        let mark = master.mark();
        let output = thread::scope(|scope| {
            let asks = scope.spawn(|| master.cli(&words));
            master.wait_log_after(mark, "command gen=* pid=* started");
            for _ in 0..2 {
                assert_away(&master.get("/"), "back soon", "text/html; charset=utf-8");
            }
            site.write("go", "");
            asks.join().expect("the client does not panic")
        });
        std::fs::remove_file(site.path().join("go")).unwrap();
        assert_eq!(output.code, Some(code), "{output}");
        assert_eq!(master.get("/").text(), serves);
    }
    let history = master.cli(&["history"]);
    assert_eq!(history.stdout.matches("maintenance: 2 requests got 503").count(), 2, "{history}");
    let report = master.cli(&["report", "1"]);
    assert!(report.stdout.contains("503 in a maintenance"), "{report}");
    master.stop();
}
