//! Releases, interpreters and the environment in which they run.

use super::*;

#[test]
fn what_init_writes_is_good_also_with_every_line_in_use() {
    let deploy = Deploy::new();
    std::fs::write(deploy.path("releases/1/app.py"), "app = 1\n").unwrap();
    let found = discovery::find(&deploy.path("releases/1"));
    let text = starter::text(found.as_ref());
    assert!(text.contains("# The application; found in app.py.\nmodule = \"app:app\"\n"), "{text}");
    assert!(text.lines().all(|line| line.chars().count() <= 120), "{text}");
    assert_eq!(deploy.read(&text).unwrap().settings.server.workers, 1);
    // A setting is the last line of its paragraph.
    let lines: Vec<&str> = text.lines().collect();
    let next = lines.iter().skip(1).chain(&[""]);
    let in_use =
        lines.iter().zip(next).map(|(line, next)| if next.is_empty() { line.trim_start_matches("# ") } else { line });
    let in_use: Vec<&str> = in_use.skip_while(|line| !line.is_empty()).collect();
    let loaded = deploy.read(&in_use.join("\n")).unwrap();
    assert_eq!((loaded.settings.server.workers, loaded.settings.server.threads), (3, 4));
    // Without an application it is good as well, and says what to change.
    assert!(starter::text(None).contains("None was found here"));
    deploy.read(&starter::text(None)).unwrap();
}

#[test]
fn an_application_that_nobody_named_is_found_in_the_release() {
    let deploy = Deploy::new();
    assert_eq!(deploy.refused("")[0].split(": missing").next(), Some("app.toml: [app] module"));
    std::fs::write(deploy.path("releases/1/wsgi.py"), "from shop import app as application\n").unwrap();
    let loaded = deploy.read("[server]\nworkers = 2\n").unwrap();
    assert_eq!(loaded.settings.app.application.attributes, ["application"]);
    let shown = loaded.show(false);
    let line = shown.lines().find(|line| line.starts_with("module")).unwrap().to_owned();
    assert_eq!(
        line.split_whitespace().collect::<Vec<_>>().join(" "),
        "module = \"wsgi:application\" # found in wsgi.py"
    );
    // What is written counts, also where it is wrong.
    assert!(deploy.refused("[app]\nmodule = \"shop:\"\n")[0].contains("[app] module"));
}

#[test]
fn a_venv_that_was_configured_is_never_replaced_by_another_python() {
    let mut deploy = Deploy::new();
    let refused = deploy.refused("[app]\nmodule = \"a\"\nvenv = \"gone\"\n");
    assert_eq!(refused, ["app.toml:3: [app] venv = \"gone\": there is no venv /T/releases/1/gone"]);
    symlink("/nowhere", deploy.path("releases/1/link")).unwrap();
    let refused = deploy.refused("[app]\nmodule = \"a\"\nvenv = \"link\"\n");
    assert!(refused[0].contains("link is a dangling symlink (to /nowhere)"), "{refused:?}");
    std::fs::remove_file(deploy.path("releases/1/venv/bin/python")).unwrap();
    symlink("/nowhere", deploy.path("releases/1/venv/bin/python")).unwrap();
    let refused = deploy.refused(APP);
    assert!(refused[0].contains("venv/bin/python is a dangling symlink"), "{refused:?}");
    // A venv is relative to the release, and a missing one is told with both places where it could have been meant.
    make_venv(&deploy.path("releases/2/env"));
    let venv = |name: &str| format!("[app]\nmodule = \"a\"\nrelease = \"../2\"\nvenv = \"{name}\"\n");
    let interpreter = deploy.read(&venv("env")).unwrap().settings.app.interpreter;
    assert_eq!((interpreter.chosen_by, interpreter.venv), ("[app] venv", Some(deploy.path("releases/2/env"))));
    std::fs::remove_file(deploy.path("releases/1/venv/bin/python")).unwrap();
    symlink("/bin/sh", deploy.path("releases/1/venv/bin/python")).unwrap();
    let beside = "it is relative to the release, and there is \"/T/releases/1/venv\": write that";
    let expected = format!("app.toml:4: [app] venv = \"venv\": there is no venv /T/releases/2/venv; {beside}");
    assert_eq!(deploy.refused(&venv("venv")), [expected]);
    let refused = deploy.refused(&venv("gone"));
    assert!(refused[0].ends_with("and /T/releases/1/gone is not there either"), "{refused:?}");
    // VIRTUAL_ENV counts where nothing is set or found, and must be usable as well.
    std::fs::create_dir_all(deploy.path("releases/3")).unwrap();
    let text = "[app]\nmodule = \"a\"\nrelease = \"../3\"\n";
    deploy.set("VIRTUAL_ENV", deploy.path("releases/2/env").to_str().unwrap());
    let interpreter = deploy.read(text).unwrap().settings.app.interpreter;
    assert_eq!((interpreter.chosen_by, interpreter.venv), ("VIRTUAL_ENV", Some(deploy.path("releases/2/env"))));
    deploy.set("VIRTUAL_ENV", "/nowhere");
    assert!(deploy.refused(text)[0].contains("VIRTUAL_ENV=/nowhere: there is no venv"));
    deploy.set("VIRTUAL_ENV", "");
    make_venv(&deploy.path("path"));
    std::fs::rename(deploy.path("path/bin/python"), deploy.path("path/bin/python3")).unwrap();
    deploy.set("PATH", deploy.path("path/bin").to_str().unwrap());
    let interpreter = deploy.read(text).unwrap().settings.app.interpreter;
    assert_eq!((interpreter.chosen_by, interpreter.venv), ("python3 on PATH", Some(deploy.path("path"))));
    // The higher layer decides; the lower one is then no contradiction.
    deploy.overrides.python = Some("/bin/sh".to_owned());
    let loaded = deploy.read("[app]\nmodule = \"a\"\nvenv = \"gone\"\n").unwrap();
    assert_eq!(loaded.settings.app.interpreter.chosen_by, "[app] python");
    assert!(loaded.show(false).contains("# command line, --python"), "{}", loaded.show(false));
}

#[test]
fn a_flip_of_current_is_followed_and_what_outlives_a_generation_is_not_moved() {
    let deploy = Deploy::new();
    let text = "[app]\nmodule = \"a\"\n[server]\nbind = [\"unix:a.sock\"]\npidfile = \"a.pid\"\n";
    let before = deploy.read(text).unwrap().settings;
    deploy.release("2");
    std::fs::remove_file(deploy.path("current")).unwrap();
    symlink("releases/2", deploy.path("current")).unwrap();
    let after = deploy.read(text).unwrap().settings;
    assert_eq!(before.app.release, deploy.path("releases/1"));
    assert_eq!(after.app.release, deploy.path("releases/2"));
    assert_eq!(after.app.interpreter.executable, deploy.path("releases/2/venv/bin/python"));
    assert_eq!((before.name, before.server), (after.name, after.server));
    std::fs::remove_dir_all(deploy.path("releases/2")).unwrap();
    let message = read(&deploy.source(), &deploy.context, None).unwrap_err().to_string();
    assert!(message.contains("current is a dangling symlink (to releases/2)"), "{message}");
}

#[test]
fn the_environment_is_that_of_an_activated_venv_and_of_the_user() {
    let mut deploy = Deploy::new();
    deploy.set("USER", "root");
    deploy.set("LOGNAME", "root");
    deploy.set("PYTHONHOME", "/x");
    deploy.set("PWD", "/somewhere");
    let environment = |loaded: Loaded| loaded.settings.app.environment;
    let find = |environment: &[(std::ffi::OsString, std::ffi::OsString)], name: &str| {
        environment.iter().find(|(key, _)| key == name).map(|(_, value)| value.to_string_lossy().into_owned())
    };
    let plain = environment(deploy.read(APP).unwrap());
    let venv = deploy.path("releases/1/venv").to_string_lossy().into_owned();
    assert_eq!(find(&plain, "VIRTUAL_ENV"), Some(venv.clone()));
    assert_eq!(find(&plain, "PATH"), Some(format!("{venv}/bin:/usr/bin:/bin")));
    assert_eq!(find(&plain, "PWD"), Some(deploy.path("releases/1").to_string_lossy().into_owned()));
    assert_eq!(find(&plain, "PYTHONHOME"), None);
    assert_eq!((find(&plain, "HOME"), find(&plain, "USER")), (Some("/root".into()), Some("root".into())));
    let nobody = environment(deploy.read(&format!("{APP}[server]\nuser = \"nobody\"\n")).unwrap());
    assert_eq!(find(&nobody, "USER"), Some("nobody".into()));
    assert_eq!(find(&nobody, "LOGNAME"), Some("nobody".into()));
    assert_ne!(find(&nobody, "HOME"), Some("/root".into()));
    let text = format!("{APP}[server]\nuser = 3999999999\ngroup = 5\n[env]\nLOGNAME = \"me\"\nPYTHONHOME = \"/y\"\n");
    let loaded = deploy.read(&text).unwrap();
    assert!(loaded.warnings.iter().any(|warning| warning.contains("PYTHONHOME")));
    let number = environment(loaded);
    assert_eq!((find(&number, "HOME"), find(&number, "USER")), (Some("/".into()), None));
    assert_eq!((find(&number, "LOGNAME"), find(&number, "PYTHONHOME")), (Some("me".into()), None));
    // Nothing inherited at all.
    deploy.context.environment.clear();
    let empty = environment(deploy.read(APP).unwrap());
    assert_eq!(find(&empty, "PATH"), Some(format!("{venv}/bin:/usr/local/bin:/usr/bin:/bin")));
    assert_eq!(empty.len(), 3);
}

#[test]
fn an_unprivileged_master_stays_who_it_is() {
    let mut deploy = Deploy::new();
    deploy.context.uid = 10_001;
    deploy.context.gid = 10_001;
    let loaded = deploy.read(&format!("{APP}[server]\nuser = 10001\ngroup = 10001\n")).unwrap();
    assert_eq!(loaded.settings.server.identity, None);
    let refused = deploy.refused(&format!("{APP}[server]\nuser = \"nobody\"\nsocket_user = \"root\"\n"));
    assert!(refused[1].contains("only root can become") && refused[2].contains("only root can give"), "{refused:?}");
}

#[test]
fn pythonpath_and_python_are_relative_to_the_release_too() {
    let deploy = Deploy::new();
    make_venv(&deploy.path("releases/2/env"));
    std::fs::create_dir(deploy.path("releases/2/lib")).unwrap();
    std::fs::create_dir(deploy.path("releases/1/other")).unwrap();
    let text = "[app]\nmodule = \"a\"\nrelease = \"../2\"\npython = \"env/bin/python\"\n";
    let app = deploy.read(&format!("{text}pythonpath = [\"lib\"]\n")).unwrap().settings.app;
    assert_eq!(app.pythonpath, [deploy.path("releases/2/lib")]);
    assert_eq!(app.interpreter.venv, Some(deploy.path("releases/2/env")));
    let refused = deploy.refused(&format!("{text}pythonpath = [\"other\"]\n"));
    let expected = "there is no directory /T/releases/2/other; it is relative to the release, and there is \"/T/releases/1/other\"";
    assert!(refused[0].contains(expected), "{refused:?}");
}

#[test]
fn the_venv_of_the_executable_comes_before_path_and_after_all_else() {
    let mut deploy = Deploy::new();
    std::fs::create_dir_all(deploy.path("releases/3")).unwrap();
    make_venv(&deploy.path("tools/1"));
    symlink("1", deploy.path("tools/current")).unwrap();
    let text = "[app]\nmodule = \"a\"\nrelease = \"../3\"\n";
    deploy.context.executable = Some(deploy.path("tools/current/bin/forkmaster"));
    let interpreter = deploy.read(text).unwrap().settings.app.interpreter;
    assert_eq!(interpreter.chosen_by, "venv of the forkmaster executable");
    assert_eq!(interpreter.venv, Some(deploy.path("tools/1")));
    // It follows a flip, as all else does.
    make_venv(&deploy.path("tools/2"));
    std::fs::remove_file(deploy.path("tools/current")).unwrap();
    symlink("2", deploy.path("tools/current")).unwrap();
    assert_eq!(deploy.read(text).unwrap().settings.app.interpreter.venv, Some(deploy.path("tools/2")));
    deploy.set("VIRTUAL_ENV", deploy.path("tools/1").to_str().unwrap());
    assert_eq!(deploy.read(text).unwrap().settings.app.interpreter.chosen_by, "VIRTUAL_ENV");
    assert_eq!(deploy.read(APP).unwrap().settings.app.interpreter.chosen_by, "venv in the release");
}

#[test]
fn python3_on_path_is_taken_with_a_warning_where_the_release_has_a_venv_of_another_name() {
    let mut deploy = Deploy::new();
    let release = deploy.path("releases/3");
    std::fs::create_dir_all(&release).unwrap();
    make_venv(&deploy.path("path"));
    std::fs::rename(deploy.path("path/bin/python"), deploy.path("path/bin/python3")).unwrap();
    deploy.set("PATH", deploy.path("path/bin").to_str().unwrap());
    let text = "[app]\nmodule = \"a\"\nrelease = \"../3\"\n";
    assert_eq!(deploy.read(text).unwrap().warnings, [""; 0]);
    make_venv(&release.join("env"));
    let warnings = deploy.read(text).unwrap().warnings;
    assert!(
        warnings[0].contains("and not the venv")
            && warnings[0].ends_with("write [app] venv = \"env\" if that was meant")
    );
    // One that has the right name and no Python is refused.
    std::fs::create_dir(release.join(".venv")).unwrap();
    let refused = deploy.refused(text);
    assert!(refused[0].contains("[app] venv: /T/releases/3/.venv: not a usable venv: there is no file"), "{refused:?}");
}
