//! Every setting there is, written once: its name, its kind, its default, when a change of it takes effect, what it is
//! for and why its default is what it is, and what Gunicorn and uWSGI call it. Parsing, hints, `config show`, `config
//! reference` and docs/settings.md come from this table. Nothing here reads a file or knows a value.

use forkmaster_wire::rehearsal::REQUESTS_MAX;

use super::file::{quoted, Value, Written};
use super::services::SECTION as SERVICE;

/// Section (empty: the top of the file) and key.
pub type Key = (&'static str, &'static str);

#[derive(Debug)]
pub struct KeySpec {
    /// Empty: the top of the file.
    pub section: &'static str,
    pub key: &'static str,
    pub kind: Kind,
    pub default: Preset,
    pub applies: Applies,
    /// What it is for, with the unit and the reason for the default; what others chose, where that helps.
    pub doc: &'static str,
    /// On the command line.
    pub option: Option<&'static str>,
    /// What Gunicorn calls it, in a file or as a flag.
    pub gunicorn: &'static [&'static str],
    /// What uWSGI calls it. Names that are the same need not be here.
    pub uwsgi: &'static [&'static str],
}

/// When a change of a setting takes effect after a reload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Applies {
    /// With the first worker of the new generation: it is part of the generation.
    Generation,
    /// When the new generation has taken over: there is one of it for all generations.
    Commit,
    /// Only with a restart: it is fixed with the process.
    Restart,
}

/// How a value is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Boolean,
    Count {
        min: u32,
        max: u32,
    },
    /// A count, or a word for what the program finds out itself.
    CountOrAuto {
        min: u32,
        max: u32,
    },
    CountOrNone {
        min: u32,
        max: u32,
    },
    /// From 0, without a bound.
    Number,
    Duration,
    /// A duration that makes no sense as zero.
    Timeout,
    DurationOrNone,
    /// `none` is not "without a limit", but what is said here.
    TimeoutOrNone(&'static str),
    Size,
    SizeBetween {
        min: u64,
        max: u64,
    },
    SizeOrNone,
    Mode,
    /// A mode, or `inherit`.
    ModeOrInherit,
    /// A user or a group: a name, or a number.
    Id,
    /// A path of something that outlives a generation, or `none`.
    PathOrNone,
    /// A list of strings, each of them as said here.
    List(&'static str),
    /// It has a reader of its own; in words.
    Own(&'static str),
}

/// What holds where nothing is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Preset {
    Text(&'static str),
    Number(i64),
    Boolean(bool),
    List(&'static [&'static str]),
    /// A table without entries.
    Table,
    /// Not set, or made of other things; in words.
    Words(&'static str),
}

/// Sections, in the order of the documentation, with what stands in them.
pub const SECTIONS: [(&str, &str); 9] = [
    ("app", "The application, and the release in which it lies."),
    (
        "env",
        "Environment variables of the application: `NAME = \"value\"`. They stand above those of the start and of \
         `[app] env_file`.",
    ),
    ("server", "Addresses, processes and their limits."),
    ("reload", "How a new generation takes over."),
    (
        "hooks",
        "What else is run: functions of the release in each worker, and commands when the service starts, reloads and ends. A \
         command runs as `[server] user` in the release, with its environment and FORKMASTER_HOOK (`on_ready`), \
         FORKMASTER_HOOK_RESULT, _REASON, _GENERATION, _RELEASE, _NAME and _PID (the master's). One runs at a time, and \
         what becomes of it is logged and changes nothing.",
    ),
    ("http", "Connections, requests, and what is believed of proxies."),
    ("log", "What is logged, and where to."),
    ("control", "The socket for `forkmaster status`, `reload`, `stop` and the others."),
    ("status", "The master's own address for probes and for Prometheus."),
];

/// What the kernel takes as a backlog: an int.
const BACKLOG_MAX: u32 = i32::MAX as u32;
/// Far above what a machine bears; a slip such as 80000 is caught.
pub const WORKERS_MAX: u32 = 4096;
pub const THREADS_MAX: u32 = 1024;
pub const FIELDS_MAX: u32 = 32_768;
const CONNECTIONS_MAX: u32 = 1 << 20;
/// Far above any limit of open files.
pub const DESCRIPTOR_MAX: u32 = 1 << 20;
/// Old, new and draining workers of that many.
const PROCESSES_MAX: u32 = 3 * WORKERS_MAX;

use Applies::{Commit, Generation, Restart};
use Preset::{Boolean, List, Number, Table, Text, Words};

/// A row of the table, before its names elsewhere.
const fn row(
    section: &'static str,
    key: &'static str,
    kind: Kind,
    default: Preset,
    applies: Applies,
    doc: &'static str,
) -> KeySpec {
    KeySpec { section, key, kind, default, applies, doc, option: None, gunicorn: &[], uwsgi: &[] }
}

impl KeySpec {
    const fn option(self, option: &'static str) -> KeySpec {
        KeySpec { option: Some(option), ..self }
    }

    const fn gunicorn(self, names: &'static [&'static str]) -> KeySpec {
        KeySpec { gunicorn: names, ..self }
    }

    const fn uwsgi(self, names: &'static [&'static str]) -> KeySpec {
        KeySpec { uwsgi: names, ..self }
    }

    pub fn at(&self) -> Key {
        (self.section, self.key)
    }

    /// `[server] workers`, and `name` at the top of the file.
    pub fn shown(&self) -> String {
        shown(self.at())
    }

    /// `FORKMASTER_SERVER__WORKERS`; a table has no variable.
    pub fn variable(&self) -> Option<String> {
        let section = if self.section.is_empty() { String::new() } else { format!("{}__", self.section) };
        (self.at() != REQUEST_TIMEOUTS).then(|| format!("FORKMASTER_{section}{}", self.key).to_ascii_uppercase())
    }
}

/// A table of its own, with any prefixes as keys.
pub const REQUEST_TIMEOUTS: Key = ("server", "request_timeouts");

/// In the order of the documentation. One row a setting: what it is on the first line, then what it is for.
#[rustfmt::skip]
pub const KEYS: &[KeySpec] = &[
    row("", "name", Kind::Own("string"), Words("the configuration file's stem and a short hash of its path"), Restart,
        "Names this instance in its control socket, its process titles and `forkmaster status`. The hash keeps two \
         instances on one machine apart.")
        .option("--name").gunicorn(&["proc_name"]).uwsgi(&["procname", "procname-prefix", "auto-procname"]),

    row("app", "module", Kind::Own("string"), Words("none, it must be set"), Generation,
        "The application: `\"shop.wsgi\"` (the callable is `application`), `\"shop.wsgi:app\"`, or a factory call with \
         literal arguments, `\"shop:create_app('prod')\"`.")
        .gunicorn(&["wsgi_app"]).uwsgi(&["wsgi", "wsgi-file", "callable"]),
    row("app", "script_name", Kind::Own("path, or \"\""), Text(""), Generation,
        "Where the application is mounted: `\"/shop\"` is SCRIPT_NAME of every request, and PATH_INFO is what lies below. \
         A path that does not begin so is taken for one that the proxy has stripped already. What a trusted proxy says \
         (`\"prefix\"` and `\"script_name\"` in `[http] forwarded_headers`) stands in its place. The variable SCRIPT_NAME \
         counts where nothing else is said, as in Gunicorn.")
        .uwsgi(&["url-path-prefix", "root-path"]),
    row("app", "release", Kind::Own("path"), Words("the configuration file's directory"), Generation,
        "Directory of the application: working directory and first entry of `sys.path`. Followed afresh at every \
         reload, then pinned, so that a flipped symlink deploys. Relative to the configuration file's real directory.")
        .option("--release").gunicorn(&["chdir"]).uwsgi(&["chdir", "chdir2"]),
    row("app", "venv", Kind::Own("path"), Words("looked for"), Generation,
        "Virtual environment whose `bin/python` runs the application. Relative to the release. Where neither `venv` nor \
         `python` is set, these are looked for, in this order: `.venv` or `venv` in the release, `$VIRTUAL_ENV`, the \
         environment from which forkmaster itself was called, and `python3` on PATH. One that is there but broken is \
         refused: another Python would run the release with other packages.")
        .option("--venv").uwsgi(&["virtualenv", "home", "pyhome"]),
    row("app", "python", Kind::Own("path"), Words("looked for, as `venv`"), Generation,
        "Interpreter that runs the application, in place of `venv`. CPython 3.9 or later. Relative to the release.")
        .option("--python"),
    row("app", "preload", Kind::Boolean, Boolean(false), Generation,
        "`true` imports the application once, before workers are forked from it. They share its memory, and code on \
         disk is pinned; connections and threads that the import opens are shared or lost.")
        .option("--preload").gunicorn(&["preload_app"]),
    row("app", "pythonpath", Kind::List("paths"), List(&[]), Generation,
        "Further directories of `sys.path`, behind the release. Relative to the release.")
        .uwsgi(&["pp", "python-path"]),
    row("app", "imports", Kind::List("module names"), List(&[]), Generation,
        "Modules that must import before a release counts as proved: those that the application imports late.")
        .uwsgi(&["import", "py-import", "shared-py-import"]),
    row("app", "probe", Kind::Own("path, or a table with path, host, scheme and status"), Words("none"), Generation,
        "A request that the application must answer before a release counts as proved: `\"/healthz\"`, or `{ path = \
         \"/healthz\", host = \"shop.example\", scheme = \"https\", status = [200] }`. Any 2xx is good unless `status` \
         says otherwise. Frameworks that check the host need `host`, and redirects to https need `scheme`."),
    row("app", "warmup", Kind::List("paths"), List(&[]), Generation,
        "Requests that each worker answers before it serves, at every boot: `[\"/\", \"/search?q=a\"]`. They fill caches, \
         connections and lazy imports; their times are logged, and their answers refuse nothing: that is `probe`'s, \
         whose host and scheme they have."),
    row("app", "env_file", Kind::Own("path"), Words("none"), Generation,
        "A file of `NAME=value` lines, with `#` comments, quotes and `export`; nothing is expanded in it. Relative to \
         the configuration file's real directory. A master that is root follows a symbolic link there with the rights of \
         `[server] user`: links in a release may come with the code."),

    row("server", "bind", Kind::List("HOST:PORT, [v6]:PORT, unix:PATH, fd://N or systemd:NAME"), List(&["127.0.0.1:8000"]), Commit,
        "Addresses to listen on. `systemd:NAME` is the socket that systemd passes under that name; where nothing \
         else is said, all that it passes are used, and else the variable PORT stands for `0.0.0.0:PORT`. Socket paths \
         are relative to the configuration file by name, so that they stay where they are when a symlink flips.")
        .option("--bind").gunicorn(&["bind"])
        .uwsgi(&["socket", "http", "http-socket", "http11-socket", "uwsgi-socket", "shared-socket"]),
    row("server", "backlog", Kind::Count { min: 1, max: BACKLOG_MAX }, Number(4096), Commit,
        "Connections that the kernel holds until a worker takes them. 4096 is what net.core.somaxconn allows since \
         Linux 5.4. Gunicorn: 2048, uWSGI: 100, nginx: 511.")
        .uwsgi(&["listen"]),
    row("server", "socket_mode", Kind::Mode, Text("0660"), Commit,
        "Mode of Unix socket files, as octal digits.")
        .uwsgi(&["chmod-socket", "chmod"]),
    row("server", "socket_user", Kind::Id, Words("`user`"), Commit,
        "Owner of Unix socket files. Only root can give a file away.")
        .uwsgi(&["chown-socket"]),
    row("server", "socket_group", Kind::Id, Words("the group of the workers"), Commit,
        "Group of Unix socket files: the one that the proxy in front is a member of."),
    row("server", "workers", Kind::CountOrAuto { min: 1, max: WORKERS_MAX }, Number(1), Generation,
        "Worker processes. `\"auto\"`: one per CPU that this process may use, cgroup quota considered. The variable \
         WEB_CONCURRENCY counts where nothing else is said.")
        .option("--workers").gunicorn(&["workers"]).uwsgi(&["processes", "workers"]),
    row("server", "max_processes", Kind::CountOrNone { min: 1, max: PROCESSES_MAX }, Text("none"), Generation,
        "The most workers at any time, those that boot and those that drain included: what a database's connections or \
         a licence allow. At least one more than `workers`, since a release is proved beside the old one."),
    row("server", "threads", Kind::Count { min: 1, max: THREADS_MAX }, Number(1), Generation,
        "Threads of each worker that run the application. With one, the application runs in the main thread.")
        .option("--threads").gunicorn(&["threads"]),
    row("server", "connections", Kind::Count { min: 1, max: CONNECTIONS_MAX }, Number(1024), Generation,
        "Open connections of each worker. A full table closes the one that has been idle for longest. Gunicorn: 1000.")
        .gunicorn(&["worker_connections"]),
    row("server", "user", Kind::Id, Words("who started the master"), Restart,
        "User of templates and workers, by name or number. Group, supplementary groups, HOME, USER and LOGNAME follow. \
         Nothing happens where it is so already; otherwise the master must be root.")
        .gunicorn(&["user"]).uwsgi(&["uid"]),
    row("server", "group", Kind::Id, Words("the group of `user`"), Restart,
        "Group of templates and workers, by name or number.")
        .gunicorn(&["group"]).uwsgi(&["gid"]),
    row("server", "umask", Kind::ModeOrInherit, Text("inherit"), Generation,
        "File mode creation mask of the application, as octal digits: `\"0027\"`."),
    row("server", "no_new_privileges", Kind::Boolean, Boolean(true), Generation,
        "The application and its services can get no rights by what they execute (prctl(2), PR_SET_NO_NEW_PRIVS; systemd's \
         NoNewPrivileges=): sudo and programs with setuid or setgid, Postfix's `sendmail` for one, do not work in them. \
         Hooks and the command of `reload --pause` are not concerned. Unless they are root, the application and its services have no capabilities."),
    row("server", "pidfile", Kind::PathOrNone, Text("none"), Restart,
        "File for the master's pid, written at the start and removed at the end. Relative to the configuration file by \
         name.")
        .gunicorn(&["pid"]).uwsgi(&["pidfile2", "safe-pidfile", "safe-pidfile2"]),
    row("server", "notify_fd", Kind::CountOrNone { min: 3, max: DESCRIPTOR_MAX }, Text("none"), Restart,
        "A descriptor that a supervisor opened. One newline is written to it, and it is closed, when the first worker \
         serves: s6's `notification-fd`, dinit's `ready-notification = pipefd:N`. systemd needs none, it has READY=1.")
        .option("--notify-fd"),
    row("server", "max_requests", Kind::Number, Number(0), Generation,
        "A worker is replaced after so many requests: its successor serves first, then it drains. 0: never."),
    row("server", "max_requests_jitter", Kind::Number, Number(0), Generation,
        "Up to so many more, another number for each worker, so that not all are replaced at once.")
        .uwsgi(&["max-requests-delta"]),
    row("server", "max_lifetime", Kind::DurationOrNone, Text("none"), Generation,
        "A worker is replaced after so long.")
        .uwsgi(&["max-worker-lifetime"]),
    row("server", "max_rss", Kind::SizeOrNone, Text("none"), Generation,
        "A worker is replaced when its resident memory is larger.")
        .uwsgi(&["reload-on-rss", "evil-reload-on-rss", "reload-on-as", "evil-reload-on-as"]),
    row("server", "boot_timeout", Kind::Timeout, Text("60s"), Generation,
        "How long one process may take from its start to being ready: import and proof. A release that takes longer \
         is refused."),
    row("server", "request_timeout", Kind::DurationOrNone, Text("60s"), Generation,
        "How long a request may run without progress: to the first output, then from one piece to the next. The client \
         gets 504 where no answer had begun, the stacks of the worker's threads are logged, and the worker is replaced. \
         A request that has waited so long for a thread gets 503 with Retry-After. `\"none\"`: no limit. Gunicorn's `timeout` of 30 s does \
         not cut requests of threaded workers; this one does.")
        .gunicorn(&["timeout"]).uwsgi(&["harakiri"]),
    row("server", "queue_timeout", Kind::DurationOrNone, Text("none"), Generation,
        "How long a request may wait for a thread, the time in the kernel's queue included. One that has waited longer \
         gets 503 with Retry-After, and Python does not see it. So after a stall the service is back at once, and not \
         when the line of clients that have given up is worked off. `\"none\"`: `request_timeout` is the limit, and the \
         kernel's queue does not count. Set it to what a client waits for at most. Time in which nobody serves (a pause, \
         `scale 0`) does not count. On Unix sockets the kernel does not say how long a connection was in its queue. \
         Gunicorn and uWSGI have nothing alike."),
    row("server", "graceful_timeout", Kind::Duration, Text("25s"), Generation,
        "At a stop: how long everything may take, from the TERM on, `shutdown_delay` included. Below the 30 s after \
         which Kubernetes kills; docker stop gives 10 s unless told otherwise.")
        .uwsgi(&["reload-mercy", "worker-reload-mercy"]),
    row("server", "shutdown_delay", Kind::Duration, Text("0s"), Generation,
        "At a stop: how long all goes on as before, so that a load balancer can notice. Less than `graceful_timeout`, of \
         which it is a part."),
    row("server", "health_path", Kind::Own("path, or \"none\""), Text("none"), Generation,
        "A path that the worker answers itself, `\"/-/healthz\"`: 200 while it serves, 503 once the service stops. It asks \
         neither Python nor what Host the request names, needs no free thread, and stands in no log. For probes that \
         have only the port of the application; `[status] bind` tells more."),
    row("server", "temp_dir", Kind::Own("path, or \"auto\""), Text("auto"), Generation,
        "Directory of temporary files for large bodies. `\"auto\"`: the first writable one of `$TMPDIR`, /var/tmp and \
         /tmp.")
        .gunicorn(&["tmp_upload_dir"]),
    row("server", "temp_limit", Kind::Size, Text("4GiB"), Generation,
        "Temporary files of one worker together. Beyond it, bodies get 503, and responses wait for their clients."),
    row("server", "response_buffer", Kind::Size, Text("64MiB"), Generation,
        "How much of one response is held for a slow client, in memory and then in a file, before the application has \
         to wait for it."),
    row("server", "request_timeouts", Kind::Own("table"), Table, Generation,
        "Other limits than `request_timeout` for paths that begin so: `\"/reports/\" = \"10m\"`. The longest prefix \
         counts."),

    row("reload", "max_surge", Kind::Own("\"auto\", \"100%\" or a number"), Text("auto"), Generation,
        "How many more processes than `workers` a reload may run. `\"auto\"`: as many at once as processors and memory \
         bear. `\"100%\"`: all new workers at once."),
    row("reload", "max_unavailable", Kind::Count { min: 0, max: WORKERS_MAX }, Number(0), Generation,
        "How many workers fewer than `workers` may serve during a reload: for memory that holds no more."),
    row("reload", "drain_timeout", Kind::Duration, Text("10m"), Generation,
        "How long an old worker may take to finish its requests and connections after a reload, and never less than \
         `[http] keepalive_timeout`. It delays nobody: the new workers serve meanwhile."),
    row("reload", "canary", Kind::Own("table"), Table, Generation,
        "The first workers of a release serve beside the old ones for a while, and it takes over only if it is no worse. \
         `workers`: how many (0: only `reload --canary N` makes one; at least 4 must be wanted in all). `hold`: for how long \
         (`\"2m\"`). `min_requests`: how many requests each side must have answered for a verdict (100). `max_errors`: how much \
         more may fail (`\"+1pp\"`, percentage points). `max_latency`: how much longer requests may take (`\"x1.5\"`)."),
    row("reload", "rehearse", Kind::Count { min: 0, max: REQUESTS_MAX }, Number(0), Generation,
        "So many different GETs that the workers have answered of late are answered by the candidate of the next release \
         before it takes over, and the statuses are compared. 0: none. Only requests without cookies and credentials count. \
         Workers remember requests only where this is set, so the reload that brings it has no rehearsal yet."),
    row("reload", "rehearse_differs", Kind::Own("\"refuse\" or \"warn\""), Text("refuse"), Generation,
        "What an answer that differs does to the release: `\"refuse\"` it, or `\"warn\"` and go on. A candidate that dies in the \
         rehearsal is always refused."),
    row("reload", "rehearse_timeout", Kind::Timeout, Text("30s"), Generation,
        "How long the rehearsal may take: what has not been asked by then is not asked, and that is told."),
    row("reload", "rehearse_request_timeout", Kind::Timeout, Text("5s"), Generation,
        "How long the candidate may take for one answer. Longer is a difference, with the Python stacks. Answers that took the \
         old generation more than a fifth of this are not compared."),
    row("reload", "rollback_window", Kind::Duration, Text("0s"), Generation,
        "How long the template of the previous generation lives on after a reload: `forkmaster rollback` forks from it, and \
         nothing is imported again where `preload` is on. It costs the memory of that process, with `preload` the whole \
         application, and is given up first when memory is short. `\"0s\"`: a rollback starts Python anew."),

    row("hooks", "worker_start", Kind::Own("module:function"), Words("none"), Generation,
        "A function of the release, `\"shop.hooks:start\"`, that each worker calls without arguments when the application is \
         imported and before it serves. An exception refuses the worker, and with it the release. With `preload` it is the \
         place for what a fork must not share: connections, threads, agents.")
        .gunicorn(&["post_fork", "post_worker_init"]),
    row("hooks", "worker_exit", Kind::Own("module:function"), Words("none"), Generation,
        "The same after a worker's last request, within `graceful_timeout`. A worker that is killed calls nothing."),
    row("hooks", "on_ready", Kind::List("a command and its arguments"), List(&[]), Commit,
        "Runs once, when the first worker serves: `[\"/usr/local/bin/announce\", \"shop\"]`. A name without a slash is looked \
         for on the PATH of the release.")
        .gunicorn(&["when_ready"]),
    row("hooks", "on_reload", Kind::List("a command and its arguments"), List(&[]), Commit,
        "Runs after each reload; FORKMASTER_HOOK_RESULT is `committed`, `refused`, `superseded` or `stopped`."),
    row("hooks", "on_exit", Kind::List("a command and its arguments"), List(&[]), Commit,
        "Runs when the last worker is gone; FORKMASTER_HOOK_RESULT is the exit code. The master's end waits for it, no \
         longer than `command_timeout`."),
    row("hooks", "command_timeout", Kind::Timeout, Text("5s"), Commit,
        "A command that takes longer is killed, with what it has started. `graceful_timeout` and this together stay within \
         the 30 s of Kubernetes."),

    row("http", "keepalive_timeout", Kind::TimeoutOrNone("each answer then closes its connection"), Text("75s"), Generation,
        "How long an idle connection stays open. Longer than the 60 s of common load balancers, so that they close \
         first; behind Google's write \"620s\". `\"none\"`: each answer closes its connection. nginx: 75 s, Gunicorn: \
         2 s.")
        .gunicorn(&["keepalive", "keep_alive"]).uwsgi(&["http-keepalive"]),
    row("http", "header_timeout", Kind::Timeout, Text("10s"), Generation,
        "How long a client may take to send the head of a request. nginx: 60 s, Apache: 20 to 40 s.")
        .uwsgi(&["http-headers-timeout"]),
    row("http", "body_timeout", Kind::Timeout, Text("30s"), Generation,
        "How long a client may pause while it sends a body; on average it must send 240 bytes a second. nginx: 60 s \
         from one read to the next.")
        .uwsgi(&["http-timeout", "socket-timeout"]),
    row("http", "write_timeout", Kind::Timeout, Text("30s"), Generation,
        "How long a client may take nothing of a response; on average it must take 240 bytes a second. nginx: 60 s \
         from one write to the next.")
        .uwsgi(&["so-send-timeout"]),
    row("http", "proxy_write_timeout", Kind::Timeout, Text("1h"), Generation,
        "The same for the peers in `forwarded_allow_ips`: a proxy that takes nothing has its buffers full and a slow \
         client behind it. nginx reads up to `proxy_max_temp_file_size` (1 GB) and then nothing until its client has \
         taken that."),
    row("http", "limit_request_line", Kind::CountOrNone { min: 64, max: 1 << 20 }, Number(8190), Generation,
        "Bytes of a request line: method, target and version. `\"none\"`: as many as the head may have. As Apache; \
         Gunicorn: 4094."),
    row("http", "limit_request_fields", Kind::CountOrNone { min: 1, max: FIELDS_MAX }, Number(100), Generation,
        "Header fields of a request. `\"none\"`: as many as there is room for in the head. As Apache and Gunicorn."),
    row("http", "limit_request_field_size", Kind::CountOrNone { min: 64, max: 1 << 20 }, Number(8190), Generation,
        "Bytes of one header field, name and value. `\"none\"`: as many as the head may have. As Apache and Gunicorn."),
    row("http", "limit_request_head", Kind::SizeBetween { min: 1024, max: 16 << 20 }, Text("64KiB"), Generation,
        "Bytes of a whole head: a client holds so much of a worker's memory before it has sent a request.")
        .uwsgi(&["buffer-size"]),
    row("http", "body_memory", Kind::Size, Text("512KiB"), Generation,
        "How much of a request body lies in memory; what is larger goes to a temporary file. All bodies of a worker \
         together have 64 MiB, then files are used earlier. Where no temporary directory is writable, it bounds all \
         bodies of a worker together, and they have 64 MiB unless it is set; `check` and `status` say so.")
        .uwsgi(&["post-buffering"]),
    row("http", "stream_bodies", Kind::Own("\"never\", \"fast\", or a list of paths"), Text("fast"), Generation,
        "Which bodies beyond `body_memory` go to the application as they come, and not by a temporary file: those that come \
         as fast as from a local network (32 MiB/s, the rest within 2 s), for all paths or for those that begin as listed, \
         `[\"/upload/\"]`. At most half of the threads read such bodies; an only thread does while no other request waits. \
         `wsgi.input` cannot seek then, and a client that falls below 64 KiB/s for 2 s ends the read with an OSError and \
         gets 408; while others wait for a thread 4 MiB/s, at once where it is the only one and else after 4 s. Chunked \
         bodies, which have no CONTENT_LENGTH then, only for listed paths. `\"never\"`: the application runs when all of the \
         body is there, and can seek in it."),
    row("http", "max_body", Kind::Size, Text("100MiB"), Generation,
        "The largest request body; beyond it there is 413. nginx: 1 MiB, Gunicorn and uWSGI: no limit.")
        .uwsgi(&["limit-post"]),
    row("http", "forwarded_allow_ips", Kind::List("addresses, networks, \"unix\" or \"*\""),
        List(&["127.0.0.1", "::1", "unix"]), Generation,
        "Peers that are believed about where a request came from, by header fields and by the PROXY protocol. The \
         variable FORWARDED_ALLOW_IPS counts where nothing else is said.")
        .gunicorn(&["forwarded_allow_ips", "proxy_allow_ips"]),
    row("http", "forwarded_headers",
        Kind::List("\"for\", \"proto\", \"host\", \"prefix\" and \"script_name\", or \"forwarded\""),
        List(&["for", "proto"]), Generation,
        "Which `X-Forwarded-` fields a trusted proxy sets, \"forwarded\" for RFC 7239, and \"script_name\" for Gunicorn's \
         field `SCRIPT_NAME`, which is stripped from the path. Name only those that it really sets: nginx passes on what a \
         client sends of the others.")
        .gunicorn(&["forwarder_headers"]),
    row("http", "secure_scheme_headers", Kind::Own("table"), Table, Generation,
        "Header fields by which a trusted proxy says that its client came by https: `{ \"X-Forwarded-Ssl\" = \"on\" }`."),
    row("http", "underscore_headers", Kind::List("names of header fields"), List(&[]), Generation,
        "Header fields with an underscore in their name that a trusted proxy may send; all others are dropped, since \
         WSGI cannot tell them from those with a hyphen."),
    row("http", "request_id_header", Kind::Own("the name of a header field, or \"none\""), Text("none"), Generation,
        "The field that names a request for all who handle it, usually `\"X-Request-Id\"`. Its value is taken from a \
         peer in `forwarded_allow_ips` where it is well-formed (letters, digits and `-_.:/+=;@~`, at most 128), else it \
         is made, 32 hexadecimal digits as nginx's `$request_id`. The application finds it in its environ, the access \
         log as `%(I)s`, log lines about the request as `id=`, and the client in the answer, unless the application \
         sets the field itself."),
    row("http", "proxy_protocol", Kind::Own("\"off\", \"v1\", \"v2\", or a table of addresses"), Text("off"), Generation,
        "Connections begin with a PROXY header: on all addresses, or on those of `bind` that a table names, `{ \
         \"unix:/run/shop.sock\" = \"v2\" }`.")
        .gunicorn(&["proxy_protocol"]).uwsgi(&["http-enable-proxy-protocol"]),

    row("log", "level", Kind::Own("\"error\", \"warn\", \"info\", \"debug\" or \"trace\""), Text("info"), Commit,
        "How much is logged.")
        .option("--log-level").gunicorn(&["loglevel", "log_level"]),
    row("log", "error", Kind::Own("path, or \"-\""), Text("-"), Commit,
        "Where the log goes. `\"-\"`: stderr. A file is opened again on USR1. Relative to the configuration file by \
         name.")
        .gunicorn(&["errorlog", "error_logfile", "log_file"]).uwsgi(&["logto", "logto2", "logger"]),
    row("log", "format", Kind::Own("\"text\" or \"json\""), Text("text"), Commit,
        "How a line of the error log looks. `\"text\"`: time, level and message; where stderr is systemd's journal, a \
         priority in place of the time. `\"json\"`: one object a line with `time`, `level`, `pid` and `message`, also for \
         what the application writes to `wsgi.errors`."),
    row("log", "access", Kind::Own("path, \"-\" or \"none\""), Text("none"), Generation,
        "Where a line for each request goes. `\"-\"`: stdout. Off by default, as in Gunicorn: the proxy in front has \
         one. Relative to the configuration file by name.")
        .gunicorn(&["accesslog", "access_logfile"]).uwsgi(&["req-logger", "logger-req"]),
    row("log", "access_format", Kind::Own("\"combined\", \"json\" or a template"), Text("combined"), Generation,
        "How such a line looks: `\"combined\"`, `\"json\"`, or a template with Gunicorn's names, `'%(h)s \"%(r)s\" \
         %(s)s'`. Besides those: `%(X)s` is how the answer ended (complete, client-left, write-timeout, cut, \
         request-timeout, worker-died, refused), `%(Q)s` for how many microseconds the request waited for a thread, `%(G)s` the \
         generation, `%(I)s` the request's id (`[http] request_id_header`).")
        .gunicorn(&["access_log_format", "access_logformat"]).uwsgi(&["log-format", "logformat"]),
    row("log", "access_skip", Kind::List("paths"), List(&[]), Generation,
        "Paths whose requests have no line, as they are sent: `\"/healthz\"`, or with `*` at the end for all that begin \
         so, `\"/static/*\"`. For probes, which say nothing that is worth a line."),
    row("log", "access_status", Kind::Own("\">=STATUS\" or \"all\""), Text("all"), Generation,
        "Which answers have a line: `\">=400\"` for errors only.")
        .uwsgi(&["log-4xx", "log-5xx"]),
    row("log", "access_refused", Kind::Boolean, Boolean(false), Generation,
        "Whether requests have a line, too, that the server has refused and the application has not seen: bad or slow \
         ones, too large bodies, wrong PROXY headers, and those that waited too long for a thread. Such a line ends with \
         `refused` (`%(X)s`). Where the request line could not be read it stands there as far as it has come, as with \
         nginx. Off by default, as in Gunicorn: the error log has a line for each."),

    row("log", "slow_request", Kind::DurationOrNone, Text("10s"), Generation,
        "A request that has run for so long without progress is logged, with the Python stack of its thread; after twice \
         the time it is looked at again, and its end is logged, too. `\"none\"`: never. At most ten requests a minute. \
         Long enough that slow is not usual, and well below `request_timeout`. php-fpm: off, with the same name plus \
         `log_timeout`.")
        .uwsgi(&["log-slow"]),

    row("control", "socket", Kind::Own("path, \"auto\" or \"none\""), Text("auto"), Restart,
        "The socket for `forkmaster status` and the other verbs. `\"auto\"`: NAME.sock in the first that can be \
         had of `$RUNTIME_DIRECTORY`, /run/forkmaster, `$XDG_RUNTIME_DIR`/forkmaster, /tmp/forkmaster-UID and \
         /dev/shm/forkmaster-UID; where none can be had, signals still work. Relative to the configuration \
         file by name.")
        .gunicorn(&["control_socket"]).uwsgi(&["master-fifo"]),

    row("control", "history", Kind::Own("path, \"auto\" or \"none\""), Text("auto"), Restart,
        "The file in which deploys are remembered for `forkmaster history` and `report`, a JSON object a line. `\"auto\"`: \
         history.jsonl in `$STATE_DIRECTORY` (systemd's StateDirectory=), and where there is none, memory only, up to \
         the next restart. It has a bound of 1 MiB; a file that cannot be written is no error."),

    row("control", "readers", Kind::List("a user, a uid, or group:NAME"), List(&[]), Restart,
        "Who may look, besides root and the master's own user, and change nothing: `status`, `health`, `history`, \
         `events`, `wait ready`. The kernel says who asks. The socket must lie where they may go: /run/forkmaster or \
         systemd's RuntimeDirectory=, and not the closed directories in /tmp and /dev/shm."),
    row("status", "bind", Kind::List("HOST:PORT, [v6]:PORT, unix:PATH, fd://N or systemd:NAME"), List(&[]), Restart,
        "Where the master answers `/livez` (its loop turns), `/readyz` (a worker serves, and it was not told to stop) and \
         `/metrics` (for Prometheus), and where `/` is a page for people that looks on (`/status.json` is what it shows). \
         Off by default. It answers whoever can reach it: keep it on a loopback or pod address. Requests that run are \
         shown on loopback addresses and Unix sockets only."),
];

impl Preset {
    /// As if it were written in the file.
    pub fn value(&self) -> Option<Value> {
        let text = |text: &&str| Written { line: 0, value: Value::Text((*text).to_owned()) };
        match self {
            Preset::Text(text) => Some(Value::Text((*text).to_owned())),
            Preset::Number(number) => Some(Value::Integer { text: number.to_string(), value: Some(*number) }),
            Preset::Boolean(boolean) => Some(Value::Boolean(*boolean)),
            Preset::List(items) => Some(Value::List(items.iter().map(text).collect())),
            Preset::Table => Some(Value::Table(Vec::new())),
            Preset::Words(_) => None,
        }
    }

    /// What holds where nothing is set, in words; empty where it can be written.
    pub fn words(&self) -> &'static str {
        match self {
            Preset::Words(words) => words,
            Preset::Text(_) | Preset::Number(_) | Preset::Boolean(_) | Preset::List(_) | Preset::Table => "",
        }
    }

    /// As it would be written in the file; None for words.
    pub fn written(&self) -> Option<String> {
        match self {
            Preset::Text(text) => Some(quoted(text)),
            Preset::Number(number) => Some(number.to_string()),
            Preset::Boolean(boolean) => Some(boolean.to_string()),
            Preset::List(items) => {
                Some(format!("[{}]", items.iter().map(|item| quoted(item)).collect::<Vec<_>>().join(", ")))
            }
            Preset::Table => Some("{}".to_owned()),
            Preset::Words(_) => None,
        }
    }
}

pub fn find(section: &str, key: &str) -> Option<&'static KeySpec> {
    KEYS.iter().find(|spec| spec.section == section && spec.key == key)
}

/// `[server] workers`, and `name` at the top of the file.
pub fn shown((section, key): Key) -> String {
    if section.is_empty() {
        key.to_owned()
    } else {
        format!("[{section}] {key}")
    }
}

/// Where a setting stands in the order of the documentation, for sections and keys that are not in the table too. Those of
/// services stand at the end, in the order of the file.
pub fn rank(section: &str, key: &str) -> (usize, usize) {
    let (section, nested) = section.split_once('.').map_or((section, 0), |(section, _)| (section, 1));
    if section == SERVICE {
        return (usize::MAX, 0);
    }
    let place = SECTIONS.iter().position(|(name, _)| *name == section).map_or(0, |at| 2 * at + 1 + nested);
    (place, KEYS.iter().position(|spec| spec.section == section && spec.key == key).unwrap_or(usize::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_row_stands_once_in_a_known_section_in_order_and_says_what_it_is_for() {
        let mut last = (0, 0);
        for (at, spec) in KEYS.iter().enumerate() {
            assert!(spec.section.is_empty() || SECTIONS.iter().any(|(name, _)| *name == spec.section), "{spec:?}");
            assert!(KEYS[..at].iter().all(|other| other.at() != spec.at()), "{} stands twice", spec.shown());
            assert!(at == 0 || rank(spec.section, spec.key) > last, "{} stands in the wrong place", spec.shown());
            last = rank(spec.section, spec.key);
            assert!(spec.doc.ends_with(['.', ':']) && spec.doc.len() > 15, "{}: {}", spec.shown(), spec.doc);
        }
    }

    #[test]
    fn names_of_variables() {
        assert_eq!(find("", "name").unwrap().variable().as_deref(), Some("FORKMASTER_NAME"));
        assert_eq!(find("server", "workers").unwrap().variable().as_deref(), Some("FORKMASTER_SERVER__WORKERS"));
        assert_eq!(find("server", "request_timeouts").unwrap().variable(), None);
    }
}
