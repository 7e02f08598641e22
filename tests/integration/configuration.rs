//! What a configuration leads to beyond its own words: which Python runs, what a reload may change, and what people
//! who come from other servers are told.

use std::fs;
use std::os::unix::fs::{symlink, MetadataExt};
use std::path::{Path, PathBuf};

use crate::harness::machine::{can_change_users, Machine};
use crate::harness::master::{run, run_with, Launch};
use crate::harness::site::{copy_binary_as, copy_binary_to, make_venv, Site};

fn config(site: &Site) -> String {
    site.config_path().to_str().expect("plain characters").to_owned()
}

/// A log or a pidfile in a directory that does not exist is wrong in the configuration, at the start and in `check`.
#[test]
fn files_in_directories_that_do_not_exist_are_configuration_errors() {
    for (key, name) in [("log.error", "error"), ("log.access", "access"), ("server.pidfile", "pidfile")] {
        let site = Site::with_releases("no_directory", 1);
        site.set(key, "'/nope/there/file'");
        for arguments in [vec!["-c"], vec!["check", "-c"]] {
            let path = config(&site);
            let output = run(site.path(), &[&arguments[..], &[path.as_str()][..]].concat());
            assert_eq!(output.code, Some(78), "{output}");
            let expected = format!("{name} = \"/nope/there/file\": there is no directory /nope/there");
            assert!(output.stderr.contains(&expected) && output.stderr.contains("app.toml:"), "{output}");
        }
    }
}

/// A reload with another user changes nothing but a warning: neither the environment of the workers nor the owner of
/// the socket, which the proxy in front needs.
#[test]
fn a_reload_with_another_user_changes_neither_environment_nor_socket() {
    if !can_change_users() {
        return;
    }
    let site = Site::new("another_user");
    site.build("1").python(Machine::get().public_python()).make();
    site.flip("1");
    site.set("server.user", "'nobody'").set("server.group", "'nogroup'").set("server.bind", "['unix:app.sock']");
    let master = site.start();
    let seen = || {
        let meta = fs::symlink_metadata(site.path().join("app.sock")).expect("the socket is there");
        let info = master.get("/info").json();
        let names = ["USER", "LOGNAME", "HOME"].map(|name| info["environ"][name].clone());
        (meta.uid(), meta.gid(), meta.mode() & 0o777, info["uid"].clone(), names)
    };
    let before = seen();
    assert_eq!(before.4[0], "nobody");
    site.set("server.user", "'daemon'").set("server.group", "'daemon'");
    let mark = master.mark();
    master.reload();
    assert_eq!(seen(), before);
    let warned = master.wait_log_after(mark, "user, group has changed");
    assert!(warned.contains("WARN") && warned.contains("restart"), "{warned}");
    // Each reload says so again, for as long as it is written.
    let mark = master.mark();
    master.reload();
    master.wait_log_after(mark, "user, group has changed");
    assert_eq!(seen(), before);
}

/// What a reload changes stands in the log, so that a deploy can be read afterwards.
#[test]
fn a_reload_logs_the_settings_that_it_changes() {
    let site = Site::with_releases("changes", 1);
    let master = site.start();
    site.set("server.threads", "3").set("env.COLOUR", "'blue'");
    let mark = master.mark();
    master.reload();
    let line = master.wait_log_after(mark, "generation gen=2 changes");
    assert!(line.contains("[env] COLOUR = unset -> \"blue\"; [server] threads = "), "{line}");
    assert!(line.contains(" -> 3"), "{line}");
}

/// A site whose release has no venv; `tools/current` is one, with forkmaster in it.
fn with_tools(name: &str) -> (Site, PathBuf) {
    let site = Site::new(name);
    site.build("1").bare().make();
    site.flip("1");
    let python = Machine::get().default_python();
    make_venv(python, &site.path().join("tools/1"));
    symlink("1", site.path().join("tools/current")).expect("a symlink can be made");
    let copy = copy_binary_to(&site);
    let binary = site.path().join("tools/1/bin/forkmaster");
    fs::rename(copy, binary).expect("it is our directory");
    let called = site.path().join("tools/current/bin/forkmaster");
    (site, called)
}

/// `/srv/shop/venv/bin/forkmaster` in a unit file runs that venv, as the console script of a Python package would.
#[test]
fn the_venv_from_which_forkmaster_is_called_runs_the_application() {
    let (site, called) = with_tools("own_venv");
    let real = site.path().canonicalize().expect("the site is there").join("tools/1");
    // By its path, and by PATH; called from elsewhere, which a symlink in a `bin` is, it is not the venv's.
    let by_path = Launch { binary: Some(called.clone()), ..Launch::default() };
    let output = run_with(site.path(), &["config", "show", "-c", &config(&site)], by_path);
    assert!(output.stdout.contains(&format!("venv = \"{}\"", real.display())), "{output}");
    assert!(output.stdout.contains("# venv of the forkmaster executable"), "{output}");
    let elsewhere = site.path().join("elsewhere");
    symlink(&called, &elsewhere).expect("a symlink can be made");
    let by_link = Launch { binary: Some(elsewhere), ..Launch::default() };
    let output = run_with(site.path(), &["config", "show", "-c", &config(&site)], by_link);
    assert!(output.stdout.contains("# python3 on PATH"), "{output}");
    let master = site.launch(Launch { binary: Some(called), ..Launch::default() });
    master.wait_serving();
    assert_eq!(master.get("/info").json()["prefix"], real.to_str().expect("plain characters"));
    let warnings = master.log().lines().filter(|line| line.contains("does not lie in the release")).count();
    assert_eq!(warnings, 1, "{}", master.log());
}

/// The server is a package of each release's venv, and `current` leads to it: a deploy must not run the new code with the
/// old packages.
#[test]
fn a_forkmaster_that_lies_in_the_release_follows_the_flip() {
    let site = Site::new("own_venv_flips");
    for number in ["1", "2"] {
        // Not a name that is looked for.
        let release = site.build(number).bare().make();
        make_venv(Machine::get().default_python(), &release.join("env"));
        copy_binary_as(&release.join("env/bin/forkmaster"));
    }
    site.flip("1");
    let called = site.path().join("current/env/bin/forkmaster");
    let master = site.launch(Launch { binary: Some(called), ..Launch::default() });
    master.wait_serving();
    let prefix = |release: &str| {
        let real = site.release_path(release).canonicalize().expect("it is there");
        real.join("env").to_string_lossy().into_owned()
    };
    assert_eq!(master.get("/info").json()["prefix"], prefix("1"));
    site.flip("2");
    master.reload();
    assert_eq!(master.get("/info").json()["prefix"], prefix("2"));
    // The old release is cleaned up, as deploy tools do.
    master.wait_drained();
    fs::remove_dir_all(site.release_path("1")).expect("it is our directory");
    master.reload();
    assert_eq!(master.get("/info").json()["prefix"], prefix("2"));
    assert!(!master.log().contains("does not lie in the release"));
}

#[test]
fn a_venv_without_a_python_is_refused_and_one_of_another_name_is_told() {
    let site = Site::new("venv_names");
    site.build("1").bare().make();
    site.flip("1");
    make_venv(Machine::get().default_python(), &site.release_path("1").join("env"));
    let output = run(site.path(), &["check", "-c", &config(&site)]);
    assert!(output.ok() && output.stderr.contains("write [app] venv = \"env\" if that was meant"), "{output}");
    fs::create_dir(site.release_path("1").join(".venv")).expect("it is our directory");
    let output = run(site.path(), &["check", "-c", &config(&site)]);
    assert_eq!(output.code, Some(78), "{output}");
    assert!(output.stderr.contains("/.venv: not a usable venv"), "{output}");
}

#[test]
fn options_and_variables_of_other_servers_are_answered_with_what_to_write() {
    let here = Path::new("/");
    for (arguments, expected) in [
        (["app:app", "--timeout", "30"], "`[server] request_timeout`"),
        (["app:app", "-k", "gevent"], "one kind of worker"),
        (["app:app", "--access-logfile", "-"], "`[log] access`"),
        (["app:app", "--env", "A=1"], "the table `[env]`"),
        (["app:app", "--reload", "--debug"], "forkmaster reload"),
    ] {
        let output = run(here, &arguments);
        assert_eq!(output.code, Some(2), "{output}");
        assert!(output.stderr.contains(expected) && !output.stderr.contains("tip:"), "{output}");
    }
    let site = Site::with_releases("variables", 1);
    let launch = Launch::default().env("FORKMASTER_WORKERS", "5");
    let output = run_with(site.path(), &["config", "show", "-c", &config(&site)], launch);
    assert!(output.stderr.contains("FORKMASTER_WORKERS (did you mean FORKMASTER_SERVER__WORKERS?)"), "{output}");
}

#[test]
fn the_reference_is_the_page_in_docs() {
    let output = run(Path::new("/"), &["config", "reference"]);
    let page = fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/settings.md")).expect("it is there");
    assert!(output.ok() && output.stdout == page, "docs/settings.md is not what `config reference` prints");
}

/// A list that was parsed here is not parsed again there, and its length is nobody's limit.
#[test]
fn thousands_of_trusted_networks_reach_the_workers() {
    let site = Site::with_releases("networks", 1);
    let networks: Vec<String> = (0..5000).map(|at| format!("'10.{}.{}.0/24'", at / 256, at % 256)).collect();
    site.set("http.forwarded_allow_ips", &format!("[{}]", networks.join(", ")));
    let master = site.start();
    assert_eq!(master.get("/").text(), "1");
}
