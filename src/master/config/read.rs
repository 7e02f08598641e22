//! All of the configuration in order: what each section means, and what must hold between settings. Paths of what
//! outlives a generation (sockets, logs, pidfile) start at the configuration file's directory by name.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use forkmaster_wire::alias;
use forkmaster_wire::log_line::LineForm;
use forkmaster_wire::message::LogLevel;

use super::access_format;
use super::address::SUN_PATH_BYTES_MAX;
use super::canary::{self, BESIDE_MIN as CANARY_BESIDE_MIN};
use super::change::Fixed;
use super::control_places;
use super::file::{quoted, Value, Written};
use super::identity::{find_group, find_reader, find_user, run_as};
use super::interpreter;
use super::journal;
use super::keys::{FIELDS_MAX, WORKERS_MAX};
use super::passed;
use super::problem::{Problem, Problems};
use super::process_context::ProcessContext;
use super::proxies;
use super::resolver::Resolver;
use super::settings::{
    AccessTarget, App, Bind, Control, ControlSocket, ControlTarget, Http, Identity, Log, LogTarget, RehearsalSettings,
    Reload, Server, ServiceSettings, Settings, SocketFile, Status, Surge,
};
use super::stream_bodies;
use super::units::show_duration;
use super::values::{count, duration_or_none, id_text, path, quoted_path, string};
use super::{Loaded, Origin, Source};

pub const LATER: &str = "comes with a later version";
/// What all bodies of a worker may have where no temporary file can be made: as much as they may have beside files.
const BODIES_IN_MEMORY: u64 = 64 * 1024 * 1024;
/// File names end at 255 bytes, socket paths at 107.
const NAME_BYTES_MAX: usize = 64;

/// Reads and checks everything. `fixed` is what a reload cannot change: it stands in place of what is written before
/// anything is derived from it, and each difference is a warning.
pub fn read(source: &Source, context: &ProcessContext, fixed: Option<&Fixed>) -> Result<Loaded, Problems> {
    let mut resolver = Resolver::new(source, context)?;
    let settings = resolver.settings(fixed);
    let (warnings, effective) = resolver.finish()?;
    Ok(Loaded { settings, warnings, effective })
}

/// Only what a client needs to find the master: it must find it also while the file is wrong elsewhere, or the
/// release is gone.
pub fn control(source: &Source, context: &ProcessContext) -> Result<ControlTarget, Problems> {
    let mut resolver = Resolver::new(source, context)?;
    resolver.env_file();
    resolver.problems.clear();
    let name = resolver.name();
    let socket = resolver.control(&name).socket;
    Problems::check(std::mem::take(&mut resolver.problems))?;
    // Whoever may replace the file says who is believed: its owner, and the owner of its directory.
    let file = source.file.as_ref().map(|file| file.path.as_path());
    let places = [file, file.and_then(Path::parent)].into_iter().flatten();
    let owners = places.filter_map(|place| std::fs::metadata(place).ok()).map(|found| found.uid());
    // A user that cannot be found is a problem of the master's, not of who looks for it.
    let user = resolver.entry(("server", "user")).and_then(|entry| id_text(&entry.value).ok());
    let user = user.and_then(|text| find_user(&text).ok()).map(|(uid, _)| uid);
    let mut uids: Vec<u32> = owners.chain(user).collect();
    uids.sort_unstable();
    uids.dedup();
    Ok(ControlTarget { name, socket, uids })
}

impl Resolver<'_> {
    fn settings(&mut self, fixed: Option<&Fixed>) -> Settings {
        // First, since everything else may use its variables.
        self.env_file();
        let mut name = self.name();
        let mut identity = self.run_as();
        let mut pidfile = self.pidfile();
        let mut control = self.control(&name);
        let mut status = self.status();
        if let Some(fixed) = fixed {
            let written = Fixed { name, identity, pidfile, control, status };
            self.warnings.extend(fixed.differences(&written));
            Fixed { name, identity, pidfile, control, status } = fixed.clone();
        }
        let app = self.app(identity.as_ref());
        let hooks = self.hooks(&app);
        let socket = self.socket_file(identity.as_ref());
        let server = self.server(identity, socket, pidfile);
        let shared = status.bind.iter().find_map(|ours| server.bind.iter().find(|other| other.overlaps(ours)));
        if let Some(address) = shared {
            let reason = format!("{address} is an address of [server] bind; choose another port");
            self.refuse(("status", "bind"), &reason);
        }
        let reload = self.reload(server.workers);
        let http = self.http();
        let log = self.log();
        let services = self.services();
        self.check_service_binds(&services, &[("[server] bind", &server.bind), ("[status] bind", &status.bind)]);
        self.warn_of_unused_sockets(&server, &status, &services);
        self.warn_of_files_in_the_release(&app, &server, &control, &services);
        self.warn_of_a_short_drain(&reload, &http);
        Settings { name, app, server, reload, hooks, services, http, log, control, status, dev: self.dev }
    }

    fn name(&mut self) -> String {
        let key = ("", "name");
        let parse = |value: &Value| string(value).and_then(|text| check_name(text).map(|()| text.to_owned()));
        if let Some(name) = self.optional("", "name", parse, |name| quoted(name)) {
            return name;
        }
        let default = default_name(&self.identity_path, self.shown == "command line");
        if self.height(key).is_none() {
            self.note(key, quoted(&default), Origin::Default);
        }
        default
    }

    fn run_as(&mut self) -> Option<Identity> {
        let find = |value: &Value| id_text(value).and_then(|text| find_user(&text).map(|found| (text, found)));
        let user = self.optional("server", "user", find, |(text, _)| quoted(text));
        let find = |value: &Value| id_text(value).and_then(|text| find_group(&text).map(|gid| (text, gid)));
        let group = self.optional("server", "group", find, |(text, _)| quoted(text));
        let key = if user.is_some() { "user" } else { "group" };
        let (uid, gid) = (self.context.uid, self.context.gid);
        match run_as(user.map(|(_, user)| user), group.map(|(_, gid)| gid), uid, gid) {
            Ok(identity) => identity,
            Err(reason) => {
                self.refuse(("server", key), &reason);
                None
            }
        }
    }

    fn pidfile(&mut self) -> Option<PathBuf> {
        let pidfile: Option<PathBuf> = self.get("server", "pidfile");
        self.check_place(("server", "pidfile"), pidfile.as_deref());
        pidfile
    }

    fn socket_file(&mut self, identity: Option<&Identity>) -> SocketFile {
        let mode: u32 = self.get("server", "socket_mode");
        if mode & 0o002 != 0 {
            let shown = super::units::show_mode(&mode);
            self.warnings.push(format!("socket_mode {shown} lets every user of the machine connect"));
        }
        let own_uid = self.context.uid;
        let find = |value: &Value| {
            let (uid, _) = id_text(value).and_then(|text| find_user(&text))?;
            if own_uid != 0 && uid != own_uid {
                return Err(format!("running as uid {own_uid}, and only root can give a file away; remove the line"));
            }
            Ok(uid)
        };
        let show = |id: &u32| quoted(&id.to_string());
        let uid = self.optional("server", "socket_user", find, show);
        let find = |value: &Value| id_text(value).and_then(|text| find_group(&text));
        let gid = self.optional("server", "socket_group", find, show);
        let (uid_default, gid_default) = (identity.map(|identity| identity.uid), identity.map(|identity| identity.gid));
        for (key, set, default) in [("socket_user", uid, uid_default), ("socket_group", gid, gid_default)] {
            if let (None, None, Some(id)) = (set, self.height(("server", key)), default) {
                self.note(("server", key), show(&id), Origin::Default);
            }
        }
        SocketFile { mode, uid: uid.or(uid_default), gid: gid.or(gid_default) }
    }

    fn server(&mut self, identity: Option<Identity>, socket: SocketFile, pidfile: Option<PathBuf>) -> Server {
        let bind = self.bind();
        let workers: u32 = self.get("server", "workers");
        let max_processes: Option<u32> = self.get("server", "max_processes");
        if max_processes.is_some_and(|most| most <= workers) {
            let reason = format!(
                "there are {workers} workers, and a reload proves a release in one beside them; write at least {}",
                workers + 1
            );
            self.refuse(("server", "max_processes"), &reason);
        }
        let (graceful_timeout, shutdown_delay): (Duration, Duration) =
            (self.get("server", "graceful_timeout"), self.get("server", "shutdown_delay"));
        if !shutdown_delay.is_zero() && shutdown_delay >= graceful_timeout {
            let reason = "it is part of graceful_timeout, which counts from the TERM; write less, or a longer \
                          graceful_timeout";
            self.refuse(("server", "shutdown_delay"), reason);
        }
        let base = self.place.named.clone();
        let proxy_protocol = self.get_with(
            "http",
            "proxy_protocol",
            |value| proxies::parse_proxy_protocol(value, &bind, &base),
            |proxied| proxies::show_proxy_protocol(proxied, &bind),
        );
        Server {
            bind,
            backlog: self.get("server", "backlog"),
            socket,
            workers,
            max_processes,
            threads: self.get("server", "threads"),
            identity,
            umask: self.get("server", "umask"),
            no_new_privileges: self.get("server", "no_new_privileges"),
            pidfile,
            notify_fd: self.get("server", "notify_fd"),
            max_requests: self.get("server", "max_requests"),
            max_requests_jitter: self.get("server", "max_requests_jitter"),
            max_lifetime: self.get("server", "max_lifetime"),
            max_rss: self.get("server", "max_rss"),
            boot_timeout: self.get("server", "boot_timeout"),
            request_timeout: self.get("server", "request_timeout"),
            queue_timeout: self.get("server", "queue_timeout"),
            request_timeouts: self.request_timeouts(),
            graceful_timeout,
            shutdown_delay,
            proxy_protocol,
        }
    }

    fn bind(&mut self) -> Vec<Bind> {
        let base = self.place.named.clone();
        let problems_before = self.problems.len();
        let bind =
            self.list("server", "bind", |text| Bind::parse(text, &base), |bind: &Bind| quoted(&bind.to_string()));
        let mut clashes = Vec::new();
        for (index, one) in bind.iter().enumerate() {
            if bind[..index].contains(one) {
                clashes.push(format!("{one} is there twice; remove one"));
            } else if let Some(other) = bind[..index].iter().find(|other| other.overlaps(one)) {
                clashes.push(format!(
                    "{other} and {one} overlap: the kernel gives only one of them the port; keep the wider one"
                ));
            }
        }
        if bind.is_empty() && self.problems.len() == problems_before {
            clashes.push("at least one address is needed; write [\"127.0.0.1:8000\"]".to_owned());
        }
        for clash in clashes {
            self.refuse(("server", "bind"), &clash);
        }
        bind
    }

    /// Clients of a socket that systemd listens on and nobody accepts from wait for ever.
    fn warn_of_unused_sockets(&mut self, server: &Server, status: &Status, services: &[ServiceSettings]) {
        for passed in passed::sockets(&self.context.environment, std::process::id()) {
            let is_used = |bind: &Bind| match bind {
                Bind::Fd(fd) => *fd == passed.fd,
                Bind::Systemd(name) => *name == passed.name,
                Bind::Inet(_) | Bind::Unix(_) => false,
            };
            let of_services = services.iter().flat_map(|service| &service.bind);
            if !server.bind.iter().chain(&status.bind).chain(of_services).any(is_used) {
                let passed::Passed { name, fd } = passed;
                self.warnings.push(format!(
                    "systemd passed the socket {name} (descriptor {fd}), which [server] bind does not name; write \
                     \"systemd:{name}\", or take it out of the unit"
                ));
            }
        }
    }

    /// What outlives a release and lies in one: whoever looks for it by its name looks in the next release after a flip. What
    /// a link in the release leads out of it stays.
    fn warn_of_files_in_the_release(
        &mut self,
        app: &App,
        server: &Server,
        control: &Control,
        services: &[ServiceSettings],
    ) {
        let socket = |bind: &Bind| match bind {
            Bind::Unix(path) => Some(path.clone()),
            Bind::Inet(_) | Bind::Fd(_) | Bind::Systemd(_) => None,
        };
        let of_services = services.iter().flat_map(|service| &service.bind);
        let control = match &control.socket {
            ControlSocket::Path(path) => Some(path.clone()),
            ControlSocket::Auto(_) | ControlSocket::Off => None,
        };
        let binds = server.bind.iter().chain(of_services).filter_map(socket).map(|path| ("bind", path, "the reload"));
        let others = [("[server] pidfile", server.pidfile.clone()), ("[control] socket", control)];
        let others = others.into_iter().filter_map(|(key, path)| Some((key, path?, "a restart")));
        for (key, path, until) in binds.chain(others) {
            let real = path.parent().and_then(|parent| parent.canonicalize().ok());
            let within = real.is_some_and(|real| real.starts_with(&app.release));
            if within && alias::pinned(&app.aliases, &path).is_some() {
                self.warnings.push(format!(
                    "{key} {} lies in the release: when the link is flipped nobody finds it until {until}; write a path that \
                     no deploy changes, as in /run",
                    path.display()
                ));
            }
        }
    }

    /// An old worker keeps a connection that has nothing to do as long as it promised.
    fn warn_of_a_short_drain(&mut self, reload: &Reload, http: &Http) {
        let (drain, idle) = (reload.drain_timeout, http.keepalive_timeout.unwrap_or_default());
        let origin = self.origin(("reload", "drain_timeout"));
        if drain < idle && !matches!(origin, Origin::Default) {
            let (drain, idle) = (show_duration(&drain), show_duration(&idle));
            self.warnings.push(format!(
                "{origin}: [reload] drain_timeout = {drain} is less than [http] keepalive_timeout ({idle}), which holds: clients \
                 may use their connections for so long; write at least {idle}, or lower keepalive_timeout as well"
            ));
        }
    }

    fn temp_dirs(&mut self) -> Vec<PathBuf> {
        let base = self.place.named.clone();
        let temporary = self.context.environment.get(OsStr::new("TMPDIR")).map(PathBuf::from);
        let temporary = temporary.filter(|path| path.is_absolute());
        let mut auto: Vec<PathBuf> = Vec::new();
        for path in temporary.into_iter().chain([PathBuf::from("/var/tmp"), PathBuf::from("/tmp")]) {
            if !auto.contains(&path) {
                auto.push(path);
            }
        }
        self.get_with(
            "server",
            "temp_dir",
            |value| match string(value)? {
                "auto" => Ok(auto.clone()),
                // By name, since it outlives a release; without one, every larger body would get 413.
                _path => path(value, &base)
                    .and_then(|path| interpreter::real_directory(&path, "directory").map(|_real| vec![path])),
            },
            |paths| if *paths == auto { quoted("auto") } else { quoted_path(&paths[0]) },
        )
    }

    fn request_timeouts(&mut self) -> Vec<(String, Option<Duration>)> {
        let mut limits = Vec::new();
        for (prefix, Written { line, value }) in std::mem::take(&mut self.file.request_timeouts) {
            let origin = Origin::File { shown: self.shown.clone(), line };
            let parsed = if prefix.starts_with('/') {
                super::layers::expanded(&value, &self.variables).and_then(|value| duration_or_none(&value))
            } else {
                Err(format!("a path prefix begins with a slash; write {}", quoted(&format!("/{prefix}"))))
            };
            match parsed {
                Ok(limit) => {
                    let value = quoted(&limit.as_ref().map_or("none".to_owned(), show_duration));
                    self.note_entry("server.request_timeouts", quoted(&prefix), value, origin);
                    limits.push((prefix, limit));
                }
                Err(reason) => {
                    let text = format!("[server.request_timeouts] {} = {}: {reason}", quoted(&prefix), value.shown());
                    self.problems.push(Problem::new(&origin, text).at_line(Some(line)));
                }
            }
        }
        if self.dev {
            limits.clear();
        }
        limits.sort_unstable_by(|(one, _), (other, _)| other.len().cmp(&one.len()).then(one.cmp(other)));
        limits
    }

    fn reload(&mut self, workers: u32) -> Reload {
        let max_surge = self.get_with("reload", "max_surge", parse_surge, |surge| match surge {
            Surge::Auto => quoted("auto"),
            Surge::Workers(workers) => workers.to_string(),
            Surge::All => quoted("100%"),
        });
        let max_unavailable = self.get("reload", "max_unavailable");
        if max_surge == Surge::Workers(0) && max_unavailable == 0 {
            let reason = "max_unavailable is 0 too, so no worker could ever be replaced; set one of them to 1";
            self.refuse(("reload", "max_surge"), reason);
        }
        let canary = self.get_with("reload", "canary", canary::parse, canary::show);
        if canary.workers > 0 && workers < CANARY_BESIDE_MIN && !self.dev {
            let reason = format!(
                "a canary needs at least {CANARY_BESIDE_MIN} workers beside it, and [server] workers is {workers}: one of so few \
                 is no sample of the traffic"
            );
            self.refuse(("reload", "canary"), &reason);
        }
        let (drain_timeout, rollback_window) =
            (self.get("reload", "drain_timeout"), self.get("reload", "rollback_window"));
        let rehearsal = RehearsalSettings {
            requests: self.get("reload", "rehearse"),
            refuses: self.get_with("reload", "rehearse_differs", parse_differs, |refuses| {
                quoted(if *refuses { "refuse" } else { "warn" })
            }),
            timeout: self.get("reload", "rehearse_timeout"),
            request_timeout: self.get("reload", "rehearse_request_timeout"),
        };
        Reload { max_surge, max_unavailable, drain_timeout, canary, rollback_window, rehearsal }
    }

    fn http(&mut self) -> Http {
        let limit_request_head: u32 = self.get("http", "limit_request_head");
        let limit_request_line = self.get::<Option<u32>>("http", "limit_request_line").unwrap_or(limit_request_head);
        let limit_request_field_size =
            self.get::<Option<u32>>("http", "limit_request_field_size").unwrap_or(limit_request_head);
        for (key, limit) in
            [("limit_request_line", limit_request_line), ("limit_request_field_size", limit_request_field_size)]
        {
            if limit > limit_request_head {
                let reason = format!("{key} is {limit}, more than the whole head may have; raise limit_request_head");
                let origin = self.origin(("http", key));
                self.problems.push(Problem::new(&origin, format_args!("[http] {reason}")).at_line(origin.line()));
            }
        }
        let forwarded_headers = self.list("http", "forwarded_headers", proxies::parse_forwarded_header, |header| {
            quoted(proxies::show_forwarded_header(*header))
        });
        if let Err(reason) = proxies::check_one_family(&forwarded_headers) {
            self.refuse(("http", "forwarded_headers"), &reason);
        }
        let body_memory = self.get("http", "body_memory");
        Http {
            connections: self.get("server", "connections"),
            keepalive_timeout: self.get("http", "keepalive_timeout"),
            header_timeout: self.get("http", "header_timeout"),
            body_timeout: self.get("http", "body_timeout"),
            write_timeout: self.get("http", "write_timeout"),
            proxy_write_timeout: self.get("http", "proxy_write_timeout"),
            limit_request_line,
            limit_request_fields: self.get::<Option<u32>>("http", "limit_request_fields").unwrap_or(FIELDS_MAX),
            limit_request_field_size,
            limit_request_head,
            body_memory,
            body_memory_alone: match self.height(("http", "body_memory")) {
                Some(_) => body_memory,
                None => BODIES_IN_MEMORY,
            },
            stream_bodies: self.get_with("http", "stream_bodies", stream_bodies::parse, stream_bodies::show),
            max_body: self.get("http", "max_body"),
            temp_dirs: self.temp_dirs(),
            temp_limit: self.get("server", "temp_limit"),
            response_buffer: self.get("server", "response_buffer"),
            health_path: self.health_path(),
            forwarded_allow_ips: self
                .list("http", "forwarded_allow_ips", proxies::parse_peer, |peer| quoted(&peer.to_string())),
            forwarded_headers,
            secure_scheme_headers: self.get_with(
                "http",
                "secure_scheme_headers",
                proxies::parse_secure_scheme_headers,
                |headers| proxies::show_secure_scheme_headers(headers),
            ),
            underscore_headers: self
                .list("http", "underscore_headers", proxies::parse_underscore_header, |name| quoted(name)),
            request_id_header: self.get_with(
                "http",
                "request_id_header",
                |value| proxies::parse_request_id_header(string(value)?),
                |header| quoted(header.as_deref().unwrap_or("none")),
            ),
        }
    }

    fn health_path(&mut self) -> Option<String> {
        let parse = |value: &Value| match string(value)? {
            "none" => Ok(None),
            path if path.starts_with('/')
                && path.bytes().all(|byte| byte.is_ascii_graphic() && !b"?#".contains(&byte)) =>
            {
                Ok(Some(path.to_owned()))
            }
            _ => Err("a path begins with a slash and has no query; write \"/-/healthz\", or \"none\"".to_owned()),
        };
        self.get_with("server", "health_path", parse, |path| quoted(path.as_deref().unwrap_or("none")))
    }

    fn log(&mut self) -> Log {
        let level = self.get_with(
            "log",
            "level",
            |value| string(value).and_then(parse_level),
            |level| quoted(show_level(*level)),
        );
        let base = self.place.named.clone();
        let error = self.get_with(
            "log",
            "error",
            |value| match string(value)? {
                "-" => Ok(LogTarget::Stderr),
                _path => path(value, &base).map(LogTarget::File),
            },
            |target| match target {
                LogTarget::Stderr => quoted("-"),
                LogTarget::File(path) => quoted_path(path),
            },
        );
        if let LogTarget::File(path) = &error {
            self.check_place(("log", "error"), Some(path));
        }
        let access = self.get_with(
            "log",
            "access",
            |value| match string(value)? {
                "none" => Ok(None),
                "-" => Ok(Some(AccessTarget::Stdout)),
                _path => path(value, &base).map(|path| Some(AccessTarget::File(path))),
            },
            |target| match target {
                None => quoted("none"),
                Some(AccessTarget::Stdout) => quoted("-"),
                Some(AccessTarget::File(path)) => quoted_path(path),
            },
        );
        if let Some(AccessTarget::File(path)) = &access {
            self.check_place(("log", "access"), Some(path));
        }
        let (access_format, _) = self.get_with(
            "log",
            "access_format",
            |value| string(value).and_then(|text| access_format::parse(text).map(|format| (format, text.to_owned()))),
            |(_, text)| quoted(text),
        );
        let json = self.get_with(
            "log",
            "format",
            |value| match string(value)? {
                "text" => Ok(false),
                "json" => Ok(true),
                other => Err(format!("`{other}` is no form of a line; write \"text\" or \"json\"")),
            },
            |json| quoted(if *json { "json" } else { "text" }),
        );
        let form = match json {
            true => LineForm::Json,
            false if error == LogTarget::Stderr && journal::is_stderr(&self.context.environment) => LineForm::Journal,
            false => LineForm::Text,
        };
        let skip = |text: &str| match text.starts_with('/') {
            true => Ok(text.to_owned()),
            false => Err(format!("a path begins with a slash; write \"/{text}\"")),
        };
        let access_skip = self.list("log", "access_skip", skip, |path: &String| quoted(path));
        let access_status = self.get_with(
            "log",
            "access_status",
            |value| string(value).and_then(parse_at_least),
            |least| quoted(&if *least == 0 { "all".to_owned() } else { format!(">={least}") }),
        );
        let slow_request = self.get("log", "slow_request");
        let access_refused = self.get("log", "access_refused");
        Log { level, error, access, access_format, access_skip, access_status, access_refused, form, slow_request }
    }

    /// A file that the master will make: its directory must be there. Whether it may be written shows when it is
    /// opened, by whoever opens it: `check` may run as another user.
    fn check_place(&mut self, key: super::keys::Key, path: Option<&Path>) {
        let Some((path, directory)) = path.and_then(|path| Some((path, path.parent()?))) else {
            return;
        };
        let reason = match directory.metadata() {
            Err(error) if error.kind() == std::io::ErrorKind::PermissionDenied => return,
            Err(error) => interpreter::missing(directory, "directory", &error),
            Ok(meta) if !meta.is_dir() => format!("{} is not a directory", directory.display()),
            Ok(_) if path.is_dir() => format!("{} is a directory; write the name of a file", path.display()),
            Ok(_) => return,
        };
        self.refuse(key, &reason);
    }

    fn status(&mut self) -> Status {
        let base = self.place.named.clone();
        let show = |bind: &Bind| quoted(&bind.to_string());
        Status { bind: self.list("status", "bind", |text| Bind::parse(text, &base), show) }
    }

    fn control(&mut self, name: &str) -> Control {
        let auto = ControlSocket::Auto(control_places::places(name, self.context));
        let base = self.place.named.clone();
        let socket = self.get_with(
            "control",
            "socket",
            |value| match string(value)? {
                "auto" => Ok(auto.clone()),
                "none" => Ok(ControlSocket::Off),
                _path => {
                    let path = path(value, &base)?;
                    if path.as_os_str().len() > SUN_PATH_BYTES_MAX {
                        return Err(format!("longer than the {SUN_PATH_BYTES_MAX} bytes that the kernel takes"));
                    }
                    Ok(ControlSocket::Path(path))
                }
            },
            |socket| match socket {
                ControlSocket::Auto(_) => quoted("auto"),
                ControlSocket::Off => quoted("none"),
                ControlSocket::Path(path) => quoted_path(path),
            },
        );
        // systemd.exec(5): several are separated by colons.
        let state =
            self.context.environment.iter().find(|(name, _)| *name == "STATE_DIRECTORY").map(|(_, value)| value);
        let state = state.and_then(|state| std::env::split_paths(state).next()).filter(|path| path.is_absolute());
        let auto = state.map(|directory| directory.join("history.jsonl"));
        let history = self.get_with(
            "control",
            "history",
            |value| match string(value)? {
                "auto" => Ok(auto.clone()),
                "none" => Ok(None),
                _path => path(value, &base).map(Some),
            },
            |history| history.as_ref().map_or_else(|| quoted("none"), |path| quoted_path(path)),
        );
        let readers = self.list("control", "readers", find_reader, |reader| quoted(&reader.text));
        Control { socket, history, readers }
    }
}

fn parse_surge(value: &Value) -> Result<Surge, String> {
    match value {
        Value::Text(text) | Value::Loose(text) if text == "auto" => Ok(Surge::Auto),
        Value::Text(text) | Value::Loose(text) if text == "100%" => Ok(Surge::All),
        Value::Text(text) | Value::Loose(text) if text.ends_with('%') => {
            Err("the only percentage is \"100%\"; otherwise write \"auto\" or a number of workers".to_owned())
        }
        other => count(other, 0, WORKERS_MAX)
            .map(Surge::Workers)
            .map_err(|reason| format!("{reason}, or \"auto\" or \"100%\"")),
    }
}

/// Whether an answer that differs refuses the release.
fn parse_differs(value: &Value) -> Result<bool, String> {
    match value {
        Value::Text(text) | Value::Loose(text) if text == "refuse" => Ok(true),
        Value::Text(text) | Value::Loose(text) if text == "warn" => Ok(false),
        _other => Err("\"refuse\" or \"warn\" is needed".to_owned()),
    }
}

/// `>=400`: the lowest status that has a line.
fn parse_at_least(text: &str) -> Result<u16, String> {
    let status = text.strip_prefix(">=").and_then(|text| text.trim().parse().ok());
    match status.filter(|status| (100..=599).contains(status)) {
        Some(status) => Ok(status),
        None if text == "all" => Ok(0),
        None => Err("write \">=400\", or \"all\"".to_owned()),
    }
}

fn parse_level(text: &str) -> Result<LogLevel, String> {
    match text {
        "error" => Ok(LogLevel::Error),
        "warn" => Ok(LogLevel::Warn),
        "info" => Ok(LogLevel::Info),
        "debug" => Ok(LogLevel::Debug),
        "trace" => Ok(LogLevel::Trace),
        "warning" => Err("write \"warn\"".to_owned()),
        "critical" => Err("write \"error\"".to_owned()),
        _ => Err("there are \"error\", \"warn\", \"info\", \"debug\" and \"trace\"".to_owned()),
    }
}

fn show_level(level: LogLevel) -> &'static str {
    match level {
        LogLevel::Error => "error",
        LogLevel::Warn => "warn",
        LogLevel::Info => "info",
        LogLevel::Debug => "debug",
        LogLevel::Trace => "trace",
    }
}

fn check_name(name: &str) -> Result<(), String> {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    if name.is_empty() || name.len() > NAME_BYTES_MAX || name.starts_with('.') || !name.chars().all(plain) {
        return Err(format!(
            "it names the control socket; write up to {NAME_BYTES_MAX} letters, digits, `-`, `_` or `.`, as \"shop\""
        ));
    }
    Ok(())
}

/// The config file's stem, or the current directory's name, and a short hash of the whole path: readable, and two
/// instances of one machine do not meet.
fn default_name(path: &Path, is_directory: bool) -> String {
    let stem = if is_directory { path.file_name() } else { path.file_stem() };
    let plain = |c: char| if c.is_ascii_alphanumeric() || matches!(c, '-' | '_') { c } else { '-' };
    let stem: String = stem.unwrap_or_default().to_string_lossy().chars().take(40).map(plain).collect();
    let stem = if stem.is_empty() { "app".to_owned() } else { stem };
    // FNV-1a, 32 bits: the same in every build, which std's hashers do not promise.
    let hash = path
        .as_os_str()
        .as_bytes()
        .iter()
        .fold(0x811c_9dc5u32, |hash, byte| (hash ^ u32::from(*byte)).wrapping_mul(0x0100_0193));
    format!("{stem}-{hash:08x}")
}
