//! From settings as written to settings as meant. A value is taken from the highest of its layers: command line,
//! FORKMASTER_* variables, file, the platform's variables (PORT, WEB_CONCURRENCY, FORWARDED_ALLOW_IPS), default.
//! A value that is wrong is noted and replaced by its default, so that all problems are found in one go.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::net::{Ipv4Addr, Ipv6Addr};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use forkmaster_wire::message::{ForwardedHeader, LogLevel, Probe, ProxyProtocol};
use forkmaster_wire::peer::{NotAPeer, TrustedPeer};

use super::access_format;
use super::address::SUN_PATH_BYTES_MAX;
use super::callable::{check_module, parse_application, show_application};
use super::environment::{self, BadLine, Environment, MISLEAD_THE_INTERPRETER};
use super::file::{self, quoted, File, Value, Written};
use super::identity::{find_group, find_user, run_as, RunAs};
use super::interpreter;
use super::keys::{Key, KEYS};
use super::problem::{Problem, Problems};
use super::process_context::{absolute, ProcessContext};
use super::settings::{
    AccessTarget, App, Bind, Control, ControlAddress, ControlSocket, Http, Interpreter, Log, LogTarget, Reload, Server,
    Settings, SocketFile, Surge,
};
use super::units::{parse_duration, parse_mode, parse_size, show_duration, show_mode, show_size};
use super::{Effective, Loaded, Origin, Source};

/// What the kernel takes as a backlog: an int.
const BACKLOG_MAX: u32 = i32::MAX as u32;
/// Far above what a machine bears; a slip such as 80000 is caught.
const WORKERS_MAX: u32 = 4096;
const THREADS_MAX: u32 = 1024;
/// Old, new and draining workers of that many.
const PROCESSES_MAX: u32 = 3 * WORKERS_MAX;
const CONNECTIONS_MAX: u32 = 1 << 20;
/// File names end at 255 bytes, socket paths at 107.
const NAME_BYTES_MAX: usize = 64;
const LATER: &str = "comes with a later version";

/// Reads and checks everything.
pub fn read(source: &Source, context: &ProcessContext) -> Result<Loaded, Problems> {
    let mut resolver = Resolver::new(source, context)?;
    resolver.problems.append(&mut resolver.file_problems);
    let settings = resolver.settings();
    Problems::check(resolver.problems)?;
    let mut effective = resolver.effective;
    effective.sort_by_key(|setting| (section_rank(setting.section), key_rank(setting.section, &setting.key)));
    Ok(Loaded { settings, warnings: resolver.warnings, effective })
}

/// Only what a client needs to find the master: it must find it also while the file is wrong elsewhere, or the
/// release is gone.
pub fn control(source: &Source, context: &ProcessContext) -> Result<Control, Problems> {
    let mut resolver = Resolver::new(source, context)?;
    resolver.env_file();
    resolver.problems.clear();
    let name = resolver.name();
    let control = resolver.control(&name);
    Problems::check(resolver.problems)?;
    Ok(control)
}

struct Resolver<'a> {
    context: &'a ProcessContext,
    /// Highest first.
    layers: Vec<BTreeMap<Key, Entry>>,
    file: File,
    file_problems: Vec<Problem>,
    /// The config file's name in messages; without a file, what stands for it.
    shown: String,
    /// For what outlives a generation: the directory by name.
    named_directory: PathBuf,
    /// For what belongs to a release: the file's real directory.
    real_directory: PathBuf,
    /// What the default name is made of: the config file by name, or the current directory.
    identity_path: PathBuf,
    /// What `${NAME}` sees: the start environment and env_file.
    variables: Environment,
    /// Names that env_file or `[env]` set.
    explicit: Vec<OsString>,
    problems: Vec<Problem>,
    warnings: Vec<String>,
    effective: Vec<Effective>,
}

#[derive(Clone, Debug)]
struct Entry {
    value: Value,
    origin: Origin,
}

impl<'a> Resolver<'a> {
    fn new(source: &Source, context: &'a ProcessContext) -> Result<Resolver<'a>, Problems> {
        let (shown, file, file_problems, named_directory, real_directory, identity_path) = match &source.file {
            None => {
                let here = context.cwd.clone();
                ("command line".to_owned(), File::default(), Vec::new(), here.clone(), here.clone(), here)
            }
            Some(config) => {
                let problem = |reason: String| Problems::from(Problem::new(&config.shown, reason));
                // Followed once: a flip between two steps must not mix the file of one release with the other's path.
                let real = config.path.canonicalize();
                let real = real.map_err(|error| problem(interpreter::missing(&config.path, "file", &error)))?;
                let text = file::read_text(&real).map_err(problem)?;
                let (file, problems) = match file::parse(&text, &config.shown) {
                    Ok(parsed) => parsed,
                    Err(syntax) => {
                        Problems::check(syntax)?;
                        (File::default(), Vec::new())
                    }
                };
                let parent = |path: &Path| path.parent().map_or_else(|| PathBuf::from("/"), Path::to_owned);
                let shown = config.shown.clone();
                (shown, file, problems, parent(&config.path), parent(&real), config.path.clone())
            }
        };
        let mut warnings = Vec::new();
        let layers = vec![
            command_line(source),
            our_variables(&context.environment, &mut warnings),
            written_in_the_file(&file, &shown),
            platform_variables(&context.environment),
        ];
        Ok(Resolver {
            context,
            layers,
            file,
            file_problems,
            shown,
            named_directory,
            real_directory,
            identity_path,
            variables: environment::of_a_generation(&context.environment),
            explicit: Vec::new(),
            problems: Vec::new(),
            warnings,
            effective: Vec::new(),
        })
    }

    fn settings(&mut self) -> Settings {
        // First, since everything else may use its variables.
        self.env_file();
        let name = self.name();
        let identity = self.run_as();
        let app = self.app(identity.as_ref());
        let socket = self.socket_file(identity.as_ref());
        let server = self.server(identity, socket);
        let reload = self.reload();
        let http = self.http();
        let log = self.log();
        let control = self.control(&name);
        Settings { name, app, server, reload, http, log, control }
    }

    fn name(&mut self) -> String {
        let default = default_name(&self.identity_path, self.shown == "command line");
        self.get(("", "name"), default, |value| checked(value, check_name), |name| quoted(name))
    }

    fn env_file(&mut self) {
        let key = ("app", "env_file");
        let Some(Entry { value, origin }) = self.entry(key) else {
            return;
        };
        let path = match string(&value) {
            Ok(text) => absolute(&self.real_directory, Path::new(text)),
            Err(reason) => return self.problem(key, &value, &origin, &reason),
        };
        self.effective(key, quoted_path(&path), origin.clone());
        let text = match file::read_text(&path) {
            Ok(text) => text,
            Err(reason) => return self.problem(key, &value, &origin, &reason),
        };
        match environment::parse_env_file(&text) {
            Ok(variables) => {
                for (name, value) in variables {
                    self.explicit.push(name.clone().into());
                    self.variables.insert(name.into(), value.into());
                }
            }
            Err(errors) => {
                let problem = |bad: BadLine| Problem::new(format_args!("{}:{}", path.display(), bad.line), bad.reason);
                self.problems.extend(errors.into_iter().map(problem));
            }
        }
    }

    fn app(&mut self, run_as: Option<&RunAs>) -> App {
        let module = ("app", "module");
        let application = match self.entry(module) {
            None => {
                let shown = self.shown.clone();
                self.problems.push(Problem::new(
                    shown,
                    "[app] module: missing; write module = \"shop.wsgi:application\", or name it on the command line",
                ));
                None
            }
            Some(Entry { value, origin }) => match string(&value).and_then(parse_application) {
                Ok(application) => {
                    self.effective(module, quoted(&show_application(&application)), origin);
                    Some(application)
                }
                Err(reason) => {
                    self.problem(module, &value, &origin, &reason);
                    None
                }
            },
        };
        let release = self.release();
        let environment = self.environment();
        let interpreter = self.interpreter(release.as_deref(), &environment);
        let preload = self.get(("app", "preload"), false, parse_preload, bool::to_string);
        let real_directory = self.real_directory.clone();
        let pythonpath = self.get_list(
            ("app", "pythonpath"),
            Vec::new(),
            |text| {
                let path = absolute(&real_directory, Path::new(text));
                path.canonicalize().map_err(|error| interpreter::missing(&path, "directory", &error))
            },
            |path| quoted_path(path),
        );
        let imports = self.get_list(
            ("app", "imports"),
            Vec::new(),
            |text| check_module(text).map(|()| text.to_owned()),
            |name| quoted(name),
        );
        let probe = self.get(("app", "probe"), None, |value| parse_probe(value).map(Some), show_probe);
        let release = release.unwrap_or_else(|| self.real_directory.clone());
        let environment = self.complete(environment, &release, interpreter.as_ref(), run_as);
        // Placeholders are only ever seen beside a problem, which keeps them from being returned.
        let application = application.unwrap_or(forkmaster_wire::message::Application {
            module: String::new(),
            attributes: Vec::new(),
            call: None,
        });
        let interpreter =
            interpreter.unwrap_or(Interpreter { executable: PathBuf::new(), venv: None, chosen_by: "default" });
        App { application, release, interpreter, preload, pythonpath, imports, probe, environment }
    }

    fn release(&mut self) -> Option<PathBuf> {
        let key = ("app", "release");
        let (path, value, origin) = match self.entry(key) {
            Some(Entry { value, origin }) => match string(&value) {
                Ok(text) => (absolute(&self.real_directory, Path::new(text)), value, origin),
                Err(reason) => {
                    self.problem(key, &value, &origin, &reason);
                    return None;
                }
            },
            None => {
                let value = Value::Text(self.real_directory.to_string_lossy().into_owned());
                (self.real_directory.clone(), value, Origin::Default)
            }
        };
        match interpreter::real_directory(&path, "directory") {
            Ok(real) => {
                self.effective(key, quoted_path(&real), origin);
                Some(real)
            }
            Err(reason) => {
                self.problem(key, &value, &origin, &reason);
                None
            }
        }
    }

    /// Start environment, env_file, `[env]`; what depends on the release and the interpreter comes in `complete`.
    fn environment(&mut self) -> Environment {
        let mut environment = self.variables.clone();
        for (name, Written { line, value }) in std::mem::take(&mut self.file.env) {
            let origin = Origin::File { shown: self.shown.clone(), line };
            let result = environment::check_name(&name).and_then(|()| match &value {
                Value::Text(text) => environment::expand(text, &self.variables).map(|expanded| expanded.text),
                Value::Integer { text, .. } => Err(format!("a variable is a string; write \"{text}\"")),
                Value::Boolean(boolean) => {
                    Err(format!("a variable is a string; write \"{boolean}\", or \"1\" or \"\""))
                }
                other => Err(format!("a variable is a string, not {}", other.kind())),
            });
            let result =
                result.and_then(
                    |text| {
                        if text.contains('\0') {
                            Err("a NUL byte in the value".to_owned())
                        } else {
                            Ok(text)
                        }
                    },
                );
            match result {
                Ok(text) => {
                    let secret = environment::is_secret(&name, &text);
                    let value = if secret { quoted("***") } else { quoted(&text) };
                    let key = toml_key(&name);
                    self.effective.push(Effective { section: "env", key, value, origin });
                    self.explicit.push(name.clone().into());
                    environment.insert(name.into(), text.into());
                }
                Err(reason) => {
                    let raw = match &value {
                        Value::Text(text) => text.as_str(),
                        _ => "",
                    };
                    let shown = if environment::is_secret(&name, raw) { quoted("***") } else { value.shown() };
                    let text = format!("[env] {} = {shown}: {reason}", toml_key(&name));
                    self.problems.push(Problem::new(&origin, text).at_line(origin.line()));
                }
            }
        }
        environment
    }

    fn complete(
        &mut self,
        mut environment: Environment,
        release: &Path,
        interpreter: Option<&Interpreter>,
        run_as: Option<&RunAs>,
    ) -> Vec<(OsString, OsString)> {
        for name in MISLEAD_THE_INTERPRETER {
            if self.explicit.iter().any(|explicit| explicit == name) {
                self.warnings.push(format!("{name} of env_file or [env] is ignored: it would change which Python runs; set [app] python instead"));
            }
        }
        environment::activate(&mut environment, interpreter.and_then(|interpreter| interpreter.venv.as_deref()));
        environment.insert("PWD".into(), release.into());
        environment.remove(OsStr::new("OLDPWD"));
        if let Some(RunAs { identity, home }) = run_as {
            let home = home.clone().unwrap_or_else(|| PathBuf::from("/"));
            let name = identity.name.clone().map(OsString::from);
            for (variable, value) in [("HOME", Some(home.into_os_string())), ("USER", name.clone()), ("LOGNAME", name)]
            {
                if self.explicit.iter().any(|explicit| explicit == variable) {
                    continue;
                }
                match value {
                    Some(value) => environment.insert(variable.into(), value),
                    None => environment.remove(OsStr::new(variable)),
                };
            }
        }
        environment.into_iter().collect()
    }

    /// The order is the promise "never a fall-through to another Python": what was set must be usable.
    fn interpreter(&mut self, release: Option<&Path>, environment: &Environment) -> Option<Interpreter> {
        let venv = self.layer_of(("app", "venv"));
        let python = self.layer_of(("app", "python"));
        let (key, set) = match (venv, python) {
            (Some(venv), Some(python)) if venv == python => {
                if let Some(Entry { value, origin }) = self.entry(("app", "python")) {
                    let reason = "`venv` is set as well; keep one of the two";
                    self.problem(("app", "python"), &value, &origin, reason);
                }
                return None;
            }
            (Some(venv), Some(python)) => (if venv < python { "venv" } else { "python" }, true),
            (Some(_), None) => ("venv", true),
            (None, Some(_)) => ("python", true),
            (None, None) => ("venv", false),
        };
        let key = ("app", key);
        if !set {
            return self.interpreter_found(release?, environment);
        }
        let Entry { value, origin } = self.entry(key)?;
        let chosen = string(&value).and_then(|text| {
            let path = absolute(&self.real_directory, Path::new(text));
            if key.1 == "venv" {
                return interpreter::from_venv(&path, "[app] venv")
                    .map_err(|reason| format!("{reason}{}", self.hint_for_venv(text, release)));
            }
            interpreter::from_python(&path, "[app] python").map_err(|reason| {
                let found = environment.get(OsStr::new("PATH")).filter(|_| !text.contains('/'));
                let found = found.and_then(|path| interpreter::find_on_path(text, path));
                let hint = found.map(|python| format!("; did you mean {}?", quoted_path(&python)));
                format!("{reason}{}", hint.unwrap_or_default())
            })
        });
        match chosen {
            Ok(interpreter) => {
                let shown = match (&interpreter.venv, key.1) {
                    (Some(venv), "venv") => quoted_path(venv),
                    (Some(_) | None, _) => quoted_path(&interpreter.executable),
                };
                self.effective(key, shown, origin);
                Some(interpreter)
            }
            Err(reason) => {
                self.problem(key, &value, &origin, &reason);
                None
            }
        }
    }

    fn interpreter_found(&mut self, release: &Path, environment: &Environment) -> Option<Interpreter> {
        let activated = environment.get(OsStr::new("VIRTUAL_ENV")).filter(|venv| !venv.is_empty());
        let found = match (interpreter::in_release(release), activated) {
            (Some(found), _) => found,
            (None, Some(venv)) => interpreter::from_venv(Path::new(venv), "VIRTUAL_ENV")
                .map_err(|reason| format!("VIRTUAL_ENV={}: {reason}", venv.to_string_lossy())),
            (None, None) => interpreter::on_path(environment.get(OsStr::new("PATH")).map(OsString::as_os_str)),
        };
        match found {
            Ok(interpreter) => {
                let (key, shown) = match &interpreter.venv {
                    Some(venv) => ("venv", quoted_path(venv)),
                    None => ("python", quoted_path(&interpreter.executable)),
                };
                self.effective(("app", key), shown, Origin::Found(interpreter.chosen_by));
                Some(interpreter)
            }
            Err(reason) => {
                let shown = self.shown.clone();
                self.problems.push(Problem::new(shown, format_args!("[app] venv: {reason}")));
                None
            }
        }
    }

    /// `venv` is relative to the config file, and people expect the release.
    fn hint_for_venv(&self, text: &str, release: Option<&Path>) -> String {
        let inside = release.map(|release| release.join(text)).filter(|path| path.join("bin/python").exists());
        match inside {
            Some(path) if Path::new(text).is_relative() => {
                format!("; a relative path starts at the config file, and there is {}", path.display())
            }
            Some(_) | None => String::new(),
        }
    }

    fn run_as(&mut self) -> Option<RunAs> {
        let user = self.get(
            ("server", "user"),
            None,
            |value| id_text(value).and_then(|text| find_user(&text).map(|found| Some((text, found)))),
            |user| quoted(user.as_ref().map_or("", |(text, _)| text)),
        );
        let group = self.get(
            ("server", "group"),
            None,
            |value| id_text(value).and_then(|text| find_group(&text).map(|gid| Some((text, gid)))),
            |group| quoted(group.as_ref().map_or("", |(text, _)| text)),
        );
        let key = if user.is_some() { ("server", "user") } else { ("server", "group") };
        let (uid, gid) = (self.context.uid, self.context.gid);
        match run_as(user.map(|(_, user)| user), group.map(|(_, gid)| gid), uid, gid) {
            Ok(run_as) => run_as,
            Err(reason) => {
                if let Some(Entry { value, origin }) = self.entry(key) {
                    self.problem(key, &value, &origin, &reason);
                }
                None
            }
        }
    }

    fn socket_file(&mut self, run_as: Option<&RunAs>) -> SocketFile {
        let mode = self.get(("server", "socket_mode"), 0o660, parse_mode_value, |mode| quoted(&show_mode(mode)));
        if mode & 0o002 != 0 {
            self.warnings.push(format!("socket_mode {} lets every user of the machine connect", show_mode(&mode)));
        }
        let user_default = run_as.map(|run_as| run_as.identity.uid);
        let group_default = run_as.map(|run_as| run_as.identity.gid);
        let show = |id: &Option<u32>| id.map_or_else(|| quoted(""), |id| quoted(&id.to_string()));
        let own_uid = self.context.uid;
        let uid = self.get(
            ("server", "socket_user"),
            user_default,
            |value| {
                let (uid, _) = id_text(value).and_then(|text| find_user(&text))?;
                if own_uid != 0 && uid != own_uid {
                    return Err(format!(
                        "running as uid {own_uid}, and only root can give a file away; remove the line"
                    ));
                }
                Ok(Some(uid))
            },
            show,
        );
        let gid = self.get(
            ("server", "socket_group"),
            group_default,
            |value| id_text(value).and_then(|text| find_group(&text)).map(Some),
            show,
        );
        SocketFile { mode, uid, gid }
    }

    fn server(&mut self, run_as: Option<RunAs>, socket: SocketFile) -> Server {
        let bind = self.bind();
        let backlog = self.count(("server", "backlog"), 4096, 1, BACKLOG_MAX);
        let cpus = self.context.cpus;
        let workers = self.get(("server", "workers"), 1, |value| workers(value, cpus), u32::to_string);
        let max_processes = self.get(
            ("server", "max_processes"),
            None,
            |value| max_processes(value, workers),
            |number| number.map_or_else(|| quoted("none"), |number: u32| number.to_string()),
        );
        let threads = self.count(("server", "threads"), 1, 1, THREADS_MAX);
        let umask = self.get(
            ("server", "umask"),
            None,
            |value| if is_word(value, "inherit") { Ok(None) } else { parse_mode_value(value).map(Some) },
            |umask| quoted(&umask.as_ref().map_or("inherit".to_owned(), show_mode)),
        );
        let pidfile = self.path_or(("server", "pidfile"), "none");
        let max_requests = self.number(("server", "max_requests"));
        let max_requests_jitter = self.number(("server", "max_requests_jitter"));
        let max_lifetime = self.duration_or_none(("server", "max_lifetime"), None);
        let max_rss = self.get(
            ("server", "max_rss"),
            None,
            |value| if is_word(value, "none") { Ok(None) } else { size(value).map(Some) },
            |size| quoted(&size.as_ref().map_or("none".to_owned(), show_size)),
        );
        let boot_timeout = self.timeout(("server", "boot_timeout"), 60);
        let request_timeout = self.duration_or_none(("server", "request_timeout"), Some(Duration::from_secs(60)));
        let graceful_timeout = self.duration(("server", "graceful_timeout"), 25);
        let shutdown_delay = self.duration(("server", "shutdown_delay"), 0);
        let request_timeouts = self.request_timeouts();
        let base = self.named_directory.clone();
        let proxy_protocol = self.get(
            ("http", "proxy_protocol"),
            Vec::new(),
            |value| parse_proxy_protocol(value, &bind, &base),
            |proxied: &Vec<(Bind, ProxyProtocol)>| show_proxy_protocol(proxied, &bind),
        );
        Server {
            bind,
            backlog,
            socket,
            workers,
            max_processes,
            threads,
            identity: run_as.map(|run_as| run_as.identity),
            umask,
            pidfile,
            max_requests,
            max_requests_jitter,
            max_lifetime,
            max_rss,
            boot_timeout,
            request_timeout,
            request_timeouts,
            graceful_timeout,
            shutdown_delay,
            proxy_protocol,
        }
    }

    fn bind(&mut self) -> Vec<Bind> {
        let key = ("server", "bind");
        let base = self.named_directory.clone();
        let default = vec![Bind::Inet(std::net::SocketAddr::from(([127, 0, 0, 1], 8000)))];
        let problems_before = self.problems.len();
        let bind = self.get_list(key, default, |text| Bind::parse(text, &base), |bind| quoted(&bind.to_string()));
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
        if let Some(Entry { value, origin }) = self.entry(key) {
            for clash in clashes {
                self.problem(key, &value, &origin, &clash);
            }
        }
        bind
    }

    fn temp_dirs(&mut self) -> Vec<PathBuf> {
        let base = self.named_directory.clone();
        let temporary = self.context.environment.get(OsStr::new("TMPDIR")).map(PathBuf::from);
        let temporary = temporary.filter(|path| path.is_absolute());
        let mut auto: Vec<PathBuf> = Vec::new();
        for path in temporary.into_iter().chain([PathBuf::from("/var/tmp"), PathBuf::from("/tmp")]) {
            if !auto.contains(&path) {
                auto.push(path);
            }
        }
        let default = auto.clone();
        self.get(
            ("server", "temp_dir"),
            auto,
            |value| {
                let text = string(value)?;
                if text == "auto" {
                    return Ok(default.clone());
                }
                non_empty(text).map(|text| vec![absolute(&base, Path::new(text))])
            },
            |paths| if *paths == default { quoted("auto") } else { quoted_path(&paths[0]) },
        )
    }

    fn request_timeouts(&mut self) -> Vec<(String, Option<Duration>)> {
        let mut limits = Vec::new();
        for (prefix, Written { line, value }) in std::mem::take(&mut self.file.request_timeouts) {
            let origin = Origin::File { shown: self.shown.clone(), line };
            let parsed = if prefix.starts_with('/') {
                expanded(&value, &self.variables).and_then(|value| duration_or_none(&value))
            } else {
                Err(format!("a path prefix begins with a slash; write {}", quoted(&format!("/{prefix}"))))
            };
            match parsed {
                Ok(limit) => {
                    let value = quoted(&limit.as_ref().map_or("none".to_owned(), show_duration));
                    self.effective.push(Effective {
                        section: "server.request_timeouts",
                        key: quoted(&prefix),
                        value,
                        origin,
                    });
                    limits.push((prefix, limit));
                }
                Err(reason) => {
                    let text = format!("[server.request_timeouts] {} = {}: {reason}", quoted(&prefix), value.shown());
                    self.problems.push(Problem::new(&origin, text).at_line(Some(line)));
                }
            }
        }
        limits.sort_by(|(one, _), (other, _)| other.len().cmp(&one.len()).then(one.cmp(other)));
        limits
    }

    fn reload(&mut self) -> Reload {
        let max_surge = self.get(("reload", "max_surge"), Surge::Auto, parse_surge, |surge| match surge {
            Surge::Auto => quoted("auto"),
            Surge::Workers(workers) => workers.to_string(),
            Surge::All => quoted("100%"),
        });
        let max_unavailable = self.count(("reload", "max_unavailable"), 0, 0, WORKERS_MAX);
        if max_surge == Surge::Workers(0) && max_unavailable == 0 {
            let key = ("reload", "max_surge");
            if let Some(Entry { value, origin }) = self.entry(key) {
                let reason = "max_unavailable is 0 too, so no worker could ever be replaced; set one of them to 1";
                self.problem(key, &value, &origin, reason);
            }
        }
        let drain_timeout = self.duration(("reload", "drain_timeout"), 600);
        // It keeps the previous release's template for `rollback`, and comes with that verb.
        self.only(("reload", "keep_previous"), "0s");
        Reload { max_surge, max_unavailable, drain_timeout }
    }

    fn http(&mut self) -> Http {
        let connections = self.count(("server", "connections"), 1024, 1, CONNECTIONS_MAX);
        let temp_dirs = self.temp_dirs();
        let temp_limit = self.size(("server", "temp_limit"), 4 << 30);
        let response_buffer = self.size(("server", "response_buffer"), 64 << 20);
        let keepalive_timeout = self.timeout(("http", "keepalive_timeout"), 75);
        let header_timeout = self.timeout(("http", "header_timeout"), 10);
        let body_timeout = self.timeout(("http", "body_timeout"), 30);
        let write_timeout = self.timeout(("http", "write_timeout"), 30);
        let limit_request_line = self.count(("http", "limit_request_line"), 8190, 64, 1 << 20);
        let limit_request_fields = self.count(("http", "limit_request_fields"), 100, 1, 32_768);
        let limit_request_field_size = self.count(("http", "limit_request_field_size"), 8190, 64, 1 << 20);
        let head = |value: &Value| {
            let bytes = size(value)?;
            let in_range = (1024..=16 << 20).contains(&bytes);
            u32::try_from(bytes)
                .ok()
                .filter(|_| in_range)
                .ok_or_else(|| "must be from \"1KiB\" to \"16MiB\"".to_owned())
        };
        let limit_request_head =
            self.get(("http", "limit_request_head"), 64 << 10, head, |bytes| quoted(&show_size(&u64::from(*bytes))));
        for (key, limit) in
            [("limit_request_line", limit_request_line), ("limit_request_field_size", limit_request_field_size)]
        {
            if limit > limit_request_head {
                let reason = format!("{key} is {limit}, more than the whole head may have; raise limit_request_head");
                let origin = self.origin(("http", key));
                self.problems.push(Problem::new(&origin, format_args!("[http] {reason}")).at_line(origin.line()));
            }
        }
        let body_memory = self.size(("http", "body_memory"), 512 << 10);
        let max_body = self.size(("http", "max_body"), 100 << 20);
        let forwarded_allow_ips = self.get_list(
            ("http", "forwarded_allow_ips"),
            vec![
                TrustedPeer::Network(Ipv4Addr::LOCALHOST.into(), 32),
                TrustedPeer::Network(Ipv6Addr::LOCALHOST.into(), 128),
                TrustedPeer::Unix,
            ],
            parse_peer,
            |peer| quoted(&peer.to_string()),
        );
        let forwarded_headers = self.get_list(
            ("http", "forwarded_headers"),
            vec![ForwardedHeader::For, ForwardedHeader::Proto],
            parse_forwarded_header,
            |header| quoted(show_forwarded_header(*header)),
        );
        self.check_one_family(&forwarded_headers);
        let underscore_headers =
            self.get_list(("http", "underscore_headers"), Vec::new(), parse_underscore_header, |name| quoted(name));
        let secure_scheme_headers =
            self.get(("http", "secure_scheme_headers"), Vec::new(), parse_secure_scheme_headers, |headers| {
                show_secure_scheme_headers(headers)
            });
        Http {
            connections,
            keepalive_timeout,
            header_timeout,
            body_timeout,
            write_timeout,
            limit_request_line,
            limit_request_fields,
            limit_request_field_size,
            limit_request_head,
            body_memory,
            max_body,
            temp_dirs,
            temp_limit,
            response_buffer,
            forwarded_allow_ips,
            forwarded_headers,
            secure_scheme_headers,
            underscore_headers,
        }
    }

    /// A proxy sets the one or the other; what it does not set is passed on as the client sent it.
    fn check_one_family(&mut self, headers: &[ForwardedHeader]) {
        let key = ("http", "forwarded_headers");
        let beside = [ForwardedHeader::For, ForwardedHeader::Proto, ForwardedHeader::Prefix];
        if !headers.contains(&ForwardedHeader::Forwarded) || !beside.iter().any(|header| headers.contains(header)) {
            return;
        }
        if let Some(Entry { value, origin }) = self.entry(key) {
            let reason = "\"forwarded\" (RFC 7239) stands for its own for and proto, and has no prefix: beside it \
                          there is only \"host\"; keep the one that your proxy sets";
            self.problem(key, &value, &origin, reason);
        }
    }

    fn log(&mut self) -> Log {
        let level = self.get(
            ("log", "level"),
            LogLevel::Info,
            |value| string(value).and_then(parse_level),
            |level| quoted(show_level(*level)),
        );
        let base = self.named_directory.clone();
        let error = self.get(
            ("log", "error"),
            LogTarget::Stderr,
            |value| match string(value)? {
                "-" => Ok(LogTarget::Stderr),
                text => non_empty(text).map(|text| LogTarget::File(absolute(&base, Path::new(text)))),
            },
            |target| match target {
                LogTarget::Stderr => quoted("-"),
                LogTarget::File(path) => quoted_path(path),
            },
        );
        let base = self.named_directory.clone();
        let access = self.get(
            ("log", "access"),
            None,
            |value| match string(value)? {
                "none" => Ok(None),
                "-" => Ok(Some(AccessTarget::Stdout)),
                text => non_empty(text).map(|text| Some(AccessTarget::File(absolute(&base, Path::new(text))))),
            },
            |target| match target {
                None => quoted("none"),
                Some(AccessTarget::Stdout) => quoted("-"),
                Some(AccessTarget::File(path)) => quoted_path(path),
            },
        );
        let default = (access_format::combined(), "combined".to_owned());
        let (access_format, _) = self.get(
            ("log", "access_format"),
            default,
            |value| string(value).and_then(|text| access_format::parse(text).map(|format| (format, text.to_owned()))),
            |(_, text)| quoted(text),
        );
        Log { level, error, access, access_format }
    }

    fn control(&mut self, name: &str) -> Control {
        let auto = ControlSocket::Auto(self.control_candidates(name));
        let base = self.named_directory.clone();
        let socket = self.get(
            ("control", "socket"),
            auto.clone(),
            |value| match string(value)? {
                "auto" => Ok(auto.clone()),
                "none" => Ok(ControlSocket::Off),
                text => {
                    let path = absolute(&base, Path::new(non_empty(text)?));
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
        Control { socket }
    }

    fn control_candidates(&self, name: &str) -> Vec<ControlAddress> {
        let variable = |name: &str| self.context.environment.get(OsStr::new(name));
        // systemd.exec(5): with several RuntimeDirectory= the variable is a colon-separated list.
        let runtime = variable("RUNTIME_DIRECTORY").and_then(|list| std::env::split_paths(list).next());
        let directories =
            [runtime, Some(PathBuf::from("/run/forkmaster")), variable("XDG_RUNTIME_DIR").map(PathBuf::from)];
        let mut candidates: Vec<ControlAddress> = Vec::new();
        for directory in directories.into_iter().flatten().filter(|directory| directory.is_absolute()) {
            let path = directory.join(format!("{name}.sock"));
            let candidate = ControlAddress::Path(path.clone());
            if path.as_os_str().len() <= SUN_PATH_BYTES_MAX && !candidates.contains(&candidate) {
                candidates.push(candidate);
            }
        }
        candidates.push(ControlAddress::Abstract(format!("forkmaster/{}/{name}", self.context.uid)));
        candidates
    }

    // Values by type.

    fn count(&mut self, key: Key, default: u32, min: u32, max: u32) -> u32 {
        self.get(key, default, |value| integer(value, u64::from(min), u64::from(max)).map(|n| n as u32), u32::to_string)
    }

    fn number(&mut self, key: Key) -> u64 {
        self.get(key, 0, |value| integer(value, 0, i64::MAX as u64), u64::to_string)
    }

    fn size(&mut self, key: Key, default: u64) -> u64 {
        self.get(key, default, size, |size| quoted(&show_size(size)))
    }

    fn duration(&mut self, key: Key, default_s: u64) -> Duration {
        self.get(key, Duration::from_secs(default_s), duration, |duration| quoted(&show_duration(duration)))
    }

    /// A duration that makes no sense as zero.
    fn timeout(&mut self, key: Key, default_s: u64) -> Duration {
        let parse = |value: &Value| duration(value).and_then(positive);
        self.get(key, Duration::from_secs(default_s), parse, |duration| quoted(&show_duration(duration)))
    }

    fn duration_or_none(&mut self, key: Key, default: Option<Duration>) -> Option<Duration> {
        self.get(key, default, duration_or_none, |duration| {
            quoted(&duration.as_ref().map_or("none".to_owned(), show_duration))
        })
    }

    /// A path of something that outlives a generation, or a word for having none.
    fn path_or(&mut self, key: Key, word: &str) -> Option<PathBuf> {
        let base = self.named_directory.clone();
        let parse = |value: &Value| match string(value)? {
            text if text == word => Ok(None),
            text => non_empty(text).map(|text| Some(absolute(&base, Path::new(text)))),
        };
        self.get(key, None, parse, |path| path.as_ref().map_or_else(|| quoted(word), |path| quoted_path(path)))
    }

    /// A setting whose other values come later.
    fn only(&mut self, key: Key, word: &'static str) {
        let parse = |value: &Value| match string(value)? {
            text if text == word => Ok(()),
            _ => Err(format!("anything but \"{word}\" {LATER}; write \"{word}\" or remove the line")),
        };
        self.get(key, (), parse, |()| quoted(word));
    }

    /// The value of a key from its highest layer, or its default.
    fn get<T>(
        &mut self,
        key: Key,
        default: T,
        parse: impl FnOnce(&Value) -> Result<T, String>,
        show: impl FnOnce(&T) -> String,
    ) -> T {
        let Some(Entry { value, origin }) = self.entry(key) else {
            let shown = show(&default);
            self.effective(key, shown, Origin::Default);
            return default;
        };
        match parse(&value) {
            Ok(parsed) => {
                let shown = show(&parsed);
                self.effective(key, shown, origin);
                parsed
            }
            Err(reason) => {
                self.problem(key, &value, &origin, &reason);
                default
            }
        }
    }

    fn get_list<T>(
        &mut self,
        key: Key,
        default: Vec<T>,
        parse: impl Fn(&str) -> Result<T, String>,
        show: impl Fn(&T) -> String,
    ) -> Vec<T> {
        let show_all = |list: &[T]| format!("[{}]", list.iter().map(&show).collect::<Vec<_>>().join(", "));
        let Some(Entry { value, origin }) = self.entry(key) else {
            self.effective(key, show_all(&default), Origin::Default);
            return default;
        };
        let items = match &value {
            Value::List(items) => items.clone(),
            Value::Loose(text) => {
                let items = text.split(',').map(str::trim).filter(|item| !item.is_empty());
                items.map(|item| Written { line: 0, value: Value::Text(item.to_owned()) }).collect()
            }
            Value::Text(_) => {
                self.problem(key, &value, &origin, &format!("a list is needed; write [{}]", value.shown()));
                return default;
            }
            other => {
                self.problem(key, &value, &origin, &format!("a list of strings is needed, not {}", other.kind()));
                return default;
            }
        };
        let mut list = Vec::new();
        for item in items {
            match string(&item.value).and_then(&parse) {
                Ok(parsed) => list.push(parsed),
                Err(reason) => {
                    let origin = match &origin {
                        Origin::File { shown, .. } if item.line > 0 => {
                            Origin::File { shown: shown.clone(), line: item.line }
                        }
                        other => other.clone(),
                    };
                    self.problem(key, &item.value, &origin, &reason);
                }
            }
        }
        let shown = show_all(&list);
        self.effective(key, shown, origin);
        list
    }

    /// The highest entry of a key, expanded where it comes from the file. A failed expansion is noted once, however
    /// often the key is asked for.
    fn entry(&mut self, key: Key) -> Option<Entry> {
        let layer = self.layer_of(key)?;
        let entry = self.layers[layer].get(&key)?.clone();
        if entry.origin.line().is_none() {
            return Some(entry);
        }
        match expanded(&entry.value, &self.variables) {
            Ok(value) => Some(Entry { value, origin: entry.origin }),
            Err(reason) => {
                self.problem(key, &entry.value, &entry.origin, &reason);
                None
            }
        }
    }

    fn layer_of(&self, key: Key) -> Option<usize> {
        self.layers.iter().position(|layer| layer.contains_key(&key))
    }

    fn origin(&self, key: Key) -> Origin {
        let entry = self.layers.iter().find_map(|layer| layer.get(&key));
        entry.map_or(Origin::Default, |entry| entry.origin.clone())
    }

    fn effective(&mut self, (section, key): Key, value: String, origin: Origin) {
        // `""`: not set, and there is no value to show.
        if value != "\"\"" {
            self.effective.push(Effective { section, key: key.to_owned(), value, origin });
        }
    }

    fn problem(&mut self, (section, key): Key, value: &Value, origin: &Origin, reason: &str) {
        let section = if section.is_empty() { String::new() } else { format!("[{section}] ") };
        let text = format!("{section}{key} = {}: {reason}", value.shown());
        let problem = match origin {
            Origin::CommandLine(option) => Problem::new(option, text),
            Origin::File { .. } | Origin::Variable(_) | Origin::Default | Origin::Found(_) => Problem::new(
                if *origin == Origin::Default { &self.shown as &dyn std::fmt::Display } else { origin },
                text,
            ),
        };
        self.problems.push(problem.at_line(origin.line()));
    }
}

// The layers.

fn command_line(source: &Source) -> BTreeMap<Key, Entry> {
    let overrides = &source.overrides;
    let single: [(Key, &'static str, &Option<String>); 9] = [
        (("app", "module"), "MODULE", &overrides.module),
        (("", "name"), "--name", &overrides.name),
        (("app", "release"), "--release", &overrides.release),
        (("app", "venv"), "--venv", &overrides.venv),
        (("app", "python"), "--python", &overrides.python),
        (("app", "preload"), "--preload", &overrides.preload),
        (("server", "workers"), "--workers", &overrides.workers),
        (("server", "threads"), "--threads", &overrides.threads),
        (("log", "level"), "--log-level", &overrides.log_level),
    ];
    let mut layer = BTreeMap::new();
    for (key, option, text) in single {
        if let Some(text) = text {
            layer.insert(key, Entry { value: Value::Loose(text.clone()), origin: Origin::CommandLine(option) });
        }
    }
    if !overrides.bind.is_empty() {
        let items = overrides.bind.iter().map(|text| Written { line: 0, value: Value::Text(text.clone()) });
        let value = Value::List(items.collect());
        layer.insert(("server", "bind"), Entry { value, origin: Origin::CommandLine("--bind") });
    }
    layer
}

/// `FORKMASTER_SERVER__WORKERS`, `FORKMASTER_NAME`. Unknown ones only warn: Kubernetes sets FORKMASTER_PORT and others
/// for a service of that name. An empty one counts as not set, since compose files cannot leave one out.
fn our_variables(environment: &Environment, warnings: &mut Vec<String>) -> BTreeMap<Key, Entry> {
    let mut layer = BTreeMap::new();
    let mut unknown = Vec::new();
    for (name, value) in environment {
        let Some((name, rest)) = name.to_str().and_then(|name| Some((name, name.strip_prefix("FORKMASTER_")?))) else {
            continue;
        };
        let is_named = |(section, key): &&Key| {
            let path = if section.is_empty() { (*key).to_owned() } else { format!("{section}__{key}") };
            path.to_ascii_uppercase() == rest && *key != "request_timeouts"
        };
        match (KEYS.iter().find(is_named), value.to_str()) {
            (Some(_), Some("")) => {}
            (Some(key), Some(text)) => {
                let entry = Entry { value: Value::Loose(text.to_owned()), origin: Origin::Variable(name.to_owned()) };
                layer.insert(*key, entry);
            }
            // Read by the build, not by the program.
            (None, _) if rest == "WORKER_LIB" => {}
            (None, _) | (Some(_), None) => unknown.push(name),
        }
    }
    if !unknown.is_empty() {
        warnings.push(format!("ignored, since no setting is called so: {}", unknown.join(", ")));
    }
    layer
}

fn written_in_the_file(file: &File, shown: &str) -> BTreeMap<Key, Entry> {
    let entry = |(key, written): (&Key, &Written)| {
        let origin = Origin::File { shown: shown.to_owned(), line: written.line };
        (*key, Entry { value: written.value.clone(), origin })
    };
    file.entries.iter().map(entry).collect()
}

/// What platforms set for any server. Empty ones count as not set.
fn platform_variables(environment: &Environment) -> BTreeMap<Key, Entry> {
    let variable = |name: &str| environment.get(OsStr::new(name)).map(|value| value.to_string_lossy().into_owned());
    let platform = [
        (
            ("server", "bind"),
            "PORT",
            variable("PORT").map(|port| if port.is_empty() { port } else { format!("0.0.0.0:{port}") }),
        ),
        (("server", "workers"), "WEB_CONCURRENCY", variable("WEB_CONCURRENCY")),
        (("http", "forwarded_allow_ips"), "FORWARDED_ALLOW_IPS", variable("FORWARDED_ALLOW_IPS")),
    ];
    let entry = |(key, name, text): (Key, &str, Option<String>)| {
        let text = text.filter(|text| !text.is_empty())?;
        Some((key, Entry { value: Value::Loose(text), origin: Origin::Variable(name.to_owned()) }))
    };
    platform.into_iter().filter_map(entry).collect()
}

fn expanded(value: &Value, variables: &Environment) -> Result<Value, String> {
    Ok(match value {
        Value::Text(text) => {
            let expanded = environment::expand(text, variables)?;
            if expanded.whole {
                Value::Loose(expanded.text)
            } else {
                Value::Text(expanded.text)
            }
        }
        Value::List(items) => {
            let item = |item: &Written| Ok(Written { line: item.line, value: expanded(&item.value, variables)? });
            Value::List(items.iter().map(item).collect::<Result<_, String>>()?)
        }
        Value::Table(entries) => {
            let entry = |(key, item): &(String, Written)| {
                Ok((key.clone(), Written { line: item.line, value: expanded(&item.value, variables)? }))
            };
            Value::Table(entries.iter().map(entry).collect::<Result<_, String>>()?)
        }
        Value::Loose(_) | Value::Integer { .. } | Value::Boolean(_) | Value::Other { .. } => value.clone(),
    })
}

// Values by type.

fn string(value: &Value) -> Result<&str, String> {
    match value {
        Value::Text(text) | Value::Loose(text) if text.contains('\0') => Err("a NUL byte in a string".to_owned()),
        Value::Text(text) | Value::Loose(text) => Ok(text),
        Value::Integer { text, .. } => Err(format!("a string is needed; write \"{text}\"")),
        other => Err(format!("a string is needed, not {}", other.kind())),
    }
}

fn checked(value: &Value, check: impl FnOnce(&str) -> Result<(), String>) -> Result<String, String> {
    let text = string(value)?;
    check(text).map(|()| text.to_owned())
}

fn non_empty(text: &str) -> Result<&str, String> {
    if text.is_empty() {
        Err("a path is missing".to_owned())
    } else {
        Ok(text)
    }
}

fn is_word(value: &Value, word: &str) -> bool {
    matches!(value, Value::Text(text) | Value::Loose(text) if text == word)
}

fn integer(value: &Value, min: u64, max: u64) -> Result<u64, String> {
    let number = match value {
        Value::Integer { value, .. } => value.and_then(|number| u64::try_from(number).ok()),
        Value::Loose(text) => Some(text.trim().parse().map_err(|_| "a number is needed".to_owned())?),
        Value::Text(text) if text.parse::<u64>().is_ok() => {
            return Err(format!("a number is needed; write {text}, without quotes"))
        }
        other => return Err(format!("a number is needed, not {}", other.kind())),
    };
    number.filter(|number| (min..=max).contains(number)).ok_or_else(|| {
        if max == i64::MAX as u64 {
            format!("must be at least {min}")
        } else {
            format!("must be from {min} to {max}")
        }
    })
}

fn boolean(value: &Value) -> Result<bool, String> {
    match value {
        Value::Boolean(boolean) => Ok(*boolean),
        Value::Loose(text) => match text.to_ascii_lowercase().as_str() {
            "true" | "1" | "yes" | "on" => Ok(true),
            "false" | "0" | "no" | "off" => Ok(false),
            _ => Err("write true or false".to_owned()),
        },
        Value::Text(text) if text == "true" || text == "false" => Err(format!("write {text}, without quotes")),
        other => Err(format!("write true or false, not {}", other.kind())),
    }
}

fn duration(value: &Value) -> Result<Duration, String> {
    match value {
        Value::Text(text) | Value::Loose(text) if text == "none" => {
            Err("it cannot be \"none\"; write a long one, as \"1d\"".to_owned())
        }
        Value::Text(text) | Value::Loose(text) => parse_duration(text),
        Value::Integer { text, .. } => Err(format!("a duration needs a unit; write \"{text}s\"")),
        other => Err(format!("a duration is needed, not {}; write it as \"30s\"", other.kind())),
    }
}

fn positive(duration: Duration) -> Result<Duration, String> {
    if duration.is_zero() {
        Err("must be more than zero".to_owned())
    } else {
        Ok(duration)
    }
}

/// Zero never means unlimited.
fn duration_or_none(value: &Value) -> Result<Option<Duration>, String> {
    if is_word(value, "none") {
        return Ok(None);
    }
    let duration = duration(value)?;
    positive(duration).map(Some).map_err(|reason| format!("{reason}; without a limit it is \"none\""))
}

fn size(value: &Value) -> Result<u64, String> {
    match value {
        Value::Text(text) | Value::Loose(text) if text == "none" => {
            Err("it cannot be \"none\"; write a large one, as \"1TiB\"".to_owned())
        }
        Value::Text(text) | Value::Loose(text) => parse_size(text),
        Value::Integer { text, value } => {
            let bytes = value.and_then(|bytes| u64::try_from(bytes).ok());
            let example = bytes.map_or_else(|| format!("{text}B"), |bytes| show_size(&bytes));
            Err(format!("a size needs a unit; write \"{example}\""))
        }
        other => Err(format!("a size is needed, not {}; write it as \"8MiB\"", other.kind())),
    }
}

fn parse_mode_value(value: &Value) -> Result<u32, String> {
    match value {
        Value::Integer { text, .. } => {
            let digits = text.trim_start_matches("0o");
            Err(format!("a mode is a string of octal digits; write \"0{}\"", digits.trim_start_matches('0')))
        }
        other => string(other).and_then(parse_mode),
    }
}

/// A user or a group: a name, or a number with or without quotes.
fn id_text(value: &Value) -> Result<String, String> {
    match value {
        Value::Integer { text, value } => {
            let id = value.and_then(|id| u32::try_from(id).ok());
            id.map(|id| id.to_string()).ok_or_else(|| format!("`{text}` is not an id"))
        }
        other => string(other).map(str::to_owned),
    }
}

fn workers(value: &Value, cpus: u32) -> Result<u32, String> {
    if is_word(value, "auto") {
        return Ok(cpus.clamp(1, WORKERS_MAX));
    }
    integer(value, 1, u64::from(WORKERS_MAX))
        .map(|workers| workers as u32)
        .map_err(|reason| format!("{reason}, or \"auto\""))
}

/// One beyond `workers` at least: a reload proves a release in a worker beside those that serve.
fn max_processes(value: &Value, workers: u32) -> Result<Option<u32>, String> {
    if is_word(value, "none") {
        return Ok(None);
    }
    let number = integer(value, 1, u64::from(PROCESSES_MAX)).map_err(|reason| format!("{reason}, or \"none\""))?;
    if number <= u64::from(workers) {
        return Err(format!(
            "there are {workers} workers, and a reload proves a release in one beside them; write at least {}",
            workers + 1
        ));
    }
    Ok(Some(number as u32))
}

/// For the command line: `4` or `auto`.
pub fn parse_workers(text: &str) -> Result<String, String> {
    workers(&Value::Loose(text.to_owned()), 1).map(|_| text.to_owned())
}

/// For the command line: a number of threads.
pub fn parse_count(text: &str) -> Result<String, String> {
    integer(&Value::Loose(text.to_owned()), 1, u64::from(THREADS_MAX)).map(|_| text.to_owned())
}

fn parse_preload(value: &Value) -> Result<bool, String> {
    if is_word(value, "auto") {
        return Err(format!("\"auto\" {LATER}; until then write true or false"));
    }
    boolean(value)
}

fn parse_surge(value: &Value) -> Result<Surge, String> {
    match value {
        Value::Text(text) | Value::Loose(text) if text == "auto" => Ok(Surge::Auto),
        Value::Text(text) | Value::Loose(text) if text == "100%" => Ok(Surge::All),
        Value::Text(text) | Value::Loose(text) if text.ends_with('%') => {
            Err("the only percentage is \"100%\"; otherwise write \"auto\" or a number of workers".to_owned())
        }
        other => integer(other, 0, u64::from(WORKERS_MAX))
            .map(|workers| Surge::Workers(workers as u32))
            .map_err(|reason| format!("{reason}, or \"auto\" or \"100%\"")),
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

/// `"/healthz"` or `{ path = "/healthz", host = "shop.example", scheme = "https", status = [200] }`.
fn parse_probe(value: &Value) -> Result<Probe, String> {
    let mut probe =
        Probe { path: String::new(), host: "localhost".to_owned(), scheme: "http".to_owned(), status: Vec::new() };
    let Value::Table(entries) = value else {
        probe.path = string(value).map_err(|reason| format!("{reason}; write \"/healthz\""))?.to_owned();
        return check_probe(probe);
    };
    for (key, Written { value, .. }) in entries {
        match key.as_str() {
            "path" => probe.path = string(value)?.to_owned(),
            "host" => probe.host = string(value)?.to_owned(),
            "scheme" => probe.scheme = string(value)?.to_owned(),
            "status" => match value {
                Value::List(items) => {
                    for item in items {
                        probe
                            .status
                            .push(integer(&item.value, 100, 599).map_err(|reason| format!("status: {reason}"))? as u16);
                    }
                }
                other => return Err(format!("status is a list; write [{}]", other.shown())),
            },
            other => return Err(format!("unknown key `{other}`; there are path, host, scheme and status")),
        }
    }
    check_probe(probe)
}

fn check_probe(probe: Probe) -> Result<Probe, String> {
    let plain = |text: &str| text.bytes().all(|byte| byte.is_ascii_graphic());
    if !probe.path.starts_with('/') || !plain(&probe.path) || probe.path.contains('#') {
        return Err(
            "a path begins with a slash and has no blanks or other characters beyond ASCII; write \"/healthz\""
                .to_owned(),
        );
    }
    if probe.host.is_empty() || !plain(&probe.host) || probe.host.contains('/') {
        return Err(format!("`{}` is not a host", probe.host));
    }
    if probe.scheme != "http" && probe.scheme != "https" {
        return Err(format!("`{}` is not a scheme; there are \"http\" and \"https\"", probe.scheme));
    }
    Ok(probe)
}

fn show_probe(probe: &Option<Probe>) -> String {
    let Some(Probe { path, host, scheme, status }) = probe else {
        return quoted("");
    };
    let mut text = format!("{{ path = {}, host = {}, scheme = {}", quoted(path), quoted(host), quoted(scheme));
    if !status.is_empty() {
        text.push_str(&format!(", status = {status:?}"));
    }
    text + " }"
}

fn parse_peer(text: &str) -> Result<TrustedPeer, String> {
    text.parse().map_err(|NotAPeer| "not an address; write \"10.0.0.1\", \"10.0.0.0/8\", \"unix\" or \"*\"".to_owned())
}

fn parse_forwarded_header(text: &str) -> Result<ForwardedHeader, String> {
    match text {
        "for" => Ok(ForwardedHeader::For),
        "proto" => Ok(ForwardedHeader::Proto),
        "host" => Ok(ForwardedHeader::Host),
        "prefix" => Ok(ForwardedHeader::Prefix),
        "forwarded" => Ok(ForwardedHeader::Forwarded),
        _ => Err(format!(
            "`{text}` is not known; there are \"for\", \"proto\", \"host\" and \"prefix\", or \"forwarded\""
        )),
    }
}

fn show_forwarded_header(header: ForwardedHeader) -> &'static str {
    match header {
        ForwardedHeader::For => "for",
        ForwardedHeader::Proto => "proto",
        ForwardedHeader::Host => "host",
        ForwardedHeader::Prefix => "prefix",
        ForwardedHeader::Forwarded => "forwarded",
    }
}

/// One word for all addresses, or `{ "unix:/run/shop/proxied.sock" = "v2" }` for those of `bind` that have it.
fn parse_proxy_protocol(value: &Value, bind: &[Bind], base: &Path) -> Result<Vec<(Bind, ProxyProtocol)>, String> {
    let version = |text: &str| match text {
        "off" => Ok(None),
        "v1" => Ok(Some(ProxyProtocol::V1)),
        "v2" => Ok(Some(ProxyProtocol::V2)),
        _ => Err(format!("`{text}` is not known; there are \"off\", \"v1\" and \"v2\"")),
    };
    let Value::Table(entries) = value else {
        let version = version(string(value)?)?;
        return Ok(bind.iter().filter_map(|bind| Some((bind.clone(), version?))).collect());
    };
    let mut proxied = Vec::new();
    for (address, written) in entries {
        let address = Bind::parse(address, base).map_err(|reason| format!("{address}: {reason}"))?;
        if !bind.contains(&address) {
            return Err(format!("{address} is not in [server] bind"));
        }
        if let Some(version) = version(string(&written.value)?)? {
            proxied.push((address, version));
        }
    }
    Ok(proxied)
}

fn show_proxy_protocol(proxied: &[(Bind, ProxyProtocol)], bind: &[Bind]) -> String {
    let word = |version: ProxyProtocol| match version {
        ProxyProtocol::V1 => quoted("v1"),
        ProxyProtocol::V2 => quoted("v2"),
    };
    match proxied {
        [] => quoted("off"),
        [(_, first), rest @ ..] if proxied.len() == bind.len() && rest.iter().all(|(_, version)| version == first) => {
            word(*first)
        }
        _ => {
            let entry =
                |(bind, version): &(Bind, ProxyProtocol)| format!("{} = {}", quoted(&bind.to_string()), word(*version));
            format!("{{ {} }}", proxied.iter().map(entry).collect::<Vec<_>>().join(", "))
        }
    }
}

/// `{ "X-Forwarded-Ssl" = "on" }`; in a variable `X-Forwarded-Ssl=on`, several with commas.
fn parse_secure_scheme_headers(value: &Value) -> Result<Vec<(String, String)>, String> {
    let written: Vec<(String, String)> = match value {
        Value::Table(entries) => {
            let entry =
                |(name, item): &(String, Written)| string(&item.value).map(|text| (name.clone(), text.to_owned()));
            entries.iter().map(entry).collect::<Result<_, _>>()?
        }
        Value::Loose(text) => {
            let items = text.split(',').map(str::trim).filter(|item| !item.is_empty());
            let entry = |item: &str| {
                let (name, value) = item.split_once('=').ok_or_else(|| format!("`{item}` is not NAME=VALUE"))?;
                Ok((name.trim().to_owned(), value.trim().to_owned()))
            };
            items.map(entry).collect::<Result<_, String>>()?
        }
        other => {
            return Err(format!("a table is needed, not {}; write {{ \"X-Forwarded-Ssl\" = \"on\" }}", other.kind()))
        }
    };
    for (name, value) in &written {
        let token = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-';
        if name.is_empty() || !name.bytes().all(token) {
            return Err(format!("`{name}` is not the name of a header; write it as it is sent, \"X-Forwarded-Ssl\""));
        }
        if value.is_empty() || !value.bytes().all(|byte| byte.is_ascii_graphic() || byte == b' ') {
            return Err(format!("`{value}` is not the value of a header"));
        }
    }
    Ok(written.into_iter().map(|(name, value)| (name.to_ascii_lowercase(), value)).collect())
}

fn parse_underscore_header(text: &str) -> Result<String, String> {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
    if text.contains('_') && text.bytes().all(plain) {
        return Ok(text.to_ascii_lowercase());
    }
    Err("not the name of a header with an underscore; write it as it is sent, \"SSL_CLIENT_S_DN\"".to_owned())
}

fn show_secure_scheme_headers(headers: &[(String, String)]) -> String {
    let entries: Vec<String> =
        headers.iter().map(|(name, value)| format!("{} = {}", quoted(name), quoted(value))).collect();
    if entries.is_empty() {
        "{}".to_owned()
    } else {
        format!("{{ {} }}", entries.join(", "))
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

fn quoted_path(path: &Path) -> String {
    quoted(&path.to_string_lossy())
}

/// A key as TOML writes it: bare where it can be.
fn toml_key(name: &str) -> String {
    if !name.is_empty() && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '-' || c == '_') {
        name.to_owned()
    } else {
        quoted(name)
    }
}

fn section_rank(section: &str) -> usize {
    ["", "app", "env", "server", "server.request_timeouts", "reload", "http", "log", "control"]
        .iter()
        .position(|known| *known == section)
        .unwrap_or(usize::MAX)
}

fn key_rank(section: &str, key: &str) -> usize {
    KEYS.iter().position(|known| *known == (section, key)).unwrap_or(usize::MAX)
}
