//! The server of one process: an event loop and `threads` app threads that pull complete requests from it.
//!
//! The application's side pulls (`AppThread::poll`, `AppThread::wait`) rather than being called, because the
//! caller knows when its interpreter lock must be given up: never around `poll`, always around `wait`.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{BorrowedFd, OwnedFd, RawFd};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

/// Everything that can be set. No defaults here: the caller decides.
#[derive(Clone, Debug)]
pub struct Settings {
    pub threads: usize,
    pub connections: usize,
    pub keepalive_timeout: Duration,
    pub header_timeout: Duration,
    pub body_timeout: Duration,
    pub write_timeout: Duration,
    pub limit_request_line: usize,
    pub limit_request_fields: usize,
    pub limit_request_field_size: usize,
    pub limit_request_head: usize,
    pub body_memory: u64,
    pub max_body: u64,
    /// None: nothing is writable; larger bodies get 413.
    pub temp_dir: Option<PathBuf>,
    pub temp_limit: u64,
    pub response_buffer: u64,
}

pub struct Listener {
    /// The caller's number for it; commands name it.
    pub id: u32,
    pub fd: OwnedFd,
}

/// What the loop tells of itself while it runs; implementations must be cheap and never block.
pub trait Meter: Send + Sync {
    /// The loop turned; at least once a second.
    fn beat(&self);
    fn accepted(&self);
    fn connections(&self, open: usize);
}

/// What the loop reports back, each at most once per command, from the loop's thread; must never block.
pub trait Reports: Send + Sync {
    /// `Handle::serve` was carried out: listeners are registered.
    fn serving(&self);
    /// `drain`, `stop` or `retire` was carried out as far as accepting is concerned.
    fn draining(&self);
}

pub struct Server(());

/// Commands to a running server from any thread; wakes the loop.
#[derive(Clone)]
pub struct Handle(());

impl Server {
    /// Makes the loop's own things (epoll, eventfds, connection table). Nothing runs yet. Call after the last
    /// fork, with all signals blocked in every native thread.
    pub fn new(_settings: Settings, _listeners: Vec<Listener>, _meter: Arc<dyn Meter>, _reports: Arc<dyn Reports>) -> io::Result<Server> {
        todo!()
    }

    pub fn handle(&self) -> Handle {
        todo!()
    }

    /// Starts whatever native threads the dispatch needs and returns one `AppThread` per configured thread; the
    /// first is for the process's main thread, which also is told of signals through `wakeup`: the read end of
    /// the pipe or socket given to `signal.set_wakeup_fd`.
    pub fn start(self, _wakeup: Option<OwnedFd>) -> io::Result<Vec<AppThread>> {
        todo!()
    }
}

impl Handle {
    /// Begin to accept (also again after `drain`).
    pub fn serve(&self) {
        todo!()
    }
    /// Leave the epoll set of all listeners but `keep`; finish what was begun; idle connections get one more
    /// answer with `Connection: close`. When nothing is left, `AppThread::wait` returns `Done`.
    pub fn drain(&self, _keep: Vec<u32>) {
        todo!()
    }
    /// Accept until EAGAIN, then close these listeners.
    pub fn close_listeners(&self, _listeners: Vec<u32>) {
        todo!()
    }
    /// The service stops: `Connection: close` on every answer, accept all until EAGAIN and close the listeners,
    /// close connections that stay idle for `idle`; then `Done`.
    pub fn stop(&self, _idle: Duration) {
        todo!()
    }
    /// This process will be killed: as `drain`, but requests that no app thread has begun get 503 and close.
    pub fn retire(&self) {
        todo!()
    }
    /// This process has forked (flag for closing: EPOLL_CTL_DEL, shutdown, close, since a child may hold copies).
    pub fn forked(&self) {
        todo!()
    }
    /// In a child that the application forked without exec: close every descriptor of the server (connections,
    /// listeners, epoll, eventfds) without shutdown, and never serve.
    pub fn forget_in_child(&self) {
        todo!()
    }
}

/// One app thread's side of the server.
pub struct AppThread(());

pub enum Wake {
    Request(Exchange),
    /// A signal arrived (main thread only): run the interpreter's handlers, then wait again.
    Signal,
    /// Drained or stopped: nothing more will come.
    Done,
}

impl AppThread {
    /// A request that is ready now. Never waits.
    pub fn poll(&mut self) -> Option<Exchange> {
        todo!()
    }
    /// Waits for a request. To be called without the interpreter's lock.
    pub fn wait(&mut self) -> Wake {
        todo!()
    }
}

/// One complete request (its body was read to the end) and the means to answer it. Dropped without `finish`:
/// 500 and close if no byte of an answer went out, else the connection is cut so that the client can tell.
pub struct Exchange(());

/// The request's version as it matters to an application.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Version {
    Http10,
    Http11,
}

#[derive(Clone, Debug)]
pub enum Peer {
    Inet(SocketAddr),
    Unix,
}

/// Where the request came in.
#[derive(Clone, Debug)]
pub enum Local {
    Inet(SocketAddr),
    Unix(PathBuf),
}

pub enum Body<'a> {
    Memory(&'a [u8]),
    /// An unlinked temporary file, positioned at 0.
    File { file: BorrowedFd<'a>, length: u64 },
}

/// How far a write got.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Written {
    /// Sent or buffered; go on.
    Done,
    /// Buffered, and the buffers are full: call `wait_for_room`, without the interpreter's lock, before the next.
    Full,
    /// The client is gone; further bytes are dropped. Not an error of the application.
    Gone,
}

/// What the application said wrong; nothing was sent. The text is for the log.
#[derive(Clone, Debug)]
pub struct BadResponse(pub String);

impl Exchange {
    pub fn method(&self) -> &[u8] {
        todo!()
    }
    /// The request target as it was sent.
    pub fn target(&self) -> &[u8] {
        todo!()
    }
    /// The target's path, still percent-encoded (of an absolute-form target, its path; `*` for asterisk-form).
    pub fn path(&self) -> &[u8] {
        todo!()
    }
    /// Without `?`; empty if there is none.
    pub fn query(&self) -> &[u8] {
        todo!()
    }
    pub fn version(&self) -> Version {
        todo!()
    }
    /// Field lines in order, names as sent, values trimmed. Repeated fields are not joined here.
    pub fn fields(&self) -> impl Iterator<Item = (&[u8], &[u8])> {
        std::iter::empty()
    }
    pub fn peer(&self) -> &Peer {
        todo!()
    }
    pub fn local(&self) -> &Local {
        todo!()
    }
    /// The whole body. `chunked` bodies are decoded; `content_length` then is the decoded length.
    pub fn body(&self) -> Body<'_> {
        todo!()
    }
    /// As declared, or counted for chunked bodies; None where the request has no body.
    pub fn content_length(&self) -> Option<u64> {
        todo!()
    }
    /// Sets the answer's status line and fields; checks them; sends nothing yet. `status` is `200 OK`. May be
    /// called again until the head has gone out (`start_response` with `exc_info`).
    pub fn start(&mut self, _status: &[u8], _fields: &[(&[u8], &[u8])]) -> Result<(), BadResponse> {
        todo!()
    }
    /// True once bytes of the head were handed to the socket or its queue.
    pub fn head_sent(&self) -> bool {
        todo!()
    }
    /// Sends a piece of the body, with the head before it if that has not gone out. The framing is decided here.
    /// An empty piece sends nothing. Bytes beyond the declared Content-Length are cut and reported by `finish`.
    pub fn write(&mut self, _piece: &[u8]) -> Written {
        todo!()
    }
    /// The whole body at once: head and body in one sendmsg, Content-Length added where missing.
    pub fn write_all(&mut self, _body: &[u8]) -> Written {
        todo!()
    }
    /// `wsgi.file_wrapper`: sends from the file's current offset by sendfile, up to the declared Content-Length
    /// or the file's end. False: not a regular file, or not possible here; write its pieces instead.
    pub fn send_file(&mut self, _file: RawFd) -> io::Result<Option<Written>> {
        todo!()
    }
    /// Waits until buffers have room (or the client is gone, or `write_timeout`). Without the interpreter's lock.
    pub fn wait_for_room(&mut self) -> Written {
        todo!()
    }
    /// The client has left (as far as we know).
    pub fn gone(&self) -> bool {
        todo!()
    }
    /// Ends the answer. `Err` tells what the application did wrong (shorter or longer than its Content-Length, no
    /// `start`); the connection's fate is already decided then.
    pub fn finish(self) -> Result<(), BadResponse> {
        todo!()
    }
    /// A plain error answer if nothing was sent yet, else cuts the connection so that the client can tell.
    pub fn fail(self, _status: u16) {
        todo!()
    }
    /// Body bytes sent so far, and the status, for the access log.
    pub fn sent(&self) -> (u16, u64) {
        todo!()
    }
}
