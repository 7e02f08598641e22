//! Ids of requests: taken from a proxy or made, and found again everywhere.

use crate::harness::client::{head, Response};
use crate::harness::master::Master;
use crate::harness::site::Site;
use crate::harness::wait_for;

fn site(name: &str) -> Site {
    let site = Site::with_releases(name, 1);
    site.set("server.workers", "1").set("http.request_id_header", "'X-Request-Id'");
    site.set("log.access", "'access.log'").set("log.access_format", "'%(m)s %(U)s %(s)s %(I)s'");
    site
}

fn ask(master: &Master, path: &str, fields: &[(&str, &str)]) -> Response {
    master.connect().ask(head("GET", path, fields))
}

/// The line of the access log that has this in it.
fn line(site: &Site, what: &str) -> String {
    wait_for("the line", || {
        let text = std::fs::read_to_string(site.path().join("access.log")).unwrap_or_default();
        text.lines().find(|line| line.contains(what)).map(str::to_owned)
    })
}

fn id(response: &Response) -> String {
    let id = response.header("X-Request-Id").expect("an id").to_owned();
    assert_eq!(response.headers.iter().filter(|(name, _)| name.eq_ignore_ascii_case("x-request-id")).count(), 1);
    id
}

fn is_made(id: &str) -> bool {
    id.len() == 32 && id.bytes().all(|byte| byte.is_ascii_hexdigit())
}

#[test]
fn an_id_is_taken_from_a_proxy_or_made() {
    let site = site("ids");
    let master = site.start();
    let mut made = Vec::new();
    let long = "x".repeat(129);
    let cases: [(&[(&str, &str)], bool); 8] = [
        (&[], false),
        (&[("X-Request-Id", "7f3c-Root=1;x")], true),
        (&[("x-request-id", "a.b:c/d+e@f~g_h")], true),
        (&[("X-Request-Id", "with blank")], false),
        (&[("X-Request-Id", "quote\"")], false),
        (&[("X-Request-Id", "")], false),
        (&[("X-Request-Id", &long)], false),
        (&[("X-Request-Id", "one"), ("X-Request-Id", "two")], false),
    ];
    for (sent, is_taken) in cases {
        let answer = ask(&master, "/wsgi", sent);
        let id = id(&answer);
        assert_eq!(answer.json()["HTTP_X_REQUEST_ID"], id.as_str(), "the application has the same");
        assert_eq!(line(&site, &id), format!("GET /wsgi 200 {id}"));
        if is_taken {
            assert_eq!(id, sent[0].1);
        } else {
            assert!(is_made(&id) && !made.contains(&id), "{sent:?}: {id}");
            made.push(id);
        }
    }
}

#[test]
fn nobody_else_is_believed() {
    let site = site("ids_untrusted");
    site.set("http.forwarded_allow_ips", "[]").set("log.access_format", "'json'");
    let master = site.start();
    let answer = ask(&master, "/wsgi", &[("X-Request-Id", "forged")]);
    let id = id(&answer);
    assert!(is_made(&id), "{id}");
    assert_eq!(answer.json()["HTTP_X_REQUEST_ID"], id.as_str());
    assert!(line(&site, &id).contains(&format!("\"request_id\":\"{id}\"")));
}

#[test]
fn there_are_none_unless_they_are_asked_for() {
    let site = Site::with_releases("ids_off", 1);
    let master = site.start();
    let answer = ask(&master, "/wsgi", &[("X-Request-Id", "mine")]);
    assert_eq!((answer.header("X-Request-Id"), answer.json()["HTTP_X_REQUEST_ID"].as_str()), (None, Some("mine")));
}

/// Where something goes wrong it is needed most.
#[test]
fn whatever_happens_to_a_request_its_id_is_told() {
    let site = site("ids_trouble");
    site.set("http.max_body", "'1KiB'").set("server.graceful_timeout", "'1s'").set("server.request_timeout", "'5m'");
    site.set("server.request_timeouts", "{ '/sleep' = '1s' }").set("log.slow_request", "'500ms'");
    let master = site.start();
    let named = |id: &'static str| [("X-Request-Id", id)];
    // An exception.
    let answer = ask(&master, "/fail", &named("id-fail"));
    assert_eq!((answer.status, id(&answer).as_str()), (500, "id-fail"));
    master.wait_log("exception in GET /fail* id=id-fail");
    // A refusal.
    let mut refused = master.connect();
    refused.must_send(head("POST", "/echo", &[("X-Request-Id", "id-large"), ("Content-Length", "5000")]));
    assert_eq!(refused.expect_answer().status, 413);
    master.wait_log("refused *: 413 request body too large (max_body) id=id-large");
    // A timeout.
    let answer = ask(&master, "/sleep?s=60", &named("id-slow"));
    assert_eq!((answer.status, id(&answer).as_str()), (504, "id-slow"));
    master.wait_log("slow request \"GET /sleep\" id=id-slow of 127.0.0.1 runs for");
    master.wait_log("request \"GET /sleep\" id=id-slow exceeds request_timeout");
    master.wait_log("cut request \"GET /sleep\" id=id-slow after=");
    assert_eq!(line(&site, "id-slow"), "GET /sleep 504 id-slow");
    // A death.
    master.wait_serving();
    let mut dead = master.connect();
    dead.must_send(head("GET", "/crash", &named("id-dead")));
    assert!(dead.read().is_err());
    master.wait_log("lost request \"GET /crash\" id=id-dead after=");
    assert_eq!(line(&site, "id-dead"), "GET /crash - id-dead");
}
