//! The floor: one thread, one epoll, a static answer for every `\r\n\r\n`. It parses nothing, has no timeouts, no
//! limits and no application; what it costs is what the kernel and the load generator cost. Only for benchmarks.
//!
//! `floor PORT`

use std::net::TcpListener;
use std::os::fd::{AsRawFd, RawFd};

const ANSWER: &[u8] = b"HTTP/1.1 200 OK\r\nServer: floor\r\nDate: Mon, 23 Nov 2026 00:00:00 GMT\r\n\
    Content-Type: text/plain\r\nContent-Length: 13\r\n\r\nHello, World!";
const CLOSING: &[u8] = b"HTTP/1.1 200 OK\r\nServer: floor\r\nDate: Mon, 23 Nov 2026 00:00:00 GMT\r\n\
    Content-Type: text/plain\r\nContent-Length: 13\r\nConnection: close\r\n\r\nHello, World!";

fn main() {
    let port: u16 = std::env::args().nth(1).and_then(|port| port.parse().ok()).expect("usage: floor PORT");
    let listener = TcpListener::bind(("127.0.0.1", port)).expect("the port is free");
    // SAFETY: plain system calls on descriptors that are open, with pointers to living values.
    unsafe {
        libc::listen(listener.as_raw_fd(), 4096);
        // As forkmaster: woken when the request is there, and not when the connection is; nothing is paced. Where the
        // kernel refuses, the floor is a little higher.
        let tcp = |name, value: &[u8]| {
            libc::setsockopt(listener.as_raw_fd(), libc::IPPROTO_TCP, name, value.as_ptr().cast(), value.len() as u32)
        };
        tcp(libc::TCP_DEFER_ACCEPT, &1i32.to_ne_bytes());
        tcp(libc::TCP_CONGESTION, b"reno");
        let poll = libc::epoll_create1(libc::EPOLL_CLOEXEC);
        watch(poll, listener.as_raw_fd());
        let mut events: [libc::epoll_event; 256] = std::mem::zeroed();
        let mut buffer = [0u8; 65536];
        loop {
            let ready = libc::epoll_wait(poll, events.as_mut_ptr(), events.len() as i32, -1).max(0);
            for event in &events[..ready as usize] {
                let fd = event.u64 as RawFd;
                if fd == listener.as_raw_fd() {
                    let flags = libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC;
                    let client = libc::accept4(fd, std::ptr::null_mut(), std::ptr::null_mut(), flags);
                    // A client that sends at once is answered at once, and only watched if it stays.
                    if client >= 0 && answer(client, &mut buffer) {
                        watch(poll, client);
                    }
                } else {
                    answer(fd, &mut buffer);
                }
            }
        }
    }
}

/// Answers every complete head there is. False: the connection is closed.
unsafe fn answer(fd: RawFd, buffer: &mut [u8]) -> bool {
    let read = unsafe { libc::recv(fd, buffer.as_mut_ptr().cast(), buffer.len(), 0) };
    if read < 0 {
        return true;
    }
    let bytes = &buffer[..read as usize];
    let closing = memchr::memmem::find(bytes, b"Connection: close").is_some();
    for _ in memchr::memmem::find_iter(bytes, b"\r\n\r\n") {
        // The last answer and the end go out in one packet.
        let (answer, more) = if closing { (CLOSING, libc::MSG_MORE) } else { (ANSWER, 0) };
        unsafe { libc::send(fd, answer.as_ptr().cast(), answer.len(), libc::MSG_NOSIGNAL | more) };
    }
    if read == 0 || closing {
        unsafe { libc::close(fd) };
        return false;
    }
    true
}

unsafe fn watch(poll: RawFd, fd: RawFd) {
    let mut event = libc::epoll_event { events: libc::EPOLLIN as u32, u64: fd as u64 };
    unsafe { libc::epoll_ctl(poll, libc::EPOLL_CTL_ADD, fd, &mut event) };
}
