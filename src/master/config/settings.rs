//! Settings as the master uses them: absolute, defaulted, checked. Made from `file::File` by `read`; nothing
//! else in the project reads a file or an environment variable for settings.

use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::directory::DirectoryId;
use crate::files::Rights;
use crate::saved::{constant, Constant};
use forkmaster_wire::alias::Alias;
use forkmaster_wire::log_line::LineForm;
pub use forkmaster_wire::message::Http;
use forkmaster_wire::message::{AccessFormat, Application, LogLevel, Probe, ProxyProtocol};

/// One reading of the configuration: what a generation is made of.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Settings {
    pub name: String,
    pub app: App,
    pub server: Server,
    pub reload: Reload,
    pub hooks: Hooks,
    pub services: Vec<ServiceSettings>,
    /// What travels to the workers as it is; some of it stands in `[server]`.
    pub http: Http,
    pub log: Log,
    pub control: Control,
    pub status: Status,
    /// `forkmaster dev`: the application has stdin, and browsers are shown why a release was refused.
    pub dev: bool,
}

/// A program that runs beside the workers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceSettings {
    pub name: String,
    pub command: Vec<String>,
    pub count: u32,
    pub stop_timeout: Duration,
    pub stop_signal: i32,
    /// Sockets that are handed over to its processes, listening.
    pub bind: Vec<Bind>,
    /// It runs every so often and ends. None: it runs all the time.
    pub every: Option<Duration>,
    /// It says itself when it is ready, and should within this.
    pub ready_within: Option<Duration>,
    /// Where it stands in the file.
    pub line: usize,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct App {
    pub application: Application,
    /// Where it is mounted: empty, or with a slash at its beginning and none at its end.
    pub script_name: String,
    /// The real directory: no symlink is left in it.
    pub release: PathBuf,
    /// As it was written, made absolute: often a symlink, which deploys change.
    pub release_named: PathBuf,
    /// Its names that have a link in them, and where those led, the longest first.
    #[serde(default)]
    pub aliases: Vec<Alias>,
    /// Which directory that was when this was read.
    #[serde(default)]
    pub release_id: Option<DirectoryId>,
    /// Which state of its source the release says it is.
    pub revision: Option<String>,
    pub interpreter: Interpreter,
    pub preload: bool,
    /// Absolute.
    pub pythonpath: Vec<PathBuf>,
    pub imports: Vec<String>,
    pub probe: Option<Probe>,
    /// As the probe asks: its host and its scheme.
    pub warmup: Vec<Probe>,
    /// The whole environment of the generation's processes: start environment without the supervisor's protocol
    /// variables, then env_file, then `[env]`, then VIRTUAL_ENV, PATH, PWD and the user's HOME, USER, LOGNAME.
    pub environment: Vec<(OsString, OsString)>,
    /// Where some of that was read.
    pub env_file: Option<PathBuf>,
}

/// Which Python runs the generation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Interpreter {
    /// What is exec'ed: in a venv `<real venv>/bin/python`, the last part unresolved.
    pub executable: PathBuf,
    /// The resolved venv directory, if it is one.
    pub venv: Option<PathBuf>,
    /// Why this one, for the log: `venv in the release`, `[app] python`, `python3 on PATH`.
    #[serde(deserialize_with = "constant")]
    pub chosen_by: Constant,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Server {
    pub bind: Vec<Bind>,
    pub backlog: u32,
    pub socket: SocketFile,
    pub workers: u32,
    /// Serving, booting and draining processes together; None: no bound.
    pub max_processes: Option<u32>,
    pub threads: u32,
    /// None: stay who we are (not configured, or already so).
    pub identity: Option<Identity>,
    /// None: inherit.
    pub umask: Option<u32>,
    /// Nothing that the application executes has more rights than itself.
    pub no_new_privileges: bool,
    pub pidfile: Option<PathBuf>,
    /// Where a supervisor waits for a newline.
    #[serde(default)]
    pub notify_fd: Option<u32>,
    /// 0: never.
    pub max_requests: u64,
    pub max_requests_jitter: u64,
    pub max_lifetime: Option<Duration>,
    pub max_rss: Option<u64>,
    pub boot_timeout: Duration,
    /// None: disabled.
    pub request_timeout: Option<Duration>,
    /// How long a request may wait for a thread. None: `request_timeout` is the limit.
    pub queue_timeout: Option<Duration>,
    /// Path prefix and limit, longest prefix first.
    pub request_timeouts: Vec<(String, Option<Duration>)>,
    pub graceful_timeout: Duration,
    pub shutdown_delay: Duration,
    /// Addresses whose connections begin with a PROXY header.
    pub proxy_protocol: Vec<(Bind, ProxyProtocol)>,
}

/// An address to listen on.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Bind {
    Inet(SocketAddr),
    /// Absolute; its directory is not resolved.
    Unix(PathBuf),
    /// A listening socket that the supervisor handed over.
    Fd(i32),
    /// All sockets that systemd passed under this name.
    Systemd(String),
}

/// Mode and owner of Unix socket files.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SocketFile {
    pub mode: u32,
    pub uid: Option<u32>,
    pub gid: Option<u32>,
}

/// Who the template and its workers are. Looked up before any fork.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    pub uid: u32,
    pub gid: u32,
    /// Supplementary groups.
    pub groups: Vec<u32>,
    /// None for a numeric id without a passwd entry.
    pub name: Option<String>,
    /// For HOME; None without a passwd entry.
    pub home: Option<PathBuf>,
}

impl Identity {
    /// What files are opened with where they are the application's.
    pub fn rights(&self) -> Rights {
        Rights { uid: self.uid, gid: self.gid, groups: self.groups.clone() }
    }
}

/// What else is run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Hooks {
    /// Called in each worker.
    pub worker_start: Option<Application>,
    pub worker_exit: Option<Application>,
    pub commands: Commands,
}

/// Each a program and its arguments; empty: none.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Commands {
    pub on_ready: Vec<String>,
    pub on_reload: Vec<String>,
    pub on_exit: Vec<String>,
    pub timeout: Duration,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Reload {
    pub max_surge: Surge,
    pub max_unavailable: u32,
    pub drain_timeout: Duration,
    pub canary: CanarySettings,
    pub rollback_window: Duration,
    #[serde(default)]
    pub rehearsal: RehearsalSettings,
}

/// A candidate answers first what the old generation has answered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct RehearsalSettings {
    /// 0: there is none.
    pub requests: u32,
    /// A difference refuses the release.
    pub refuses: bool,
    /// For all requests, and for each.
    pub timeout: Duration,
    pub request_timeout: Duration,
}

/// The first workers of a release beside the old ones.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct CanarySettings {
    /// 0: only where a reload asks for them.
    pub workers: u32,
    pub hold: Duration,
    pub min_requests: u64,
    /// Percentage points.
    pub max_errors: f64,
    /// Times.
    pub max_latency: f64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Surge {
    /// As many at once as processors and memory bear.
    Auto,
    Workers(u32),
    /// `"100%"`: all new workers wait paused and take over in one step.
    All,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Log {
    pub level: LogLevel,
    pub error: LogTarget,
    /// None: off.
    pub access: Option<AccessTarget>,
    pub access_format: AccessFormat,
    /// Paths without a line.
    pub access_skip: Vec<String>,
    /// Answers below this status have none.
    pub access_status: u16,
    /// Requests that the application has not seen have a line, too.
    #[serde(default)]
    pub access_refused: bool,
    /// How a line of the error log looks.
    pub form: LineForm,
    /// Requests that take longer are looked at. None: never.
    pub slow_request: Option<Duration>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum LogTarget {
    Stderr,
    File(PathBuf),
}

impl LogTarget {
    pub fn path(&self) -> Option<&Path> {
        match self {
            LogTarget::Stderr => None,
            LogTarget::File(path) => Some(path),
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum AccessTarget {
    Stdout,
    File(PathBuf),
}

impl AccessTarget {
    pub fn path(&self) -> Option<&Path> {
        match self {
            AccessTarget::Stdout => None,
            AccessTarget::File(path) => Some(path),
        }
    }
}

/// The master's own address for probes and scrapers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// Empty: off.
    pub bind: Vec<Bind>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Control {
    pub socket: ControlSocket,
    /// Where deploys are remembered; None: in memory only.
    pub history: Option<PathBuf>,
    /// Who may look, besides the owner and root, and change nothing.
    pub readers: Vec<Reader>,
}

/// Whom `[control] readers` names, as written, and found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reader {
    pub text: String,
    pub who: ReaderId,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ReaderId {
    User(u32),
    Group(u32),
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ControlSocket {
    /// The first of these that works.
    Auto(Vec<ControlPlace>),
    Path(PathBuf),
    Off,
}

/// One of the usual places of a control socket.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ControlPlace {
    pub path: PathBuf,
    /// With which mode its directory is made where it is missing. 0700: it must then be this user's own. None: it is
    /// somebody else's to make.
    pub directory_mode: Option<u32>,
}

/// What a client needs to find a master, and to know that it is the right one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ControlTarget {
    pub name: String,
    pub socket: ControlSocket,
    /// Whom the configuration names: its file's owner, and `[server] user`.
    pub uids: Vec<u32>,
}

impl Control {
    pub fn is_auto(&self) -> bool {
        matches!(self.socket, ControlSocket::Auto(_))
    }
}
