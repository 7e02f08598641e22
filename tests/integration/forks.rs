//! Forks with threads, fork handlers and agents: a worker is forked as Python itself would, and whatever a handler does,
//! no process keeps the address when its master is gone.

use std::time::Duration;

use nix::sys::signal::{kill, Signal};
use nix::unistd::Pid;

use crate::harness::machine::Machine;
use crate::harness::master::Master;
use crate::harness::site::{app_source, Site};
use crate::harness::{wait_for, wait_within};

/// What agents do: their thread is stopped before a fork and started again on both sides of it.
const AGENT: &str = "import os, threading\n\
    class Agent:\n\
    \x20   def start(self):\n\
    \x20       self.quit = threading.Event()\n\
    \x20       self.thread = threading.Thread(target=self.quit.wait, daemon=True, name='agent')\n\
    \x20       self.thread.start()\n\
    \x20   def stop(self):\n\
    \x20       self.quit.set()\n\
    \x20       self.thread.join()\n\
    agent = Agent()\n\
    agent.start()\n\
    os.register_at_fork(before=agent.stop, after_in_parent=agent.start, after_in_child=agent.start)\n";

/// A module that takes locks all the time: those of logging and of the import.
const BUSY: &str = "import logging, threading, importlib\n\
    def log():\n\
    \x20   i = 0\n\
    \x20   while True:\n\
    \x20       logging.getLogger('m.%d' % (i % 5000)).debug('x')\n\
    \x20       i += 1\n\
    def load():\n\
    \x20   while True:\n\
    \x20       importlib.reload(importlib.import_module('colorsys'))\n\
    threading.Thread(target=log, daemon=True).start()\n\
    threading.Thread(target=load, daemon=True).start()\n";

/// A fork handler that hangs as long as there is a file `hang` in the site.
fn hanging(site: &Site, when: &str) -> String {
    format!(
        "import os, time\n\
         def hang():\n\
         \x20   while os.path.exists({:?}):\n\
         \x20       time.sleep(.02)\n\
         os.register_at_fork({when}=hang)\n",
        site.path().join("hang")
    )
}

fn with_module(source: &str) -> String {
    format!("{source}\n{}", app_source("app.py"))
}

fn kill_one_worker(master: &Master) {
    let victim = master.wait_serving().remove(0);
    kill(Pid::from_raw(victim.pid), Signal::SIGKILL).expect("a serving worker is there");
    master.wait_log(&format!("pid={} * -> gone", victim.pid));
}

/// Nothing of the site is left, and its address can be bound again.
#[track_caller]
fn assert_address_is_free(site: &Site, master: &Master) {
    wait_for("the end of all processes", || site.processes().is_empty().then_some(()));
    let again = site.start();
    assert_ne!(again.pid(), master.pid());
}

#[test]
fn twenty_of_twenty_starts_with_threads_that_take_locks_all_the_time() {
    for python in Machine::get().each_minor() {
        let site = Site::new(&format!("busy_threads_{}", python.minor));
        site.set("app.preload", "true").set("server.workers", "2");
        site.build("1").python(python).file("app.py", &with_module(BUSY)).make();
        site.flip("1");
        for _ in 0..4 {
            let master = site.start();
            // Forks while the threads run; with those of the start that makes twenty for a version.
            for _ in 0..3 {
                kill_one_worker(&master);
                master.wait_serving();
            }
            assert_eq!(master.log_lines("could not fork").len(), 0);
            assert!(master.get("/").text().contains("release") || master.get("/").status == 200);
            master.term();
            assert_eq!(master.wait_exit().code(), Some(0));
        }
    }
}

/// Each module that is being imported has a lock of its own, which a fork would copy locked.
#[test]
fn a_module_that_a_thread_imports_is_waited_for_before_a_fork() {
    for python in Machine::get().each_minor() {
        let site = Site::new(&format!("import_in_thread_{}", python.minor));
        site.set("app.preload", "true").set("server.workers", "2").set("server.request_timeout", "'5s'");
        let app = "import threading, time\n\
            threading.Thread(target=__import__, args=('heavy',), daemon=True).start()\n\
            time.sleep(0.1)\n\
            def application(environ, start_response):\n\
            \x20   import heavy\n\
            \x20   start_response('200 OK', [('Content-Length', str(len(heavy.WORD)))])\n\
            \x20   return [heavy.WORD]\n";
        let heavy = "import time\ntime.sleep(0.5)\nWORD = b'imported'\n";
        site.build("1").python(python).file("app.py", app).file("heavy.py", heavy).make();
        site.flip("1");
        let master = site.start();
        for _ in 0..4 {
            assert_eq!(master.get("/").text(), "imported");
        }
    }
}

#[test]
fn an_agent_that_stops_its_threads_before_a_fork_has_them_again_in_the_worker() {
    for (preload, python) in [("false", 0), ("true", 1)] {
        let pythons = Machine::get().each_minor();
        let site = Site::new(&format!("agent_{preload}"));
        site.set("app.preload", preload).set("server.workers", "2");
        let app = "import threading\n\
            def application(environ, start_response):\n\
            \x20   names = ','.join(thread.name for thread in threading.enumerate())\n\
            \x20   start_response('200 OK', [('Content-Length', str(len(names)))])\n\
            \x20   return [names.encode()]\n";
        let release = site.build("1").python(pythons[python % pythons.len()]);
        release.file("site-packages/sitecustomize.py", AGENT).file("app.py", app).make();
        site.flip("1");
        let master = site.start();
        assert!(master.get("/").text().split(',').any(|name| name == "agent"), "{}", master.get("/").text());
        master.reload();
        assert!(master.get("/").text().split(',').any(|name| name == "agent"));
    }
}

#[test]
fn a_handler_that_hangs_before_a_fork_leaves_no_process_behind() {
    for end in ["kill master", "term", "kill template"] {
        let site = Site::new(&format!("hang_before_{}", end.replace(' ', "_")));
        site.set("app.preload", "true").set("server.graceful_timeout", "'2s'");
        site.build("1").file("app.py", &with_module(&hanging(&site, "before"))).make();
        site.flip("1");
        let master = site.start();
        site.write("hang", "");
        kill_one_worker(&master);
        match end {
            "kill master" => master.signal(Signal::SIGKILL),
            "term" => master.term(),
            _ => {
                let templates = master.children().into_iter().filter(|child| child.title.contains(" template "));
                templates.for_each(|template| template.signal(Signal::SIGKILL));
                std::fs::remove_file(site.path().join("hang")).expect("it was made");
                master.wait_serving();
                master.term();
            }
        }
        master.wait_exit();
        let _ = std::fs::remove_file(site.path().join("hang"));
        assert_address_is_free(&site, &master);
    }
}

/// Whoever reads the log sees which function it is, and a template without the fault takes over.
#[test]
fn a_handler_that_hangs_before_a_fork_is_named_and_its_template_replaced() {
    let site = Site::new("hang_named");
    site.set("app.preload", "true");
    site.build("1").file("app.py", &with_module(&hanging(&site, "before"))).make();
    site.flip("1");
    let master = site.start();
    site.write("hang", "");
    let mark = master.mark();
    kill_one_worker(&master);
    // faulthandler's line for the innermost frame of interest.
    master.wait_log_after(mark, "app.py\", line * in hang");
    master.wait_log_after(mark, "template gen=1 does not fork: killed");
    std::fs::remove_file(site.path().join("hang")).expect("it was made");
    master.wait_log_after(mark, "template gen=1 starting -> ready");
    master.wait_serving();
    master.stop();
}

#[test]
fn a_handler_that_hangs_in_a_new_worker_does_not_keep_the_address_after_the_master_was_killed() {
    let site = Site::new("hang_in_child");
    site.set("app.preload", "true");
    site.build("1").file("app.py", &with_module(&hanging(&site, "after_in_child"))).make();
    site.flip("1");
    let master = site.start();
    site.write("hang", "");
    kill_one_worker(&master);
    master.wait_log("slot=* pid=* -> starting");
    master.signal(Signal::SIGKILL);
    master.wait_exit();
    // The file stays: nobody but the worker itself can end it.
    wait_for("the end of all processes", || site.processes().is_empty().then_some(()));
    std::fs::remove_file(site.path().join("hang")).expect("it was made");
    assert_address_is_free(&site, &master);
}

#[test]
fn a_child_that_c_code_forks_holds_neither_address_nor_channel() {
    let site = Site::new("c_fork");
    // libc's fork(), of which Python knows nothing: the child sleeps in C.
    let app = "import ctypes, os\n\
        libc = ctypes.PyDLL(None)\n\
        def application(environ, start_response):\n\
        \x20   pid = libc.fork()\n\
        \x20   if pid == 0:\n\
        \x20       links = []\n\
        \x20       for fd in os.listdir('/proc/self/fd'):\n\
        \x20           try:\n\
        \x20               links.append(os.readlink('/proc/self/fd/' + fd))\n\
        \x20           except FileNotFoundError:\n\
        \x20               pass\n\
        \x20       with open(os.path.join(os.path.dirname(__file__), 'fds'), 'w') as file:\n\
        \x20           file.write('\\n'.join(links))\n\
        \x20       os.rename(file.name, file.name + '.done')\n\
        \x20       libc.sleep(60)\n\
        \x20       os._exit(0)\n\
        \x20   start_response('200 OK', [('Content-Length', '2')])\n\
        \x20   return [b'ok']\n";
    site.build("1").file("app.py", app).make();
    site.flip("1");
    let master = site.start();
    assert_eq!(master.get("/").text(), "ok");
    let done = site.release_path("1").join("fds.done");
    let open = wait_for("the child's list", || std::fs::read_to_string(&done).ok());
    assert!(!open.contains("socket"), "{open}");
    master.term();
    assert_eq!(master.wait_exit().code(), Some(0));
    // The child still sleeps, and the address is free all the same.
    let again = wait_within(Duration::from_secs(10), || Some(site.start())).expect("it starts");
    assert_eq!(again.get("/").text(), "ok");
}

#[test]
fn what_a_preloaded_import_leaves_open_is_named() {
    let site = Site::new("left_open");
    site.set("app.preload", "true");
    let source = "import socket, threading\n\
        listener = socket.socket()\n\
        listener.bind(('127.0.0.1', 0))\n\
        listener.listen()\n\
        client = socket.create_connection(listener.getsockname())\n\
        pair = socket.socketpair()\n\
        print('port', listener.getsockname()[1])\n\
        threading.Thread(target=threading.Event().wait, daemon=True, name='pool').start()\n";
    site.build("1").file("app.py", &with_module(source)).make();
    site.flip("1");
    let master = site.start();
    let port = master.stdout();
    let port = port.trim().strip_prefix("port ").expect("the application printed it");
    master.wait_log(&format!(
        "template gen=1: the import left sockets open, which all workers share: listening on 127.0.0.1:{port}, connected \
         to 127.0.0.1:{port}; open them in the worker, or set preload = false"
    ));
    master.wait_log("the import left threads running, which forked workers do not have: pool;");
}

#[test]
fn an_import_that_closes_what_is_not_its_own_is_named() {
    for preload in ["false", "true"] {
        let site = Site::new(&format!("closerange_{preload}"));
        site.set("app.preload", preload);
        site.build("1").file("app.py", &with_module("import os\nos.closerange(3, 256)")).make();
        site.flip("1");
        let master = site.spawn();
        assert_eq!(master.wait_exit().code(), Some(69));
        master.wait_log("the application closed the file descriptors of its server while it was imported");
        master.wait_log("refused: * exit code 120: the application has closed file descriptors that are not its own");
    }
}
