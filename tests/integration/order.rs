//! Who comes behind a crowd of costly requests: an attacker's clients that ask for megabytes and read nearly nothing, and
//! strangers that come after them.

use std::io::{Read, Write};
use std::net::TcpStream;

use crate::harness::client::{head, Address, Connection};
use crate::harness::site::Site;
use crate::harness::WAIT;

const CROWD: usize = 100;
const STRANGERS: usize = 10;

/// A generator of five megabytes, and how many of it have begun.
const APP: &str = r#"
PIECE = b"x" * 50_000
begun = 0


def application(environ, start_response):
    global begun
    start_response("200 OK", [("Content-Type", "text/plain")])
    if environ["PATH_INFO"] == "/big":
        begun += 1
        return (PIECE for _ in range(100))
    return [str(begun).encode()]
"#;

/// As found: each stranger was answered when all of the crowd had been, whose answers were all generated to disk first.
/// What is counted is not time but how many of the crowd were served before.
#[test]
fn a_crowd_of_slow_readers_lets_strangers_through() {
    let site = Site::with_source("order", APP);
    site.set("server.workers", "1").set("server.threads", "1").set("server.connections", "512");
    site.set("http.write_timeout", "'120s'");
    let master = site.start();
    let Address::Tcp(address) = master.address() else { panic!("not TCP") };
    let request = head("GET", "/big", &[]);
    let mut crowd: Vec<TcpStream> = (0..CROWD)
        .map(|_| {
            // A small window, so that the server and not the kernel has to keep the answer.
            let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).expect("socket");
            socket.set_recv_buffer_size(16 * 1024).expect("setsockopt");
            socket.connect(&address.into()).expect("it accepts");
            let mut stream = TcpStream::from(socket);
            stream.set_read_timeout(Some(WAIT)).expect("setsockopt");
            stream.write_all(&request).expect("the kernel takes it");
            stream
        })
        .collect();
    let mut first = [0; 12];
    crowd[0].read_exact(&mut first).expect("the first answer begins");
    let mut strangers: Vec<Connection> = (0..STRANGERS)
        .map(|_| {
            let mut connection = master.connect();
            connection.must_send(head("GET", "/", &[]));
            connection
        })
        .collect();
    let before: Vec<usize> =
        strangers.iter_mut().map(|stranger| stranger.expect_answer().text().parse().expect("a number")).collect();
    println!("before the strangers: {before:?} of {CROWD}");
    assert!(before.iter().all(|&count| count < CROWD / 2), "{before:?} of {CROWD} were served before");
    for stream in &mut crowd[1..] {
        stream.read_exact(&mut first).expect("its answer begins");
        assert_eq!(&first, b"HTTP/1.1 200");
    }
    assert_eq!(master.get("/").text(), CROWD.to_string());
    master.assert_quiet_log();
}
