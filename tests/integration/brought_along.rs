//! What teams bring along from Gunicorn: an application that is mounted below a prefix, connections that close with each
//! answer, no limit of a request line, and a health check that must not reach the application.

use std::time::Duration;

use crate::harness::client::{self, head, Connection};
use crate::harness::master::Launch;
use crate::harness::site::Site;
use crate::harness::wait_for;

/// SCRIPT_NAME and PATH_INFO, as the application sees them.
fn mount(answer: &client::Response) -> (String, String) {
    assert_eq!(answer.status, 200, "{}", answer.text());
    let environ = answer.json();
    let text = |key: &str| environ[key].as_str().unwrap_or_default().to_owned();
    assert!(environ.get("HTTP_SCRIPT_NAME").is_none(), "{environ}");
    (text("SCRIPT_NAME"), text("PATH_INFO"))
}

fn pair(script_name: &str, path_info: &str) -> (String, String) {
    (script_name.to_owned(), path_info.to_owned())
}

const WSGI: &str = "
import json

def application(environ, start_response):
    plain = {key: value for key, value in environ.items() if isinstance(value, str)}
    start_response('200 OK', [])
    return [json.dumps(plain).encode()]
";

#[test]
fn an_application_is_mounted_where_script_name_says() {
    let site = Site::with_source("script_name", WSGI);
    site.set("app.script_name", "'/shop/'").set("app.probe", "'/healthz'");
    let master = site.start();
    assert_eq!(mount(&master.get("/shop/cart?a=1")), pair("/shop", "/cart"));
    assert_eq!(mount(&master.get("/shop")), pair("/shop", ""));
    assert_eq!(mount(&master.get("/sh%6fp/a%20b")), pair("/shop", "/a b"));
    // Another application's, or what a proxy has stripped already.
    assert_eq!(mount(&master.get("/shopping")), pair("/shop", "/shopping"));
    assert_eq!(mount(&master.get("/healthz")), pair("/shop", "/healthz"));
    let raw = master.get("/shop/cart").json();
    assert_eq!((&raw["RAW_URI"], &raw["REQUEST_URI"]), (&"/shop/cart".into(), &"/shop/cart".into()));
}

#[test]
fn the_variable_script_name_mounts_as_under_gunicorn() {
    let site = Site::with_source("script_name_variable", WSGI);
    let master = site.launch(Launch::default().env("SCRIPT_NAME", "/shop"));
    master.wait_serving();
    assert_eq!(mount(&master.get("/shop/cart")), pair("/shop", "/cart"));
    drop(master);
    // A shell's own variable.
    let master = site.launch(Launch::default().env("SCRIPT_NAME", "deploy.sh"));
    master.wait_serving();
    assert_eq!(mount(&master.get("/shop/cart")), pair("", "/shop/cart"));
}

/// Gunicorn's `proxy_set_header SCRIPT_NAME /shop;`.
#[test]
fn a_trusted_proxy_says_script_name_where_it_is_named() {
    let site = Site::with_source("script_name_header", WSGI);
    site.set("http.forwarded_headers", "['for', 'script_name']");
    let master = site.start();
    let asked = |fields: &[(&str, &str)]| Connection::to(&master.address()).ask(head("GET", "/shop/cart", fields));
    assert_eq!(mount(&asked(&[("SCRIPT_NAME", "/shop")])), pair("/shop", "/cart"));
    assert_eq!(mount(&asked(&[("Script_Name", "/shop/")])), pair("/shop", "/cart"));
    assert_eq!(mount(&asked(&[("SCRIPT_NAME", "/other")])), pair("/other", "/shop/cart"));
    for nothing in ["shop", "", "/"] {
        assert_eq!(mount(&asked(&[("SCRIPT_NAME", nothing)])), pair("", "/shop/cart"), "{nothing:?}");
    }
    // Whoever is not trusted, and a proxy that is not said to set it.
    site.set("http.forwarded_allow_ips", "['192.0.2.1']");
    master.reload();
    assert_eq!(mount(&asked(&[("SCRIPT_NAME", "/shop")])), pair("", "/shop/cart"));
    site.unset("http.forwarded_allow_ips").unset("http.forwarded_headers");
    master.reload();
    assert_eq!(mount(&asked(&[("SCRIPT_NAME", "/shop")])), pair("", "/shop/cart"));
}

#[test]
fn without_keepalive_each_answer_closes_its_connection() {
    let site = Site::with_releases("keepalive_none", 1);
    site.set("http.keepalive_timeout", "'none'").set("server.health_path", "'/-/healthz'");
    let master = site.start();
    for target in ["/", "/stream?pieces=2&pause=0", "/-/healthz", "/nowhere"] {
        let mut connection = master.connect();
        let answer = connection.ask(head("GET", target, &[]));
        assert!(answer.closes(), "{target}: {answer:?}");
        assert!(connection.closed_within(Duration::from_secs(10)), "{target}");
    }
    let shown = master.cli(&["config", "show"]).text();
    assert!(shown.contains("keepalive_timeout = \"none\""), "{shown}");
}

#[test]
fn no_limit_of_a_line_is_that_of_the_head() {
    let site = Site::with_releases("limits_none", 1);
    site.set("http.limit_request_line", "'none'").set("http.limit_request_field_size", "'none'");
    site.set("http.limit_request_fields", "'none'");
    let master = site.start();
    let long = "x".repeat(30_000);
    let answer = Connection::to(&master.address()).ask(head("GET", &format!("/?{long}"), &[("X-Long", &long)]));
    assert_eq!(answer.status, 200);
    let many: Vec<(&str, &str)> = (0..5_000).map(|_| ("A", "b")).collect();
    assert_eq!(Connection::to(&master.address()).ask(head("GET", "/", &many)).status, 200);
    let longer = "x".repeat(70_000);
    let answer = Connection::to(&master.address()).ask(head("GET", &format!("/?{longer}"), &[]));
    assert!(matches!(answer.status, 414 | 431), "{answer:?}");
}

#[test]
fn a_health_path_is_answered_without_the_application() {
    let site = Site::with_releases("health_path", 1);
    site.set("server.workers", "1").set("server.health_path", "'/-/healthz'").set("log.access", "'-'");
    let master = site.start();
    let requests = || master.status()?.0["requests"].as_u64();
    let before = requests().expect("it answers");
    // Its only thread is busy.
    let done = site.path().join("done");
    let mut busy = master.connect();
    busy.must_send(head("GET", &format!("/until?file={}", done.display()), &[]));
    wait_for("the request to run", || master.status()?.0.to_string().contains("/until").then_some(()));
    let mut probe = master.connect();
    for (method, body) in [("GET", "ok\n"), ("HEAD", ""), ("GET", "ok\n")] {
        probe.must_send(format!("{method} /-/healthz?from=kubelet HTTP/1.1\r\nHost: 10.1.2.3:8000\r\n\r\n"));
        let answer = if method == "HEAD" { probe.read_to_head() } else { probe.read() };
        let answer = answer.unwrap_or_else(|error| panic!("{method}: {error}"));
        assert_eq!((answer.status, answer.text().as_str(), answer.closes()), (200, body, false), "{answer:?}");
        assert_eq!(answer.header("Cache-Control"), Some("no-store"));
    }
    // Many at once, on one connection.
    probe.must_send(head("GET", "/-/healthz", &[]).repeat(200));
    for _ in 0..200 {
        assert_eq!(probe.expect_answer().status, 200);
    }
    std::fs::write(&done, "").expect("it is our directory");
    assert_eq!(busy.expect_answer().status, 200);
    // Any other method is the application's.
    assert_eq!(master.connect().ask(head("POST", "/-/healthz", &[("Content-Length", "0")])).status, 404);
    wait_for("both requests to be counted", || {
        let after = requests()?;
        assert!(after <= before + 2, "{before} {after}");
        (after == before + 2).then_some(())
    });
    master.stop();
    assert!(!master.stdout().contains("GET /-/healthz"), "{}", master.stdout());
}
