//! `forkmaster dev`: a saved file is a reload, a broken one is shown, and a debugger has the terminal.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::harness::client::{get, head, Address, Connection};
use crate::harness::master::{Launch, Master};
use crate::harness::site::Site;
use crate::harness::{wait_for, WAIT};

fn site(name: &str, packages: &str, app: &str) -> Site {
    let site = Site::new(name);
    site.build("1").packages(packages).file("app.py", app).make();
    site.set("app.release", "'releases/1'").unset("server.workers");
    site
}

fn develop(site: &Site) -> Master {
    let config = site.config_path();
    let master = site.launch(Launch::default().args(&["dev", "-c", config.to_str().expect("plain characters")]));
    master.wait_log("generation gen=1 * -> serving");
    master
}

fn save(site: &Site, file: &str, text: &str) {
    std::fs::write(site.release_path("1").join(file), text).expect("it is our file");
}

/// A client that asks all the time, each time on a connection of its own.
struct Asking {
    over: Arc<AtomicBool>,
    answers: Arc<AtomicU64>,
    bad: Arc<Mutex<Vec<String>>>,
    thread: Option<JoinHandle<()>>,
}

impl Asking {
    fn start(address: Address) -> Asking {
        let (over, answers, bad) =
            (Arc::<AtomicBool>::default(), Arc::<AtomicU64>::default(), Arc::<Mutex<Vec<_>>>::default());
        let (is_over, count, failures) = (Arc::clone(&over), Arc::clone(&answers), Arc::clone(&bad));
        let ask = move || {
            while !is_over.load(Ordering::Relaxed) {
                let failure = match get(&address, "/") {
                    Ok(answer) if answer.status == 200 => None,
                    Ok(answer) => Some(format!("{} {}", answer.status, answer.text())),
                    Err(failure) => Some(failure.to_string()),
                };
                count.fetch_add(1, Ordering::Relaxed);
                failures.lock().expect("nobody panics with it").extend(failure);
            }
        };
        Asking { over, answers, bad, thread: Some(std::thread::spawn(ask)) }
    }

    #[track_caller]
    fn assert_no_failures(mut self) {
        self.over.store(true, Ordering::Relaxed);
        self.thread.take().expect("once").join().expect("it does not panic");
        let bad = self.bad.lock().expect("nobody panics with it");
        assert!(self.answers.load(Ordering::Relaxed) > 50 && bad.is_empty(), "{} bad answers: {bad:?}", bad.len());
    }
}

/// As a browser asks.
fn page(master: &Master) -> (u16, String) {
    let answer = Connection::to(&master.address()).ask(head("GET", "/", &[("Accept", "text/html,*/*;q=0.8")]));
    (answer.status, answer.text())
}

/// Saves a project many times, one time in five broken. Every good save is served, and no request fails.
fn save_often(site: &Site, saves: u32, app: impl Fn(u32) -> String) {
    let master = develop(site);
    let asking = Asking::start(master.address());
    let mut slowest = Duration::ZERO;
    for number in 1..=saves {
        let saved = Instant::now();
        if number % 5 == 0 {
            save(site, "app.py", &format!("{}def broken(:\n", app(number)));
            let refused = wait_for("the refusal", || {
                let refusal = &master.status()?.0["last_refusal"];
                refusal["reason"].as_str().map(str::to_owned)
            });
            assert!(refused.contains("SyntaxError"), "{refused}");
            // The old code serves; a browser is told once.
            assert_eq!(master.get("/").text(), (number - 1).to_string());
            let (status, told) = page(&master);
            assert!(status == 500 && told.contains("SyntaxError") && told.contains("def broken("), "{status} {told}");
            assert_eq!(page(&master), (200, (number - 1).to_string()));
        } else {
            save(site, "app.py", &app(number));
            wait_for("the saved code", || (master.get("/").text() == number.to_string()).then_some(()));
            slowest = slowest.max(saved.elapsed());
        }
    }
    asking.assert_no_failures();
    // A slow machine has warnings: of imports that take long, of generations that are left over.
    let errors = master.log_lines(" ERROR ");
    assert!(errors.iter().all(|line| line.contains("refused: SyntaxError")), "{errors:?}");
    // On a machine that does nothing else it is the import and a third of a second.
    assert!(slowest < WAIT, "{slowest:?}");
    // Lines of the access log come to the terminal.
    assert!(master.stdout().contains("\"GET / HTTP/1.1\" 200 "), "{}", master.stdout());
    master.stop();
}

#[test]
fn saves_of_a_flask_project() {
    let app = |number: u32| {
        format!("from flask import Flask\napplication = Flask(__name__)\n\n\n@application.get('/')\ndef index():\n    return '{number}'\n\n\n")
    };
    let site = site("dev_flask", "flask", &app(0));
    save_often(&site, 30, app);
}

const DJANGO: &str = "import pathlib\n\
    import django\nfrom django.conf import settings\n\
    from django.core.wsgi import get_wsgi_application\n\
    from django.http import HttpResponse\nfrom django.shortcuts import render\nfrom django.urls import path\n\
    settings.configure(ROOT_URLCONF=__name__, ALLOWED_HOSTS=['*'], SECRET_KEY='x', TEMPLATES=[{\n\
        'BACKEND': 'django.template.backends.django.DjangoTemplates',\n\
        'DIRS': [pathlib.Path(__file__).parent / 'templates']}])\n";

fn django(number: u32) -> String {
    format!(
        "{DJANGO}urlpatterns = [path('', lambda request: HttpResponse('{number}')), \
         path('page', lambda request: render(request, 'page.html', {{'n': '{number}'}}))]\n\
         application = get_wsgi_application()\n"
    )
}

#[test]
fn saves_of_a_django_project_of_its_templates_and_of_its_environment() {
    let site = site("dev_django", "django", &django(0));
    save(&site, ".env", "GREETING=hello\n");
    site.set("app.env_file", "'releases/1/.env'");
    std::fs::create_dir(site.release_path("1").join("templates")).expect("the name is free");
    save(&site, "templates/page.html", "first {{ n }}");
    save_often(&site, 10, django);
    // It ends with a broken save.
    save(&site, "app.py", &django(11));
    let master = develop(&site);
    assert_eq!(master.get("/page").text(), "first 11");
    save(&site, "templates/page.html", "second {{ n }}");
    wait_for("the saved template", || (master.get("/page").text() == "second 11").then_some(()));
    save(
        &site,
        "app.py",
        &format!("import os\nGREETING = os.environ['GREETING']\n{}", django(12)).replace("'12'", "GREETING"),
    );
    wait_for("the saved code", || (master.get("/").text() == "hello").then_some(()));
    save(&site, ".env", "GREETING=good morning\n");
    wait_for("the saved environment", || (master.get("/").text() == "good morning").then_some(()));
    master.stop();
}

/// Where nothing serves yet, the next saved file starts it again.
#[test]
fn a_start_that_fails_waits_for_a_saved_file() {
    let site = Site::with_source("dev_start", "import nothing_of_that_name\n");
    site.set("app.release", "'releases/1'");
    let config = site.config_path();
    let master = site.launch(Launch::default().args(&["dev", "-c", config.to_str().expect("plain characters")]));
    master.wait_log("waiting for a saved file");
    assert!(master.log().contains("ModuleNotFoundError: No module named 'nothing_of_that_name'"), "{}", master.log());
    save(&site, "app.py", &crate::harness::site::app_source("app.py"));
    master.wait_log("app.py saved: starting again");
    master.wait_log("generation gen=1 * -> serving");
    assert_eq!(master.get("/").text(), "1");
    master.stop();
}

/// A debugger at its prompt, a terminal in its hands, and nobody who replaces its worker.
#[test]
fn a_breakpoint_has_the_terminal() {
    let app = "def application(environ, start_response):\n    value = 40\n    breakpoint()\n    \
               start_response('200 OK', [('Content-Length', '2')])\n    return [str(value).encode()]\n";
    let site = Site::with_source("dev_pdb", app);
    site.set("app.release", "'releases/1'").set("server.request_timeout", "'200ms'").set("log.error", "'master.log'");
    let (mut keyboard, terminal) = open_terminal();
    let tty = terminal.as_raw_fd();
    let launch = Launch {
        terminal: Some(terminal.try_clone().expect("a descriptor can be duplicated")),
        before_exec: Some(Box::new(move || {
            // SAFETY: both are system calls without memory of ours and async-signal-safe.
            if unsafe { libc::setsid() } < 0 || unsafe { libc::ioctl(tty, libc::TIOCSCTTY, 0) } < 0 {
                return Err(std::io::Error::last_os_error());
            }
            Ok(())
        })),
        ..Launch::default()
    };
    let config = site.config_path();
    let master = site.launch(launch.args(&["dev", "-c", config.to_str().expect("plain characters")]));
    master.wait_workers(1);
    let address = wait_for("the address", || {
        let status = master.status()?.0;
        let address = status["listeners"][0]["address"].as_str()?.parse().ok()?;
        Some(Address::Tcp(address))
    });
    let asking = std::thread::spawn(move || get(&address, "/"));
    read_past(&mut keyboard, "(Pdb) ");
    // Longer than the limit of the file, which does not hold here.
    keyboard.write_all(b"import time; time.sleep(0.5); value = value + 2\n").expect("the terminal takes it");
    read_past(&mut keyboard, "(Pdb) ");
    keyboard.write_all(b"c\n").expect("the terminal takes it");
    assert_eq!(asking.join().expect("it ends").expect("it is answered").text(), "42");
    // Ctrl-C ends it at once, also from a prompt.
    let address = Address::Tcp(
        master.status().expect("it answers").0["listeners"][0]["address"]
            .as_str()
            .and_then(|address| address.parse().ok())
            .expect("an address"),
    );
    let _asking = std::thread::spawn(move || get(&address, "/"));
    read_past(&mut keyboard, "(Pdb) ");
    let pressed = Instant::now();
    keyboard.write_all(b"\x03").expect("the terminal takes it");
    assert_eq!(master.wait_exit().code(), Some(0));
    assert!(pressed.elapsed() < Duration::from_secs(3), "{:?}", pressed.elapsed());
}

/// Reads what the terminal shows, up to some text.
#[track_caller]
fn read_past(terminal: &mut File, text: &str) {
    let mut shown = Vec::new();
    while !String::from_utf8_lossy(&shown).contains(text) {
        let mut polled = libc::pollfd { fd: terminal.as_raw_fd(), events: libc::POLLIN, revents: 0 };
        // SAFETY: one entry, which outlives the call.
        let ready = unsafe { libc::poll(&mut polled, 1, 30_000) };
        assert!(ready == 1, "{text:?} does not come: {}", String::from_utf8_lossy(&shown));
        let mut bytes = [0; 1024];
        let read = terminal.read(&mut bytes).expect("somebody holds the other end");
        shown.extend_from_slice(&bytes[..read]);
    }
}

/// A pseudo terminal: what a terminal emulator holds, and what the program gets.
fn open_terminal() -> (File, File) {
    let (mut ours, mut theirs) = (-1, -1);
    let (no_name, no_modes, no_size) = (std::ptr::null_mut(), std::ptr::null(), std::ptr::null());
    // SAFETY: openpty writes two descriptors; the other pointers may be null (openpty(3)).
    let opened = unsafe { libc::openpty(&mut ours, &mut theirs, no_name, no_modes, no_size) };
    assert_eq!(opened, 0, "openpty: {}", std::io::Error::last_os_error());
    // SAFETY: openpty succeeded, so it is an open descriptor that nobody else owns.
    let ours = unsafe { OwnedFd::from_raw_fd(ours) };
    // SAFETY: as above.
    let theirs = unsafe { OwnedFd::from_raw_fd(theirs) };
    (ours.into(), theirs.into())
}
