//! Settings, from what was written to what is meant: `file` holds a file exactly as written, `resolve` makes
//! `settings::Settings` of it, of variables and of the command line, and reports every problem at once. Called at
//! the start and afresh at every reload: the file is opened again by its name, and the release and its venv are
//! followed again. Nothing else in the project reads a file or a variable for settings.

use std::fmt;
use std::path::PathBuf;

mod access_format;
mod address;
mod callable;
pub mod environment;
mod file;
mod identity;
mod interpreter;
mod keys;
pub mod problem;
pub mod process_context;
mod resolve;
pub mod settings;
pub mod units;

pub use address::SUN_PATH_BYTES_MAX;
pub use keys::nearest;
pub use resolve::{control, parse_count, parse_workers, read};

use settings::Settings;

/// Where settings come from, besides variables: fixed by the command line for the life of the master.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Source {
    /// None: a module on the command line, with the current directory as the release.
    pub file: Option<ConfigFile>,
    pub overrides: Overrides,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigFile {
    /// Absolute by name: a symlink in it is followed afresh at each reload.
    pub path: PathBuf,
    /// As it was typed, for messages.
    pub shown: String,
}

/// The command line's settings, above all others. Paths are absolute already.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Overrides {
    pub module: Option<String>,
    pub name: Option<String>,
    pub release: Option<String>,
    pub venv: Option<String>,
    pub python: Option<String>,
    pub preload: Option<String>,
    pub bind: Vec<String>,
    pub workers: Option<String>,
    pub threads: Option<String>,
    pub log_level: Option<String>,
}

/// One reading of the configuration.
#[derive(Clone, Debug)]
pub struct Loaded {
    pub settings: Settings,
    /// A sentence each.
    pub warnings: Vec<String>,
    /// Every setting, its effective value and where it came from, in the order of the documentation.
    pub effective: Vec<Effective>,
}

/// One setting in `config show`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Effective {
    /// Empty: the top of the file.
    pub section: &'static str,
    pub key: String,
    /// As it would be written in the file; secrets are masked.
    pub value: String,
    pub origin: Origin,
}

/// Where a value came from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// The option's name, `--workers`.
    CommandLine(&'static str),
    /// `FORKMASTER_SERVER__WORKERS`, `WEB_CONCURRENCY`.
    Variable(String),
    File {
        shown: String,
        line: usize,
    },
    Default,
    /// Found rather than set: `venv in the release`.
    Found(&'static str),
}

impl Origin {
    fn line(&self) -> Option<usize> {
        match self {
            Origin::File { line, .. } => Some(*line),
            Origin::CommandLine(_) | Origin::Variable(_) | Origin::Default | Origin::Found(_) => None,
        }
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Origin::CommandLine("MODULE") => f.write_str("command line"),
            Origin::CommandLine(option) => write!(f, "command line, {option}"),
            Origin::Variable(name) => f.write_str(name),
            Origin::File { shown, line } => write!(f, "{shown}:{line}"),
            Origin::Default => f.write_str("default"),
            Origin::Found(how) => f.write_str(how),
        }
    }
}

impl Loaded {
    /// What `config show` prints: a configuration file of its own, origins as comments.
    pub fn show(&self) -> String {
        let mut text = String::new();
        let mut section = "";
        for setting in &self.effective {
            if setting.section != section {
                section = setting.section;
                text.push_str(&format!("\n[{section}]\n"));
            }
            let line = format!("{} = {}", setting.key, setting.value);
            text.push_str(&format!("{line:<48}  # {}\n", setting.origin));
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;
    use std::path::Path;
    use std::time::Duration;

    use forkmaster_wire::message::{ForwardedHeader, LogLevel, ProxyProtocol};

    use super::problem::Problems;
    use super::process_context::ProcessContext;
    use super::settings::{AccessTarget, Bind, ControlAddress, ControlSocket, Http, LogTarget, Surge};
    use super::*;

    /// A directory with `releases/1`, which has a venv of names and links only, and `current` pointing there.
    struct Deploy {
        directory: tempfile::TempDir,
        context: ProcessContext,
        overrides: Overrides,
    }

    impl Deploy {
        fn new() -> Deploy {
            let directory = tempfile::tempdir().unwrap();
            let context = ProcessContext {
                environment: [("PATH", "/usr/bin:/bin"), ("HOME", "/root")].map(|(k, v)| (k.into(), v.into())).into(),
                cwd: directory.path().to_owned(),
                uid: 0,
                gid: 0,
                cpus: 3,
            };
            let deploy = Deploy { directory, context, overrides: Overrides::default() };
            deploy.release("1");
            symlink("releases/1", deploy.path("current")).unwrap();
            deploy
        }

        fn path(&self, name: &str) -> PathBuf {
            self.directory.path().canonicalize().unwrap().join(name)
        }

        fn release(&self, number: &str) {
            make_venv(&self.path(&format!("releases/{number}/venv")));
        }

        fn set(&mut self, name: &str, value: &str) {
            self.context.environment.insert(name.into(), value.into());
        }

        fn source(&self) -> Source {
            let file = ConfigFile { path: self.path("current/app.toml"), shown: "app.toml".to_owned() };
            Source { file: Some(file), overrides: self.overrides.clone() }
        }

        fn read(&self, text: &str) -> Result<Loaded, Problems> {
            std::fs::write(self.path("current/app.toml"), text).unwrap();
            read(&self.source(), &self.context)
        }

        /// Reads what must be refused; the lines of the message, without the directory's random name.
        fn refused(&self, text: &str) -> Vec<String> {
            let message = self.read(text).map(|loaded| loaded.show()).unwrap_err().to_string();
            let root = self.path("").to_string_lossy().into_owned();
            message.replace(&root, "/T/").lines().map(str::to_owned).collect()
        }

        /// The one line that is said of `[section] line` in an otherwise good file.
        fn refusal(&self, section: &str, line: &str) -> String {
            let module = if section == "app" { "" } else { "[app]\n" };
            let lines = self.refused(&format!("{module}[{section}]\n{line}\n"));
            let about: Vec<_> = lines.iter().filter(|text| !text.contains("[app] module: missing")).collect();
            about.last().unwrap().to_string()
        }
    }

    fn make_venv(path: &Path) {
        std::fs::create_dir_all(path.join("bin")).unwrap();
        std::fs::write(path.join("pyvenv.cfg"), "home = /usr/bin\n").unwrap();
        symlink("/bin/sh", path.join("bin/python")).unwrap();
    }

    fn peers(http: &Http) -> Vec<String> {
        http.forwarded_allow_ips.iter().map(ToString::to_string).collect()
    }

    const APP: &str = "[app]\nmodule = \"shop.wsgi\"\n";

    #[test]
    fn defaults_are_those_of_the_documentation() {
        let deploy = Deploy::new();
        let loaded = deploy.read(APP).unwrap();
        let Settings { name, app, server, reload, http, log, control } = loaded.settings;
        assert!(name.starts_with("app-") && name.len() == 12, "{name}");
        assert_eq!(app.release, deploy.path("releases/1"));
        assert_eq!(app.interpreter.executable, deploy.path("releases/1/venv/bin/python"));
        assert_eq!(app.interpreter.chosen_by, "venv in the release");
        assert!(!app.preload && app.probe.is_none() && app.imports.is_empty() && app.pythonpath.is_empty());
        assert_eq!(server.bind, [Bind::Inet("127.0.0.1:8000".parse().unwrap())]);
        assert_eq!((server.backlog, server.workers, server.threads, http.connections), (4096, 1, 1, 1024));
        assert_eq!((server.socket.mode, server.socket.uid, server.socket.gid), (0o660, None, None));
        assert_eq!((server.identity, server.umask, server.pidfile), (None, None, None));
        assert_eq!((server.max_requests, server.max_requests_jitter), (0, 0));
        assert_eq!((server.max_lifetime, server.max_rss), (None, None));
        let seconds = Duration::from_secs;
        assert_eq!((server.boot_timeout, server.request_timeout), (seconds(60), Some(seconds(60))));
        assert_eq!((server.graceful_timeout, server.shutdown_delay), (seconds(25), seconds(0)));
        assert_eq!(http.temp_dirs, [Path::new("/var/tmp"), Path::new("/tmp")]);
        assert_eq!((http.temp_limit, http.response_buffer), (4 << 30, 64 << 20));
        assert_eq!((reload.max_surge, reload.max_unavailable), (Surge::Auto, 0));
        assert_eq!(reload.drain_timeout, seconds(600));
        assert_eq!((http.keepalive_timeout, http.header_timeout), (seconds(75), seconds(10)));
        assert_eq!((http.body_timeout, http.write_timeout), (seconds(30), seconds(30)));
        assert_eq!((http.limit_request_line, http.limit_request_fields), (8190, 100));
        assert_eq!((http.limit_request_field_size, http.limit_request_head), (8190, 65536));
        assert_eq!((http.body_memory, http.max_body), (512 << 10, 100 << 20));
        assert_eq!(peers(&http), ["127.0.0.1", "::1", "unix"]);
        assert_eq!(http.forwarded_headers, [ForwardedHeader::For, ForwardedHeader::Proto]);
        assert_eq!(server.max_processes, None);
        assert!(http.secure_scheme_headers.is_empty());
        assert_eq!((log.level, log.error, log.access), (LogLevel::Info, LogTarget::Stderr, None));
        let candidates = [
            ControlAddress::Path(format!("/run/forkmaster/{name}.sock").into()),
            ControlAddress::Abstract(format!("forkmaster/0/{name}")),
        ];
        assert_eq!(control.socket, ControlSocket::Auto(candidates.to_vec()));
        assert!(loaded.warnings.is_empty());
    }

    #[test]
    fn every_setting_is_read_and_a_shown_configuration_reads_the_same() {
        let deploy = Deploy::new();
        std::fs::write(deploy.path("current/shop.env"), "FROM_FILE=1\n").unwrap();
        std::fs::create_dir(deploy.path("current/lib")).unwrap();
        let text = r#"
name = "shop"
[app]
module = "shop:create_app('prod')"
release = "."
venv = "venv"
preload = true
pythonpath = ["lib"]
imports = ["shop.tasks"]
probe = { path = "/healthz", host = "shop.example", scheme = "https", status = [200, 204] }
env_file = "shop.env"
[env]
DJANGO_SETTINGS_MODULE = "shop.settings"
[server]
bind = ["127.0.0.1:8001", "[::1]:8001", "unix:run/shop.sock", "fd://3"]
backlog = 128
socket_mode = "0600"
socket_user = "nobody"
socket_group = 12345
workers = 4
max_processes = 12
threads = 2
connections = 10
user = "nobody"
group = "12345"
umask = "0027"
pidfile = "shop.pid"
max_requests = 1000
max_requests_jitter = 50
max_lifetime = "1d"
max_rss = "512MiB"
boot_timeout = "2m"
request_timeout = "none"
graceful_timeout = "20s"
shutdown_delay = "5s"
temp_dir = "/var/tmp/shop"
temp_limit = "1GB"
response_buffer = "8MiB"
[server.request_timeouts]
"/reports/" = "10m"
"/reports/yearly/" = "none"
[reload]
max_surge = "100%"
max_unavailable = 1
drain_timeout = "1m"
keep_previous = "0s"
[http]
keepalive_timeout = "620s"
header_timeout = "5s"
body_timeout = "6s"
write_timeout = "7s"
limit_request_line = 4094
limit_request_fields = 50
limit_request_field_size = 4000
limit_request_head = "32KiB"
body_memory = "1MiB"
max_body = "1GiB"
forwarded_allow_ips = ["10.0.0.0/8", "unix"]
forwarded_headers = ["proto"]
secure_scheme_headers = { "X-Forwarded-Ssl" = "on" }
underscore_headers = ["SSL_CLIENT_S_DN"]
proxy_protocol = { "unix:run/shop.sock" = "v2", "[::1]:8001" = "off" }
[log]
level = "debug"
error = "shop.log"
access = "access.log"
access_format = '%(h)s "%(r)s" 100%%'
[control]
socket = "run/control.sock"
"#;
        let loaded = deploy.read(text).unwrap();
        for (section, key) in keys::KEYS {
            let seen = loaded.effective.iter().any(|setting| setting.section == section && setting.key == key);
            assert!(seen || key == "python" || key == "request_timeouts", "[{section}] {key} is not shown");
        }
        let settings = &loaded.settings;
        let (real, named) = (deploy.path("releases/1"), deploy.path("current"));
        assert_eq!(settings.app.application.call.as_deref(), Some("'prod'"));
        assert_eq!(settings.app.pythonpath, [real.join("lib")]);
        assert_eq!(settings.server.bind[2], Bind::Unix(named.join("run/shop.sock")));
        assert_eq!(settings.server.pidfile, Some(named.join("shop.pid")));
        assert_eq!(settings.log.error, LogTarget::File(named.join("shop.log")));
        assert_eq!(settings.log.access, Some(AccessTarget::File(named.join("access.log"))));
        let secure = ("x-forwarded-ssl".to_owned(), "on".to_owned());
        assert_eq!(settings.http.secure_scheme_headers, [secure]);
        assert_eq!(settings.http.underscore_headers, ["ssl_client_s_dn"]);
        let [(proxied, version)] = &settings.server.proxy_protocol[..] else { panic!("one address") };
        assert!(proxied.to_string().ends_with("/run/shop.sock") && *version == ProxyProtocol::V2);
        assert_eq!(settings.control.socket, ControlSocket::Path(named.join("run/control.sock")));
        let identity = settings.server.identity.as_ref().unwrap();
        assert_eq!((identity.gid, settings.server.socket.gid, settings.server.umask), (12345, Some(12345), Some(0o27)));
        assert_eq!(settings.server.socket.uid, Some(identity.uid));
        let limits: Vec<_> = settings.server.request_timeouts.iter().map(|(prefix, _)| prefix.as_str()).collect();
        assert_eq!(limits, ["/reports/yearly/", "/reports/"]);
        let again = deploy.read(&loaded.show()).unwrap();
        assert_eq!(again.settings, loaded.settings, "{}", loaded.show());
    }

    #[test]
    fn all_problems_come_at_once_with_line_value_reason_and_fix() {
        let deploy = Deploy::new();
        let text = "wrokers = 1\n[app]\nmodule = \"shop/wsgi.py\"\npreload = \"auto\"\nvenv = \"gone\"\npython = \"/usr/bin/python3\"\n\
                    [server]\ngraceful_timout = \"1s\"\ngraceful_timeout = 30\nworkers = \"4\"\nbind = [\n\"127.0.0.1:80\",\n\"systemd:web\",\n\"0.0.0.0:80\"]\n\
                    [reload]\nmax_surge = 0\n[env]\nA = 1\n";
        let expected = [
            "10 problems:",
            "app.toml:1: wrokers: unknown key; did you mean `[server] workers`?",
            "app.toml:3: [app] module = \"shop/wsgi.py\": a file, not a module; write \"shop.wsgi\"",
            "app.toml:4: [app] preload = \"auto\": \"auto\" comes with a later version; until then write true or false",
            "app.toml:6: [app] python = \"/usr/bin/python3\": `venv` is set as well; keep one of the two",
            "app.toml:8: [server] graceful_timout: unknown key; did you mean `graceful_timeout`?",
            "app.toml:9: [server] graceful_timeout = 30: a duration needs a unit; write \"30s\"",
            "app.toml:10: [server] workers = \"4\": a number is needed; write 4, without quotes, or \"auto\"",
            "app.toml:11: [server] bind = [\"127.0.0.1:80\", \"systemd:web\", \"0.0.0.0:80\"]: 127.0.0.1:80 and 0.0.0.0:80 overlap: the kernel gives only one of them the port; keep the wider one",
            "app.toml:13: [server] bind = \"systemd:web\": sockets by systemd name come with a later version; until then write \"fd://3\" for the first socket that systemd passes",
            "app.toml:16: [reload] max_surge = 0: max_unavailable is 0 too, so no worker could ever be replaced; set one of them to 1",
            "app.toml:18: [env] A = 1: a variable is a string; write \"1\"",
        ];
        let found = deploy.refused(text);
        assert_eq!(found[1..], expected[1..]);
        assert_eq!(found[0], format!("{} problems:", expected.len() - 1));
    }

    #[test]
    fn each_wrong_value_is_refused_with_what_to_write() {
        let deploy = Deploy::new();
        let cases = [
            ("server", "workers = 0", "must be from 1 to 4096"),
            ("server", "workers = -1", "must be from 1 to 4096"),
            ("server", "max_processes = 1", "write at least 2"),
            ("server", "max_processes = \"all\"", "or \"none\""),
            ("server", "threads = 1.5", "a number is needed, not a fraction"),
            ("server", "max_requests = -1", "must be at least 0"),
            ("server", "umask = 0o022", "write \"022\""),
            ("server", "socket_mode = 660", "write \"0660\""),
            ("server", "bind = \"127.0.0.1:80\"", "write [\"127.0.0.1:80\"]"),
            ("server", "bind = [8000]", "a string is needed; write \"8000\""),
            ("server", "bind = []", "at least one address"),
            ("server", "bind = [\"fd://3\", \"fd://3\"]", "twice"),
            ("server", "bind = 8000", "a list of strings is needed"),
            ("server", "user = \"no-such-user\"", "no such user"),
            ("server", "group = \"no-such-group\"", "no such group"),
            ("server", "user = 3999999999", "has no passwd entry"),
            ("server", "max_rss = 1048576", "write \"1MiB\""),
            ("server", "max_lifetime = \"0s\"", "without a limit it is \"none\""),
            ("server", "boot_timeout = \"none\"", "cannot be \"none\""),
            ("server", "boot_timeout = \"0s\"", "more than zero"),
            ("server", "temp_limit = \"none\"", "cannot be \"none\""),
            ("server", "request_timeouts = { reports = \"1m\" }", "write \"/reports\""),
            ("server", "request_timeouts = { \"/r\" = 5 }", "write \"5s\""),
            ("reload", "keep_previous = \"60s\"", "later version"),
            ("reload", "max_surge = \"50%\"", "\"100%\""),
            ("http", "limit_request_head = \"64GiB\"", "\"16MiB\""),
            ("http", "limit_request_line = 65537", "raise limit_request_head"),
            ("http", "forwarded_allow_ips = [\"10.0.0.0/40\"]", "10.0.0.0/8"),
            ("http", "forwarded_headers = [\"by\"]", "\"prefix\", or \"forwarded\""),
            ("http", "forwarded_headers = [\"forwarded\", \"proto\"]", "keep the one that your proxy sets"),
            ("http", "secure_scheme_headers = { \"X_Ssl\" = \"on\" }", "not the name of a header"),
            ("http", "secure_scheme_headers = { \"X-Ssl\" = \"\" }", "not the value of a header"),
            ("http", "underscore_headers = [\"X-Ssl\"]", "write it as it is sent"),
            ("http", "secure_scheme_headers = [\"X-Ssl\"]", "a table is needed, not a list"),
            ("http", "proxy_protocol = \"v3\"", "\"off\", \"v1\" and \"v2\""),
            ("http", "proxy_protocol = { \"127.0.0.1:9999\" = \"v2\" }", "127.0.0.1:9999 is not in [server] bind"),
            ("http", "proxy_protocol = true", "a string is needed, not a boolean"),
            ("log", "access = true", "a string is needed, not a boolean"),
            ("log", "access_format = \"common\"", "there are \"combined\", \"json\" and templates"),
            ("log", "access_format = \"%(z)s\"", "`%(z)s` is unknown"),
            ("log", "level = \"warning\"", "write \"warn\""),
            ("control", "socket = true", "a string is needed, not a boolean"),
            ("env", "\"A B\" = \"x\"", "not a name"),
            ("env", "SECRET_KEY = \"hunter2$\"", "SECRET_KEY = \"***\": a `$` is written `$$`"),
            ("env", "A = true", "write \"true\""),
            ("app", "release = \"/none\"", "there is no directory /none"),
            ("app", "python = \"sh\"", "did you mean \"/usr/bin/sh\"?"),
            ("app", "preload = \"true\"", "write true, without quotes"),
            ("app", "imports = [\"a/b.py\"]", "write \"a.b\""),
            ("app", "pythonpath = [\"none\"]", "there is no directory"),
            ("app", "probe = \"healthz\"", "write \"/healthz\""),
            ("app", "probe = { path = \"/\", stauts = [200] }", "unknown key `stauts`"),
            ("app", "probe = { path = \"/\", status = 200 }", "write [200]"),
            ("app", "env_file = \"none.env\"", "there is no file"),
            ("app", "imports = [\"${NOT_SET}\"]", "${NOT_SET:-default}"),
        ];
        for (section, line, hint) in cases {
            let refusal = deploy.refusal(section, line);
            assert!(refusal.contains(hint), "[{section}] {line}\n{refusal}");
            assert!(refusal.starts_with("app.toml:"), "{refusal}");
        }
    }

    #[test]
    fn a_venv_that_was_configured_is_never_replaced_by_another_python() {
        let mut deploy = Deploy::new();
        let refused = deploy.refused("[app]\nmodule = \"a\"\nvenv = \"gone\"\n");
        assert_eq!(refused, ["app.toml:3: [app] venv = \"gone\": there is no venv /T/releases/1/gone"]);
        symlink("/nowhere", deploy.path("releases/1/link")).unwrap();
        let refused = deploy.refused("[app]\nmodule = \"a\"\nvenv = \"link\"\n");
        assert!(refused[0].contains("link is a dangling symlink (to /nowhere)"), "{refused:?}");
        std::fs::remove_file(deploy.path("releases/1/venv/bin/python")).unwrap();
        symlink("/nowhere", deploy.path("releases/1/venv/bin/python")).unwrap();
        let refused = deploy.refused(APP);
        assert!(refused[0].contains("venv/bin/python is a dangling symlink"), "{refused:?}");
        // A config outside of the release: the hint names what was meant.
        make_venv(&deploy.path("releases/2/env"));
        let refused = deploy.refused("[app]\nmodule = \"a\"\nrelease = \"../2\"\nvenv = \"env\"\n");
        assert!(refused[0].contains("and there is /T/releases/2/env"), "{refused:?}");
        // VIRTUAL_ENV counts where nothing is set or found, and must be usable as well.
        std::fs::create_dir_all(deploy.path("releases/3")).unwrap();
        let text = "[app]\nmodule = \"a\"\nrelease = \"../3\"\n";
        deploy.set("VIRTUAL_ENV", deploy.path("releases/2/env").to_str().unwrap());
        let interpreter = deploy.read(text).unwrap().settings.app.interpreter;
        assert_eq!((interpreter.chosen_by, interpreter.venv), ("VIRTUAL_ENV", Some(deploy.path("releases/2/env"))));
        deploy.set("VIRTUAL_ENV", "/nowhere");
        assert!(deploy.refused(text)[0].contains("VIRTUAL_ENV=/nowhere: there is no venv"));
        deploy.set("VIRTUAL_ENV", "");
        make_venv(&deploy.path("path"));
        std::fs::rename(deploy.path("path/bin/python"), deploy.path("path/bin/python3")).unwrap();
        deploy.set("PATH", deploy.path("path/bin").to_str().unwrap());
        let interpreter = deploy.read(text).unwrap().settings.app.interpreter;
        assert_eq!((interpreter.chosen_by, interpreter.venv), ("python3 on PATH", Some(deploy.path("path"))));
        // The higher layer decides; the lower one is then no contradiction.
        deploy.overrides.python = Some("/bin/sh".to_owned());
        let loaded = deploy.read("[app]\nmodule = \"a\"\nvenv = \"gone\"\n").unwrap();
        assert_eq!(loaded.settings.app.interpreter.chosen_by, "[app] python");
        assert!(loaded.show().contains("# command line, --python"), "{}", loaded.show());
    }

    #[test]
    fn a_flip_of_current_is_followed_and_what_outlives_a_generation_is_not_moved() {
        let deploy = Deploy::new();
        let text = "[app]\nmodule = \"a\"\n[server]\nbind = [\"unix:a.sock\"]\npidfile = \"a.pid\"\n";
        let before = deploy.read(text).unwrap().settings;
        deploy.release("2");
        std::fs::remove_file(deploy.path("current")).unwrap();
        symlink("releases/2", deploy.path("current")).unwrap();
        let after = deploy.read(text).unwrap().settings;
        assert_eq!(before.app.release, deploy.path("releases/1"));
        assert_eq!(after.app.release, deploy.path("releases/2"));
        assert_eq!(after.app.interpreter.executable, deploy.path("releases/2/venv/bin/python"));
        assert_eq!((before.name, before.server), (after.name, after.server));
        std::fs::remove_dir_all(deploy.path("releases/2")).unwrap();
        let message = read(&deploy.source(), &deploy.context).unwrap_err().to_string();
        assert!(message.contains("current is a dangling symlink (to releases/2)"), "{message}");
    }

    #[test]
    fn layers_in_their_order() {
        let mut deploy = Deploy::new();
        deploy.set("PORT", "5000");
        deploy.set("WEB_CONCURRENCY", "7");
        deploy.set("FORWARDED_ALLOW_IPS", "10.0.0.1, 10.0.0.2");
        let loaded = deploy.read(APP).unwrap();
        assert_eq!(loaded.settings.server.bind[0].to_string(), "0.0.0.0:5000");
        assert_eq!(loaded.settings.server.workers, 7);
        assert_eq!(peers(&loaded.settings.http), ["10.0.0.1", "10.0.0.2"]);
        assert!(loaded.show().contains("# WEB_CONCURRENCY"));
        let text = format!("{APP}[server]\nworkers = \"auto\"\nbind = [\"127.0.0.1:1\"]\n");
        let loaded = deploy.read(&text).unwrap();
        assert_eq!(
            (loaded.settings.server.workers, loaded.settings.server.bind[0].to_string()),
            (3, "127.0.0.1:1".to_owned())
        );
        assert!(loaded.show().contains("# app.toml:4"));
        deploy.set("FORKMASTER_SERVER__WORKERS", "5");
        deploy.set("FORKMASTER_SERVER__BIND", "127.0.0.1:2,[::1]:2");
        deploy.set("FORKMASTER_APP__PRELOAD", "true");
        deploy.set("FORKMASTER_NAME", "shop");
        deploy.set("FORKMASTER_SERVER__THREADS", "");
        deploy.set("FORKMASTER_PORT", "tcp://10.0.0.1:80");
        let loaded = deploy.read(&text).unwrap();
        assert_eq!((loaded.settings.server.workers, loaded.settings.server.bind.len()), (5, 2));
        assert!(loaded.settings.app.preload && loaded.settings.name == "shop");
        assert!(loaded.warnings.iter().any(|warning| warning.ends_with("FORKMASTER_PORT")), "{:?}", loaded.warnings);
        deploy.overrides.workers = Some("6".to_owned());
        deploy.overrides.bind = vec!["127.0.0.1:3".to_owned()];
        deploy.overrides.module = Some("other:app".to_owned());
        let loaded = deploy.read(&text).unwrap();
        assert_eq!(
            (loaded.settings.server.workers, loaded.settings.server.bind[0].to_string()),
            (6, "127.0.0.1:3".to_owned())
        );
        assert_eq!(loaded.settings.app.application.module, "other");
        // A wrong value is reported where it is.
        deploy.overrides = Overrides::default();
        deploy.set("FORKMASTER_SERVER__WORKERS", "many");
        let refused = deploy.refused(&text);
        assert_eq!(
            refused,
            ["FORKMASTER_SERVER__WORKERS: [server] workers = \"many\": a number is needed, or \"auto\""]
        );
    }

    #[test]
    fn expansion_uses_the_start_environment_and_env_file_and_stands_for_numbers() {
        let mut deploy = Deploy::new();
        deploy.set("WORKERS", "4");
        deploy.set("NOTIFY_SOCKET", "/n");
        std::fs::write(
            deploy.path("current/shop.env"),
            "export PRELOAD=true\nADDRESSES=127.0.0.1:1,127.0.0.1:2\nLITERAL='${WORKERS}'\n",
        )
        .unwrap();
        let text = format!(
            "{APP}env_file = \"${{NAME:-shop}}.env\"\npreload = \"${{PRELOAD}}\"\n[server]\nworkers = \"${{WORKERS}}\"\n\
             bind = \"${{ADDRESSES}}\"\n[env]\nTOTAL = \"${{WORKERS}} of $$5\"\nPASSWORD = \"x${{WORKERS}}\"\n"
        );
        let loaded = deploy.read(&text).unwrap();
        let settings = &loaded.settings;
        assert!(settings.app.preload && settings.server.workers == 4 && settings.server.bind.len() == 2);
        let variable = |name: &str| {
            settings.app.environment.iter().find(|(key, _)| key == name).map(|(_, value)| value.to_str().unwrap())
        };
        assert_eq!(variable("TOTAL"), Some("4 of $5"));
        assert_eq!(variable("LITERAL"), Some("${WORKERS}"));
        assert_eq!(variable("PASSWORD"), Some("x4"));
        assert_eq!(variable("NOTIFY_SOCKET"), None);
        assert!(loaded.show().contains("PASSWORD = \"***\"") && !loaded.show().contains("x4"));
        // Not from [env], and the supervisor's variables are none of ours.
        let refused = deploy.refused(&format!("{APP}[env]\nA = \"1\"\nB = \"${{A}}\"\nC = \"${{NOTIFY_SOCKET}}\"\n"));
        assert_eq!(refused.len(), 3, "{refused:?}");
        std::fs::write(deploy.path("current/shop.env"), "secret stuff\n").unwrap();
        let refused = deploy.refused(&format!("{APP}env_file = \"shop.env\"\n"));
        assert_eq!(refused, ["/T/releases/1/shop.env:1: not KEY=VALUE"]);
    }

    #[test]
    fn the_environment_is_that_of_an_activated_venv_and_of_the_user() {
        let mut deploy = Deploy::new();
        deploy.set("USER", "root");
        deploy.set("LOGNAME", "root");
        deploy.set("PYTHONHOME", "/x");
        deploy.set("PWD", "/somewhere");
        let environment = |loaded: Loaded| loaded.settings.app.environment;
        let find = |environment: &[(std::ffi::OsString, std::ffi::OsString)], name: &str| {
            environment.iter().find(|(key, _)| key == name).map(|(_, value)| value.to_string_lossy().into_owned())
        };
        let plain = environment(deploy.read(APP).unwrap());
        let venv = deploy.path("releases/1/venv").to_string_lossy().into_owned();
        assert_eq!(find(&plain, "VIRTUAL_ENV"), Some(venv.clone()));
        assert_eq!(find(&plain, "PATH"), Some(format!("{venv}/bin:/usr/bin:/bin")));
        assert_eq!(find(&plain, "PWD"), Some(deploy.path("releases/1").to_string_lossy().into_owned()));
        assert_eq!(find(&plain, "PYTHONHOME"), None);
        assert_eq!((find(&plain, "HOME"), find(&plain, "USER")), (Some("/root".into()), Some("root".into())));
        let nobody = environment(deploy.read(&format!("{APP}[server]\nuser = \"nobody\"\n")).unwrap());
        assert_eq!(find(&nobody, "USER"), Some("nobody".into()));
        assert_eq!(find(&nobody, "LOGNAME"), Some("nobody".into()));
        assert_ne!(find(&nobody, "HOME"), Some("/root".into()));
        let text =
            format!("{APP}[server]\nuser = 3999999999\ngroup = 5\n[env]\nLOGNAME = \"me\"\nPYTHONHOME = \"/y\"\n");
        let loaded = deploy.read(&text).unwrap();
        assert!(loaded.warnings.iter().any(|warning| warning.contains("PYTHONHOME")));
        let number = environment(loaded);
        assert_eq!((find(&number, "HOME"), find(&number, "USER")), (Some("/".into()), None));
        assert_eq!((find(&number, "LOGNAME"), find(&number, "PYTHONHOME")), (Some("me".into()), None));
        // Nothing inherited at all.
        deploy.context.environment.clear();
        let empty = environment(deploy.read(APP).unwrap());
        assert_eq!(find(&empty, "PATH"), Some(format!("{venv}/bin:/usr/local/bin:/usr/bin:/bin")));
        assert_eq!(empty.len(), 3);
    }

    #[test]
    fn an_unprivileged_master_stays_who_it_is() {
        let mut deploy = Deploy::new();
        deploy.context.uid = 10_001;
        deploy.context.gid = 10_001;
        let loaded = deploy.read(&format!("{APP}[server]\nuser = 10001\ngroup = 10001\n")).unwrap();
        assert_eq!(loaded.settings.server.identity, None);
        let refused = deploy.refused(&format!("{APP}[server]\nuser = \"nobody\"\nsocket_user = \"root\"\n"));
        assert!(
            refused[1].contains("only root can become") && refused[2].contains("only root can give"),
            "{refused:?}"
        );
    }

    #[test]
    fn no_file_is_needed() {
        let mut deploy = Deploy::new();
        deploy.context.cwd = deploy.path("current");
        let source = |module: Option<&str>| Source {
            file: None,
            overrides: Overrides { module: module.map(str::to_owned), ..Overrides::default() },
        };
        let settings = read(&source(Some("shop.wsgi:app")), &deploy.context).unwrap().settings;
        assert_eq!(settings.app.release, deploy.path("releases/1"));
        assert!(settings.name.starts_with("current-"));
        let message = read(&source(None), &deploy.context).unwrap_err().to_string();
        assert!(message.contains("[app] module: missing"), "{message}");
        let message = read(&source(Some("a:")), &deploy.context).unwrap_err().to_string();
        assert!(message.starts_with("MODULE: [app] module = \"a:\": "), "{message}");
    }

    #[test]
    fn a_client_finds_the_socket_whatever_else_is_wrong() {
        let mut deploy = Deploy::new();
        let text = "name = \"shop\"\n[app]\nmodule = 3\nvenv = \"gone\"\nenv_file = \"gone.env\"\nunknown = 1\n";
        std::fs::write(deploy.path("current/app.toml"), text).unwrap();
        deploy.set("RUNTIME_DIRECTORY", "/run/shop:/run/other");
        deploy.set("XDG_RUNTIME_DIR", "/run/user/0");
        let expected = [
            ControlAddress::Path("/run/shop/shop.sock".into()),
            ControlAddress::Path("/run/forkmaster/shop.sock".into()),
            ControlAddress::Path("/run/user/0/shop.sock".into()),
            ControlAddress::Abstract("forkmaster/0/shop".into()),
        ];
        let found = control(&deploy.source(), &deploy.context).unwrap();
        assert_eq!(found.socket, ControlSocket::Auto(expected.to_vec()));
        std::fs::write(deploy.path("current/app.toml"), "name = \"a/b\"\n[control]\nsocket = \"none\"\n").unwrap();
        assert!(control(&deploy.source(), &deploy.context).unwrap_err().to_string().contains("name = \"a/b\""));
        std::fs::write(deploy.path("current/app.toml"), "name = = 1").unwrap();
        assert!(control(&deploy.source(), &deploy.context).is_err());
    }
}
