//! Clients and masters of other versions. A deploy replaces the program before it replaces the process, so the two differ
//! at each of them. What the first binary with a control socket said is recorded here, and played to the other side of today.
//!
//! The lines were recorded from a release build of commit d76c654 (26 November 2026), 201 commits before this test, by a
//! proxy between its client and its master: one worker, one release, then one whose import fails. Only paths were
//! shortened. That master refuses every field and verb that it does not know.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::time::Duration;

use serde_json::{json, Value};

use crate::harness::master::{run, Output};
use crate::harness::site::Site;

const STATUS: (&str, &str) = (
    r#"{"command":"status"}"#,
    r#"{"accepted":0,"errors":0,"generations":[{"age_s":0.918843985,"generation":1,"in_place":false,"preload":false,"python":"3.11.2","release":"/srv/rel","state":"serving","template":{"pid":3491,"state":"ready"},"venv":null,"workers":[{"age_s":0.809686615,"busy":0,"connections":0,"pid":3495,"requests":0,"slot":0,"state":"serving"}],"workers_wanted":1}],"last_reload":{"details":"","generation":1,"ok":true,"reason":"","took_s":0.141041017},"listeners":[{"address":"unix:/srv/http.sock"}],"name":"app-d852d469","ok":true,"pid":3488,"ready":true,"requests":0,"state":"running","v":1,"version":"0.1.0"}"#,
);
const WAIT_READY: (&str, &str) = (r#"{"command":"wait_ready"}"#, r#"{"ok":true,"v":1}"#);
const RELOAD: (&str, &str) = (
    r#"{"command":"reload","wait":true}"#,
    r#"{"details":"","generation":2,"ok":true,"reason":"","took_s":0.118688206,"v":1}"#,
);
const RELOAD_REFUSED: (&str, &str) = (
    r#"{"command":"reload","wait":true}"#,
    r#"{"details":"Traceback (most recent call last):\n  File \"/srv/bad/app.py\", line 1, in <module>\n    import nothing_of_that_name\nModuleNotFoundError: No module named 'nothing_of_that_name'","generation":2,"ok":false,"reason":"ModuleNotFoundError: No module named 'nothing_of_that_name'","took_s":0.181545172,"v":1}"#,
);
const RELOAD_AT_ONCE: (&str, &str) = (r#"{"command":"reload","wait":false}"#, r#"{"generation":3,"ok":true,"v":1}"#);
const STOP: (&str, &str) = (r#"{"command":"stop","now":false}"#, r#"{"ok":true,"pid":3488,"v":1}"#);
const UNKNOWN: &str = r#"{"ok":false,"reason":"not a request: unknown variant `rollback`, expected one of `status`, `reload`, `wait_ready`, `stop` at line 1 column 21","v":1}"#;

fn parsed(line: &str) -> Value {
    serde_json::from_str(line).unwrap_or_else(|error| panic!("{line}: {error}"))
}

/// Everything that the older answer has is in the newer one, as a value of the same kind. `null` may have become something.
#[track_caller]
fn assert_understood(place: &str, older: &Value, newer: &Value) {
    match (older, newer) {
        (Value::Null, _) => {}
        (Value::Object(older), Value::Object(newer)) => {
            for (key, value) in older {
                let there = newer.get(key).unwrap_or_else(|| panic!("{place}.{key} is gone: {newer:?}"));
                assert_understood(&format!("{place}.{key}"), value, there);
            }
        }
        (Value::Array(older), Value::Array(newer)) => {
            let (Some(one), Some(other)) = (older.first(), newer.first()) else { panic!("{place} is empty") };
            assert_understood(place, one, other);
        }
        (Value::Bool(_), Value::Bool(_)) | (Value::Number(_), Value::Number(_)) => {}
        (Value::String(_), Value::String(_)) => {}
        _changed => panic!("{place} was {older} and is {newer}"),
    }
}

#[test]
fn the_first_client_is_answered_as_its_own_master_did() {
    let site = Site::with_releases("first_client", 1);
    site.build("bad").file("app.py", "import nothing_of_that_name\n").make();
    let master = site.start();
    let ask = |(request, recorded): (&str, &str)| {
        let mut stream = UnixStream::connect(site.path().join("control.sock")).expect("it listens");
        stream.set_read_timeout(Some(Duration::from_secs(30))).expect("a timeout can be set");
        stream.write_all(format!("{request}\n").as_bytes()).expect("it can be sent");
        let mut answer = String::new();
        BufReader::new(stream).read_line(&mut answer).expect("it answers");
        let (older, newer) = (parsed(recorded), parsed(&answer));
        assert_understood(request, &older, &newer);
        assert_eq!((&newer["ok"], &newer["v"]), (&older["ok"], &older["v"]), "{request}: {newer}");
        newer
    };
    ask(WAIT_READY);
    let status = ask(STATUS);
    // The words that it compares.
    assert_eq!((&status["state"], &status["ready"]), (&"running".into(), &true.into()));
    let generation = &status["generations"][0];
    assert_eq!((&generation["state"], &generation["workers"][0]["state"]), (&"serving".into(), &"serving".into()));
    assert_eq!(ask(RELOAD)["generation"], 2);
    assert_eq!(ask(RELOAD_AT_ONCE)["generation"], 3);
    master.wait_log("generation gen=3 committed");
    site.flip("bad");
    let refused = ask(RELOAD_REFUSED);
    let reason = refused["reason"].as_str().unwrap_or_default();
    assert!(reason.contains("No module named 'nothing_of_that_name'"), "{refused}");
    assert!(refused["details"].as_str().is_some_and(|text| text.contains("Traceback")), "{refused}");
    assert_eq!(master.get("/").text(), "1");
    ask(STOP);
    assert_eq!(master.wait_exit().code(), Some(0));
}

/// A master that knows these lines, and refuses every other. It ends with its last answer to `stop`.
fn stand_in(site: &Site, known: Vec<(&'static str, String)>) -> PathBuf {
    let path = site.path().join("other.sock");
    let _ = std::fs::remove_file(&path);
    let listener = UnixListener::bind(&path).expect("a socket of the site can be made");
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let mut line = String::new();
            let mut reader = BufReader::new(&stream);
            let _ = reader.read_line(&mut line);
            let asked: Value = serde_json::from_str(&line).unwrap_or_default();
            let reply = known.iter().find(|(request, _)| parsed(request) == asked).map(|(_, reply)| reply.as_str());
            let _ = (&stream).write_all(format!("{}\n", reply.unwrap_or(UNKNOWN)).as_bytes());
        }
    });
    path
}

fn client(site: &Site, socket: &std::path::Path, verb: &[&str]) -> Output {
    run(site.path(), &[verb, &["--socket", socket.to_str().expect("plain characters")]].concat())
}

#[test]
fn the_first_master_is_understood_and_hears_what_it_knows() {
    let site = Site::new("first_master");
    let recorded = |(request, reply): (&'static str, &str)| (request, reply.to_owned());
    let known = [STATUS, WAIT_READY, RELOAD, RELOAD_AT_ONCE, STOP].map(recorded).to_vec();
    let socket = stand_in(&site, known);
    for (verb, code, words) in [
        (&["status"][..], 0, "generation 1 serving: /srv/rel (Python 3.11.2)"),
        (&["status", "--json"], 0, "\"pid\":3488"),
        (&["health"], 0, "running"),
        (&["health", "--live"], 0, "running"),
        (&["wait", "ready"], 0, ""),
        (&["reload"], 0, "generation 2 serves, after 0.12 s"),
        (&["reload", "--no-wait"], 0, "generation 3 is being proved"),
        (&["stop"], 0, ""),
        // What it does not know is refused in its own words, and nothing is done.
        (&["rollback"], 1, "unknown variant `rollback`"),
        (&["reload", "--force"], 1, "reload refused: "),
        (&["scale", "2"], 1, "scale: "),
        (&["upgrade"], 1, "upgrade: "),
        (&["recycle", "0", "--keep", "10m"], 1, "recycle: "),
    ] {
        let output = client(&site, &socket, verb);
        assert!(output.code == Some(code) && output.text().contains(words), "{verb:?}: {output}");
    }
    let socket = stand_in(&site, vec![recorded(RELOAD_REFUSED)]);
    let output = client(&site, &socket, &["reload"]);
    assert_eq!(output.code, Some(1), "{output}");
    assert!(output.stderr.contains("reload refused: ModuleNotFoundError"), "{output}");
    assert!(output.stderr.contains("import nothing_of_that_name"), "no traceback: {output}");
}

/// A master of tomorrow: more fields at each level, states that have no name yet, and things that may be missing.
#[test]
fn a_later_master_is_understood_as_far_as_it_goes() {
    let site = Site::new("later_master");
    let mut status = parsed(STATUS.1);
    let later = json!({"of": ["tomorrow", 1, null]});
    status["weather"] = later.clone();
    status["state"] = "dreaming".into();
    status["listeners"][0]["weather"] = later.clone();
    status["last_reload"]["weather"] = later.clone();
    let generation = &mut status["generations"][0];
    (generation["state"], generation["weather"]) = ("hovering".into(), later.clone());
    (generation["workers"][0]["state"], generation["workers"][0]["weather"]) = ("asleep".into(), later.clone());
    generation["template"] = json!({"pid": null, "state": "melted", "weather": later});
    let mut reload = parsed(RELOAD.1);
    reload["weather"] = later.clone();
    let mut stop = parsed(STOP.1);
    stop["weather"] = later;
    let known = vec![
        (STATUS.0, status.to_string()),
        (WAIT_READY.0, r#"{"ok":true,"v":1,"weather":{}}"#.to_owned()),
        (RELOAD.0, reload.to_string()),
        (RELOAD_AT_ONCE.0, r#"{"generation":3,"ok":true,"v":1,"weather":{}}"#.to_owned()),
        (STOP.0, stop.to_string()),
    ];
    let socket = stand_in(&site, known);
    for (verb, code, words) in [
        (&["status"][..], 0, "pid 3488: dreaming"),
        (&["status"], 0, "generation 1 hovering"),
        (&["status"], 0, "asleep"),
        (&["status", "--json"], 0, "\"weather\""),
        (&["health"], 0, "dreaming"),
        (&["wait", "ready"], 0, ""),
        (&["reload"], 0, "generation 2 serves"),
        (&["reload", "--no-wait"], 0, "generation 3 is being proved"),
        (&["stop"], 0, ""),
    ] {
        let output = client(&site, &socket, verb);
        assert!(output.code == Some(code) && output.text().contains(words), "{verb:?}: {output}");
    }
}
