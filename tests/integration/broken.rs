//! A bad release cannot take the service down. Each case deploys one that is broken in its own way, by `reload` and
//! by a bare HUP: no client notices, all old workers stay, the log says why, and a later good release works.

use std::fs;
use std::os::unix::fs::symlink;

use crate::harness::load::Load;
use crate::harness::process::table;
use crate::harness::site::{app_source, Site};
use crate::harness::{for_each_preload, wait_for, wait_within, WAIT};

/// One way to break a release. `make` breaks what release 2 would have been; the reload must be refused and its
/// reason must contain `expected`, in the answer to `reload` and in the log.
fn refused(name: &str, settings: &[(&str, &str)], make: impl Fn(&Site), expected: &str) {
    refused_as_asked_with(&["reload"], name, settings, make, expected);
}

/// The same for a release whose fault is in what it imports: by its workers, and by its template.
fn refused_with_each_preload(name: &str, make: impl Fn(&Site), expected: &str) {
    for_each_preload(|preload| {
        refused(&format!("{name}_preload_{preload}"), &[("app.preload", preload)], &make, expected);
    });
}

fn refused_as_asked_with(ask: &[&str], name: &str, settings: &[(&str, &str)], make: impl Fn(&Site), expected: &str) {
    let site = Site::new(name);
    site.release("1");
    site.release("3");
    site.flip("1");
    for (key, value) in settings {
        site.set(key, value);
    }
    let master = site.start();
    let before = master.wait_serving();
    let config = fs::read_to_string(site.config_path()).expect("the site has a configuration");
    let load = Load::on(&master.address()).closing(2).keeping(2).start();

    make(&site);
    let output = master.cli(ask);
    assert_eq!(output.code, Some(1), "reload of a broken release: {output}");
    assert!(output.text().contains(expected), "the answer does not say {expected:?}: {output}");
    // A thread of its own writes the log.
    wait_for("the same in the log", || master.log().contains(expected).then_some(()));
    let refusal = master.status_with(&ask[1..]).and_then(|status| status.last_refusal());
    assert!(refusal.is_some(), "status does not tell that the last reload was refused");

    let mark = master.mark();
    master.hup();
    master.wait_log_after(mark, expected);
    // The bare HUP is over when the next command has been carried out.
    assert_eq!(master.cli(ask).code, Some(1));

    fs::write(site.config_path(), config).expect("it is our file");
    let after = master.wait_serving();
    assert_eq!(before, after, "the old workers are not the same");
    load.wait_answers(20);
    site.flip("3");
    master.reload();
    load.wait_answers(20);
    load.stop().assert_no_failures();
    assert_eq!(master.get("/").text(), "3");
    master.wait_drained();
    let settled = wait_within(WAIT, || (site.processes().len() == 4).then_some(()));
    // The master, the new template and two workers.
    assert!(settled.is_some(), "expected four processes:\n{}", table(&site.processes()));
}

fn release_2_from(app: &'static str) -> impl Fn(&Site) {
    move |site| {
        site.build("2").app(app).make();
        site.flip("2");
    }
}

#[test]
fn a_syntax_error() {
    refused_with_each_preload("syntax_error", release_2_from("broken/syntax_error.py"), "SyntaxError: ");
}

#[test]
fn a_missing_dependency() {
    let expected = "ModuleNotFoundError: No module named 'package_that_nobody_installed'";
    refused_with_each_preload("missing_dependency", release_2_from("broken/missing_dependency.py"), expected);
}

#[test]
fn a_missing_callable() {
    let expected = "module 'app' has no attribute 'application'";
    refused_with_each_preload("missing_callable", release_2_from("broken/missing_callable.py"), expected);
}

#[test]
fn an_import_that_hangs() {
    // Only the bad release has to be fast: the first one starts on a machine that does other things too.
    let make = |site: &Site| {
        release_2_from("broken/hanging_import.py")(site);
        site.set("server.boot_timeout", "'2s'");
    };
    refused_with_each_preload("hanging_import", make, " within boot_timeout (2.0s)");
}

/// It was known at once, and told after `boot_timeout`. A module of this name says what gevent's own does.
#[test]
fn threads_that_gevent_has_patched() {
    let make = |site: &Site| {
        let patched = "def is_module_patched(name):\n    return name == 'threading'\n";
        let app = format!("import gevent.monkey\n{}", app_source("app.py"));
        site.build("2").file("gevent/__init__.py", "").file("gevent/monkey.py", patched).file("app.py", &app).make();
        site.flip("2");
    };
    for_each_preload(|preload| {
        let settings = [("app.preload", preload), ("server.threads", "2")];
        refused(&format!("gevent_preload_{preload}"), &settings, make, "cannot run beside each other: set threads = 1");
    });
}

#[test]
fn sys_exit_at_import() {
    refused_with_each_preload("sys_exit", release_2_from("broken/sys_exit.py"), "SystemExit: ");
}

#[test]
fn os_exit_at_import() {
    refused_with_each_preload("os_exit", release_2_from("broken/os_exit.py"), "died while it booted: exit code 3");
}

/// Python runs it before anything of the server.
#[test]
fn a_sitecustomize_that_ends_the_interpreter() {
    let make = |site: &Site| {
        site.build("2").file("site-packages/sitecustomize.py", "import sys\nsys.exit('not today')\n").make();
        site.flip("2");
    };
    refused(
        "sitecustomize_exit",
        &[],
        make,
        "/venv/bin/python ended with exit code 1 before it ran anything of the server",
    );
}

#[test]
fn a_sitecustomize_that_hangs() {
    let make = |site: &Site| {
        site.build("2").file("site-packages/sitecustomize.py", "import time\ntime.sleep(1000)\n").make();
        site.flip("2");
        site.set("server.boot_timeout", "'2s'");
    };
    refused(
        "sitecustomize_hang",
        &[],
        make,
        "within boot_timeout (2.0s); Python did not come to run anything of the server",
    );
}

#[test]
fn a_segfault_at_import() {
    refused_with_each_preload("segfault", release_2_from("broken/segfault.py"), "died while it booted: SIGSEGV");
}

#[test]
fn a_django_urlconf_that_does_not_import() {
    let make = |site: &Site| {
        site.build("2").packages("django").app("broken/django_urls.py").with("broken/urls_of_django.py").make();
        site.flip("2");
    };
    refused_with_each_preload("django_urls", make, "ModuleNotFoundError: No module named 'views_that_were_renamed'");
}

#[test]
fn a_probe_that_answers_500() {
    refused("probe_500", &[("app.probe", "'/'")], release_2_from("broken/probe_fails.py"), "probe GET / answered 500 ");
}

#[test]
fn a_probe_that_redirects() {
    refused(
        "probe_301",
        &[("app.probe", "'/'")],
        release_2_from("broken/probe_redirects.py"),
        "probe GET / answered 301 ",
    );
}

#[test]
fn a_module_of_imports_that_is_missing() {
    let make = |site: &Site| {
        site.release("2");
        site.set("app.imports", "['tasks_that_are_not_there']");
        site.flip("2");
    };
    refused("imports", &[], make, "ModuleNotFoundError: No module named 'tasks_that_are_not_there'");
}

#[test]
fn a_missing_venv() {
    let make = |site: &Site| {
        site.build("2").bare().make();
        site.flip("2");
    };
    refused("missing_venv", &[("app.venv", "'venv'")], make, "there is no venv");
}

#[test]
fn a_venv_without_an_interpreter() {
    let make = |site: &Site| {
        site.release("2");
        fs::remove_file(site.release_path("2").join("venv/bin/python")).expect("a venv has one");
        site.flip("2");
    };
    refused("venv_without_python", &[("app.venv", "'venv'")], make, "not a usable venv");
}

#[test]
fn a_dangling_symlink() {
    refused(
        "dangling",
        &[],
        |site| site.flip("never-copied"),
        "/current is a dangling symlink (to releases/never-copied)",
    );
}

#[test]
fn a_symlink_to_itself() {
    let make = |site: &Site| {
        fs::remove_file(site.path().join("current")).ok();
        symlink("current", site.path().join("current")).ok();
    };
    refused("symlink_loop", &[], make, "/current: Too many symbolic links encountered");
}

#[test]
fn an_invalid_config_file() {
    let make = |site: &Site| {
        site.flip("3");
        site.config("[app\nmodule = 'app:application'\n");
    };
    // A file that cannot be read names no socket to ask through.
    refused_as_asked_with(&["reload", "--socket", "control.sock"], "invalid_config", &[], make, "app.toml");
}

/// Asked without the socket, the command cannot know its master, and says what is wrong with the file.
#[test]
fn a_reload_through_an_invalid_config_file_is_a_configuration_error() {
    let site = Site::with_releases("reload_invalid_config", 1);
    let master = site.start();
    site.config("[app\nmodule = 'app:application'\n");
    let output = master.cli(&["reload"]);
    assert_eq!(output.code, Some(78), "{output}");
    assert!(output.text().contains("app.toml:1:"), "{output}");
}

#[test]
fn an_unknown_key_in_the_config_file() {
    let make = |site: &Site| {
        site.flip("3");
        site.set("server.wokers", "3");
    };
    refused("unknown_key", &[], make, "did you mean `workers`");
}

#[test]
fn a_config_file_that_is_gone() {
    let make = |site: &Site| {
        fs::remove_file(site.config_path()).ok();
    };
    let site = Site::with_releases("config_gone", 1);
    let master = site.start();
    let before = master.workers();
    let control = site.path().join("control.sock");
    assert!(control.exists());
    let mark = master.mark();
    let config = fs::read_to_string(site.config_path()).expect("the site has a configuration");
    make(&site);
    master.hup();
    master.wait_log_after(mark, "app.toml");
    site.config(&config);
    assert_eq!(master.wait_serving(), before);
    assert_eq!(master.get("/").text(), "1");
}

#[test]
fn a_release_whose_second_worker_cannot_start_is_rolled_back() {
    let site = Site::new("rolling_fails");
    site.release("1");
    // The first process that imports it wins a directory; every later one fails, as with a connection limit.
    let source = "import os, release\nos.mkdir(os.path.join(os.path.dirname(__file__), 'taken'))\nfrom good import application\n";
    let good = app_source("app.py");
    site.build("2").file("good.py", &good).file("app.py", source).make();
    site.flip("1");
    site.set("server.workers", "3");
    let master = site.start();
    let load = Load::on(&master.address()).closing(3).keeping(4).start();
    site.flip("2");
    let output = master.cli(&["reload"]);
    assert_eq!(output.code, Some(1), "{output}");
    assert!(output.text().contains("FileExistsError"), "{output}");
    master.wait_log("generation gen=2 rolling -> abandoned");
    master.wait_workers(3);
    load.wait_answers(30);
    let report = load.stop();
    report.assert_no_failures();
    master.wait_drained();
    assert_eq!(master.get("/").text(), "1");
}

#[test]
fn a_first_start_with_a_broken_release_exits_69_with_the_traceback() {
    for_each_preload(|preload| {
        let site = Site::with_app("first_start", "broken/missing_dependency.py");
        site.set("app.preload", preload);
        let master = site.spawn();
        assert_eq!(master.wait_exit().code(), Some(69), "preload = {preload}");
        let log = master.log();
        assert!(log.contains("Traceback (most recent call last)"), "no traceback, preload = {preload}");
        assert!(log.contains("No module named 'package_that_nobody_installed'"));
        assert!(log.contains("app.py"), "the traceback does not name the file");
        master.assert_nothing_left();
    });
}

#[test]
fn the_traceback_of_a_refused_release_is_in_the_answer_and_the_log_in_full() {
    let site = Site::new("traceback");
    site.release("1");
    let deep = "def one():\n    two()\n\n\ndef two():\n    raise ValueError('no such tenant: \u{fc}bung')\n\n\none()\n";
    site.build("2").file("app.py", deep).make();
    site.flip("1");
    let master = site.start();
    site.flip("2");
    let output = master.cli(&["reload"]);
    assert_eq!(output.code, Some(1), "{output}");
    for text in [output.text(), master.log()] {
        for line in ["Traceback (most recent call last)", "in one", "in two", "ValueError: no such tenant: \u{fc}bung"]
        {
            assert!(text.contains(line), "{line:?} is missing in:\n{text}");
        }
    }
}
