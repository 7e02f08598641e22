//! What a proxy says of its clients: who is believed, and what an application then sees. And the proxies themselves:
//! nginx over TCP and a Unix socket, HAProxy with and without the PROXY protocol.

use std::fs;
use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};

use serde_json::Value;

use crate::harness::client::{head, Address, Connection};
use crate::harness::machine::Machine;
use crate::harness::master::Master;
use crate::harness::process::Process;
use crate::harness::site::Site;
use crate::harness::wait_for;

/// Requests through each proxy. `FORKMASTER_TEST_PROXY_REQUESTS=50000` makes a long run of it.
const REQUESTS: usize = 5000;

/// Clients that keep their connections to the proxy.
const CLIENTS: usize = 8;

fn site(name: &str) -> Site {
    let site = Site::new(name);
    site.build("1").app("wsgi_forms.py").make();
    site.flip("1");
    site.set("server.bind", "['127.0.0.1:0', 'unix:app.sock']").set("server.workers", "1");
    site
}

pub fn environ(address: &Address, fields: &[(&str, &str)]) -> Value {
    let mut connection = Connection::to(address);
    let response = connection.ask(head("GET", "/v/environ_of", fields));
    assert_eq!(response.status, 200, "{fields:?}: {}", response.text());
    response.json()
}

/// Header fields of a request and what must come of them.
type Case<'a> = (&'a [(&'a str, &'a str)], &'a [(&'a str, Option<&'a str>)]);

fn check(addresses: &[Address], cases: &[Case<'_>]) {
    for address in addresses {
        for (fields, expected) in cases {
            let environ = environ(address, fields);
            for (name, value) in *expected {
                let got = environ.get(name).and_then(Value::as_str);
                // Without a word about it, the peer's own port is there, or none.
                let own_port = *name == "REMOTE_PORT" && *value == Some("own");
                assert!(got == *value || own_port, "{address} {fields:?}: {name} is {got:?} and not {value:?}");
            }
        }
    }
}

fn addresses(master: &Master, site: &Site) -> [Address; 2] {
    [master.address(), Address::Unix(site.path().join("app.sock"))]
}

const ADDRESS: &str = "REMOTE_ADDR";
const PORT: &str = "REMOTE_PORT";
const SCHEME: &str = "wsgi.url_scheme";
const HOST: &str = "HTTP_HOST";
const SCRIPT: &str = "SCRIPT_NAME";

#[test]
fn x_forwarded_for_and_proto_are_believed_from_this_machine() {
    let site = site("proxies_default");
    let master = site.start();
    let cases: [Case<'_>; 10] = [
        (&[], &[(ADDRESS, Some("127.0.0.1")), (PORT, Some("own")), (SCHEME, Some("http"))]),
        (
            &[("X-Forwarded-For", "203.0.113.9"), ("X-Forwarded-Proto", "https")],
            &[(ADDRESS, Some("203.0.113.9")), (PORT, None), (SCHEME, Some("https"))],
        ),
        // The client wrote the first, this machine's proxies the others.
        (&[("X-Forwarded-For", "6.6.6.6, 203.0.113.9, 127.0.0.1")], &[(ADDRESS, Some("203.0.113.9"))]),
        (&[("X-Forwarded-For", "6.6.6.6"), ("X-Forwarded-For", "203.0.113.9")], &[(ADDRESS, Some("203.0.113.9"))]),
        (&[("X-Forwarded-For", "[2001:db8::9]:4711")], &[(ADDRESS, Some("2001:db8::9")), (PORT, Some("4711"))]),
        (&[("X-Forwarded-For", "nonsense")], &[(ADDRESS, Some("127.0.0.1")), (PORT, Some("own"))]),
        (&[("X-Forwarded-For", "")], &[(ADDRESS, Some("127.0.0.1"))]),
        (&[("X-Forwarded-Proto", "gopher")], &[(SCHEME, Some("http"))]),
        // Opt-in, and of another family: not believed.
        (
            &[("X-Forwarded-Host", "evil.example"), ("X-Forwarded-Prefix", "/evil")],
            &[(HOST, Some("localhost")), (SCRIPT, Some(""))],
        ),
        (
            &[("Forwarded", "for=203.0.113.9;proto=https"), ("X-Forwarded-Ssl", "on")],
            &[(ADDRESS, Some("127.0.0.1")), (SCHEME, Some("http"))],
        ),
    ];
    check(&addresses(&master, &site), &cases);
}

#[test]
fn nobody_else_is_believed() {
    let site = site("proxies_untrusted");
    site.set("http.forwarded_allow_ips", "['10.0.0.0/8']");
    site.set("http.forwarded_headers", "['for', 'proto', 'host', 'prefix']");
    site.set("http.secure_scheme_headers", "{ 'X-Forwarded-Ssl' = 'on' }");
    site.set("http.underscore_headers", "['X_User']");
    let master = site.start();
    let fields = [
        ("X-Forwarded-For", "203.0.113.9"),
        ("X-Forwarded-Proto", "https"),
        ("X-Forwarded-Host", "evil.example"),
        ("X-Forwarded-Prefix", "/evil"),
        ("X-Forwarded-Ssl", "on"),
        ("X_User", "evil"),
        ("Forwarded", "for=203.0.113.9"),
    ];
    let expected = [
        (ADDRESS, Some("127.0.0.1")),
        (PORT, Some("own")),
        (SCHEME, Some("http")),
        (HOST, Some("localhost")),
        (SCRIPT, Some("")),
        ("HTTP_X_USER", None),
    ];
    check(&addresses(&master, &site), &[(&fields, &expected)]);
}

#[test]
fn host_prefix_and_further_scheme_headers_by_opt_in() {
    let site = site("proxies_opt_in");
    site.set("http.forwarded_allow_ips", "['*']");
    site.set("http.forwarded_headers", "['for', 'proto', 'host', 'prefix']");
    site.set("http.secure_scheme_headers", "{ 'X-Forwarded-Ssl' = 'on', 'Front-End-Https' = 'On' }");
    site.set("http.underscore_headers", "['X_User']");
    let master = site.start();
    let cases: [Case<'_>; 8] = [
        (
            &[("X-Forwarded-Host", "shop.example:8443"), ("X-Forwarded-Prefix", "/shop/")],
            &[(HOST, Some("shop.example:8443")), (SCRIPT, Some("/shop"))],
        ),
        // The nearest proxy has the last word.
        (&[("X-Forwarded-Host", "evil.example, shop.example")], &[(HOST, Some("shop.example"))]),
        (&[("X-Forwarded-Host", "evil example/")], &[(HOST, Some("localhost"))]),
        (&[("X-Forwarded-Prefix", "shop")], &[(SCRIPT, Some(""))]),
        (&[("X-Forwarded-Ssl", "on")], &[(SCHEME, Some("https"))]),
        (&[("X-Forwarded-Ssl", "off")], &[(SCHEME, Some("http"))]),
        // Fields that contradict each other: the one that claims less.
        (&[("X-Forwarded-Ssl", "on"), ("X-Forwarded-Proto", "http")], &[(SCHEME, Some("http"))]),
        (
            &[("X-Forwarded-Ssl", "on"), ("Front-End-Https", "off"), ("X-Forwarded-Proto", "https")],
            &[(SCHEME, Some("http"))],
        ),
    ];
    check(&addresses(&master, &site), &cases);
    // A name with an underscore has the key of the name with a hyphen, which anybody may send; the proxy's word stays.
    for fields in [[("X-User", "evil"), ("X_User", "good")], [("X_User", "good"), ("X-User", "evil")]] {
        check(&addresses(&master, &site), &[(&fields, &[("HTTP_X_USER", Some("good"))])]);
    }
    let twice = [("X_User", "a"), ("X-User", "evil"), ("x_user", "b")];
    check(&addresses(&master, &site), &[(&twice, &[("HTTP_X_USER", Some("a,b"))])]);
    check(&addresses(&master, &site), &[(&[("X_Other", "evil")], &[("HTTP_X_OTHER", None)])]);
    let unix = environ(&addresses(&master, &site)[1], &[("X-Forwarded-Host", "shop.example:8443")]);
    assert_eq!((unix["SERVER_NAME"].as_str(), unix["SERVER_PORT"].as_str()), (Some("shop.example"), Some("8443")));
}

#[test]
fn rfc_7239_instead_of_x_forwarded() {
    let site = site("proxies_forwarded");
    site.set("http.forwarded_allow_ips", "['127.0.0.1', 'unix', '10.0.0.0/8']");
    site.set("http.forwarded_headers", "['forwarded', 'host']");
    let master = site.start();
    let cases: [Case<'_>; 6] = [
        (
            &[("Forwarded", "for=\"[2001:db8::9]:4711\";proto=https;host=shop.example")],
            &[
                (ADDRESS, Some("2001:db8::9")),
                (PORT, Some("4711")),
                (SCHEME, Some("https")),
                (HOST, Some("shop.example")),
            ],
        ),
        (
            &[("Forwarded", "for=6.6.6.6;proto=http"), ("Forwarded", "for=203.0.113.9;proto=https, for=10.0.0.2")],
            &[(ADDRESS, Some("203.0.113.9")), (SCHEME, Some("https"))],
        ),
        (&[("Forwarded", "for=\"6.6.6.6, for=203.0.113.9")], &[(ADDRESS, Some("203.0.113.9"))]),
        (&[("Forwarded", "for=203.0.113.9;for=6.6.6.6")], &[(ADDRESS, Some("127.0.0.1")), (PORT, Some("own"))]),
        (&[("Forwarded", "proto=https;for=unknown")], &[(ADDRESS, Some("127.0.0.1")), (SCHEME, Some("https"))]),
        // The other family is the client's own word now.
        (
            &[("X-Forwarded-For", "6.6.6.6"), ("X-Forwarded-Proto", "https"), ("X-Forwarded-Host", "evil.example")],
            &[(ADDRESS, Some("127.0.0.1")), (SCHEME, Some("http")), (HOST, Some("localhost"))],
        ),
    ];
    check(&addresses(&master, &site), &cases);
}

/// A proxy of one test; ended with it.
pub struct Proxy(Child);

impl Drop for Proxy {
    fn drop(&mut self) {
        if let Some(proxy) = Process::of(self.0.id() as i32) {
            // It ends its workers on TERM.
            proxy.signal(nix::sys::signal::Signal::SIGTERM);
        }
        let _ = self.0.wait();
    }
}

/// Starts a proxy with `ports` addresses to listen on. It cannot be asked for the port of port 0, so free ones are
/// looked for and the start is tried again.
pub fn start(site: &Site, ports: usize, command: impl Fn(&[SocketAddr]) -> Command) -> (Proxy, Vec<Address>) {
    let log = site.path().join("proxy.log");
    for _ in 0..10 {
        let probes: Vec<TcpListener> =
            (0..ports).map(|_| TcpListener::bind("127.0.0.1:0").expect("a port is free")).collect();
        let ports: Vec<SocketAddr> =
            probes.iter().map(|probe| probe.local_addr().expect("a bound socket has an address")).collect();
        drop(probes);
        let file = fs::File::create(&log).expect("it is our directory");
        let mut child = command(&ports)
            .current_dir(site.path())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(file)
            .spawn()
            .expect("the proxy can be started");
        let addresses: Vec<Address> = ports.into_iter().map(Address::Tcp).collect();
        let up = wait_for("the proxy", || {
            if child.try_wait().expect("it is our child").is_some() {
                return Some(false);
            }
            addresses.iter().all(|address| Connection::open(address).is_ok()).then_some(true)
        });
        if up {
            return (Proxy(child), addresses);
        }
    }
    panic!("the proxy does not start: {}", fs::read_to_string(log).unwrap_or_default());
}

/// nginx with nothing set but where it listens, what stands behind it, and where its files go: it asks by HTTP/1.0.
pub fn nginx(site: &Site, upstream: SocketAddr) -> (Proxy, SocketAddr) {
    let user = Command::new("id").arg("-un").output().expect("id is there");
    let user = String::from_utf8_lossy(&user.stdout).trim().to_owned();
    let (nginx, addresses) = start(site, 1, |ports| {
        let config = format!(
            "daemon off; worker_processes 1; pid nginx.pid; error_log stderr crit;\n\
             events {{ worker_connections 256; }}\n\
             http {{ access_log off; client_body_temp_path nginx-body; proxy_temp_path nginx-proxy; \
             fastcgi_temp_path nginx-fastcgi; uwsgi_temp_path nginx-uwsgi; scgi_temp_path nginx-scgi;\n\
             server {{ listen {}; location / {{ proxy_pass http://{upstream}; proxy_read_timeout 300s; }} }} }}\n",
            ports[0]
        );
        site.write("nginx.conf", &config);
        let mut command = Command::new(Machine::get().program("nginx"));
        command.arg("-p").arg(site.path());
        command.args(["-e", "stderr", "-c", "nginx.conf", "-g", &format!("user {user};")]);
        command
    });
    let Address::Tcp(address) = addresses[0] else { panic!("not TCP") };
    (nginx, address)
}

/// Many requests on kept connections, GET and POST in turn; each must be answered, and rightly.
pub fn ask_often(name: &str, address: &Address) {
    let wanted = std::env::var("FORKMASTER_TEST_PROXY_REQUESTS").ok().and_then(|text| text.parse().ok());
    let wanted: usize = wanted.unwrap_or(REQUESTS);
    let (asked, opened) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let began = std::time::Instant::now();
    let client = || {
        let body = vec![b'b'; 3000];
        let expected = format!("[\"{}\"]", "b".repeat(3000));
        let mut kept = None;
        loop {
            let number = asked.fetch_add(1, Ordering::Relaxed);
            if number >= wanted {
                return;
            }
            let mut connection = kept.take().unwrap_or_else(|| {
                opened.fetch_add(1, Ordering::Relaxed);
                Connection::open(address).unwrap_or_else(|failure| panic!("{name}: {failure}"))
            });
            let (response, expected) = match number % 4 {
                0 => (connection.post("/input_readlines", &body), expected.as_str()),
                1 => (connection.get("/generated"), "012"),
                _ => (connection.get("/one"), "one"),
            };
            let response = response.unwrap_or_else(|failure| panic!("{name}: request {number}: {failure}"));
            assert!(response.status == 200 && response.text() == expected, "{name}: request {number}: {response:?}");
            if !response.closes() {
                kept = Some(connection);
            }
        }
    };
    std::thread::scope(|scope| (0..CLIENTS).for_each(|_| drop(scope.spawn(client))));
    let (opened, took) = (opened.into_inner(), began.elapsed().as_secs_f64());
    println!("{name}: {wanted} requests without an error, {opened} connections, {took:.1} s");
}

/// Connections that the proxy holds are closed by it and not by a worker; so nothing is logged but the start.
pub fn assert_no_complaints(master: &Master, site: &Site) {
    master.assert_quiet_log();
    let log = master.log();
    assert!(!log.contains("refused "), "{log}");
    let proxy = fs::read_to_string(site.path().join("proxy.log")).unwrap_or_default();
    assert!(!proxy.contains("upstream") && !proxy.contains("[emerg]") && !proxy.contains("[ALERT]"), "{proxy}");
}

#[test]
fn nginx_over_tcp_and_a_unix_socket_with_kept_connections() {
    let site = site("proxies_nginx");
    site.set("server.workers", "2").set("server.threads", "2");
    let master = site.start();
    let Address::Tcp(tcp) = master.address() else { panic!("a TCP address comes first") };
    let config = |ports: &[SocketAddr]| {
        let server = |listen: SocketAddr, upstream: &str| {
            format!(
                "server {{ listen {listen}; keepalive_requests 1000000; location / {{ proxy_pass http://{upstream}; \
                 proxy_http_version 1.1; proxy_set_header Connection ''; proxy_set_header Host $http_host; \
                 proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for; \
                 proxy_set_header X-Forwarded-Proto $scheme; }} }}\n"
            )
        };
        format!(
            "daemon off; worker_processes 1; pid nginx.pid; error_log stderr warn;\n\
             events {{ worker_connections 256; }}\n\
             http {{ access_log off; client_body_temp_path nginx-body; proxy_temp_path nginx-proxy; \
             fastcgi_temp_path nginx-fastcgi; uwsgi_temp_path nginx-uwsgi; scgi_temp_path nginx-scgi;\n\
             upstream tcp {{ server {tcp}; keepalive 16; keepalive_requests 1000000; }}\n\
             upstream unix {{ server unix:{socket}; keepalive 16; keepalive_requests 1000000; }}\n{first}{second}}}\n",
            socket = site.path().join("app.sock").display(),
            first = server(ports[0], "tcp"),
            second = server(ports[1], "unix"),
        )
    };
    let user = Command::new("id").arg("-un").output().expect("id is there");
    let user = String::from_utf8_lossy(&user.stdout).trim().to_owned();
    let (_nginx, addresses) = start(&site, 2, |ports| {
        site.write("nginx.conf", &config(ports));
        let mut command = Command::new(Machine::get().program("nginx"));
        command.arg("-p").arg(site.path()).args(["-e", "stderr", "-c", "nginx.conf", "-g", &format!("user {user};")]);
        command
    });
    for (name, address) in ["nginx, TCP", "nginx, Unix socket"].into_iter().zip(&addresses) {
        let environ = environ(address, &[("X-Forwarded-For", "6.6.6.6")]);
        // nginx appended its own client, which is a trusted address here; what stands left of it was that client's.
        assert_eq!((environ[ADDRESS].as_str(), environ[SCHEME].as_str()), (Some("6.6.6.6"), Some("http")), "{name}");
        ask_often(name, address);
    }
    assert_no_complaints(&master, &site);
}

fn haproxy(site: &Site, lines: &str) -> (Proxy, Vec<Address>) {
    let config = |ports: &[SocketAddr]| {
        format!(
            "global\n    maxconn 256\n    log stderr format raw local0 err\n\
             defaults\n    mode http\n    timeout connect 5s\n    timeout client 60s\n    timeout server 60s\n\
             \x20   option forwardfor\n    http-reuse always\n\
             listen test\n    bind {}\n{lines}\n",
            ports[0]
        )
    };
    start(site, 1, |ports| {
        let file = site.write("haproxy.cfg", &config(ports));
        let mut command = Command::new(Machine::get().program("haproxy"));
        command.arg("-q").arg("-db").arg("-f").arg(Path::new(&file));
        command
    })
}

#[test]
fn haproxy_with_kept_connections() {
    let site = site("proxies_haproxy");
    site.set("server.workers", "2").set("server.threads", "2");
    let master = site.start();
    let (_haproxy, addresses) = haproxy(&site, &format!("    server app {}", master.address()));
    ask_often("HAProxy", &addresses[0]);
    assert_no_complaints(&master, &site);
}

#[test]
fn haproxy_with_the_proxy_protocol() {
    let site = site("proxies_haproxy_v2");
    site.set("server.workers", "2").set("server.threads", "2").set("http.proxy_protocol", "'v2'");
    // A probe of HAProxy's own speaks for itself (LOCAL).
    let master = site.start();
    let check = "check inter 200ms";
    let (_haproxy, addresses) = haproxy(&site, &format!("    server app {} send-proxy-v2 {check}", master.address()));
    let environ = environ(&addresses[0], &[]);
    let Address::Tcp(front) = addresses[0] else { panic!("HAProxy listens on TCP") };
    assert_eq!(environ[ADDRESS], "127.0.0.1");
    assert_eq!(environ["SERVER_PORT"].as_str(), Some(front.port().to_string().as_str()), "HAProxy's own address");
    ask_often("HAProxy, PROXY v2", &addresses[0]);
    assert_no_complaints(&master, &site);
}
