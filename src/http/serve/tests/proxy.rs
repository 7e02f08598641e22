//! Listeners that expect a PROXY header: it is required, once a connection, and only some may send it.

use std::io::Write;
use std::net::TcpListener;
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use super::fixture::{settings, Client, Fixture, Told};
use crate::serve::{Listener, Local, Peer, Proxy, ProxyVersion};

const GET: &str = "GET / HTTP/1.1\r\nHost: h\r\n\r\n";

/// A server whose answers say where the request came from.
fn server(version: ProxyVersion, trusted: bool) -> Fixture {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = listener.local_addr().expect("its address");
    listener.set_nonblocking(true).expect("fcntl");
    let proxy = Some(Proxy { version, trusts: Arc::new(move |peer| trusted && matches!(peer, Peer::Inet(_))) });
    let listeners = vec![Listener { id: 0, fd: listener.into(), proxy }];
    let fixture = Fixture::with(settings(), address, listeners, None, |mut exchange, _gate, _voice| {
        let (Peer::Inet(peer), Local::Inet(local)) = (exchange.peer(), exchange.local()) else { panic!("not TCP") };
        let text = format!("{peer} {local} {}", exchange.secure());
        exchange.start(b"200 OK", &[]).expect("valid");
        exchange.write_all(text.as_bytes());
        exchange.finish().expect("valid");
    });
    fixture.handle.serve();
    fixture.expect(&Told::Serving);
    fixture
}

fn v2(command: u8, family: u8, rest: &[u8]) -> Vec<u8> {
    let length = (rest.len() as u16).to_be_bytes();
    [b"\r\n\r\n\0\r\nQUIT\n", &[command, family][..], &length, rest].concat()
}

#[test]
fn the_client_is_who_the_proxy_says() {
    let fixture = server(ProxyVersion::V1, true);
    let mut client = fixture.client();
    client.send("PROXY TCP4 192.0.2.1 192.0.2.2 56324 443\r\n");
    // Once, for all requests of the connection.
    for _ in 0..3 {
        assert_eq!(client.get("/").text(), "192.0.2.1:56324 192.0.2.2:443 false");
    }
    assert_eq!(client.send("PROXY TCP4 1.1.1.1 2.2.2.2 3 4\r\n\r\n").answer().status, 400);
    let mut client = fixture.client();
    client.send("PROXY UNKNOWN\r\n");
    let own = client.stream.local_addr().expect("bound");
    assert_eq!(client.get("/").text(), format!("{own} {} false", fixture.address));
    // The next client in the same slot starts afresh.
    drop(client);
    let mut client = fixture.client();
    assert_eq!(client.send(GET).answer().text(), "Bad Request: this address expects a PROXY header first\n");
    client.expect_closed();
    fixture.stop();
}

#[test]
fn version_2_and_tls_at_the_proxy() {
    let fixture = server(ProxyVersion::V2, true);
    let addresses = [192, 0, 2, 1, 192, 0, 2, 2, 0xdc, 4, 1, 0xbb];
    let tls = [0x20, 0, 5, 1, 0, 0, 0, 0];
    let header = v2(0x21, 0x11, &[&addresses[..], &tls].concat());
    let mut client = fixture.client();
    assert_eq!(client.send(header).get("/").text(), "192.0.2.1:56324 192.0.2.2:443 true");
    let mut client = fixture.client();
    let own = client.stream.local_addr().expect("bound");
    assert_eq!(client.send(v2(0x20, 0, &[])).get("/").text(), format!("{own} {} false", fixture.address));
    // The other version is not looked for.
    for wrong in ["PROXY TCP4 192.0.2.1 192.0.2.2 56324 443\r\n", GET, "\r\n\r\nG"] {
        let mut client = fixture.client();
        assert_eq!(client.send(wrong).answer().status, 400, "{wrong:?}");
        client.expect_closed();
    }
    fixture.stop();
}

#[test]
fn headers_come_in_pieces_too() {
    let line = format!("PROXY TCP6 2001:db8::1 ::1 1 2\r\n{GET}");
    let binary = [v2(0x21, 0x11, &[1, 2, 3, 4, 5, 6, 7, 8, 0, 9, 0, 10]), GET.as_bytes().to_vec()].concat();
    for (version, bytes, expected) in [
        (ProxyVersion::V1, line.as_bytes(), "[2001:db8::1]:1 [::1]:2 false"),
        (ProxyVersion::V2, &binary, "1.2.3.4:9 5.6.7.8:10 false"),
    ] {
        let fixture = server(version, true);
        for at in 0..bytes.len() {
            let mut client = fixture.client();
            client.send(&bytes[..at]).send(&bytes[at..]);
            assert_eq!(client.answer().text(), expected);
        }
        fixture.stop();
    }
}

#[test]
fn only_trusted_peers_name_their_clients() {
    let fixture = server(ProxyVersion::V1, false);
    let mut client = fixture.client();
    client.send(format!("PROXY TCP4 192.0.2.1 192.0.2.2 56324 443\r\n{GET}"));
    assert_eq!(client.answer().status, 403);
    client.half_close();
    client.expect_closed();
    // Health checks that only connect are no news.
    let mut client = fixture.client();
    client.half_close();
    client.expect_closed();
    fixture.stop();
}

#[test]
fn on_unix_sockets_too() {
    let path = std::env::temp_dir().join(format!("forkmaster-proxy-{}", std::process::id()));
    let listener = std::os::unix::net::UnixListener::bind(&path).expect("a fresh path");
    listener.set_nonblocking(true).expect("fcntl");
    let proxy = Some(Proxy { version: ProxyVersion::V1, trusts: Arc::new(|peer: &Peer| matches!(peer, Peer::Unix)) });
    let listeners = vec![Listener { id: 0, fd: listener.into(), proxy }];
    let nowhere = std::net::SocketAddr::from(([127, 0, 0, 1], 0));
    let fixture = Fixture::with(settings(), nowhere, listeners, None, |mut exchange, _gate, voice| {
        voice.say(format!("{:?}", exchange.peer()));
        exchange.start(b"200 OK", &[]).expect("valid");
        exchange.finish().expect("valid");
    });
    fixture.handle.serve();
    fixture.expect(&Told::Serving);
    for (line, expected) in [("TCP4 192.0.2.1 192.0.2.2 1 2", "Inet(192.0.2.1:1)"), ("UNKNOWN", "Unix")] {
        let mut client = UnixStream::connect(&path).expect("it listens");
        client.write_all(format!("PROXY {line}\r\n{GET}").as_bytes()).expect("the server reads");
        fixture.expect_app(expected);
    }
    fixture.stop();
    std::fs::remove_file(path).expect("it is ours");
}

/// `Client` is for whoever speaks HTTP at once; this one is cut off in the middle of its header.
#[test]
fn an_unfinished_header_is_an_unfinished_request() {
    let short = crate::serve::Settings { header_timeout: std::time::Duration::from_millis(50), ..settings() };
    for (pieces, status) in [("PROXY TC", 408), ("PROXY TCP4 192.0.2.1 192.0.2.2 1 2\r\nGET", 408)] {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("its address");
        listener.set_nonblocking(true).expect("fcntl");
        let proxy = Some(Proxy { version: ProxyVersion::V1, trusts: Arc::new(|_: &Peer| true) });
        let listeners = vec![Listener { id: 0, fd: listener.into(), proxy }];
        let fixture = Fixture::with(short.clone(), address, listeners, None, |_, _, _| panic!("no request came"));
        fixture.handle.serve();
        fixture.expect(&Told::Serving);
        let mut client: Client = fixture.client();
        assert_eq!(client.send(pieces).answer().status, status);
        let mut client: Client = fixture.client();
        client.send(pieces).half_close();
        assert_eq!(client.answer().status, 400);
        fixture.stop();
    }
}
