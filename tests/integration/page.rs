//! The status page of `[status] bind`: a static page that loads nothing from outside, and the JSON that it shows.

use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::Value;

use crate::harness::client::{self, head, Address};
use crate::harness::machine::{not_tested, Machine};
use crate::harness::master::Master;
use crate::harness::site::Site;
use crate::harness::wait_for;

fn door(site: &Site) -> Address {
    Address::Unix(site.path().join("status.sock"))
}

fn state(site: &Site) -> Value {
    client::get(&door(site), "/status.json").expect("an answer").json()
}

fn running(master: &Master) -> bool {
    master.status().is_some_and(|status| status.0["generations"][0]["workers"][0]["busy"] == 1)
}

#[test]
fn the_page_runs_its_own_script_and_loads_nothing() {
    let site = Site::with_releases("page", 1);
    site.set("status.bind", "['unix:status.sock']");
    let _master = site.start();
    let page = client::get(&door(&site), "/").expect("an answer");
    assert_eq!((page.status, page.header("Content-Type")), (200, Some("text/html; charset=utf-8")));
    assert_eq!(
        (page.header("Cache-Control"), page.header("X-Content-Type-Options")),
        (Some("no-store"), Some("nosniff"))
    );
    let policy = page.header("Content-Security-Policy").expect("there is one").to_owned();
    assert!(policy.starts_with("default-src 'none'; connect-src 'self';") && !policy.contains("unsafe"), "{policy}");
    // What the policy allows is what the file has.
    let file = site.write("page.html", &page.text());
    let hash = "import base64, hashlib, re, sys\n\
                text = open(sys.argv[1]).read()\n\
                for tag in 'script', 'style':\n\
                \x20   inside = re.search(f'<{tag}>(.*?)</{tag}>', text, re.S).group(1).encode()\n\
                \x20   print('sha256-' + base64.b64encode(hashlib.sha256(inside).digest()).decode())\n";
    let python = &Machine::get().public_python().executable;
    let hashes = Command::new(python).args(["-c", hash]).arg(&file).output().expect("Python can be started");
    let hashes = String::from_utf8(hashes.stdout).expect("text");
    assert_eq!(hashes.lines().count(), 2);
    for (of, hash) in ["script-src", "style-src"].iter().zip(hashes.lines()) {
        assert!(policy.contains(&format!("{of} '{hash}'")), "doors/page.rs must say {of} '{hash}': {policy}");
    }
}

/// A real browser runs the script under the policy, and shows what the master says.
#[test]
fn a_browser_shows_the_page() {
    let browsers = ["chromium-headless-shell", "chromium"];
    let Some(browser) = browsers.map(|name| Path::new("/usr/bin").join(name)).into_iter().find(|path| path.exists())
    else {
        return not_tested("it needs Chromium");
    };
    let site = Site::with_releases("page_browser", 2);
    site.set("status.bind", "['127.0.0.1:0']").set("name", "'shop'");
    site.build("bad").file("app.py", "import nothing_of_that_name\n").make();
    let master = site.start();
    site.flip("bad");
    assert!(!master.cli(&["reload"]).ok());
    site.flip("2");
    master.reload();
    let line = master.wait_log("status at 127.0.0.1:*: /livez, /readyz, /metrics");
    let address = line.split("status at ").nth(1).and_then(|rest| rest.split(": /livez").next()).expect("an address");
    let mut command = Command::new(browser);
    command.args([
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-background-networking",
        "--disable-component-update",
    ]);
    // Time runs as fast as it can, and waits for answers: some looks of the page.
    command.args(["--virtual-time-budget=4000", "--dump-dom"]);
    command.arg(format!("--user-data-dir={}", site.path().join("browser").display())).arg(format!("http://{address}/"));
    let output = command.stdin(Stdio::null()).output().expect("it can be started");
    let shown = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{}: {}", output.status, String::from_utf8_lossy(&output.stderr));
    for words in [
        "<title>shop: running</title>",
        "<b>Generation 3 </b>",
        "<div class=\"soft\">slot 1</div>",
        "refused: ModuleNotFoundError: No module named 'nothing_of_that_name'",
        "<td class=\"number\">committed</td>",
        "<h2>Requests/s</h2>",
    ] {
        assert!(shown.contains(words), "{words} is not shown: {shown}");
    }
    // Behind it the dump has the script.
    let shown = shown.split("<noscript>").next().expect("there is a first part");
    assert!(shown.contains("id=\"lost\" class=\"card\" role=\"alert\" style=\"display: none;\""), "{shown}");
    assert!(!shown.contains("NaN") && !shown.contains("undefined") && !shown.contains("null"), "{shown}");
}

/// It is `status --json` with what changes in time; and whoever could be a stranger does not see what clients ask for.
#[test]
fn the_page_is_fed_by_the_state_of_the_master() {
    let site = Site::with_releases("page_state", 2);
    site.set("status.bind", "['unix:status.sock', '127.0.0.1:0']").set("server.workers", "1");
    let master = site.start();
    let end = site.path().join("end");
    let mut busy = master.connect();
    busy.must_send(head("GET", &format!("/until?file={}", end.display()), &[]));
    wait_for("it to run", || running(&master).then_some(()));
    let shown = state(&site);
    let worker = &shown["generations"][0]["workers"][0];
    assert_eq!((&shown["requests_shown"], &worker["running"][0]["path"]), (&Value::Bool(true), &Value::from("/until")));
    assert_eq!((worker["busy"].as_u64(), shown["threads_max"].as_u64()), (Some(1), Some(1)));
    assert_eq!(shown["deploys"][0]["result"], "committed");
    let counted = |name: &str| shown[name]["counts"].as_array().map(Vec::len);
    assert_eq!(counted("latency"), shown["latency"]["upper_s"].as_array().map(|upper| upper.len() + 1));
    assert_eq!(counted("queued"), counted("latency"));
    // The same as `status --json` says, and more.
    let status = master.status().expect("it answers");
    let fields = |of: &Value| of.as_object().expect("an object").keys().cloned().collect::<Vec<_>>();
    let missing: Vec<String> = fields(&status.0).into_iter().filter(|key| shown.get(key).is_none()).collect();
    assert_eq!(missing, ["ok", "v"]);
    // A name may be that of a web page whose browser is here (DNS rebinding).
    let line = master.wait_log("status at 127.0.0.1:*: /livez, /readyz, /metrics");
    let address = line.split("status at ").nth(1).and_then(|rest| rest.split(": /livez").next()).expect("an address");
    let local = Address::Tcp(address.parse().expect("an address"));
    let ask = |host: &str| {
        let request = format!("GET /status.json HTTP/1.1\r\nHost: {host}\r\n\r\n");
        client::Connection::to(&local).ask(request).json()
    };
    assert_eq!(ask(address)["generations"][0]["workers"][0]["running"][0]["path"], "/until");
    let theirs = ask("rebound.example");
    assert_eq!(theirs["requests_shown"], false);
    assert!(!theirs.to_string().contains("/until"), "{theirs}");
    std::fs::write(&end, "").expect("it can be made");
    busy.expect_answer();
    // A deploy is the first in the list.
    site.flip("2");
    master.reload();
    let shown = state(&site);
    assert_eq!(
        (&shown["deploys"][0]["generation"], &shown["deploys"][1]["generation"]),
        (&Value::from(2), &Value::from(1))
    );
}

/// The dashboard of examples/grafana asks for metrics that there are.
#[test]
fn the_dashboard_asks_for_metrics_that_there_are() {
    let site = Site::with_releases("dashboard", 1);
    site.set("status.bind", "['unix:status.sock']");
    let master = site.start();
    master.get("/");
    let metrics = client::get(&door(&site), "/metrics").expect("an answer").text();
    let known: Vec<&str> = metrics.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next()).collect();
    let text = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/examples/grafana/forkmaster.json"));
    let board: Value = serde_json::from_str(&text.expect("it is there")).expect("JSON");
    let panels = board["panels"].as_array().expect("panels");
    let mut asked = 0;
    for target in panels.iter().flat_map(|panel| panel["targets"].as_array().expect("targets")) {
        let query = target["expr"].as_str().expect("a query");
        let names = query.split(|letter: char| !(letter.is_ascii_alphanumeric() || letter == '_'));
        for name in names.filter(|name| name.starts_with("forkmaster_") || name.starts_with("http_server_")) {
            asked += 1;
            let of_histogram = ["_bucket", "_sum", "_count"].iter().find_map(|part| name.strip_suffix(part));
            let is_known = known.contains(&name) || of_histogram.is_some_and(|name| known.contains(&name));
            assert!(is_known, "{name} of {query} is not in /metrics: {known:?}");
        }
    }
    assert!(asked >= 12 && panels.len() >= 9, "{asked} in {} panels", panels.len());
}
