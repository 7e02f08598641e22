//! A disk that does not answer holds up those who need it, and nobody else.

use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use super::fixture::{app, settings, wait_until, Client, Fixture, PATIENCE};
use crate::serve::Settings;

const BODY: usize = 3_000_000;

/// Byte by byte another one than a file of zeros, or a part in the wrong place, would have.
fn body() -> Vec<u8> {
    (0..BODY).map(|at| (at / 1000 % 251) as u8).collect()
}

/// Sends as much as the server takes while it cannot write.
fn send_what_fits(client: &mut Client, bytes: &[u8]) -> usize {
    client.stream.set_write_timeout(Some(Duration::from_millis(200))).expect("timeout");
    let mut sent = 0;
    while let Ok(length) = client.stream.write(&bytes[sent..]) {
        sent += length;
        if sent == bytes.len() {
            break;
        }
    }
    client.stream.set_write_timeout(Some(PATIENCE)).expect("timeout");
    sent
}

#[test]
fn a_body_whose_file_takes_nothing_holds_up_nobody_else() {
    let body = body();
    let heads = [
        format!("POST /echo HTTP/1.1\r\nHost: h\r\nContent-Length: {BODY}\r\n\r\n"),
        "POST /echo HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n".to_owned(),
    ];
    let chunked: Vec<u8> = body
        .chunks(40_000)
        .flat_map(|chunk| [format!("{:x}\r\n", chunk.len()).as_bytes(), chunk, b"\r\n"].concat())
        .chain(*b"0\r\n\r\n")
        .collect();
    // A client's time does not run while it waits for us.
    let fixture = Fixture::new(Settings { body_timeout: Duration::from_millis(300), ..settings() }, app);
    let files = &fixture.handle.shared.files;
    assert_eq!(files.count().0, 0, "nobody has needed a file");
    for (head, wire) in heads.iter().zip([&body, &chunked]) {
        files.set_stuck(true);
        let mut uploads: Vec<Client> = (0..6).map(|_| fixture.client()).collect();
        let sent: Vec<usize> = uploads.iter_mut().map(|upload| send_what_fits(upload.send(head), wire)).collect();
        wait_until("each has something to write", || files.count().1 == uploads.len());
        let begun = Instant::now();
        while begun.elapsed() < Duration::from_millis(500) {
            assert_eq!(fixture.client().get("/hello").text(), "hello");
        }
        // One leaves, and what it had is dropped when it comes back.
        drop(uploads.pop());
        files.set_stuck(false);
        for (upload, sent) in uploads.iter_mut().zip(sent) {
            let answer = upload.send(&wire[sent..]).answer();
            assert_eq!((answer.status, answer.field("x-body")), (200, Some("file")));
            assert!(answer.body == body, "the body is another one");
            assert_eq!(upload.get("/hello").text(), "hello");
        }
        drop(uploads);
        let rules = &fixture.handle.shared.rules;
        wait_until("all room is free again", || {
            rules.temp.left() == rules.settings.temp_limit && rules.memory.used() == 0
        });
    }
    fixture.stop();
}

#[test]
fn a_full_disk_is_told_to_whoever_needed_it() {
    let fixture = Fixture::new(Settings { temp_limit: 4_000_000, ..settings() }, app);
    let files = &fixture.handle.shared.files;
    files.set_stuck(true);
    let head = format!("POST /echo HTTP/1.1\r\nHost: h\r\nContent-Length: {BODY}\r\n\r\n");
    // Each would have found room alone.
    let mut uploads: Vec<Client> = (0..2).map(|_| fixture.client()).collect();
    for upload in &mut uploads {
        send_what_fits(upload.send(&head), &body()[..300_000]);
    }
    wait_until("each has something to write", || files.count().1 == 2);
    files.set_stuck(false);
    // More than there is, before either is complete. Who is refused is not read to the end.
    let (more, rest) = (&body()[300_000..2_500_000], &body()[2_500_000..]);
    for part in [more, rest] {
        for upload in &mut uploads {
            let _ = upload.stream.write_all(part);
        }
    }
    let statuses: Vec<u16> = uploads.iter_mut().map(|upload| upload.answer().status).collect();
    // Both, where neither comes to its end before the other has taken the rest.
    assert!(matches!(statuses[..], [503, 200 | 503] | [200, 503]), "{statuses:?}");
    drop(uploads);
    let rules = &fixture.handle.shared.rules;
    wait_until("all room is free again", || rules.temp.left() == rules.settings.temp_limit);
    assert!(fixture.client().post("/echo", &body()).body == body());
    fixture.stop();
}

/// The answer lies in a temporary file, or is a file of the application, and the kernel has dropped it from memory.
#[test]
fn what_does_not_lie_in_memory_is_sent_when_it_does() {
    let fixture = Fixture::new(
        Settings { write_timeout: Duration::from_millis(400), ..settings() },
        |mut exchange, gate, voice| {
            match exchange.path() {
                b"/spooled" => {
                    exchange.start(b"200 OK", &[]).expect("valid");
                    for piece in body().chunks(100_000) {
                        exchange.write(piece);
                    }
                }
                b"/file" => {
                    let mut file = unnamed_file();
                    file.write_all(&body()).expect("a disk");
                    exchange.start(b"200 OK", &[]).expect("valid");
                    exchange.send_file(file.as_raw_fd(), 0).expect("a file");
                }
                _other => return app(exchange, gate, voice),
            }
            exchange.finish().expect("valid");
            voice.say("made");
        },
    );
    let files = &fixture.handle.shared.files;
    for path in ["/spooled", "/file"] {
        files.set_cold(true);
        files.set_stuck(true);
        let mut reader = fixture.client();
        reader.send(format!("GET {path} HTTP/1.1\r\nHost: h\r\n\r\n"));
        fixture.expect_app("made");
        // What lies in the socket, and in the memory before the file.
        let mut taken = Vec::new();
        reader.stream.set_read_timeout(Some(Duration::from_millis(600))).expect("timeout");
        let mut place = vec![0; 100_000];
        while let Ok(length) = reader.stream.read(&mut place) {
            assert_ne!(length, 0, "its time does not run while it waits for us");
            taken.extend_from_slice(&place[..length]);
        }
        assert!(taken.len() < BODY, "{path}: all of it came from a disk that does not answer");
        assert_eq!(files.count().1, 1, "{path}: somebody reads it");
        assert_eq!(fixture.client().get("/hello").text(), "hello");
        files.set_stuck(false);
        reader.stream.set_read_timeout(Some(PATIENCE)).expect("timeout");
        let all = reader.body_after(taken);
        assert!(all == body(), "{path}: the answer is another one");
        files.set_cold(false);
        assert_eq!(reader.get("/hello").text(), "hello");
    }
    fixture.stop();
}

fn unnamed_file() -> std::fs::File {
    let path = std::env::temp_dir().join(format!("forkmaster-sent-{}", std::process::id()));
    let file = std::fs::File::options().read(true).write(true).create_new(true).open(&path).expect("file");
    std::fs::remove_file(&path).expect("it is ours");
    file
}

/// A thread of the application may wait for the disk, and whoever leads does not wait for it.
#[test]
fn a_thread_that_writes_to_its_file_locks_nobody_out() {
    let fixture = Fixture::new(Settings { threads: 2, ..settings() }, app);
    let temp = &fixture.handle.shared.rules.temp;
    temp.set_stuck(true);
    let mut reader = fixture.client();
    reader.send("GET /big/20000000 HTTP/1.1\r\nHost: h\r\n\r\n");
    wait_until("it writes", || temp.is_waited_for());
    // It leaves, of which the loop takes note in the connection's queue.
    crate::serve::io::socket::set_end_by_reset(reader.stream.as_raw_fd(), true);
    drop(reader);
    for _ in 0..20 {
        assert_eq!(fixture.client().get("/hello").text(), "hello");
    }
    temp.set_stuck(false);
    fixture.expect_app("/big/20000000 ok");
    fixture.stop();
}
