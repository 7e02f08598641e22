//! The access log: its formats, what a client cannot do to it, its files. The error log as a file. Probes of health.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Duration;

use nix::sys::signal::Signal;
use serde_json::Value;

use crate::harness::client::{head, Address, Connection};
use crate::harness::load::Load;
use crate::harness::machine::{can_change_users, Machine};
use crate::harness::master::{run, Master};
use crate::harness::process;
use crate::harness::site::Site;
use crate::harness::wait_for;

fn forms(name: &str) -> Site {
    let site = Site::new(name);
    site.build("1").app("wsgi_forms.py").make();
    site.flip("1");
    site.set("server.workers", "1");
    site
}

fn lines(path: &Path) -> Vec<String> {
    fs::read_to_string(path).unwrap_or_default().lines().map(str::to_owned).collect()
}

/// Waits until the log has so many lines; they come within a second or so.
fn wait_lines(path: &Path, count: usize) -> Vec<String> {
    wait_for(&format!("{count} lines in {}", path.display()), || Some(lines(path)).filter(|lines| lines.len() >= count))
}

fn ask(connection: &mut Connection, request: impl AsRef<[u8]>) {
    connection.must_send(request);
}

#[test]
fn combined_on_stdout_with_a_line_for_each_request() {
    let site = forms("logs_combined");
    site.set("log.access", "'-'");
    let master = site.start();
    let mut connection = master.connect();
    let agent =
        [("User-Agent", "a \"b\" \\ \u{e9}"), ("Referer", "http://r/?q"), ("Authorization", "Basic QWxhZGRpbjpv")];
    ask(&mut connection, head("GET", "/one?x=%0a%22", &agent));
    connection.expect_answer();
    connection.get_ok("/generated");
    ask(&mut connection, head("HEAD", "/one", &[]));
    connection.read_to_head().expect("it is answered");
    connection.ask(head("GET", "/no_content", &[]));
    let failed = connection.ask(head("GET", "/raises_after_start", &[]));
    let mut old = master.connect();
    ask(&mut old, "GET /one HTTP/1.0\r\nX-Forwarded-For: 2001:db8::9\r\n\r\n");
    old.expect_answer();
    let mut cut = master.connect();
    ask(&mut cut, head("GET", "/raises_in_the_middle", &[]));
    cut.read_partly().expect("it begins");
    let seen = wait_for("seven lines", || Some(master.stdout()).filter(|text| text.lines().count() >= 7));
    let expected = [
        (
            "127.0.0.1 - Aladdin [",
            "] \"GET /one?x=%0a%22 HTTP/1.1\" 200 3 \"http://r/?q\" \"a \\x22b\\x22 \\x5c \\xc3\\xa9\"",
        ),
        ("127.0.0.1 - - [", "] \"GET /generated HTTP/1.1\" 200 3 \"-\" \"-\""),
        ("127.0.0.1 - - [", "] \"HEAD /one HTTP/1.1\" 200 - \"-\" \"-\""),
        ("127.0.0.1 - - [", "] \"GET /no_content HTTP/1.1\" 204 - \"-\" \"-\""),
        ("127.0.0.1 - - [", &format!("] \"GET /raises_after_start HTTP/1.1\" 500 {} \"-\" \"-\"", failed.body.len())),
        ("2001:db8::9 - - [", "] \"GET /one HTTP/1.0\" 200 3 \"-\" \"-\""),
        ("127.0.0.1 - - [", "] \"GET /raises_in_the_middle HTTP/1.1\" 200 5 \"-\" \"-\""),
    ];
    assert_eq!(seen.lines().count(), expected.len(), "{seen}");
    for (line, (start, end)) in seen.lines().zip(expected) {
        let time = line.strip_prefix(start).and_then(|rest| rest.strip_suffix(end));
        let time = time.unwrap_or_else(|| panic!("{line}\nis not {start}..{end}"));
        assert!(time.ends_with(" +0000") && time.len() == "22/Nov/2026:23:25:59 +0000".len(), "{line}");
    }
    // What the application never saw is in the error log, with the reason.
    ask(&mut connection_to(&master), "GET / HTTP/1.1\r\n\r\n");
    master.wait_log("INFO  refused 127.0.0.1:* 400");
}

fn connection_to(master: &Master) -> Connection {
    master.connect()
}

#[test]
fn json_with_a_clock_of_its_own() {
    let site = forms("logs_json");
    site.set("log.access", "'access.log'").set("log.access_format", "'json'").set("env.TZ", "'Asia/Tokyo'");
    let master = site.start();
    let target = "/one/%22%0A?a=1&b=\"\\";
    ask(&mut connection_to(&master), head("GET", target, &[("User-Agent", "\u{1f600}\t\\\"")]));
    let line = wait_lines(&site.path().join("access.log"), 1).remove(0);
    let json: Value = serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error}: {line}"));
    let expected = [
        ("remote_addr", "127.0.0.1"),
        ("method", "GET"),
        ("path", "/one/%22%0A"),
        ("query", "a=1&b=\"\\"),
        ("protocol", "HTTP/1.1"),
        ("host", "localhost"),
        ("user_agent", "\u{f0}\u{9f}\u{98}\u{80}\t\\\""),
    ];
    for (name, value) in expected {
        assert_eq!(json[name], value, "{line}");
    }
    assert!(json["referer"].is_null() && json["duration_s"].as_f64().is_some_and(|took| took < 10.0), "{line}");
    let pid = master.workers()[0].pid;
    for (name, value) in [("status", 200), ("bytes", 3), ("generation", 1), ("slot", 0), ("pid", i64::from(pid))] {
        assert_eq!(json[name], value, "{name}: {line}");
    }
    // The application's time zone is not the log's.
    let now = std::process::Command::new("date").args(["-u", "+%Y-%m-%dT%H"]).output().expect("date is there");
    let hour = String::from_utf8_lossy(&now.stdout).trim().to_owned();
    let time = json["time"].as_str().unwrap_or_default();
    assert!(time.starts_with(&hour[..11]) && time.ends_with('Z'), "{line} at {hour}");
}

#[test]
fn a_template_as_gunicorn_has_them() {
    let site = forms("logs_template");
    site.set("log.access", "'access.log'");
    let template = "%(h)s|%(m)s|%(U)s|%(q)s|%(H)s|%(s)s|%(B)s|%(T)s|%(M)s|%(D)s|%(L)s|%(p)s|%({X-Id}i)s|\
                    %({content-type}o)s|%({PATH_INFO}e)s|%({wsgi.multithread}e)s|%({nothing}i)s|100%%";
    site.set("log.access_format", &format!("'{template}'"));
    let master = site.start();
    ask(&mut connection_to(&master), head("GET", "/one/a%20b?q=%41", &[("X-Id", "7"), ("x-id", "8 9")]));
    let line = wait_lines(&site.path().join("access.log"), 1).remove(0);
    let fields: Vec<&str> = line.split('|').collect();
    let pid = format!("<{}>", master.workers()[0].pid);
    assert_eq!(fields[..7], ["127.0.0.1", "GET", "/one/a\\x20b", "q=%41", "HTTP/1.1", "200", "3"], "{line}");
    assert_eq!(
        fields[11..],
        [pid.as_str(), "7,\\x208\\x209", "text/plain", "/one/a\\x20b", "0", "-", "100%"],
        "{line}"
    );
    for number in &fields[7..11] {
        assert!(number.parse::<f64>().is_ok_and(|number| number >= 0.0), "{line}");
    }
}

/// The whole head is a client's, and so is what an application decodes from it.
#[test]
fn no_request_can_forge_a_line() {
    let site = forms("logs_forged");
    site.set("log.access", "'access.log'")
        .set("log.access_format", "'%(h)s %(U)s \"%(r)s\" \"%(a)s\" %({x}i)s %({PATH_INFO}e)s'");
    let master = site.start();
    let mut connection = connection_to(&master);
    let forged = "%0a127.0.0.1%20/admin%20%22GET%20/admin%20HTTP/1.1%22%20%22-%22%0d%0a%00%1b%5b2J%e2%80%a8%85";
    for number in 0..20 {
        let long = "x".repeat(if number % 2 == 0 { 10 } else { 7000 });
        let fields = [("User-Agent", "\" 200\t\u{85}\u{2028}"), ("X", long.as_str())];
        ask(&mut connection, head("GET", &format!("/one/{forged}"), &fields));
        assert_eq!(connection.expect_answer().status, 200);
    }
    let seen = wait_lines(&site.path().join("access.log"), 20);
    assert_eq!(seen.len(), 20);
    for line in seen {
        assert!(line.len() < 4096 && line.bytes().all(|byte| (0x20..0x7f).contains(&byte)), "{line}");
        assert!(line.starts_with("127.0.0.1 /one/\\x0a127.0.0.1\\x20/admin\\x20\\x22GET"), "{line}");
        assert_eq!(line.matches(' ').count(), 5 + 2 + 1, "{line}");
    }
}

/// A file that workers may not open: the master opens it, and again at USR1, while requests are answered.
#[test]
fn files_are_the_masters_and_a_rotation_loses_no_line() {
    let site = Site::new("logs_rotation");
    let build = site.build("1").app("wsgi_forms.py");
    let unprivileged = can_change_users();
    if unprivileged {
        build.python(Machine::get().public_python()).make();
        site.set("server.user", "'nobody'").set("server.group", "'nogroup'");
    } else {
        build.make();
    }
    site.flip("1");
    site.set("server.threads", "2")
        .set("log.access", "'logs/access.log'")
        .set("log.access_format", "'%(r)s %(p)s <%({x}i)s>'");
    let directory = site.path().join("logs");
    fs::create_dir(&directory).expect("it is our directory");
    fs::set_permissions(&directory, fs::Permissions::from_mode(0o700)).expect("it is our directory");
    let master = site.start();
    let log = directory.join("access.log");
    let load = Load::on(&master.address()).target("/one").closing(2).keeping(4).start();
    for number in 0..3 {
        load.wait_answers(100);
        wait_lines(&log, 1);
        fs::rename(&log, directory.join(format!("access.{number}"))).expect("logrotate renames it");
        master.signal(Signal::SIGUSR1);
        wait_lines(&log, 20);
    }
    let report = load.stop();
    report.assert_no_failures();
    let pids: Vec<String> = master.workers().iter().map(|worker| format!("<{}>", worker.pid)).collect();
    assert_eq!(master.cli(&["stop"]).code, Some(0));
    // A worker that ends writes what it has, so every answer has its line now, and each line is whole.
    let mut seen = Vec::new();
    for name in ["access.0", "access.1", "access.2", "access.log"] {
        seen.extend(lines(&directory.join(name)));
    }
    assert_eq!(seen.len(), report.answers.len(), "lines and answers");
    for line in &seen {
        let pid = line.strip_prefix("GET\\x20/one\\x20HTTP/1.1 ").and_then(|rest| rest.strip_suffix(" <->"));
        assert!(pid.is_some_and(|pid| pids.iter().any(|known| known == pid)), "{line}");
    }
    assert!(pids.iter().all(|pid| seen.iter().any(|line| line.contains(pid))), "both workers have served");
}

#[test]
fn the_error_log_as_a_file_has_the_workers_lines_and_is_rotated_for_all() {
    let site = Site::new("logs_error");
    site.build("1")
        .app("wsgi_forms.py")
        .file("crash.py", "import ctypes\n\ndef application(environ, start_response):\n    ctypes.string_at(0)\n")
        .make();
    site.flip("1");
    site.set("server.bind", "['unix:app.sock']").set("log.error", "'forkmaster.log'").set("server.workers", "1");
    let master = site.start();
    let address = Address::Unix(site.path().join("app.sock"));
    let get = |target: &str| crate::harness::client::get(&address, target).expect("it is answered");
    let log = site.path().join("forkmaster.log");
    let wait_text = |path: &Path, text: &str| {
        wait_for(text, || fs::read_to_string(path).ok()?.contains(text).then_some(()));
    };
    let first = site.path().join("forkmaster.1.log");
    for (number, file) in [(0, &log), (1, &log)] {
        get("/raises_at_once");
        get("/errors");
        for text in ["exception in GET /raises_at_once", "RuntimeError: secret at once", "errors: written \u{20ac}"] {
            wait_text(file, text);
        }
        if number == 0 {
            fs::rename(&log, &first).expect("logrotate renames it");
            master.signal(Signal::SIGUSR1);
            wait_text(&log, "log reopened");
            // The worker has the new file once it has left the old one.
            let worker = master.workers()[0].pid;
            wait_for("the worker to leave the old file", || {
                let open = fs::read_dir(format!("/proc/{worker}/fd")).ok()?;
                let old = open.flatten().filter_map(|fd| fs::read_link(fd.path()).ok()).any(|path| path == first);
                (!old).then_some(())
            });
        }
    }
    // A worker that the template forks after the rotation writes to the new file too, and so does faulthandler.
    let before = lines(&first).len();
    site.set("app.module", "'crash'");
    master.reload();
    assert!(crate::harness::client::get(&address, "/").is_err(), "the worker dies of it");
    wait_text(&log, "Fatal Python error: Segmentation fault");
    assert_eq!(lines(&first).len(), before, "the old file is left alone");
    assert!(!master.log().contains("ERROR"), "stderr has only what came before the settings: {}", master.log());
}

#[test]
fn an_access_log_that_is_off_has_no_thread_and_one_that_cannot_be_opened_changes_nothing() {
    let site = forms("logs_off");
    let master = site.start();
    let threads = |pid: i32| {
        let tasks = fs::read_dir(format!("/proc/{pid}/task")).expect("the worker runs");
        tasks.flatten().filter_map(|task| fs::read_to_string(task.path().join("comm")).ok()).collect::<String>()
    };
    assert!(!threads(master.workers()[0].pid).contains("fm-access"));
    site.set("log.access", "'none/access.log'");
    let refused = master.cli(&["reload"]);
    assert_eq!(refused.code, Some(1), "{refused}");
    assert!(refused.text().contains("[log] access = \"none/access.log\": there is no directory"), "{refused}");
    assert_eq!(master.get("/one").text(), "one");
    // A reload switches it on and off again.
    site.set("log.access", "'access.log'");
    master.reload();
    assert!(threads(master.wait_serving()[0].pid).contains("fm-access"));
    master.get("/one");
    wait_lines(&site.path().join("access.log"), 1);
    site.set("log.access", "'none'");
    master.reload();
    assert!(!threads(master.wait_serving()[0].pid).contains("fm-access"));
}

#[test]
fn health_is_for_probes() {
    let site = Site::new("health");
    site.build("1").import_s(3.0).make();
    site.flip("1");
    site.set("server.workers", "1");
    let config = site.config_path();
    let health = |flag: &[&str]| {
        let output = run(site.path(), &[&["health", "-c", config.to_str().expect("plain characters")], flag].concat());
        (output.code, output.stderr.is_empty())
    };
    assert_eq!((health(&["--live"]).0, health(&["--ready"]).0), (Some(1), Some(1)), "nobody is there");
    let master = site.spawn();
    wait_for("the master to live", || (health(&["--live"]) == (Some(0), true)).then_some(()));
    assert_eq!(health(&["--ready"]), (Some(1), false), "no worker serves yet");
    master.wait_serving();
    for flag in [&[][..], &["--ready"], &["--live"]] {
        assert_eq!(health(flag), (Some(0), true), "{flag:?}");
    }
    // A master that does not answer is not alive, and the probe does not wait for ever.
    master.signal(Signal::SIGSTOP);
    wait_for("it to stop", || process::status_field(master.pid(), "State:").filter(|state| state.starts_with('T')));
    let began = std::time::Instant::now();
    assert_eq!(health(&["--live"]), (Some(1), false));
    assert!(began.elapsed() < Duration::from_secs(20));
    master.signal(Signal::SIGCONT);
    wait_for("the master to live", || (health(&["--live"]) == (Some(0), true)).then_some(()));
}

/// A rotation while a new generation proves: whatever either of the two writes afterwards is in the new files.
#[test]
fn a_rotation_during_a_roll_reaches_both_generations() {
    let site = Site::with_releases("logs_roll", 1);
    // Its import waits for a file.
    let app = crate::harness::site::app_source("app.py");
    let waits = "import ctypes\nimport time\nwhile not os.path.exists(os.environ['GO']):\n    time.sleep(.01)\n";
    let (head, rest) = app.split_once("import ctypes\n").expect("its first import");
    site.build("2").file("app.py", &format!("{head}import os\n{waits}{rest}")).make();
    let go = site.path().join("go");
    site.set("env.GO", &format!("{:?}", go.display().to_string()));
    site.set("server.bind", "['unix:app.sock']").set("log.error", "'error.log'");
    site.set("log.access", "'access.log'").set("log.access_format", "'%(U)s'");
    let master = site.start();
    let address = Address::Unix(site.path().join("app.sock"));
    let get = |target: &str| crate::harness::client::get(&address, target).expect("it is answered").text();
    assert_eq!(get("/one"), "no such path: /one");
    wait_lines(&site.path().join("access.log"), 1);
    site.flip("2");
    // Its logs are new files, too: the rotation moves them before they are anybody's.
    site.set("log.error", "'error2.log'").set("log.access", "'access2.log'");
    master.hup();
    wait_for("a generation that proves", || {
        let generations = master.status()?.generations();
        generations.iter().any(|generation| generation.state == "proving").then_some(())
    });
    let names = ["error.log", "access.log", "error2.log", "access2.log"];
    for name in names {
        fs::rename(site.path().join(name), site.path().join(format!("{name}.1"))).expect("logrotate renames it");
    }
    master.signal(Signal::SIGUSR1);
    let text = |name: &str| fs::read_to_string(site.path().join(name)).unwrap_or_default();
    wait_for("the log's reopening", || text("error.log").contains("log reopened").then_some(()));
    get("/two");
    wait_for("the old generation's line", || text("access.log").contains("/two").then_some(()));
    fs::write(&go, "").expect("it is our directory");
    // The error log is the new generation's from its commit on, and is opened again then.
    wait_for("the reopening after the commit", || text("error2.log").contains("log reopened").then_some(()));
    master.wait_drained();
    assert_eq!(get("/"), "2");
    wait_for("the new generation's line", || (text("access2.log") == "/\n").then_some(()));
    // What was moved away is left alone.
    assert_eq!(text("access.log.1"), "/one\n");
    assert_eq!(text("access2.log.1"), "");
    assert!(!text("error.log.1").contains("log reopened"), "{}", text("error.log.1"));
    master.stop();
}
