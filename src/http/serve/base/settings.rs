//! What can be set, and the bounds that cannot.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use crate::proto::head::Limits;

use super::address::Peer;

/// Everything that can be set. No defaults here: the caller decides.
#[derive(Clone, Debug)]
pub struct Settings {
    pub threads: usize,
    pub connections: usize,
    /// None: every connection ends with its answer.
    pub keepalive_timeout: Option<Duration>,
    pub header_timeout: Duration,
    pub body_timeout: Duration,
    pub write_timeout: Duration,
    /// Instead of `write_timeout`, for a proxy of ours.
    pub proxy_write_timeout: Duration,
    pub is_proxy: IsProxy,
    /// The field in which a proxy of ours names a request; for the log lines of refused ones.
    pub request_id_header: Option<String>,
    pub limit_request_line: usize,
    pub limit_request_fields: usize,
    pub limit_request_field_size: usize,
    pub limit_request_head: usize,
    pub body_memory: u64,
    /// Of all bodies together, where there is no `temp_dir`: then one may be as large as that.
    pub body_memory_alone: u64,
    pub stream_bodies: StreamBodies,
    /// How fast they must have come (`LIVE_BYTES_PER_S_MIN`).
    pub live_bytes_per_s_min: u64,
    pub max_body: u64,
    /// None: nothing is writable.
    pub temp_dir: Option<PathBuf>,
    pub temp_limit: u64,
    pub response_buffer: u64,
    /// Requests for this path are answered here, without the application.
    pub health_path: Option<Vec<u8>>,
    /// How long a request may wait for a thread. None: for ever.
    pub queue_limit: Option<QueueLimit>,
    /// Whole requests that would wait for a thread here, and may lie in the handoff queue for other processes. 0: there is none
    /// that could take them.
    pub shared_requests_max: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QueueLimit {
    pub time: Duration,
    /// An overload is to end by it (`queue_timeout`): the time in the kernel's queue counts too, and it is kept when all
    /// threads are busy. Otherwise (`request_timeout`) it is only that nobody waits for ever.
    pub sheds: bool,
}

/// Which bodies that do not fit into `body_memory` may go to the application as they come (`event_loop/streams.rs`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StreamBodies {
    Never,
    /// Those that come fast and whose length is known.
    Fast,
    /// Those that come fast, chunked ones too, for paths that begin so.
    Under(Vec<String>),
}

impl StreamBodies {
    /// `path`: as it was sent.
    pub fn may(&self, path: &[u8], has_length: bool) -> bool {
        match self {
            StreamBodies::Never => false,
            // An application that goes by CONTENT_LENGTH would find no body in a chunked one whose length nobody knows yet.
            StreamBodies::Fast => has_length,
            StreamBodies::Under(prefixes) => prefixes.iter().any(|prefix| path.starts_with(prefix.as_bytes())),
        }
    }
}

/// Tells our proxies from clients. A proxy that takes nothing has its buffers full and a client behind it that is slow;
/// nginx stops reading for as long as a client needs for a gigabyte (`proxy_max_temp_file_size`).
#[derive(Clone)]
pub struct IsProxy(pub Arc<dyn Fn(&Peer) -> bool + Send + Sync>);

impl std::fmt::Debug for IsProxy {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("IsProxy")
    }
}

impl Settings {
    pub fn limits(&self) -> Limits {
        Limits {
            request_line: self.limit_request_line,
            field_size: self.limit_request_field_size,
            fields: self.limit_request_fields,
            head: self.limit_request_head,
        }
    }

    /// How long a connection may say nothing. Where none is kept, that is before its only request.
    pub fn idle_timeout(&self) -> Duration {
        self.keepalive_timeout.unwrap_or(self.header_timeout)
    }
}

/// Bodies and responses that lie in memory, all of a worker together; beyond, files are used earlier.
pub const MEMORY_BYTES_MAX: u64 = 64 * 1024 * 1024;

/// Of one response, before a file is used: several times the kernel's own send buffer, so that ordinary pages
/// never touch a disk.
pub const RESPONSE_MEMORY_BYTES_MAX: u64 = 256 * 1024;

/// Small pieces are gathered in memory up to this, so that a queue of them is neither many sends nor one vector
/// that grows for ever at one end while it is sent at the other.
pub const SEGMENT_BYTES: usize = 64 * 1024;

/// A buffer of a connection that grew beyond this is given back after the request.
pub const BUFFER_KEPT_BYTES: usize = 16 * 1024;

/// What a buffer of a connection may have while that is idle: small bodies and heads of answers need no more, and the same
/// one serves the next request. Larger ones go to whoever reads next.
pub const BUFFER_IDLE_BYTES: usize = 1024;

/// Such buffers that are kept for the connections that read next: those of a batch of events, and then some.
pub const BUFFERS_KEPT: usize = 256;

/// Buffers of large bodies that are kept for the next ones: one for each that is likely to be under way.
pub const BODY_BUFFERS_KEPT: usize = 32;
pub const BODY_BUFFER_BYTES_MAX: usize = 1024 * 1024;

/// The smallest read: most heads fit.
pub const READ_HEAD_BYTES: usize = 4 * 1024;

/// The smallest read while a body comes.
pub const READ_BODY_BYTES: usize = 64 * 1024;

/// Bytes that were read from a connection and go with it to another worker: nearly all heads are smaller.
pub const TRAVELLING_BYTES_MAX: usize = 16 * 1024;

/// One connection's share of a turn of the loop, so that a fast upload or download does not starve the others: as much as
/// a socket usually has at a time.
pub const SHARE_BYTES_MAX: usize = 256 * 1024;

/// What all connections together may move in a turn: a small request waits for no more than that, however many large
/// ones there are. A millisecond or less where memory takes it, some where a disk does.
pub const TURN_BYTES_MAX: usize = 2 * 1024 * 1024;

/// Before a request that has waited for so long is run, the kernel is asked whether its client is still there: those who are
/// not have mostly given up by now, and the system call is nothing beside the wait.
pub const ABANDONED_AFTER: Duration = Duration::from_millis(100);

/// Connections taken in a turn, each with its first request answered before the next is taken, before the ones that are
/// open get their turn.
pub const TURN_ACCEPTS_MAX: u32 = 16;

/// Requests begun in a turn that were there already when the one before them was answered (pipelining): of all clients
/// together, so that those who send many at once do not keep the others waiting.
pub const TURN_FOLLOWERS_MAX: u32 = 16;

/// How many answers may wait for each other to be sent together, and for how long: a small part of what a client notices.
/// The monitor looks as often while some do. At 500 us its looks took seven percent of a Flask application's throughput
/// on two processors, and answers that went out in threes cost three percent more.
pub const FLUSH_ANSWERS_MAX: usize = 16;
pub const FLUSH_DELAY_MAX: Duration = Duration::from_millis(2);

/// An answer that is larger goes out at once: copying it costs, and so does its queue, which the connection keeps.
pub const DEFERRED_ANSWER_BYTES_MAX: usize = 4 * 1024;

/// What a client on the same machine has not taken yet: what is written a moment before it is read is still in the
/// processors' caches, which made downloads of 5 MB a third faster than the megabytes that the kernel would queue. A
/// client elsewhere has a network before it, which must not run dry while the loop is busy: there the kernel decides.
pub const LOOPBACK_UNSENT_BYTES_MAX: u32 = 256 * 1024;

/// Lingering close: how long the client may be silent, and how long what it still sends is read in all; then it
/// will not look at the answer any more. Apache: 2 s and 30 s, nginx: 5 s and 30 s. There is no bound in bytes:
/// clients that send 100 MB before they read anything are the ones that need it.
pub const LINGER_SILENCE: Duration = Duration::from_secs(2);
pub const LINGER: Duration = Duration::from_secs(30);

/// What a client must send of a body, and take of an answer, on average over `body_timeout` and `write_timeout`:
/// those count from one byte to the next, so that a byte a second would keep a place for ever. Kestrel: 240 bytes a
/// second both ways, Apache (mod_reqtimeout): 500. A GPRS modem has ten times as much.
pub const BYTES_PER_S_MIN: u64 = 240;

/// Body bytes are gathered before they go to a file: whoever sends chunks of one byte shall not cost a write each,
/// and whoever only announces a large body shall not cost a file.
pub const GATHER_BYTES: usize = 64 * 1024;

/// The same where half of the memory for bodies and answers is free: each write is another thread's, and waking that costs as
/// much as writing so much.
pub const GATHER_BYTES_MAX: usize = 256 * 1024;

/// How fast a body must have come to go to the application as it comes: a local network does that, or a proxy that has all of
/// it. The Internet of most clients does not.
pub const LIVE_BYTES_PER_S_MIN: u64 = 32 * 1024 * 1024;

/// What its rest may take, at the pace that it has shown.
pub const LIVE_REST_MAX: Duration = Duration::from_secs(2);

/// A thread that waits for a live body for so long in sum must have got some of it meanwhile: else the body ends there.
pub const LIVE_WINDOW: Duration = Duration::from_secs(2);

/// The same for the only thread, while others wait for it and a client has just abused that. Those that went live before are
/// in line, and their clients would be waited for one after the other.
pub const LIVE_WINDOW_MISTRUSTED: Duration = Duration::from_millis(200);

/// What must come in a second of waiting: of a client that stopped, or was never what it seemed, nothing does.
pub const LIVE_PACE_BYTES_PER_S: u64 = 64 * 1024;

/// The same while others wait for a thread: still slower than what it began with by far.
pub const LIVE_PACE_WANTED_BYTES_PER_S: u64 = 4 * 1024 * 1024;

/// Live bodies in line for the only thread.
pub const LIVE_ALONE_IN_LINE_MAX: usize = 2;

/// For how long no body goes live once a client has abused it: at first, and at most.
pub const MISTRUST: Duration = Duration::from_secs(60);
pub const MISTRUST_MAX: Duration = Duration::from_secs(3600);

/// How long accepting rests when the process or the machine is out of descriptors or memory.
pub const ACCEPT_PAUSE: Duration = Duration::from_millis(200);

/// How long a TCP connection that says nothing stays with the kernel: the least there is. A client that sends its request
/// as soon as it is connected is then taken when that is there, which saves waking up for nothing, a vain read and a
/// place in the epoll set: half of the processor time of a request on a connection of its own.
pub const DEFER_ACCEPT_S: libc::c_int = 1;

/// A connection that has waited for so long in the kernel's queue, which knows no order but arrival, shows that all others
/// there are to be taken in and put in order, whatever threads are free. A service that is merely busy lets nobody wait for
/// so long: its queue goes on being shared with its siblings.
pub const BEHIND_AFTER: Duration = Duration::from_millis(50);

/// How often the kernel is asked for how long a connection has waited.
pub const ASK_WAIT_EVERY: Duration = Duration::from_millis(10);

/// The loop turns at least this often and tells so (`Metrics::heartbeat`).
pub const HEARTBEAT: Duration = Duration::from_millis(900);
