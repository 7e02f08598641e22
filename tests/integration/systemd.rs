//! Under a real systemd, as PID 1 of namespaces of its own: the template unit of examples/systemd as it is shipped, a
//! socket by its name, and the unit that Gunicorn's documentation publishes, with only the command changed.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use nix::sys::signal::{kill, Signal};
use nix::unistd::Pid;

use crate::harness::client::{self, Address};
use crate::harness::machine::{can_mount, not_tested, Machine};
use crate::harness::site::{copy_binary_to, Site};
use crate::harness::wait_for;

const SYSTEMD: &str = "/lib/systemd/systemd";

/// Namespaces in which nothing of this machine can be changed or started: the root is read only, /tmp and /run are new,
/// and none of the machine's units and generators is there (systemd-tmpfiles would empty /tmp). The site lies at
/// /srv/site. systemd needs two hierarchies of cgroups, and the three targets that every service asks for.
const BOOT: &str = "set -e
mount --make-rprivate /
mount -t proc proc /proc
mount -t tmpfs tmpfs /srv
mkdir /srv/site
mount --bind \"$1\" /srv/site
for new in /run /tmp /var/tmp /usr/lib/systemd/system /usr/lib/systemd/system-generators /etc/systemd; do
    mount -t tmpfs tmpfs $new
done
mount -t tmpfs tmpfs /sys/fs/cgroup
mkdir -p /sys/fs/cgroup/systemd /sys/fs/cgroup/unified
mount -t cgroup -o none,name=systemd cgroup /sys/fs/cgroup/systemd
mount -t cgroup2 cgroup2 /sys/fs/cgroup/unified
mount -o remount,bind,ro /
mkdir -p /run/systemd/system /run/lock
for target in sysinit basic sockets shutdown test; do
    printf '[Unit]\\nDescription=%s\\nDefaultDependencies=no\\n' $target >/run/systemd/system/$target.target
done
exec env -i container=test PATH=/usr/sbin:/usr/bin:/sbin:/bin /lib/systemd/systemd --system --unit=test.target";

struct Systemd {
    unshare: Child,
    /// As this process's namespace numbers it.
    pid: i32,
    log: PathBuf,
}

impl Systemd {
    /// None: this machine cannot do it, and the test has nothing to do.
    fn boot(site: &Site) -> Option<Systemd> {
        if !can_mount() {
            return None;
        }
        if !Path::new(SYSTEMD).exists() || !Path::new("/usr/bin/systemctl").exists() {
            not_tested("it needs systemd");
            return None;
        }
        let boot_log = fs::File::create(site.path().join("systemd.log")).expect("a file of the site can be made");
        let mut unshare = Command::new("unshare")
            .args(["-mpCuif", "sh", "-c", BOOT, "sh"])
            .arg(site.path())
            .stdin(Stdio::null())
            .stdout(boot_log.try_clone().expect("a descriptor can be duplicated"))
            .stderr(boot_log)
            .spawn()
            .expect("unshare is there");
        let first_child = |pid: u32| fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).ok();
        let pid = wait_for("systemd", || {
            if unshare.try_wait().expect("it is our child").is_some() {
                return Some(None);
            }
            let pid: i32 = first_child(unshare.id())?.split_whitespace().next()?.parse().ok()?;
            let name = fs::read_to_string(format!("/proc/{pid}/comm")).ok()?;
            (name.trim() == "systemd").then_some(Some(pid))
        });
        let Some(pid) = pid else {
            not_tested("it needs namespaces and cgroups of its own");
            return None;
        };
        let systemd = Systemd { unshare, pid, log: site.path().join("master.log") };
        wait_for("systemd to have booted", || {
            let state = systemd.ctl(&["is-system-running"]);
            ["running", "degraded"].contains(&String::from_utf8_lossy(&state.stdout).trim()).then_some(())
        });
        Some(systemd)
    }

    fn ctl(&self, args: &[&str]) -> Output {
        self.inside_run(&[&["systemctl"], args].concat())
    }

    /// Runs a command as root of that machine.
    fn inside_run(&self, words: &[&str]) -> Output {
        let pid = self.pid.to_string();
        let namespaces = ["-t", &pid, "-m", "-p", "-C", "-u", "-i"];
        Command::new("nsenter").args(namespaces).args(words).stdin(Stdio::null()).output().expect("nsenter is there")
    }

    #[track_caller]
    fn ok(&self, args: &[&str]) {
        let output = self.ctl(args);
        assert!(output.status.success(), "systemctl {args:?}: {output:?}\n{}", self.story(args.last().unwrap_or(&"")));
    }

    fn show(&self, unit: &str, property: &str) -> String {
        let output = self.ctl(&["show", "--value", "-p", property, unit]);
        String::from_utf8_lossy(&output.stdout).trim().to_string()
    }

    fn main_pid(&self, unit: &str) -> u32 {
        self.show(unit, "MainPID").parse().expect("a number")
    }

    /// Sends a signal to the unit's main process, whose number is that of the inner namespace.
    fn signal(&self, unit: &str, signal: &str) {
        self.ok(&["kill", "--kill-who=main", &format!("--signal={signal}"), unit]);
    }

    /// A file as the services see it.
    fn inside(&self, path: &str) -> PathBuf {
        PathBuf::from(format!("/proc/{}/root{path}", self.pid))
    }

    fn unit(&self, name: &str, text: &str) {
        let path = self.inside(&format!("/run/systemd/system/{name}"));
        fs::create_dir_all(path.parent().expect("it has one")).expect("/run is a tmpfs");
        fs::write(&path, text).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    }

    fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    fn story(&self, unit: &str) -> String {
        let status = self.ctl(&["status", "--no-pager", "-l", unit]);
        format!("{}\n{}", String::from_utf8_lossy(&status.stdout), self.log())
    }
}

impl Drop for Systemd {
    /// unshare ignores TERM, and PID 1 takes its whole namespace along.
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}", self.log());
        }
        let _ = kill(Pid::from_raw(self.pid), Signal::SIGKILL);
        let _ = self.unshare.wait();
    }
}

/// What these tests change in a unit: where the binary and the configuration are, where the log goes (there is no
/// journal), and how patient it is.
fn patched(file: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/systemd").join(file);
    let text = fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    text.replace("/usr/local/bin/forkmaster", "/srv/site/forkmaster").replace("/etc/forkmaster/", "/srv/site/")
}

const DROP_IN: &str = "[Service]\nStandardError=append:/srv/site/master.log\nRestartSec=100ms\n";

fn site(name: &str) -> Site {
    let site = Site::new(name);
    for release in ["1", "2"] {
        site.build(release).python(Machine::get().public_python()).make();
    }
    site.flip("1");
    copy_binary_to(&site);
    site.unset("control.socket");
    site
}

#[test]
fn the_shipped_unit_starts_reloads_heals_and_stops() {
    let site = site("systemd_unit");
    site.set("server.bind", "['unix:/run/forkmaster/app/http.sock']").set("server.socket_mode", "'0666'");
    site.set("control.socket", "'/run/forkmaster/app/control.sock'");
    site.build("3").python(Machine::get().public_python()).file("app.py", "import nothing_of_that_name\n").make();
    let Some(systemd) = Systemd::boot(&site) else { return };
    let unit = "forkmaster@app.service";
    systemd.unit("forkmaster@.service", &patched("forkmaster@.service"));
    systemd.unit("forkmaster@app.service.d/test.conf", &format!("{DROP_IN}WatchdogSec=3\n"));
    systemd.ok(&["daemon-reload"]);
    // It returns with READY=1, so somebody answers.
    systemd.ok(&["start", unit]);
    let address = Address::Unix(systemd.inside("/run/forkmaster/app/http.sock"));
    let get = |target: &str| client::get(&address, target).expect("it serves").text();
    assert_eq!(get("/"), "1");
    assert!(systemd.show(unit, "StatusText").starts_with("generation 1: "), "{}", systemd.story(unit));
    // It is not root, and has nothing of root's.
    let main = systemd.inside(&format!("/proc/{}/status", systemd.main_pid(unit)));
    let status = fs::read_to_string(main).expect("it runs");
    assert!(status.contains("NoNewPrivs:\t1") && status.contains("CapBnd:\t0000000000000000"), "{status}");

    site.flip("2");
    systemd.ok(&["reload", unit]);
    assert_eq!(get("/"), "2");
    // The unit tells whether a release was taken, and goes on with the old one.
    site.flip("3");
    assert!(!systemd.ctl(&["reload", unit]).status.success());
    assert_eq!((systemd.show(unit, "ActiveState").as_str(), get("/").as_str()), ("active", "2"));
    let said = systemd.show(unit, "StatusText");
    assert!(said.contains("the last reload was refused") && said.contains("nothing_of_that_name"), "{said}");
    site.flip("2");
    systemd.ok(&["reload", unit]);

    // A crash, and a master that stands still.
    for (signal, result) in [("SIGKILL", "the crash"), ("SIGSTOP", "the watchdog")] {
        let before = systemd.main_pid(unit);
        systemd.signal(unit, signal);
        wait_for(&format!("another master after {result}"), || {
            let now = systemd.main_pid(unit);
            (now != 0 && now != before && systemd.show(unit, "ActiveState") == "active").then_some(())
        });
        assert_eq!(get("/"), "2");
    }

    // A request in flight is answered, and the stop waits for it.
    let waiting = {
        let address = address.clone();
        std::thread::spawn(move || client::get(&address, "/sleep?s=2"))
    };
    wait_for("the request to run", || {
        // The unit's user is nobody that a configuration names, so root names the socket.
        let socket = "/run/forkmaster/app/control.sock";
        let status = systemd.inside_run(&["/srv/site/forkmaster", "status", "--socket", socket]);
        assert!(status.status.success(), "root on this machine finds no master: {status:?}");
        String::from_utf8_lossy(&status.stdout).contains("/sleep").then_some(())
    });
    systemd.ok(&["stop", unit]);
    assert!(waiting.join().expect("the client ends").is_ok_and(|answer| answer.status == 200));
    assert_eq!(systemd.show(unit, "Result"), "success");
}

#[test]
fn a_socket_unit_holds_connections_over_a_restart() {
    let site = site("systemd_socket");
    site.unset("server.bind");
    let Some(systemd) = Systemd::boot(&site) else { return };
    systemd.unit("forkmaster@.service", &patched("forkmaster@.service"));
    systemd.unit("forkmaster@app.service.d/test.conf", DROP_IN);
    systemd.unit("forkmaster@.socket", &patched("forkmaster@.socket").replace("SocketGroup=www-data\n", ""));
    systemd.ok(&["daemon-reload"]);
    systemd.ok(&["start", "forkmaster@app.socket"]);
    let address = Address::Unix(systemd.inside("/run/forkmaster-app.sock"));
    // The first connection starts the service.
    assert_eq!(client::get(&address, "/").expect("it is started").text(), "1");
    let unit = "forkmaster@app.service";
    wait_for("the unit to be active", || (systemd.show(unit, "ActiveState") == "active").then_some(()));
    assert!(systemd.log().contains("listening on systemd:http (unix:/run/forkmaster-app.sock)"), "{}", systemd.log());
    // Clients all the while: none is refused.
    let (stop, stopped) = std::sync::mpsc::channel::<()>();
    let client = {
        let address = address.clone();
        std::thread::spawn(move || {
            let mut answered = 0;
            while stopped.try_recv() == Err(std::sync::mpsc::TryRecvError::Empty) {
                client::get(&address, "/").unwrap_or_else(|error| panic!("after {answered} answers: {error}"));
                answered += 1;
            }
            answered
        })
    };
    systemd.ok(&["restart", unit]);
    drop(stop);
    assert!(client.join().expect("no client was refused") > 0);
}

/// https://docs.gunicorn.org/en/stable/deploy.html#systemd, with another user and another command.
const OF_GUNICORN: &str = "[Unit]
Description=gunicorn daemon
Requires=gunicorn.socket
After=network.target

[Service]
Type=notify
NotifyAccess=main
User=nobody
Group=nogroup
RuntimeDirectory=gunicorn
WorkingDirectory=/srv/site/current
ExecStart=/srv/site/forkmaster app:application
ExecReload=/bin/kill -s HUP $MAINPID
KillMode=mixed
TimeoutStopSec=5
PrivateTmp=true

[Install]
WantedBy=multi-user.target
";

#[test]
fn gunicorns_published_unit_works_with_another_command() {
    let site = site("systemd_gunicorn");
    let Some(systemd) = Systemd::boot(&site) else { return };
    systemd.unit("gunicorn.service", OF_GUNICORN);
    systemd.unit("gunicorn.service.d/test.conf", DROP_IN);
    systemd.unit("gunicorn.socket", "[Unit]\nDescription=gunicorn socket\n[Socket]\nListenStream=/run/gunicorn.sock\n");
    systemd.ok(&["daemon-reload"]);
    systemd.ok(&["start", "gunicorn.service"]);
    let address = Address::Unix(systemd.inside("/run/gunicorn.sock"));
    assert_eq!(client::get(&address, "/").expect("it serves").text(), "1");
    // In place: systemd resolves WorkingDirectory=, so a symlink there is followed once.
    site.write("releases/1/release.py", "NAME = '2'\nIMPORT_S = 0\n");
    systemd.ok(&["reload", "gunicorn.service"]);
    // `kill` returns at once; the release follows.
    wait_for("the new release", || (client::get(&address, "/").ok()?.text() == "2").then_some(()));
    wait_for("the end of the reload", || {
        (systemd.show("gunicorn.service", "StatusText").starts_with("generation 2: ")).then_some(())
    });
    assert_eq!(systemd.show("gunicorn.service", "ActiveState"), "active");
    systemd.ok(&["stop", "gunicorn.service"]);
    assert_eq!(systemd.show("gunicorn.service", "Result"), "success");
}
