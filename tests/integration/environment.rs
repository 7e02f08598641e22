//! What a generation's processes see: environment, user, umask, process titles, and hosts that give little.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::{chown, PermissionsExt};

use crate::harness::client;
use crate::harness::for_each_preload;
use crate::harness::machine::{can_change_users, Machine};
use crate::harness::master::{Launch, Master};
use crate::harness::process;
use crate::harness::site::{copy_binary_to, Site};

/// A release whose Python every user may run.
fn public_release(name: &str) -> Site {
    let site = Site::new(name);
    site.build("1").python(Machine::get().public_python()).make();
    site.flip("1");
    site
}

#[test]
fn an_empty_environment_works() {
    let site = Site::with_releases("empty_environment", 1);
    let master = site.launch(Launch { env: Vec::new(), ..Launch::default() });
    master.wait_serving();
    let info = master.get("/info").json();
    let environ = info["environ"].as_object().expect("a table");
    let names: BTreeSet<&str> = environ.keys().map(String::as_str).collect();
    assert!(names.contains("PATH") && names.contains("VIRTUAL_ENV") && names.contains("PWD"), "{names:?}");
    master.reload();
    assert_eq!(master.get("/").text(), "1");
}

#[test]
fn variables_of_the_supervisors_protocols_do_not_reach_the_application() {
    let site = Site::with_releases("protocol_variables", 1);
    let launch = Launch::default()
        .env("LISTEN_FDNAMES", "http")
        .env("WATCHDOG_USEC", "60000000")
        .env("PYTHONHOME", "/nowhere")
        .env("PYENV_VERSION", "2.7.18")
        .env("__PYVENV_LAUNCHER__", "/nowhere")
        .env("PLAIN", "kept");
    let master = site.launch(launch);
    master.wait_serving();
    let environ = master.get("/info").json()["environ"].clone();
    for name in ["LISTEN_FDNAMES", "WATCHDOG_USEC", "PYTHONHOME", "PYENV_VERSION", "__PYVENV_LAUNCHER__"] {
        assert!(environ[name].is_null(), "{name} reached the application");
    }
    assert_eq!(environ["PLAIN"], "kept");
}

#[test]
fn stdin_is_dev_null_and_stdout_is_the_masters() {
    let site = Site::new("stdio");
    let app = "import sys\nfrom good import application\nprint('a line of the application')\n\
               print('and one to stderr', file=sys.stderr)\n";
    let good = crate::harness::site::app_source("app.py");
    site.build("1").file("good.py", &good).file("app.py", app).make();
    site.flip("1");
    for_each_preload(|preload| {
        site.set("app.preload", preload);
        let master = site.start();
        assert_eq!(master.get("/info").json()["stdin"], "/dev/null");
        let lines = master.stdout().lines().filter(|line| *line == "a line of the application").count();
        // Printed by each import: once per worker, or once in the template and never again by a fork.
        assert_eq!(lines, if preload == "true" { 1 } else { 2 }, "preload = {preload}: {}", master.stdout());
        assert!(master.log().contains("and one to stderr"));
    });
}

#[test]
fn argv_main_and_flags_look_like_an_ordinary_programs() {
    let site = Site::new("ordinary");
    let app = "import sys\nimport __main__\nfrom good import answer, application as good\n\
               def application(environ, start_response):\n\
               \x20   if environ['PATH_INFO'] == '/main':\n\
               \x20       return answer(start_response, repr((sys.argv, __main__.__name__, sys.flags.isolated, sys.flags.no_site)))\n\
               \x20   return good(environ, start_response)\n";
    let good = crate::harness::site::app_source("app.py");
    site.build("1").file("good.py", &good).file("app.py", app).make();
    site.flip("1");
    let master = site.start();
    let text = master.get("/main").text();
    assert!(text.ends_with("'__main__', 0, 0)"), "{text}");
    assert!(!text.contains("channel="), "our own argument is visible: {text}");
    assert!(!text.contains("''"), "argv[0] is empty: {text}");
}

#[test]
fn workers_run_as_the_configured_user_and_the_master_stays() {
    if !can_change_users() {
        return;
    }
    let site = public_release("user");
    site.set("server.user", "'www-data'");
    let master = site.start();
    let info = master.get("/info").json();
    assert_eq!((info["uid"].as_u64(), info["gid"].as_u64()), (Some(33), Some(33)));
    assert_eq!(info["environ"]["USER"], "www-data");
    assert_eq!(info["environ"]["HOME"], "/var/www");
    assert_eq!(info["groups"].as_array().map(Vec::len), Some(1), "groups of root are left: {}", info["groups"]);
    assert_eq!(process::status_field(master.pid(), "Uid:").as_deref(), Some("0\t0\t0\t0"));
    master.reload();
    assert_eq!(master.get("/info").json()["uid"], 33);
}

#[test]
fn a_user_by_number_without_a_passwd_entry() {
    if !can_change_users() {
        return;
    }
    let site = public_release("uid_10001");
    site.set("server.user", "10001").set("server.group", "10001");
    let master = site.start();
    let info = master.get("/info").json();
    assert_eq!((info["uid"].as_u64(), info["gid"].as_u64()), (Some(10001), Some(10001)));
    master.assert_quiet_log();
}

/// Kubernetes' runAsUser: the master itself is somebody without a passwd entry.
#[test]
fn the_master_as_uid_10001_without_a_passwd_entry() {
    if !can_change_users() {
        return;
    }
    let site = public_release("master_10001");
    chown(site.path(), Some(10001), Some(10001)).expect("root may");
    let master = site.launch(Launch { before_exec: Some(become_10001()), ..Launch::default() });
    master.wait_serving();
    let info = master.get("/info").json();
    assert_eq!((info["uid"].as_u64(), info["gid"].as_u64()), (Some(10001), Some(10001)));
    master.reload();
    master.stop_clean();
}

type BeforeExec = Box<dyn FnMut() -> std::io::Result<()> + Send + Sync>;

fn become_10001() -> BeforeExec {
    Box::new(|| {
        // SAFETY: three system calls that are async-signal-safe; an empty list of groups may be a null pointer.
        let failed = unsafe {
            libc::syscall(libc::SYS_setgroups, 0, std::ptr::null::<libc::gid_t>()) != 0
                || libc::syscall(libc::SYS_setgid, 10001) != 0
                || libc::syscall(libc::SYS_setuid, 10001) != 0
        };
        match failed {
            true => Err(std::io::Error::last_os_error()),
            false => Ok(()),
        }
    })
}

/// `site` runs .pth files of a directory that the deploy user owns: none of it may be read as root.
#[test]
fn no_byte_of_a_release_is_run_as_root() {
    if !can_change_users() {
        return;
    }
    let site = Site::new("pth");
    let report = site.write("uids", "");
    fs::set_permissions(&report, fs::Permissions::from_mode(0o666)).expect("it is our file");
    let line = format!("import os; open({:?}, 'a').write('%d %d\\n' % (os.getuid(), os.geteuid()))\n", report);
    site.build("1").python(Machine::get().public_python()).file("site-packages/report.pth", &line).make();
    site.flip("1");
    site.set("server.user", "'nobody'").set("server.group", "'nogroup'");
    let master = site.start();
    master.reload();
    let uids = fs::read_to_string(&report).expect("the .pth file ran");
    assert!(!uids.is_empty());
    for line in uids.lines() {
        assert_eq!(line, "65534 65534", "the release ran as another user:\n{uids}");
    }
}

#[test]
fn root_without_a_user_is_one_loud_warning() {
    if !can_change_users() {
        return;
    }
    let site = Site::with_releases("as_root", 1);
    let master = site.start();
    assert_eq!(master.log_lines(" WARN ").iter().filter(|line| line.contains("root")).count(), 1, "{}", master.log());
}

#[test]
fn the_umask_is_set_or_inherited() {
    let site = Site::with_releases("umask", 1);
    let before_exec: BeforeExec = Box::new(|| {
        // SAFETY: umask cannot fail and is async-signal-safe.
        unsafe { libc::umask(0o027) };
        Ok(())
    });
    let master = site.launch(Launch { before_exec: Some(before_exec), ..Launch::default() });
    master.wait_serving();
    assert_eq!(master.get("/info").json()["umask"], "0027", "it is inherited");
    site.set("server.umask", "'0007'");
    master.reload();
    assert_eq!(master.get("/info").json()["umask"], "0007");
    let target = site.path().join("made");
    assert_eq!(master.get(&format!("/write?path={}", target.display())).text(), "0o660");
}

#[test]
fn process_titles_tell_generation_slot_and_state() {
    let site = Site::with_releases("titles", 1);
    site.set("name", "'shop'");
    let master = site.start();
    for worker in master.wait_serving() {
        let title = process::Process::of(worker.pid).expect("it serves").title;
        for part in ["shop", "gen=1", &format!("slot={}", worker.slot), "serving"] {
            assert!(title.contains(part), "{part:?} is not in the title {title:?}");
        }
    }
    let template = master.status().and_then(|status| status.serving()).expect("it serves").template_pid;
    let title = process::Process::of(template).expect("it is there").title;
    assert!(title.contains("shop") && title.contains("gen=1") && title.contains("template"), "{title:?}");
}

#[test]
fn threads_left_running_by_a_preloaded_import_are_named() {
    let site = Site::new("threads_at_import");
    let app = "import threading\nfrom good import application\n\
               threading.Thread(target=threading.Event().wait, name='metrics-flusher', daemon=True).start()\n";
    let good = crate::harness::site::app_source("app.py");
    site.build("1").file("good.py", &good).file("app.py", app).make();
    site.flip("1");
    site.set("app.preload", "true");
    let master = site.start();
    let line = master.wait_log("metrics-flusher");
    assert!(line.contains(" WARN "), "{line}");
}

/// The control socket with its default: the first directory that can be used, for server and client alike.
#[test]
fn the_default_control_socket_is_found_by_the_commands() {
    let site = Site::with_releases("default_control", 1);
    site.unset("control.socket");
    let runtime = site.path().join("runtime");
    fs::create_dir(&runtime).expect("it is our directory");
    fs::set_permissions(&runtime, fs::Permissions::from_mode(0o700)).expect("it is our directory");
    let master = site.launch(Launch::default().env("RUNTIME_DIRECTORY", runtime.to_str().expect("plain characters")));
    master.wait_log("-> serving");
    let files = fs::read_dir(&runtime).expect("it is there").flatten();
    let sockets: Vec<_> = files.filter(|file| file.path().extension().is_some_and(|end| end == "sock")).collect();
    assert_eq!(sockets.len(), 1);
    let mode = sockets[0].metadata().expect("it is there").permissions().mode();
    assert_eq!(mode & 0o777, 0o600, "owner only");
    let launch = Launch::default().env("RUNTIME_DIRECTORY", runtime.to_str().expect("plain characters"));
    let config = site.config_path();
    let args = ["status", "-c", config.to_str().expect("plain characters")];
    let output = crate::harness::master::run_with(site.path(), &args, launch);
    assert!(output.ok(), "{output}");
}

/// A container as strict ones are: read-only root, an empty read-only /run, no writable temporary directory, a user
/// without a passwd entry. It serves, bodies lie in memory, and no line is an error that is not one.
#[test]
fn a_read_only_root_without_a_temporary_directory() {
    if !can_change_users() {
        return;
    }
    let site = public_release("read_only");
    site.unset("control.socket");
    // A mount namespace of its own: everything read-only, and tmpfs's that are read-only too where something could
    // be written. The log is an open file already.
    let script = "set -e\n\
                  mount --make-rprivate /\n\
                  mkdir -p /run /var/tmp /tmp\n\
                  site=$1; shift\n\
                  mount --bind \"$site\" /mnt\n\
                  for d in /run /var/tmp /tmp /dev/shm; do [ -d $d ] && mount -t tmpfs -o size=64k tmpfs $d; done\n\
                  mkdir -p \"$site\"\n\
                  mount --bind /mnt \"$site\"\n\
                  for d in /run /var/tmp /tmp /dev/shm \"$site\" /; do [ -d $d ] && mount -o remount,bind,ro $d; done\n\
                  cd \"$site\"\n\
                  exec setpriv --reuid 10001 --regid 10001 --clear-groups -- \"$@\"\n";
    let unshare = Machine::get().program("unshare").to_str().expect("plain characters").to_string();
    let through = [&unshare, "-m", "sh", "-c", script, "sh", site.path().to_str().expect("plain characters")];
    let binary = copy_binary_to(&site);
    let launch = Launch {
        through: through.iter().map(|word| word.to_string()).collect(),
        binary: Some(binary),
        ..Launch::default()
    };
    let master = site.launch(launch);
    master.wait_log("worker gen=1 * -> serving");
    let address = master.address();
    assert_eq!(client::get(&address, "/").expect("it serves").text(), "1");
    assert_eq!(client::get(&address, "/info").expect("it serves").json()["uid"], 10001);
    let mut connection = client::Connection::to(&address);
    let small = vec![b'x'; 100_000];
    assert_eq!(connection.post("/echo", &small).expect("a small body needs no file").body, small);
    let large = vec![b'x'; 2_000_000];
    assert_eq!(connection.post("/echo", &large).expect("it has memory").body, large);
    master.wait_log("no temporary directory is writable");
    let mut connection = client::Connection::to(&address);
    connection.must_send(client::head("POST", "/echo", &[("Content-Length", "80000000")]));
    assert_eq!(connection.expect_answer().status, 413);
    let mark = master.mark();
    master.hup();
    master.wait_log_after(mark, "generation gen=2 rolling -> serving");
    assert_eq!(client::get(&address, "/").expect("it serves").text(), "1");
    let log = master.log();
    assert!(!log.contains(" ERROR ") && !log.contains("Traceback"), "{log}");
    master.stop();
}

/// /proc of a worker: it inherits what it must have and nothing else.
#[test]
fn a_subprocess_of_the_application_inherits_no_descriptor() {
    let site = Site::new("subprocess");
    let app = "import subprocess\nfrom good import answer, application as good\n\
               def application(environ, start_response):\n\
               \x20   if environ['PATH_INFO'] == '/fds':\n\
               \x20       listing = subprocess.run(['ls', '-l', '/proc/self/fd'], capture_output=True, close_fds=False)\n\
               \x20       return answer(start_response, listing.stdout)\n\
               \x20   return good(environ, start_response)\n";
    let good = crate::harness::site::app_source("app.py");
    site.build("1").file("good.py", &good).file("app.py", app).make();
    site.flip("1");
    let master: Master = site.start();
    let listing = master.get("/fds").text();
    for line in listing.lines().filter(|line| line.contains("->")) {
        let foreign = line.contains("socket:") || line.contains("anon_inode") || line.contains("memfd");
        assert!(!foreign, "a subprocess inherits {line}");
    }
}

#[test]
fn descriptors_that_the_master_was_started_with_do_not_reach_the_application() {
    const STRAY: i32 = 77;
    let site = Site::with_releases("stray_descriptor", 1);
    let before_exec: BeforeExec = Box::new(|| {
        // SAFETY: makes a copy of stdin, which is open; dup2(2) is async-signal-safe.
        match unsafe { libc::dup2(0, STRAY) } {
            STRAY => Ok(()),
            _failed => Err(std::io::Error::last_os_error()),
        }
    });
    let master = site.launch(Launch { before_exec: Some(before_exec), ..Launch::default() });
    let has_it = |pid: i32| fs::symlink_metadata(format!("/proc/{pid}/fd/{STRAY}")).is_ok();
    for worker in master.wait_serving() {
        assert!(!has_it(worker.pid), "worker {}", worker.pid);
    }
    assert!(has_it(master.pid()), "the test itself does not work");
    let template = master.status().and_then(|status| status.serving()).map(|generation| generation.template_pid);
    assert!(template.is_some_and(|template| !has_it(template)));
}
