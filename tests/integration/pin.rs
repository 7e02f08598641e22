//! A generation is one thing: every worker of it runs the same release, virtualenv and Python until the next HUP,
//! whatever happens to symlinks and files meanwhile.

use std::fs;
use std::os::unix::fs::symlink;

use nix::sys::signal::{kill, Signal};
use nix::unistd::Pid;

use crate::harness::for_each_preload;
use crate::harness::machine::Machine;
use crate::harness::master::{Launch, Master, Worker};
use crate::harness::site::{make_venv, Site};

/// Kills every worker and waits for as many new ones.
fn replace_all_workers(master: &Master) -> Vec<Worker> {
    let old = master.wait_serving();
    for worker in &old {
        kill(Pid::from_raw(worker.pid), Signal::SIGKILL).expect("a serving worker is there");
    }
    master.wait_or_exit("new workers for the killed ones", || {
        let now = master.workers();
        let all_new = now.iter().all(|worker| old.iter().all(|before| before.pid != worker.pid));
        (now.len() == old.len() && all_new).then_some(now)
    })
}

#[test]
fn a_worker_killed_between_flip_and_hup_comes_back_on_the_old_release() {
    for_each_preload(|preload| {
        let site = Site::with_releases(&format!("killed_after_flip_preload_{preload}"), 2);
        site.set("app.preload", preload);
        let master = site.start();
        site.flip("2");
        replace_all_workers(&master);
        for _ in 0..10 {
            let info = master.get("/info").json();
            assert_eq!((info["release"].as_str(), info["dep"].as_str()), (Some("1"), Some("1")), "preload = {preload}");
        }
        master.reload();
        assert_eq!(master.get("/info").json()["dep"], "2");
    });
}

#[test]
fn a_template_killed_between_flip_and_hup_comes_back_on_the_old_release() {
    let site = Site::with_releases("template_killed_after_flip", 2);
    let master = site.start();
    let template = master.status().and_then(|status| status.serving()).expect("it serves").template_pid;
    let before = master.workers();
    site.flip("2");
    kill(Pid::from_raw(template), Signal::SIGKILL).expect("the template is there");
    master.wait_or_exit("another template", || {
        let now = master.status()?.serving()?.template_pid;
        (now != 0 && now != template).then_some(())
    });
    assert_eq!(master.workers(), before, "a dead template touches no worker");
    replace_all_workers(&master);
    assert_eq!(master.get("/").text(), "1");
}

#[test]
fn a_venv_that_is_a_symlink_is_pinned_too() {
    let site = Site::new("venv_symlink");
    let python = Machine::get().default_python();
    for version in ["old", "new"] {
        let packages = make_venv(python, &site.path().join("venvs").join(version));
        fs::write(packages.join("dep.py"), format!("VERSION = '{version}'\n")).expect("it is our directory");
    }
    let link = site.path().join("venv");
    symlink("venvs/old", &link).expect("a symlink can be made");
    site.build("1").bare().make();
    fs::remove_file(site.release_path("1").join("dep.py")).expect("a bare release has it");
    site.flip("1");
    // Relative to the release, whose real directory is releases/1.
    site.set("app.venv", "'../../venv'");
    let master = site.start();
    fs::remove_file(&link).expect("it is there");
    symlink("venvs/new", &link).expect("a symlink can be made");
    replace_all_workers(&master);
    let info = master.get("/info").json();
    assert_eq!(info["dep"], "old");
    let real = site.path().canonicalize().expect("the site is there").join("venvs/old");
    assert_eq!(info["prefix"], real.to_str().expect("plain characters"));
    master.reload();
    assert_eq!(master.get("/info").json()["dep"], "new");
}

#[test]
fn with_preload_files_changed_in_place_do_not_matter_until_the_next_hup() {
    let site = Site::with_releases("changed_in_place", 1);
    site.set("app.preload", "true");
    let master = site.start();
    site.write("releases/1/release.py", "NAME = 'changed'\nIMPORT_S = 0.0\n");
    replace_all_workers(&master);
    assert_eq!(master.get("/").text(), "1");
    master.reload();
    assert_eq!(master.get("/").text(), "changed");
}

#[test]
fn with_preload_a_deleted_release_goes_on_serving() {
    let site = Site::with_releases("deleted_release", 2);
    site.set("app.preload", "true");
    let master = site.start();
    site.flip("2");
    fs::remove_dir_all(site.release_path("1")).expect("a deploy tool prunes it");
    replace_all_workers(&master);
    for _ in 0..5 {
        assert_eq!(master.get("/").text(), "1");
    }
    master.reload();
    assert_eq!(master.get("/").text(), "2");
}

#[test]
fn without_preload_workers_of_a_deleted_release_live_on_and_a_reload_works() {
    let site = Site::with_releases("deleted_release_no_preload", 2);
    let master = site.start();
    let workers = master.workers();
    fs::remove_dir_all(site.release_path("1")).expect("a deploy tool prunes it");
    kill(Pid::from_raw(workers[0].pid), Signal::SIGKILL).expect("a serving worker is there");
    master.wait_log(
        "worker gen=1 slot=* failed to boot*ModuleNotFoundError*; the release */releases/1 is gone*deploy another one",
    );
    assert_eq!(master.get("/").text(), "1", "the other worker still serves");
    site.flip("2");
    master.reload();
    assert_eq!(master.get("/").text(), "2");
    master.wait_serving();
}

#[test]
fn a_module_imported_later_is_of_the_same_release() {
    let site = Site::new("lazy_import");
    for release in ["1", "2"] {
        site.build(release).file("later.py", &format!("NAME = 'later {release}'\n")).make();
    }
    site.flip("1");
    site.set("server.workers", "1");
    let master = site.start();
    site.flip("2");
    assert_eq!(master.get("/lazy").text(), "later 1");
}

#[test]
fn modules_on_a_path_through_the_link_are_of_the_same_release() {
    for_each_preload(|preload| {
        let site = Site::new(&format!("path_through_link_preload_{preload}"));
        let link = site.path().join("current");
        let link = link.to_str().expect("plain characters");
        let app = format!(
            "import sys\nsys.path.insert(0, '{link}/inserted')\nimport release\n\
             def application(environ, start_response):\n    import by_variable, by_pth, by_insertion\n    \
             start_response('200 OK', [])\n    \
             return [' '.join([release.NAME, by_variable.NAME, by_pth.NAME, by_insertion.NAME]).encode()]\n"
        );
        for release in ["1", "2"] {
            let name = format!("NAME = '{release}'\n");
            site.build(release)
                .file("app.py", &app)
                .file("variable/by_variable.py", &name)
                .file("written/by_pth.py", &name)
                .file("inserted/by_insertion.py", &name)
                .file("site-packages/project.pth", &format!("{link}/written\n"))
                .make();
        }
        site.flip("1");
        site.set("app.preload", preload);
        let master = site.launch(Launch::default().env("PYTHONPATH", &format!("/nowhere:{link}/variable")));
        master.wait_serving();
        site.flip("2");
        // These import nothing before the flip, and the new ones start after it.
        assert_eq!(master.get("/").text(), "1 1 1 1", "preload = {preload}");
        replace_all_workers(&master);
        for _ in 0..5 {
            assert_eq!(master.get("/").text(), "1 1 1 1", "preload = {preload}");
        }
        master.reload();
        assert_eq!(master.get("/").text(), "2 2 2 2", "preload = {preload}");
    });
}

/// Releases 1 and 2 of which each says its name, also in a module that is imported by a request. `release` is the directory
/// of the first one, and no link leads to it.
fn renamed_site(name: &str) -> Site {
    let site = Site::new(name);
    for release in ["1", "2"] {
        site.build(release).file("later.py", &format!("NAME = 'later {release}'\n")).make();
    }
    site.set("app.release", "'releases/1'");
    site
}

fn rename(site: &Site, from: &str, to: &str) {
    fs::rename(site.path().join("releases").join(from), site.path().join("releases").join(to)).expect("it is there");
}

/// Release 2 takes the name of release 1.
fn replace(site: &Site) {
    rename(site, "1", "old");
    rename(site, "2", "1");
}

#[test]
fn a_release_that_is_renamed_for_the_next_one_goes_on_until_the_hup() {
    for_each_preload(|preload| {
        let site = renamed_site(&format!("renamed_preload_{preload}"));
        site.set("app.preload", preload);
        let master = site.start();
        replace(&site);
        // In workers that have imported nothing of it before, and in new ones.
        assert_eq!(master.get("/lazy").text(), "later 1", "preload = {preload}");
        replace_all_workers(&master);
        let renamed =
            "generation gen=1: */releases/1 was renamed while it serves: its modules are imported from */releases/old";
        master.wait_log(renamed);
        for _ in 0..5 {
            assert_eq!(master.get("/").text(), "1", "preload = {preload}");
            assert_eq!(master.get("/lazy").text(), "later 1", "preload = {preload}");
        }
        let venv = site.path().canonicalize().expect("it is there").join("releases/old/venv");
        let path = master.get("/info").json()["path"].to_string();
        assert!(path.contains(&format!("{}/lib", venv.display())), "{path}");
        master.reload();
        assert_eq!(master.get("/").text(), "2", "preload = {preload}");
        assert_eq!(master.get("/lazy").text(), "later 2", "preload = {preload}");
    });
}

#[test]
fn a_release_that_is_renamed_again_and_back_is_found() {
    let site = renamed_site("renamed_back");
    let master = site.start();
    replace(&site);
    replace_all_workers(&master);
    rename(&site, "old", "older");
    assert_eq!(master.get("/lazy").text(), "later 1");
    replace_all_workers(&master);
    assert_eq!(master.get("/lazy").text(), "later 1");
    rename(&site, "1", "2");
    rename(&site, "older", "1");
    replace_all_workers(&master);
    master.wait_log("generation gen=1: */releases/1 is back in its place");
    assert_eq!((master.get("/").text(), master.get("/lazy").text()), ("1".to_owned(), "later 1".to_owned()));
}

#[test]
fn a_release_that_is_built_again_under_its_name_is_not_mixed_with_what_serves() {
    let site = renamed_site("built_again");
    let master = site.start();
    let workers = master.wait_serving();
    fs::remove_dir_all(site.release_path("1")).expect("it is there");
    rename(&site, "2", "1");
    kill(Pid::from_raw(workers[0].pid), Signal::SIGKILL).expect("a serving worker is there");
    master.wait_log("generation gen=1: */releases/1 was removed while it serves, and another directory has its name*");
    master.wait_log(
        "worker gen=1 slot=* failed to boot*ModuleNotFoundError: No module named 'app'; */releases/1 was removed while it \
         serves*deploy that one with `forkmaster reload`",
    );
    assert_eq!(master.get("/").text(), "1", "the other worker still serves");
    master.reload();
    master.wait_serving();
    assert_eq!(master.get("/lazy").text(), "later 2");
}

#[test]
fn a_venv_that_is_renamed_for_the_next_one_goes_on_until_the_hup() {
    let site = Site::new("venv_renamed");
    for release in ["1", "2"] {
        site.build(release).make();
    }
    site.set("app.release", "'releases/1'");
    let master = site.start();
    rename(&site, "1/venv", "1/venv.old");
    rename(&site, "2/venv", "1/venv");
    replace_all_workers(&master);
    assert_eq!(master.get("/info").json()["dep"], "1");
    master.reload();
    assert_eq!(master.get("/info").json()["dep"], "2");
}

/// The interpreter is executed by its name.
#[test]
fn a_template_that_dies_beside_a_renamed_release_does_not_start_the_next_one() {
    let site = renamed_site("renamed_template_killed");
    let master = site.start();
    let before = master.wait_serving();
    let template = master.status().and_then(|status| status.serving()).expect("it serves").template_pid;
    replace(&site);
    kill(Pid::from_raw(template), Signal::SIGKILL).expect("the template is there");
    master.wait_log("template gen=1 failed: */venv/bin/python cannot be started: another directory has the name */releases/1 by now*");
    assert_eq!(master.workers(), before, "a dead template touches no worker");
    assert_eq!(master.get("/lazy").text(), "later 1");
    master.reload();
    assert_eq!(master.get("/lazy").text(), "later 2");
}

#[test]
fn a_config_file_inside_current_follows_the_flip() {
    let site = Site::new("config_in_release");
    for release in ["1", "2"] {
        let config = format!(
            "[app]\nmodule = 'app:application'\n[env]\nFROM_CONFIG = '{release}'\n[server]\nbind = ['127.0.0.1:0']\n\
             [control]\nsocket = '{}/control.sock'\n",
            site.path().display()
        );
        site.build(release).file("deploy.toml", &config).make();
    }
    site.flip("1");
    let config = site.path().join("current/deploy.toml");
    let launch = Launch::default().args(&["-c", config.to_str().expect("plain characters")]);
    let master = site.launch(launch);
    master.wait_log("worker gen=1 * -> serving");
    assert_eq!(master.get("/info").json()["environ"]["FROM_CONFIG"], "1");
    site.flip("2");
    master.hup();
    master.wait_log("generation gen=2 rolling -> serving");
    let info = master.get("/info").json();
    assert_eq!((info["environ"]["FROM_CONFIG"].as_str(), info["release"].as_str()), (Some("2"), Some("2")));
}
