//! Services with sockets of their own, as systemd hands them over, and services that say when they are ready.

use std::fs;
use std::io::Read;
use std::net::{SocketAddr, TcpStream};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr as UnixAddress, UnixDatagram, UnixStream};

use serde_json::Value;

use crate::harness::client::{self, Address};
use crate::harness::machine::Machine;
use crate::harness::master::Master;
use crate::harness::process::Process;
use crate::harness::site::Site;
use crate::harness::wait_for;

fn add(site: &Site, text: &str) {
    let before = fs::read_to_string(site.config_path()).expect("it was written");
    site.config(&(before + text));
}

/// Of the generation that serves, as `status --json` has it.
fn service(master: &Master) -> Value {
    let output = master.cli(&["status", "--json"]);
    let status: Value = serde_json::from_str(&output.stdout).expect("it is JSON");
    let generations = status["generations"].as_array().expect("generations");
    let serving = generations.iter().find(|generation| generation["state"] == "serving").expect("one serves");
    serving["services"][0].clone()
}

fn state(master: &Master) -> String {
    service(master)["state"].as_str().expect("a word").to_owned()
}

fn address(master: &Master) -> SocketAddr {
    let service = service(master);
    service["listeners"][0].as_str().and_then(|text| text.parse().ok()).unwrap_or_else(|| panic!("{service}"))
}

/// Says what it was handed, accepts one connection, says its release there, and ends.
const ONE_SHOT: &str = r#"
import os, socket

names = ("LISTEN_FDS", "LISTEN_FDNAMES")
own = os.environ.get("LISTEN_PID") == str(os.getpid())
fds = sorted(int(fd) for fd in os.listdir("/proc/self/fd") if os.path.exists(f"/proc/self/fd/{fd}"))
print("handed", own, *(os.environ.get(name) for name in names), *fds, flush=True)
os.set_blocking(3, True)
connection, _ = socket.socket(fileno=3).accept()
connection.sendall(os.path.basename(os.getcwd()).encode())
"#;

fn ask(address: SocketAddr) -> String {
    let mut text = String::new();
    let mut connection = TcpStream::connect(address).expect("the master holds the socket");
    connection.read_to_string(&mut text).expect("an answer");
    text
}

#[test]
fn sockets_are_bound_once_and_held_over_crashes_and_deploys() {
    let site = Site::with_releases("sockets", 2);
    for release in ["1", "2"] {
        fs::write(site.release_path(release).join("serve.py"), ONE_SHOT).expect("a release can be written to");
    }
    add(
        &site,
        "[[service]]\nname = 'tcp'\ncommand = ['python', 'serve.py']\nbind = ['127.0.0.2:0', 'unix:own.sock']\n",
    );
    let master = site.start();
    master.wait_log("service tcp gen=1: handed True 2 tcp:tcp 0 1 2 3 4");
    let address = address(&master);
    assert!(master.cli(&["status"]).stdout.contains(&format!("running on {address} unix:")));
    // It has ended after each, and nobody is refused.
    for _ in 0..3 {
        assert_eq!(ask(address), "1");
    }
    // Clients of the workers' socket have nothing to do with it.
    assert_eq!(master.get("/").text(), "1");
    // One that rests at the commit has no process to end.
    wait_for("the fourth process", || (master.log_lines("service tcp gen=1: handed").len() >= 4).then_some(()));
    site.flip("2");
    master.reload();
    master.wait_log("service tcp gen=1 number=0 * -> gone *");
    assert_eq!(ask(address), "2");
    assert!(UnixStream::connect(site.path().join("own.sock")).is_ok());
    // A release without the service closes them.
    let config = fs::read_to_string(site.config_path()).expect("it was written");
    site.config(config.split("[[service]]").next().expect("the beginning"));
    master.reload();
    wait_for("the sockets to be closed", || TcpStream::connect(address).is_err().then_some(()));
    assert!(!site.path().join("own.sock").exists());
    master.stop();
    master.assert_nothing_left();
}

/// Says that it is ready when a file is there.
const NOTIFIER: &str = r#"
import os, socket, time

def say(text):
    address = os.environ["NOTIFY_SOCKET"]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as to:
        to.sendto(text, "\0" + address[1:] if address[0] == "@" else address)

print("notify at", os.environ["NOTIFY_SOCKET"], flush=True)
while not os.path.exists("ready"):
    time.sleep(0.02)
# A child may speak for it, as for systemd with NotifyAccess=all. It must live until it was heard.
leader = os.getpid()
if os.fork() == 0:
    say(b"STATUS=serving\nREADY=1\n")
    while os.getppid() == leader:
        time.sleep(0.02)
else:
    os.wait()
"#;

#[test]
fn one_that_says_when_it_is_ready_is_starting_until_then_and_degraded_where_that_takes_long() {
    let site = Site::with_releases("service_ready", 1);
    fs::write(site.release_path("1").join("notifier.py"), NOTIFIER).expect("a release can be written to");
    add(
        &site,
        "[[service]]\nname = 'web'\ncommand = ['python', 'notifier.py']\nnotify = true\nready_timeout = '700ms'\n",
    );
    let master = site.start();
    let told = master.wait_log("service web gen=1: notify at *");
    assert_eq!(state(&master), "starting");
    // Whoever sends from elsewhere is not believed.
    let name = told.trim().rsplit('@').next().expect("an abstract name");
    let stranger = UnixDatagram::unbound().expect("a socket");
    let address = UnixAddress::from_abstract_name(name).expect("a name");
    stranger.send_to_addr(b"READY=1", &address).expect("anybody may send");
    assert_ne!(state(&master), "running");
    master.wait_log("service web gen=1 * has not said that it is ready within 0.7s; it may still do so");
    let status = master.cli(&["status", "--json"]);
    assert!(status.stdout.contains("\"degraded\"") && status.ok(), "{status}");
    assert_eq!((state(&master).as_str(), master.get("/").text().as_str()), ("late", "1"));
    assert!(master.cli(&["health"]).ok());
    fs::write(site.release_path("1").join("ready"), "").expect("a release can be written to");
    master.wait_log("service web gen=1 * late -> running");
    assert_eq!(state(&master), "running");
    master.stop();
    master.assert_nothing_left();
}

/// Answers with the release that it runs; `/slow` only when a file is there.
const ASGI: &str = r#"
import asyncio, os

RELEASE = os.path.basename(os.getcwd()).encode()

async def app(scope, receive, send):
    if scope["type"] != "http":
        return
    if scope["path"] == "/slow":
        open("begun", "w").close()
    while scope["path"] == "/slow" and not os.path.exists("stop"):
        await asyncio.sleep(0.02)
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"1"), (b"connection", b"close")]})
    await send({"type": "http.response.body", "body": RELEASE})
"#;

#[test]
fn uvicorn_is_served_under_the_same_deploys() {
    let Some(venv) = Machine::get().agent("uvicorn") else { return };
    let site = Site::with_releases("uvicorn", 2);
    for release in ["1", "2"] {
        fs::write(site.release_path(release).join("ws.py"), ASGI).expect("a release can be written to");
    }
    let uvicorn = venv.join("bin/uvicorn");
    let command = format!("[{:?}, '--fd', '3', 'ws:app', '--no-access-log']", uvicorn.display().to_string());
    add(&site, &format!("[[service]]\nname = 'ws'\ncommand = {command}\nbind = ['127.0.0.2:0']\n"));
    let master = site.start();
    let address = Address::Tcp(address(&master));
    assert_eq!(client::get(&address, "/").expect("it waits until it is up").text(), "1");
    let old = service(&master)["pid"].as_i64().expect("a pid") as i32;
    // A request that runs at the deploy is answered by the process that has begun it.
    let mut slow = client::Connection::to(&address);
    slow.must_send(client::head("GET", "/slow", &[]));
    let first = site.release_path("1");
    wait_for("the request to begin", || first.join("begun").exists().then_some(()));
    site.flip("2");
    master.reload();
    master.wait_log("service ws gen=1 number=0 * running -> stopping");
    fs::write(first.join("stop"), "").expect("a release can be written to");
    assert_eq!(slow.expect_answer().text(), "1");
    wait_for("the old one to end", || Process::of(old).is_none().then_some(()));
    assert_eq!(client::get(&address, "/").expect("the new one").text(), "2");
    master.stop();
    master.assert_nothing_left();
}
