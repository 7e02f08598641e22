//! The messages between the master and its templates and workers. Every type that crosses a process border
//! is in this file. File descriptors travel beside a message, in the order its documentation gives.

use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::alias::Alias;
use crate::log_line::LineForm;
use crate::millis;
use crate::peer::TrustedPeer;
use crate::rehearsal::{Remember, Remembered};

/// A generation, numbered from 1 over the life of the master.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct GenerationId(pub u32);

/// One worker process, unique over the life of the master (pids are not).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct WorkerId(pub u64);

/// A place for one worker in a generation; outlives its workers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct SlotIndex(pub u32);

/// A listener, numbered over the life of the master: the same address keeps its number over reloads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ListenerId(pub u32);

macro_rules! display_number {
    ($($name:ident)*) => {$(
        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                self.0.fmt(f)
            }
        }
    )*};
}
display_number!(GenerationId WorkerId SlotIndex ListenerId);

/// Master to template.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum ToTemplate {
    /// The first message; it waits in the channel before the interpreter has even started. File descriptors: the
    /// error log, then the access log where `Boot::access` is set, then as a last one, where the master wants to read
    /// them, the write end of a pipe for faulthandler's dumps of the template's stacks (SIGRTMIN+3, from before the
    /// import on). Without that pipe they go to the error log.
    Boot(Box<Boot>),
    /// The logs have been opened again; the error log and the access log as with `Boot`. Whoever is forked later has
    /// the new ones.
    Logs,
    /// Fork one worker. The answer is the worker's own `Hello`, or `SpawnFailed`. A template forks one worker after the
    /// other, and runs the application's fork handlers: if neither answer comes, the template hangs in such a handler.
    /// File descriptors: the worker's end of its channel, the scoreboard, the write end of the pipe for faulthandler's
    /// stack dumps, the sending and the receiving end of the handoff queue, then one per entry of `listeners`.
    Spawn(Spawn),
    /// Answered with `Pong` by a template that can fork.
    Ping { id: u64 },
    /// End: close the channel and exit 0.
    Stop,
}

/// Template to master.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum FromTemplate {
    /// The interpreter runs and the library is loaded; nothing of the application is imported.
    Hello(Hello),
    /// Ready to fork. With `preload` the application is imported and its imports and URLconf are proved.
    Loaded(Loaded),
    /// The application could not be imported (with `preload`). The template exits after sending it.
    Failed(Failure),
    /// The fork itself failed; the worker will never introduce itself. The next one may.
    SpawnFailed {
        worker: WorkerId,
        reason: String,
        /// A limit of the machine was met; the application is not to blame.
        #[serde(default)]
        no_room: bool,
    },
    Pong {
        id: u64,
    },
}

/// Master to worker.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum ToWorker {
    /// Begin, or after a Drain begin again, to accept. Answered with `Serving` once listeners are registered.
    Serve,
    /// Finish what was begun, accept nothing new, give connections to other workers, then exit 0. Answered with
    /// `Draining` once the listeners, and all connections that wait for a request, are out of the epoll set.
    Drain {
        /// The worker goes on accepting from these until `CloseListeners`: the next generation does not have them.
        keep: Vec<ListenerId>,
        /// The worker's successors are not told to serve yet. It stays until `StandAside` or another command comes; if
        /// the master dies before that, the worker accepts the connections that wait.
        #[serde(default)]
        yields: bool,
    },
    /// Accept until EAGAIN, then close these.
    CloseListeners { listeners: Vec<ListenerId> },
    /// Follows `Drain`: another release serves in this one's place. Connections in the handoff queue are left to other
    /// workers, also at `Stop` and when the master is gone.
    StandAside,
    /// The whole service stops: every answer says `Connection: close`, all listeners are accepted until
    /// EAGAIN and closed, idle connections are closed after `idle_ms`, running requests finish; then exit 0.
    Stop { idle_ms: u64 },
    /// This worker will be killed: take nothing new. Requests that no thread has started go to other workers, or are
    /// answered with 503 and closed; the others may finish. Then exit 0.
    Retire,
    /// Finish what was begun, and begin nothing until `Serve`: connections go to the handoff queue or wait, unread.
    /// Answered with `Paused` once no request is under way.
    Pause,
    /// Follows `Pause`, and comes again when the page changes: take connections, and answer each request with 503 and
    /// this page. The application still gets no request. A worker that does not know the message only pauses.
    Maintenance { page: Option<Page> },
    /// Send the probe once more, now that something has changed beneath the release. Answered with `Probed`.
    Probe,
    /// Answer with `Remembered`: requests that this worker answered of late.
    Recall {
        /// At most so many.
        requests: u32,
        /// Leave out the first ones, which an earlier answer had.
        #[serde(default)]
        skip: u32,
    },
    /// Have the application answer this request, for which no client waits, in the main thread of a worker that does not
    /// serve yet. Answered with `Rehearsed`.
    Rehearse { number: u32, request: Remembered },
    /// A request runs beyond its limit: answer 504 in its place, if no head has gone out. Comes again as long as the
    /// request runs.
    Overdue {
        /// Its number on the scoreboard.
        request: u64,
    },
    /// Look whether connections wait: a worker that was woken for one may have died before it took it, and the kernel
    /// wakes no second one.
    Look,
    /// Workers of another generation serve, too, for a while: a worker whose threads are all busy looks on that
    /// generation's scoreboard for one that is free. File descriptor: the scoreboard, for reading only. A worker that does
    /// not know the message looks at its own generation only.
    Beside { generation: GenerationId, cells: u32, threads: u32, layout: [u64; 2] },
    /// Answer with `Stacks`: the Python stacks of all threads.
    Stacks { id: u64 },
    /// In development: a release was refused, and the next page that a browser asks for shows why.
    Refused { text: String },
    /// The logs have been opened again; file descriptors as with `ToTemplate::Boot`. A worker may not be allowed to
    /// open them itself.
    Logs,
}

/// What clients are shown during a maintenance.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Page {
    pub content_type: String,
    pub body: String,
}

/// Worker to master, on the worker's own channel.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum FromWorker {
    /// The first act of the new process, straight after the fork and before any Python runs in it. The pid is its own
    /// word; the kernel's is in the packet's credentials.
    Hello {
        pid: i32,
    },
    /// The application is there and proved, app threads are running; the worker waits for `Serve`.
    Ready {
        /// Memory that it shares with nobody (`smaps_rollup`: Private_Clean + Private_Dirty): what one more costs. 0 where
        /// `Spawn::weigh` did not ask.
        private_bytes: u64,
        /// From the fork to here.
        boot_wall_ms: u64,
        /// Time on a processor, of all its threads.
        boot_cpu_ms: u64,
        /// No temporary directory is writable.
        bodies_in_memory: bool,
    },
    /// Import or proof failed; the worker exits after sending it.
    Failed(Failure),
    /// A `Serve` has been carried out.
    Serving,
    /// A `Drain`, `Stop` or `Retire` has been carried out as far as accepting is concerned.
    Draining,
    /// A `Pause` has been carried out: no request is under way.
    Paused,
    /// How a `Probe` went; None: well.
    Probed {
        failure: Option<Failure>,
    },
    /// The newest first, as many as were asked for and fit into a packet.
    Remembered {
        requests: Vec<Remembered>,
        /// Some were asked for and did not fit.
        #[serde(default)]
        more: bool,
    },
    /// How a `Rehearse` went: the status of the answer, 500 where the application has raised; 0 where it has begun none.
    Rehearsed {
        number: u32,
        status: u16,
        /// What it has raised; may be empty.
        details: String,
    },
    /// Nothing is served any more: all requests are answered, no connection is left. Only the interpreter's own end is
    /// missing, which waits for the threads named here: they live and are no daemons.
    Drained {
        threads: Vec<String>,
    },
    /// `Spawn::max_requests` is reached; the worker goes on serving until it is told to drain.
    RequestsServed,
    /// The application ended itself (SystemExit or KeyboardInterrupt outside a request, or TERM sent to the
    /// worker): it wants to be told to drain; the slot needs a new worker.
    Leaving {
        reason: String,
    },
    Stacks {
        id: u64,
        text: String,
    },
}

/// The exit status of a template or worker whose channel the application has closed (`os.closerange(3, ...)` while it was
/// imported): nothing could be told any more, so this number tells it. sysexits.h uses 64 to 78, shells 126 and above.
pub const EXIT_CHANNEL_CLOSED: i32 = 120;

/// What a template and its workers must know; fixed for the life of a generation.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Boot {
    pub generation: GenerationId,
    /// The instance's name, for process titles.
    pub name: String,
    /// The resolved release directory: cwd and `sys.path[0]`.
    pub release: PathBuf,
    /// Further entries of `sys.path`, after the release.
    pub pythonpath: Vec<PathBuf>,
    /// What else leads to the release, the longest first: entries of `sys.path` that go through a link are pinned as well.
    #[serde(default)]
    pub aliases: Vec<Alias>,
    pub application: Application,
    /// SCRIPT_NAME of every request: where the application is mounted. Empty, or with a slash at its beginning and none
    /// at its end.
    pub script_name: String,
    pub preload: bool,
    /// Modules that must import before the release counts as proved.
    pub imports: Vec<String>,
    /// Called in each worker: before it serves, where an exception refuses the worker, and after its last request.
    pub worker_start: Option<Application>,
    pub worker_exit: Option<Application>,
    pub probe: Option<Probe>,
    /// Requests at every boot, before `Ready`; their answers decide nothing.
    pub warmup: Vec<Probe>,
    /// Requests are kept, so that the next release can answer them first.
    #[serde(default)]
    pub remember: Option<Remember>,
    pub threads: u32,
    /// For how many milliseconds a request may wait for a thread; None: for ever.
    pub queue_limit_ms: Option<u64>,
    /// The limit is `queue_timeout`: the time in the kernel's queue counts too.
    #[serde(default)]
    pub sheds: bool,
    /// Configured workers (for `wsgi.multiprocess`).
    pub workers: u32,
    pub http: Http,
    pub log_level: LogLevel,
    pub log_form: LineForm,
    /// None: there is no access log.
    pub access: Option<Access>,
}

/// The access log: which requests have a line, and how it looks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Access {
    pub format: AccessFormat,
    /// Paths without a line; one that ends with `*` stands for all that begin so.
    pub skip: Vec<String>,
    /// Answers below this status have none.
    pub status_min: u16,
    /// Requests that the application has not seen have a line, too.
    #[serde(default)]
    pub refused: bool,
}

impl Access {
    /// Whether a request has a line: its path as it was sent, and the status of its answer.
    pub fn wants(&self, path: &[u8], status: u16) -> bool {
        let is_meant = |skip: &String| match skip.strip_suffix('*') {
            Some(prefix) => path.starts_with(prefix.as_bytes()),
            None => path == skip.as_bytes(),
        };
        status >= self.status_min && !self.skip.iter().any(is_meant)
    }
}

/// How a line of the access log looks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum AccessFormat {
    Json,
    Line(Vec<AccessPart>),
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum AccessPart {
    Text(String),
    Atom {
        atom: Atom,
        /// It stands between quotation marks, where a blank ends nothing.
        quoted: bool,
    },
}

/// What a line of the access log can tell, with Gunicorn's names.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Atom {
    /// `h`: REMOTE_ADDR.
    RemoteAddress,
    /// `l`: `-`, as identd is no more.
    Identity,
    /// `u`: of Basic authentication.
    User,
    /// `t`: `[22/Nov/2026:23:25:59 +0000]`.
    Time,
    /// `r`: method, target and version as they were sent.
    RequestLine,
    /// `m`
    Method,
    /// `U`: the path, decoded.
    Path,
    /// `q`
    Query,
    /// `H`: `HTTP/1.1`.
    Protocol,
    /// `s`
    Status,
    /// `B`: bytes of the body.
    Bytes,
    /// `b`: the same, `-` for none.
    BytesOrDash,
    /// `f`
    Referer,
    /// `a`
    UserAgent,
    /// `T`
    Seconds,
    /// `M`
    Milliseconds,
    /// `D`
    Microseconds,
    /// `L`: seconds with six decimals.
    DecimalSeconds,
    /// `p`: `<4711>`.
    Pid,
    /// `Q`: microseconds for which it waited for a thread.
    Queued,
    /// `X`: how the answer ended.
    Ended,
    /// `G`
    Generation,
    /// `I`
    RequestId,
    /// `{name}i`
    RequestHeader(String),
    /// `{name}o`
    ResponseHeader(String),
    /// `{name}e`: of the WSGI environ.
    Environ(String),
}

/// `shop.wsgi:application`, `shop:api.app`, `shop:create_app('prod')`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Application {
    pub module: String,
    /// Attributes to follow from the module; at least one.
    pub attributes: Vec<String>,
    /// For a factory: what stands between the parentheses, literals only (checked by `ast` in the worker).
    pub call: Option<String>,
}

/// A request that the release must answer before it counts as proved.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Probe {
    /// Path and query.
    pub path: String,
    pub host: String,
    pub scheme: String,
    /// Accepted status codes; empty: any 2xx.
    pub status: Vec<u16>,
}

/// The settings of `[http]` and their neighbours that the serving loop needs: the master's own type for them, so that
/// nothing is copied field by field. Sizes are in bytes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Http {
    pub connections: u32,
    /// None: every connection ends with its answer.
    #[serde(with = "millis::optional")]
    pub keepalive_timeout: Option<Duration>,
    #[serde(with = "millis")]
    pub header_timeout: Duration,
    #[serde(with = "millis")]
    pub body_timeout: Duration,
    #[serde(with = "millis")]
    pub write_timeout: Duration,
    #[serde(with = "millis")]
    pub proxy_write_timeout: Duration,
    pub limit_request_line: u32,
    pub limit_request_fields: u32,
    pub limit_request_field_size: u32,
    pub limit_request_head: u32,
    pub body_memory: u64,
    /// Of all bodies of a worker together, where there is no directory for temporary files.
    pub body_memory_alone: u64,
    pub stream_bodies: StreamBodies,
    pub max_body: u64,
    /// Directories to try for temporary files, first writable wins.
    pub temp_dirs: Vec<PathBuf>,
    pub temp_limit: u64,
    pub response_buffer: u64,
    /// A path that the loop answers without the application.
    pub health_path: Option<String>,
    /// Who is believed about where a request came from.
    pub forwarded_allow_ips: Vec<TrustedPeer>,
    pub forwarded_headers: Vec<ForwardedHeader>,
    /// Names and values of header fields by which a trusted proxy says that its client came by https.
    pub secure_scheme_headers: Vec<(String, String)>,
    /// Names, in lower case, of the header fields with an underscore that a trusted proxy may send.
    pub underscore_headers: Vec<String>,
    /// The header field, as it is sent, that names a request for all who handle it. None: requests have no names.
    pub request_id_header: Option<String>,
}

/// Which large bodies may go to the application as they come.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum StreamBodies {
    Never,
    Fast,
    /// For paths that begin so.
    Under(Vec<String>),
}

/// Which forwarded header fields a trusted proxy sets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ForwardedHeader {
    /// `X-Forwarded-For`.
    For,
    /// `X-Forwarded-Proto`.
    Proto,
    /// `X-Forwarded-Host`, and `host` of `Forwarded`.
    Host,
    /// `X-Forwarded-Prefix`.
    Prefix,
    /// `SCRIPT_NAME`, as Gunicorn takes it: a field with an underscore in its name.
    #[serde(rename = "script_name")]
    ScriptName,
    /// `Forwarded` (RFC 7239), in place of the first two.
    Forwarded,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ProxyProtocol {
    V1,
    V2,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogLevel {
    Error,
    Warn,
    Info,
    Debug,
    Trace,
}

/// One worker to fork.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Spawn {
    /// Whose worker it is: not always that of `Boot`, since a rollback forks from the template of an earlier generation.
    pub generation: GenerationId,
    pub worker: WorkerId,
    pub slot: SlotIndex,
    /// The worker's cell of the scoreboard.
    pub cell: u32,
    /// Size of the scoreboard that travels along.
    pub cells: u32,
    pub listeners: Vec<Listener>,
    /// The release must prove itself in this worker. On a later respawn a failing probe is only logged: a
    /// database outage must not empty the slots.
    pub prove: bool,
    /// The probe is part of the proof. Not where something is still to be done before the release can answer it
    /// (`reload --pause`): then a `Probe` follows.
    pub probe: bool,
    /// More workers are to follow, and there must be room for them: `Ready` says what memory this one takes. Others do not
    /// measure it before they serve, since the kernel takes 0.4 ms and more for it.
    #[serde(default)]
    pub weigh: bool,
    /// Send `RequestsServed` after so many requests (jitter included); None: never.
    pub max_requests: Option<u64>,
}

/// A listener, as a worker needs to know it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Listener {
    pub id: ListenerId,
    /// As configured and bound, for log lines: `127.0.0.1:8000`, `unix:/run/shop.sock`.
    pub address: String,
    /// Its connections begin with a PROXY header of this version.
    pub proxy: Option<ProxyProtocol>,
}

/// The interpreter, as it found itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    pub wire_hash: u64,
    pub executable: PathBuf,
    pub prefix: PathBuf,
    /// `3.12.1`
    pub version: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Loaded {
    /// How long the import took (0 without `preload`).
    pub import_ms: u64,
    /// Names of the threads that the import left running, besides the main thread (`preload` only).
    pub threads: Vec<String>,
    /// Sockets that the import left open, all of which the workers share (`preload` only): `connected to
    /// 192.0.2.1:5432`.
    pub sockets: Vec<String>,
}

/// Why a release was refused.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    pub stage: ProofStep,
    /// One line: `ModuleNotFoundError: No module named 'dep'`.
    pub reason: String,
    /// The Python traceback or other details; may be empty, cut by `text::cut_text`.
    pub details: String,
}

/// What the release was doing when it failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ProofStep {
    /// The interpreter or our library did not come up.
    Start,
    /// Importing the application or finding the callable.
    Import,
    /// A module of `[app] imports`.
    Imports,
    /// Django's URLconf.
    Urlconf,
    /// `[hooks] worker_start`, or finding `worker_exit`.
    Hook,
    Probe,
}
