//! What a first start finds by itself, what it says while it takes long, and whom it blames where the system forbids
//! something.

use std::fs;

use crate::harness::for_each_preload;
use crate::harness::machine::{can_change_users, not_tested, Machine};
use crate::harness::master::{run, Launch};
use crate::harness::site::Site;

/// Nothing but an application in the directory.
#[test]
fn forkmaster_alone_serves_what_lies_there() {
    let site = Site::with_releases("alone", 1);
    fs::remove_file(site.config_path()).expect("the site has a configuration");
    let launch = Launch { directory: Some(site.release_path("1")), ..Launch::default() };
    let socket = site.path().join("control.sock");
    let launch = launch.env("FORKMASTER_CONTROL__SOCKET", &socket.to_string_lossy()).args(&["--bind", "127.0.0.1:0"]);
    let master = site.launch(launch);
    assert_eq!(master.get("/").text(), "1");
    // Its own virtual environment was found as well.
    let prefix = master.get("/info").json()["prefix"].as_str().expect("text").to_owned();
    assert!(prefix.ends_with("releases/1/venv"), "{prefix}");
    master.hup();
    master.wait_log("generation gen=2 committed");
    assert_eq!(master.get("/").text(), "1");
}

#[test]
fn config_init_writes_a_file_that_serves() {
    let site = Site::with_releases("init", 1);
    let release = site.release_path("1");
    let output = run(&release, &["config", "init"]);
    assert!(
        output.ok() && output.stdout.contains("app.toml: written for app:application, found in app.py"),
        "{output}"
    );
    let launch = Launch { directory: Some(release.clone()), ..Launch::default() };
    let socket = site.path().join("control.sock");
    let launch = launch.env("FORKMASTER_CONTROL__SOCKET", &socket.to_string_lossy()).args(&["-b", "127.0.0.1:0"]);
    let master = site.launch(launch);
    assert_eq!(master.get("/").text(), "1");
    master.stop();
    assert_eq!(run(&release, &["config", "init"]).code, Some(1), "it must not write over a file");
}

/// It imports, and answered every request with a 500 once.
#[test]
fn a_reload_refuses_what_no_wsgi_server_can_call() {
    let site = Site::with_releases("kinds", 1);
    let master = site.start();
    let before = master.wait_serving();
    let flask = "class Flask:\n    def __call__(self, environ, start_response):\n        return []\n\n";
    for (number, app, module, expected) in [
        ("2", "async def application(scope, receive, send):\n    pass\n", "app:application", "is an ASGI application"),
        (
            "3",
            &format!("{flask}def create_app():\n    return Flask()\n"),
            "app:create_app",
            "write \"app:create_app()\"",
        ),
        ("4", &format!("{flask}app = Flask()\n"), "app:application", "it has `app`, a callable: write \"app:app\""),
    ] {
        site.build(number).file("app.py", app).make();
        site.flip(number);
        for_each_preload(|preload| {
            site.set("app.preload", preload).set("app.module", &format!("'{module}'"));
            let output = master.cli(&["reload"]);
            assert_eq!(output.code, Some(1), "{module}: {output}");
            assert!(output.stderr.contains(expected), "{expected}: {output}");
        });
    }
    assert_eq!(before, master.wait_serving(), "the old workers are not the same");
    assert_eq!(master.get("/").text(), "1");
}

/// Which line of the application it is that never returns.
#[test]
fn a_boot_that_hangs_says_where() {
    let site = Site::with_releases("hangs", 1);
    let master = site.start();
    site.build("2").app("broken/hanging_import.py").make();
    site.flip("2");
    site.set("server.boot_timeout", "'3s'");
    let output = master.cli(&["reload"]);
    assert_eq!(output.code, Some(1), "{output}");
    assert!(output.stderr.contains("not ready within boot_timeout (3.0s)"), "{output}");
    assert!(output.stderr.contains("releases/2/app.py\", line"), "no stack in the refusal: {output}");
    let line = master.wait_log("still imports or proves the application after");
    assert!(line.contains("worker gen=2 slot=0") && line.contains("WARN"), "{line}");
    // A template has no channel for stacks: faulthandler writes them into the log.
    site.set("app.preload", "true");
    let mark = master.mark();
    let output = master.cli(&["reload"]);
    assert_eq!(output.code, Some(1), "{output}");
    assert!(output.stderr.contains("its stacks are in the log"), "{output}");
    master.wait_log_after(mark, "template gen=3 still loads after");
    let log = master.log_after(mark);
    assert!(log.contains("releases/2/app.py\", line"), "{log}");
    assert_eq!(master.get("/").text(), "1");
}

#[test]
fn warmup_is_asked_in_every_worker_before_it_serves() {
    let app = "import os\nfrom good import application as good\n\nasked = []\n\n\
               def application(environ, start_response):\n\
               \x20   asked.append(environ['PATH_INFO'] + '?' + environ['QUERY_STRING'] + ' ' + environ['HTTP_HOST'])\n\
               \x20   if environ['PATH_INFO'] == '/raises':\n\
               \x20       raise KeyError('cold')\n\
               \x20   if environ['PATH_INFO'] == '/asked':\n\
               \x20       text = ','.join(asked).encode()\n\
               \x20       start_response('200 OK', [('Content-Length', str(len(text)))])\n\
               \x20       return [text]\n\
               \x20   return good(environ, start_response)\n";
    let good = crate::harness::site::app_source("app.py");
    let site = Site::new("warmup");
    site.build("1").file("good.py", &good).file("app.py", app).make();
    site.flip("1");
    site.set("app.probe", "{ path = '/', host = 'shop.example' }").set("app.warmup", "['/?a=b', '/raises']");
    for_each_preload(|preload| {
        site.set("app.preload", preload);
        let master = site.start();
        for _ in 0..8 {
            // Each connection may meet another worker.
            let asked = master.get("/asked").text();
            let expected = "/? shop.example,/?a=b shop.example,/raises? shop.example,/asked?";
            assert!(asked.starts_with(expected), "preload = {preload}: {asked}");
        }
        // The time stands in the log once a generation; what raised is told of each worker, and refuses nothing.
        assert_eq!(master.log_lines("warmup GET /?a=b answered 200 OK after=").len(), 1, "{}", master.log());
        assert_eq!(master.log_lines("warmup GET /raises raised KeyError: 'cold' after=").len(), 2, "{}", master.log());
        master.stop();
    });
}

/// The kernel says only "Operation not permitted", which once blamed Python.
#[test]
fn a_user_that_the_master_may_not_become_is_named_with_the_reason() {
    if !can_change_users() {
        return;
    }
    let site = Site::new("capabilities");
    site.build("1").python(Machine::get().public_python()).make();
    site.flip("1");
    site.set("server.user", "'www-data'");
    let through = ["setpriv", "--bounding-set", "-setuid,-setgid", "--"].map(str::to_owned).to_vec();
    let master = site.launch(Launch { through, ..Launch::default() });
    let status = master.wait_exit();
    let log = master.log();
    assert_eq!(status.code(), Some(77), "{log}");
    let expected =
        "[server] user: the master may not become www-data (uid 33): the capabilities CAP_SETUID and CAP_SETGID \
                    are missing; under systemd write `User=` in the unit and remove the setting";
    assert!(log.contains(expected), "{log}");
    assert!(!log.contains("cannot be started"), "{log}");
}

#[test]
fn a_python_behind_a_closed_directory_is_named_with_it() {
    if !can_change_users() {
        return;
    }
    let site = Site::new("closed");
    site.build("1").python(Machine::get().public_python()).make();
    site.flip("1");
    let closed = site.path().join("home");
    fs::create_dir(&closed).expect("it is our directory");
    fs::rename(site.release_path("1").join("venv"), closed.join("venv")).expect("it is our directory");
    fs::set_permissions(&closed, std::os::unix::fs::PermissionsExt::from_mode(0o700)).expect("it is our directory");
    site.set("server.user", "'www-data'").set("app.venv", &format!("'{}'", closed.join("venv").display()));
    let master = site.spawn();
    let status = master.wait_exit();
    let log = master.log();
    assert_eq!(status.code(), Some(77), "{log}");
    let real = closed.canonicalize().expect("it is there");
    let expected = format!("cannot be started as www-data (uid 33): {} is closed to it (mode 0700)", real.display());
    assert!(log.contains(&expected), "{log}");
}

/// A seccomp filter by hand: memfd_create(2) is EPERM, all else is allowed.
const FORBIDDING: &str = "
import ctypes, os, struct, sys
numbers = {'x86_64': 319, 'aarch64': 279}
code = [(0x20, 0, 0, 0), (0x15, 0, 1, numbers[os.uname().machine]), (0x06, 0, 0, 0x00050001), (0x06, 0, 0, 0x7fff0000)]
program = ctypes.create_string_buffer(b''.join(struct.pack('HBBI', *line) for line in code))
filter = struct.pack('HxxxxxxQ', len(code), ctypes.addressof(program))
libc = ctypes.CDLL(None, use_errno=True)
assert libc.prctl(38, 1, 0, 0, 0) == 0
assert libc.prctl(22, 2, ctypes.create_string_buffer(filter), 0, 0) == 0, os.strerror(ctypes.get_errno())
os.execv(sys.argv[1], sys.argv[1:])
";

#[test]
fn a_forbidden_memfd_create_is_named() {
    if !["x86_64", "aarch64"].contains(&std::env::consts::ARCH) {
        return not_tested("the number of memfd_create(2) on this processor");
    }
    let site = Site::with_releases("memfd", 1);
    let python = Machine::get().default_python().executable.to_string_lossy().into_owned();
    let through = vec![python, "-c".to_owned(), FORBIDDING.to_owned()];
    let master = site.launch(Launch { through, ..Launch::default() });
    let status = master.wait_exit();
    let log = master.log();
    assert_eq!(status.code(), Some(77), "{log}");
    assert!(
        log.contains("memfd_create(2) is forbidden (Operation not permitted), by a seccomp filter: allow it"),
        "{log}"
    );
}
