//! What each setting is read as: defaults, every kind of value, and what is said of a wrong one.

use super::*;

#[test]
fn defaults_are_those_of_the_documentation() {
    let deploy = Deploy::new();
    let loaded = deploy.read(APP).unwrap();
    let Settings { name, app, server, reload, hooks, services, http, log, control, status, dev } = loaded.settings;
    assert!(services.is_empty());
    assert!(status.bind.is_empty() && !dev);
    assert!(hooks.worker_start.is_none() && hooks.worker_exit.is_none() && hooks.commands.on_ready.is_empty());
    assert_eq!(hooks.commands.timeout, Duration::from_secs(5));
    assert_eq!((app.script_name.as_str(), &http.health_path, http.body_memory_alone), ("", &None, 64 << 20));
    assert_eq!(log.slow_request, Some(Duration::from_secs(10)));
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
    assert_eq!((http.keepalive_timeout, http.header_timeout), (Some(seconds(75)), seconds(10)));
    assert_eq!((http.body_timeout, http.write_timeout), (seconds(30), seconds(30)));
    assert_eq!((http.limit_request_line, http.limit_request_fields), (8190, 100));
    assert_eq!((http.limit_request_field_size, http.limit_request_head), (8190, 65536));
    assert_eq!((http.body_memory, http.max_body), (512 << 10, 100 << 20));
    assert_eq!(peers(&http), ["127.0.0.1", "::1", "unix"]);
    assert_eq!(http.forwarded_headers, [ForwardedHeader::For, ForwardedHeader::Proto]);
    assert_eq!(server.max_processes, None);
    assert!(http.secure_scheme_headers.is_empty());
    assert_eq!((log.level, log.error, log.access), (LogLevel::Info, LogTarget::Stderr, None));
    let ControlSocket::Auto(places) = control.socket else { panic!("not auto: {:?}", control.socket) };
    assert_eq!(places[0].path, Path::new(&format!("/run/forkmaster/{name}.sock")));
    assert!(loaded.warnings.is_empty());
}

/// As found: it was `keepalive_timeout` then, and nothing said so.
#[test]
fn a_drain_timeout_that_does_not_hold_is_warned_of() {
    let deploy = Deploy::new();
    let warnings = |text: &str| deploy.read(&format!("{APP}{text}")).unwrap().warnings;
    assert_eq!(
        warnings("[reload]\ndrain_timeout = \"2s\"\n"),
        [
            "app.toml:4: [reload] drain_timeout = 2s is less than [http] keepalive_timeout (75s), which holds: clients may use \
          their connections for so long; write at least 75s, or lower keepalive_timeout as well"
        ]
    );
    for good in [
        "[reload]\ndrain_timeout = \"75s\"\n",
        "[reload]\ndrain_timeout = \"2s\"\n[http]\nkeepalive_timeout = \"2s\"\n",
        "[reload]\ndrain_timeout = \"2s\"\n[http]\nkeepalive_timeout = \"none\"\n",
        "[http]\nkeepalive_timeout = \"1h\"\n",
    ] {
        assert_eq!(warnings(good), [""; 0], "{good}");
    }
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
script_name = "/shop/"
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
health_path = "/-/healthz"
temp_dir = "/usr/lib"
temp_limit = "1GB"
response_buffer = "8MiB"
[server.request_timeouts]
"/reports/" = "10m"
"/reports/yearly/" = "none"
[reload]
max_surge = "100%"
max_unavailable = 1
drain_timeout = "1m"
rollback_window = "10m"
canary = { workers = 1, hold = "2m" }
[hooks]
worker_start = "shop.hooks:start"
worker_exit = "shop.hooks:Life.stop"
on_ready = ["/bin/sh", "-c", "true"]
on_reload = ["sh"]
on_exit = ["sh", "-c", "true"]
command_timeout = "30s"
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
format = "json"
access_skip = ["/healthz", "/static/*"]
access_status = ">=400"
[control]
socket = "run/control.sock"
[status]
bind = ["127.0.0.1:9090"]
"#;
    let loaded = deploy.read(text).unwrap();
    for (section, key) in keys::KEYS.iter().map(keys::KeySpec::at) {
        let seen = loaded.effective.iter().any(|setting| setting.section == section && setting.key == key);
        assert!(seen || key == "python" || key == "request_timeouts", "[{section}] {key} is not shown");
    }
    let settings = &loaded.settings;
    let (real, named) = (deploy.path("releases/1"), deploy.path("current"));
    assert_eq!(settings.app.application.call.as_deref(), Some("'prod'"));
    assert_eq!(settings.app.script_name, "/shop");
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
    let mut again = deploy.read(&loaded.show(false)).unwrap();
    // What is shown is what is pinned: no link is left in it.
    assert_eq!((&again.settings.app.release_named, &settings.app.release_named), (&settings.app.release, &named));
    again.settings.app.release_named.clone_from(&settings.app.release_named);
    assert_eq!(again.settings.app.aliases, []);
    again.settings.app.aliases.clone_from(&settings.app.aliases);
    assert_eq!(again.settings, loaded.settings, "{}", loaded.show(false));
}

#[test]
fn all_problems_come_at_once_with_line_value_reason_and_fix() {
    let deploy = Deploy::new();
    let text = "wrokers = 1\n[app]\nmodule = \"shop/wsgi.py\"\npreload = \"auto\"\nvenv = \"gone\"\npython = \"/usr/bin/python3\"\n\
                [server]\ngraceful_timout = \"1s\"\ngraceful_timeout = 30\nworkers = \"4\"\nbind = [\n\"127.0.0.1:80\",\n\"systemd:\",\n\"0.0.0.0:80\"]\n\
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
        "app.toml:11: [server] bind = [\"127.0.0.1:80\", \"systemd:\", \"0.0.0.0:80\"]: 127.0.0.1:80 and 0.0.0.0:80 overlap: the kernel gives only one of them the port; keep the wider one",
        "app.toml:13: [server] bind = \"systemd:\": a name is missing; write the FileDescriptorName= of the .socket unit, \"systemd:http\"",
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
        ("server", "health_path = \"healthz\"", "write \"/-/healthz\""),
        ("server", "health_path = \"/healthz?full\"", "has no query"),
        ("http", "keepalive_timeout = 0", "write \"none\": each answer then closes its connection"),
        ("http", "keepalive_timeout = \"0s\"", "write \"none\": each answer then closes its connection"),
        ("http", "keepalive_timeout = false", "write \"none\""),
        ("http", "keepalive_timeout = 5", "write \"5s\""),
        ("http", "limit_request_line = 0", "must be from 64 to 1048576, or \"none\""),
        ("http", "limit_request_fields = 0", "or \"none\""),
        ("http", "limit_request_field_size = 0", "or \"none\""),
        ("hooks", "worker_start = \"shop.hooks\"", "which function? Write \"shop.hooks:start\""),
        ("hooks", "worker_exit = \"shop.hooks:stop()\"", "it is called by the worker; write \"shop.hooks:stop\""),
        ("hooks", "on_ready = \"announce\"", "a list is needed; write [\"announce\"]"),
        ("hooks", "on_ready = [\"echo it serves\"]", "no shell takes it apart; write [\"echo\", \"it\", \"serves\"]"),
        ("hooks", "on_exit = [\"no-such-command\"]", "there is no no-such-command on PATH"),
        ("hooks", "on_reload = [\"/usr/bin/no-such\", \"shop\"]", "there is no file /usr/bin/no-such"),
        ("hooks", "on_reload = [\"\"]", "a command is missing"),
        ("app", "script_name = \"shop/\"", "write \"/shop\""),
        ("app", "script_name = \"/a//b\"", "write \"/a/b\""),
        ("server", "max_lifetime = \"0s\"", "without a limit it is \"none\""),
        ("server", "boot_timeout = \"none\"", "cannot be \"none\""),
        ("server", "boot_timeout = \"0s\"", "more than zero"),
        ("server", "temp_limit = \"none\"", "cannot be \"none\""),
        ("server", "request_timeouts = { reports = \"1m\" }", "write \"/reports\""),
        ("server", "request_timeouts = { \"/r\" = 5 }", "write \"5s\""),
        ("reload", "rollback_window = \"none\"", "cannot be \"none\""),
        ("reload", "canary = { max_errors = \"1%\" }", "+1pp"),
        ("reload", "max_surge = \"50%\"", "\"100%\""),
        ("http", "limit_request_head = \"64GiB\"", "\"16MiB\""),
        ("http", "limit_request_line = 65537", "raise limit_request_head"),
        ("http", "forwarded_allow_ips = [\"10.0.0.0/40\"]", "10.0.0.0/8"),
        ("http", "forwarded_headers = [\"by\"]", "\"script_name\", or \"forwarded\""),
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
