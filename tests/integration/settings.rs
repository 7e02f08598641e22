//! The configuration file as an operator meets it: what is refused, with which words and which exit code, and the
//! commands that look at it. What every single key means is tested where it is resolved.

use std::fs;
use std::time::Duration;

use crate::harness::client;
use crate::harness::master::{run, run_with, Launch, Output};
use crate::harness::process::table;
use crate::harness::site::Site;
use crate::harness::wait_within;

const CONFIGURATION: Option<i32> = Some(78);

/// Starts with a configuration that must be refused: exit 78 and all of the words, each in one line about one problem.
fn refused(toml: &str, expected: &[&str]) -> Output {
    let site = Site::with_releases("refused_settings", 1);
    site.config(toml);
    let config = site.config_path();
    let config = config.to_str().expect("plain characters");
    let started = run(site.path(), &["-c", config]);
    let checked = run(site.path(), &["check", "-c", config]);
    for output in [&started, &checked] {
        assert_eq!(output.code, CONFIGURATION, "{toml}\n{output}");
        for words in expected {
            assert!(output.text().contains(words), "{words:?} is missing for\n{toml}\n{output}");
        }
    }
    started
}

#[test]
fn all_problems_are_told_at_once_with_file_line_key_value_and_fix() {
    let toml = "[app]\nmodule = 'app:application'\nrelease = 'current'\nchdir = '/srv'\n\
                [server]\nworkers = 'many'\ngraceful_timeout = 30\ntimeout = '30s'\nbind = ['localhost']\n\
                [http]\nmax_body = 100\n";
    let output = refused(
        toml,
        &[
            "app.toml:4: [app] chdir: unknown key; Gunicorn's `chdir` is `[app] release` here",
            "app.toml:6: ",
            "many",
            "app.toml:7: ",
            "graceful_timeout",
            "app.toml:8: [server] timeout: unknown key",
            "request_timeout",
            "app.toml:9: ",
            "app.toml:11: ",
            "max_body",
        ],
    );
    let lines = output.text().lines().filter(|line| line.contains("app.toml:")).count();
    assert_eq!(lines, 6, "one line a problem: {output}");
}

#[test]
fn a_syntax_error_names_line_and_text() {
    refused("[app]\nmodule = \n", &["app.toml:2:"]);
}

#[test]
fn a_bare_number_as_a_duration_gets_a_hint() {
    refused(
        "[app]\nmodule = 'app:application'\nrelease = 'current'\n[server]\nboot_timeout = 60\n",
        &["app.toml:5: ", "\"60s\""],
    );
}

#[test]
fn venv_and_python_together_are_refused() {
    let toml = "[app]\nmodule = 'app:application'\nrelease = 'current'\nvenv = 'venv'\npython = '/usr/bin/python3'\n";
    refused(toml, &["venv", "python"]);
}

#[test]
fn a_release_that_does_not_exist_is_named() {
    refused("[app]\nmodule = 'app:application'\nrelease = '/nowhere/at/all'\n", &["app.toml:3: ", "/nowhere/at/all"]);
}

#[test]
fn a_module_string_that_cannot_be_parsed_is_shown() {
    for module in ["app:", ":application", "app:create(", "app:create_app(open('x'))", "a b"] {
        refused(&format!("[app]\nmodule = \"{module}\"\nrelease = 'current'\n"), &["app.toml:2: ", "[app] module"]);
    }
}

#[test]
fn surge_and_unavailable_both_0_are_refused() {
    let toml = "[app]\nmodule = 'app:application'\nrelease = 'current'\n[reload]\nmax_surge = 0\nmax_unavailable = 0\n";
    refused(toml, &["max_surge", "max_unavailable"]);
}

#[test]
fn preload_auto_is_refused_until_it_exists() {
    refused(
        "[app]\nmodule = 'app:application'\nrelease = 'current'\npreload = 'auto'\n",
        &["app.toml:4: ", "preload", "auto"],
    );
}

#[test]
fn a_config_file_that_is_not_there_is_named() {
    let site = Site::with_releases("no_config", 1);
    let output = run(site.path(), &["-c", "nowhere.toml"]);
    assert_eq!(output.code, CONFIGURATION, "{output}");
    assert!(output.text().contains("nowhere.toml"), "{output}");
}

#[test]
fn bad_arguments_exit_2() {
    let site = Site::with_releases("bad_arguments", 1);
    let output = run(site.path(), &["--no-such-option"]);
    assert_eq!(output.code, Some(2), "{output}");
}

#[test]
fn without_arguments_and_without_a_file_there_is_a_hint() {
    let site = Site::with_releases("hint", 1);
    fs::create_dir(site.path().join("empty")).expect("it is our directory");
    let launch = Launch { directory: Some(site.path().join("empty")), ..Launch::default() };
    let output = run_with(site.path(), &[], launch);
    assert!(!output.ok(), "{output}");
    assert!(output.text().contains("app.toml"), "{output}");
    assert!(output.text().lines().count() <= 6, "a hint, not a manual: {output}");
}

#[test]
fn a_module_without_a_file_works() {
    let site = Site::with_releases("no_file", 1);
    let release = site.release_path("1");
    let launch = Launch { directory: Some(release), ..Launch::default() };
    let launch = launch.args(&["app:application", "--bind", "127.0.0.1:0"]);
    let master = site.launch(launch);
    let response = client::get(&master.address(), "/info").expect("it serves");
    assert_eq!(response.json()["release"], "1");
    master.stop();
}

#[test]
fn a_bare_start_takes_app_toml_of_the_directory() {
    let site = Site::with_releases("bare", 1);
    let master = site.launch(Launch::default().args(&[]));
    assert_eq!(master.wait_serving().len(), 2);
    assert_eq!(master.get("/").text(), "1");
}

#[test]
fn module_strings_with_several_attributes_and_factory_calls() {
    let site = Site::with_releases("module_strings", 1);
    site.set("app.module", "'app:Factory.application'");
    let master = site.start();
    assert_eq!(master.get("/").text(), "1");
    site.set("app.module", "\"app:create_app('prod', debug=True)\"");
    master.reload();
    assert_eq!(master.get("/factory").text(), "prod True");
    // The default callable is `application`.
    site.set("app.module", "'app'");
    master.reload();
    assert_eq!(master.get("/").text(), "1");
    site.write("releases/1/shop/__init__.py", "");
    site.write("releases/1/shop/wsgi.py", "from app import application\n");
    site.set("app.module", "'shop.wsgi'");
    master.reload();
    assert_eq!(master.get("/").text(), "1");
}

#[test]
fn check_says_that_all_is_well() {
    let site = Site::with_releases("check", 1);
    let config = site.config_path();
    let output = run(site.path(), &["check", "-c", config.to_str().expect("plain characters")]);
    assert!(output.ok(), "{output}");
}

#[test]
fn check_boot_imports_the_application_and_serves_nobody() {
    let site = Site::with_releases("check_boot", 1);
    site.set("app.probe", "'/'");
    let config = site.config_path();
    let config = config.to_str().expect("plain characters");
    let output = run(site.path(), &["check", "--boot", "-c", config]);
    assert!(output.ok(), "{output}");
    assert!(output.text().contains("ms") || output.text().contains(" s"), "it does not say how long it took: {output}");
    // The worker is told that it is done. Nobody has died.
    assert!(!output.text().contains("the master is gone"), "{output}");
    site.build("2").app("broken/missing_dependency.py").make();
    site.flip("2");
    let output = run(site.path(), &["check", "--boot", "-c", config]);
    assert!(!output.ok(), "{output}");
    assert!(output.text().contains("No module named 'package_that_nobody_installed'"), "{output}");
    assert!(output.text().contains("Traceback"), "{output}");
    let left = wait_within(Duration::from_secs(2), || site.processes().is_empty().then_some(()));
    assert!(left.is_some(), "it leaves processes:\n{}", table(&site.processes()));
}

#[test]
fn config_show_tells_values_and_where_they_come_from() {
    let site = Site::with_releases("config_show", 1);
    site.write("secrets.env", "SECRET_KEY=abcdef\nPLAIN=visible\n");
    site.set("app.env_file", "'secrets.env'").set("server.threads", "3");
    let config = site.config_path();
    let launch = Launch::default().env("WEB_CONCURRENCY", "7").env("FORKMASTER_SERVER_BACKLOG", "64");
    let output = run_with(site.path(), &["config", "show", "-c", config.to_str().expect("plain characters")], launch);
    assert!(output.ok(), "{output}");
    let line = |key: &str| {
        let found = output.stdout.lines().find(|line| line.trim_start().starts_with(key));
        found.unwrap_or_else(|| panic!("{key} is missing: {output}")).to_string()
    };
    assert!(line("threads").contains('3') && line("threads").contains("app.toml:"), "{}", line("threads"));
    // The file is stronger than the variable that platforms set.
    assert!(line("workers").contains('2'), "{}", line("workers"));
    assert!(
        line("graceful_timeout").contains("25s") && line("graceful_timeout").contains("default"),
        "{}",
        line("graceful_timeout")
    );
    assert!(!output.text().contains("abcdef"), "a secret is shown: {output}");
}

#[test]
fn values_expand_from_the_environment() {
    let site = Site::with_releases("expansion", 1);
    site.write("site.env", "export COLOUR='light \"blue\"' # a comment\nCOUNT=3\n");
    site.set("app.env_file", "'site.env'");
    site.set("server.workers", "'${COUNT}'");
    site.set("env.FROM_ENV_FILE", "'${COLOUR}'");
    site.set("env.WITH_DEFAULT", "'${NOT_SET:-fallback}'");
    site.set("env.LITERAL", "'$${COLOUR}'");
    let master = site.spawn();
    master.wait_workers(3);
    let environ = master.get("/info").json()["environ"].clone();
    assert_eq!(environ["FROM_ENV_FILE"], "light \"blue\"");
    assert_eq!(environ["COLOUR"], "light \"blue\"");
    assert_eq!(environ["WITH_DEFAULT"], "fallback");
    assert_eq!(environ["LITERAL"], "${COLOUR}");
    site.set("env.MISSING", "'${NOBODY_SET_THIS}'");
    let output = master.cli(&["reload"]);
    assert_eq!(output.code, Some(1), "{output}");
    assert!(output.text().contains("NOBODY_SET_THIS"), "{output}");
}

#[test]
fn a_reload_applies_the_environment_and_warns_of_what_needs_a_restart() {
    let site = Site::with_releases("needs_restart", 1);
    site.set("env.COLOUR", "'red'");
    let master = site.start();
    assert_eq!(master.get("/info").json()["environ"]["COLOUR"], "red");
    site.set("env.COLOUR", "'blue'").set("name", "'another'");
    let mark = master.mark();
    master.reload();
    assert_eq!(master.get("/info").json()["environ"]["COLOUR"], "blue");
    let warned = master.wait_log_after(mark, "name*restart");
    assert!(warned.contains("WARN"), "{warned}");
}

#[test]
fn a_second_master_on_the_same_address_exits_75() {
    let site = Site::with_releases("in_use", 1);
    let master = site.start();
    let address = master.address().to_string();
    let other = Site::new("in_use_second");
    other.release("1");
    other.flip("1");
    other.set("server.bind", &format!("['{address}']"));
    let second = other.spawn();
    assert_eq!(second.wait_exit().code(), Some(75));
    second.wait_log(&address);
    assert_eq!(master.get("/").text(), "1");
}

#[test]
fn the_pidfile_holds_the_pid() {
    let site = Site::with_releases("pidfile", 1);
    site.set("server.pidfile", "'app.pid'");
    let master = site.start();
    let pid = fs::read_to_string(site.path().join("app.pid")).expect("it was written");
    assert_eq!(pid.trim(), master.pid().to_string());
    master.term();
    master.wait_exit();
}
