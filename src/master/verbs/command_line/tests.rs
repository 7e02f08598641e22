//! What arguments mean, and what is said of wrong ones.

use super::*;
use crate::config::Overrides;

fn context(cwd: &Path) -> ProcessContext {
    ProcessContext {
        environment: Default::default(),
        cwd: cwd.to_owned(),
        executable: None,
        uid: 0,
        gid: 0,
        cpus: 1,
        mount_namespace: 0,
    }
}

fn line(text: &str) -> Result<Command, clap::Error> {
    parse(std::iter::once("forkmaster").chain(text.split_whitespace()), &context(Path::new("/nowhere")))
}

fn source(file: Option<&str>, overrides: Overrides) -> Source {
    let file = file.map(|shown| ConfigFile { path: Path::new("/nowhere").join(shown), shown: shown.to_owned() });
    Source { file, overrides }
}

const PAGE: Wanted = Wanted { json: false, requests: false, watch: None };

#[test]
fn clap_finds_the_definition_sound() {
    Line::command().debug_assert();
}

#[test]
fn a_line_of_options_alone_means_what_the_whole_definition_makes_of_it() {
    let words = |text: &str| std::iter::once("forkmaster").chain(text.split_whitespace()).map(OsString::from).collect();
    for text in
        ["", "-c app.toml", "--config=app.toml --bind [::]:8000 --preload", "-b 127.0.0.1:1 -w 2 --release /srv"]
    {
        let arguments: Vec<OsString> = words(text);
        let alone = OptionsAlone::parse(&arguments).expect(text);
        assert_eq!(format!("{alone:?}"), format!("{:?}", Line::parse_any(arguments).unwrap()), "{text}");
    }
    // What the whole definition must see.
    for text in
        ["status", "-c app.toml status", "shop:app", "-t", "-c app.toml -t", "--help", "--version", "--worker 3"]
    {
        assert!(OptionsAlone::parse(&words(text)).is_none(), "{text}");
    }
}

/// As found: `scale -1` was taken for an option, since the optional word before it may not begin with a minus.
#[test]
fn fewer_is_written_with_a_minus() {
    for (text, name, by) in [
        ("scale -1 -c a.toml", None, -1),
        ("scale -c a.toml -2", None, -2),
        ("scale +1 -c a.toml", None, 1),
        ("scale celery -1 -c a.toml", Some("celery"), -1),
        ("scale -c a.toml celery -3", Some("celery"), -3),
        ("scale celery +3 -c a.toml", Some("celery"), 3),
    ] {
        let Ok(Command::Scale { service, to, .. }) = line(text) else { panic!("{text}") };
        assert_eq!((service.as_deref(), to), (name, Scale::By(by)), "{text}");
    }
    for text in ["scale -x -c a.toml", "scale celery -c a.toml", "scale -1 -1 2 -c a.toml"] {
        assert!(line(text).is_err(), "{text}");
    }
}

#[test]
fn a_paused_reload_has_no_canary() {
    for option in ["--canary 1", "--canary 1 --hold 5s", "--hold 5s"] {
        let refused = line(&format!("reload --pause {option} -c a.toml")).expect_err(option).to_string();
        assert!(refused.contains("--pause"), "{refused}");
    }
}

#[test]
fn serving_in_all_its_forms() {
    let plain = || source(Some("app.toml"), Overrides::default());
    let module = |text: &str| source(None, Overrides { module: Some(text.to_owned()), ..Overrides::default() });
    assert_eq!(line("-c app.toml").unwrap(), Command::Run(plain()));
    assert_eq!(line("run -c app.toml").unwrap(), Command::Run(plain()));
    assert_eq!(line("-c app.toml run").unwrap(), Command::Run(plain()));
    assert_eq!(line("shop.wsgi:app").unwrap(), Command::Run(module("shop.wsgi:app")));
    assert_eq!(line("app").unwrap(), Command::Run(module("app")));
    assert_eq!(line("run status").unwrap(), Command::Run(module("status")));
    let text = "-b 127.0.0.1:1 --bind unix:run/a.sock -w auto --threads 4 --notify-fd 3 --preload --release rel --venv v --name n --log-level debug a:b";
    let overrides = Overrides {
        module: Some("a:b".into()),
        name: Some("n".into()),
        release: Some("/nowhere/rel".into()),
        venv: Some("/nowhere/v".into()),
        python: None,
        preload: Some("true".into()),
        bind: vec!["127.0.0.1:1".into(), "unix:/nowhere/run/a.sock".into()],
        workers: Some("auto".into()),
        threads: Some("4".into()),
        notify_fd: Some("3".into()),
        log_level: Some("debug".into()),
        dev: false,
    };
    assert_eq!(line(text).unwrap(), Command::Run(source(None, overrides)));
    let overrides = Overrides { preload: Some("false".into()), ..Overrides::default() };
    let check = Command::Check { source: source(Some("a.toml"), overrides), boot: true };
    assert_eq!(line("check --boot --preload=false -c a.toml").unwrap(), check);
    let developing = Overrides { dev: true, workers: Some("2".into()), ..Overrides::default() };
    assert_eq!(line("dev -w 2 -c app.toml").unwrap(), Command::Dev(source(Some("app.toml"), developing)));
    assert_eq!(line("config show -c app.toml").unwrap(), Command::ConfigShow { source: plain(), explain: false });
}

#[test]
fn clients() {
    let client = || Client { socket: None, source: source(Some("a.toml"), Overrides::default()) };
    assert_eq!(line("-c a.toml status").unwrap(), Command::Status { client: client(), wanted: PAGE });
    assert_eq!(
        line("status --json -c a.toml").unwrap(),
        Command::Status { client: client(), wanted: Wanted { json: true, ..PAGE } }
    );
    let healthy = |probe| Command::Health { client: client(), probe };
    assert_eq!(line("-c a.toml health").unwrap(), healthy(HealthProbe::Ready));
    assert_eq!(line("-c a.toml health --ready").unwrap(), healthy(HealthProbe::Ready));
    assert_eq!(line("-c a.toml health --live").unwrap(), healthy(HealthProbe::Live));
    assert!(line("-c a.toml health --live --ready").is_err());
    let forever = Waiting::Until(None);
    assert_eq!(
        line("reload -c a.toml").unwrap(),
        Command::Reload { client: client(), force: false, canary: None, waiting: forever }
    );
    let seconds = Some(Duration::from_secs(90));
    let until = Waiting::Until(seconds);
    assert_eq!(
        line("-c a.toml reload --timeout 1m30s").unwrap(),
        Command::Reload { client: client(), force: false, canary: None, waiting: until }
    );
    assert_eq!(
        line("-c a.toml reload --no-wait").unwrap(),
        Command::Reload { client: client(), force: false, canary: None, waiting: Waiting::No }
    );
    assert_eq!(
        line("-c a.toml wait ready --timeout 90s").unwrap(),
        Command::WaitReady { client: client(), timeout: seconds }
    );
    assert_eq!(
        line("-c a.toml shutdown --now").unwrap(),
        Command::Stop { client: client(), now: true, waiting: forever }
    );
    let client = Client { socket: Some("/nowhere/run/a.sock".into()), source: Source::default() };
    assert_eq!(line("status --socket run/a.sock").unwrap(), Command::Status { client, wanted: PAGE });
    assert_eq!(line("list --json").unwrap(), Command::List { json: true });
    assert_eq!(line("ps").unwrap(), Command::List { json: false });
    let check = || Command::Check { source: source(Some("a.toml"), Overrides::default()), boot: false };
    for text in ["check -c a.toml", "validate -c a.toml", "configtest -c a.toml", "-t -c a.toml", "-c a.toml --test"] {
        assert_eq!(line(text).unwrap(), check(), "{text}");
    }
}

#[test]
fn app_toml_is_found() {
    let directory = tempfile::tempdir().unwrap();
    let here = context(directory.path());
    let error = parse(["forkmaster"], &here).unwrap_err();
    assert_eq!((error.exit_code(), error.to_string().trim_end().lines().count()), (2, 3));
    std::fs::write(directory.path().join("app.toml"), "").unwrap();
    let file = ConfigFile { path: directory.path().join("app.toml"), shown: "app.toml".to_owned() };
    let expected = Source { file: Some(file), overrides: Overrides::default() };
    assert_eq!(parse(["forkmaster"], &here).unwrap(), Command::Run(expected.clone()));
    let client = Client { socket: None, source: expected };
    assert_eq!(parse(["forkmaster", "status"], &here).unwrap(), Command::Status { client, wanted: PAGE });
    // A module on the command line needs no file, and takes none.
    let Command::Run(source) = parse(["forkmaster", "shop.wsgi"], &here).unwrap() else { panic!("not run") };
    assert_eq!(source.file, None);
}

#[test]
fn bad_arguments_exit_2_and_say_why() {
    let cases = [
        ("relaod", "did you mean `reload`?"),
        ("restart", "`forkmaster reload` deploys"),
        ("enable", "systemctl enable --now"),
        ("update", "`forkmaster reload`"),
        ("kill", "`forkmaster stop --now`"),
        ("test", "`forkmaster check`"),
        ("top", "`forkmaster status --watch`"),
        ("start", "forkmaster -c app.toml"),
        ("up", "forkmaster -c app.toml"),
        ("tail", "forkmaster logs"),
        ("evnts", "did you mean `events`?"),
        ("init", "forkmaster config init"),
        ("lst", "did you mean `list`?"),
        ("status --socket @forkmaster/0/shop", "forkmaster list"),
        ("-t status", "after the verb"),
        ("app.toml", "-c app.toml"),
        ("--workers many a.b", "\"auto\""),
        ("--bind 8000 a.b", "127.0.0.1:8000"),
        ("--threads 0 a.b", "must be from 1"),
        ("--log-level warning a.b", "warn"),
        ("--venv v --python p a.b", "cannot be used with"),
        ("reload --timeout 30", "30s"),
        ("reload --timeout 30s --no-wait", "cannot be used with"),
        ("wait sideways", "ready"),
        ("--workers 2 status", "after the verb"),
        ("a.b --socket x", "--socket is for"),
        ("status --workers 2", "--workers"),
        ("config", "show"),
        ("--timeout 30 a.b", "FORKMASTER_SERVER__REQUEST_TIMEOUT"),
        ("-k gthread a.b", "one kind of worker"),
        ("--access-logfile - a.b", "[log] access"),
        ("-t30 a.b", "request_timeout"),
        ("-t 30 a.b", "request_timeout"),
        ("--reload a.b", "forkmaster reload"),
        ("--env A=1 a.b", "[env]"),
        ("run --chdir /srv a.b", "--release"),
        ("check", "nothing to serve"),
        ("rollback --to x", "write it in digits"),
        ("report last", "write it in digits"),
        ("dump 1.5", "write it in digits"),
        ("logs -n all", "write it in digits"),
        ("reload --canary some", "write it in digits"),
    ];
    for (text, hint) in cases {
        let error = line(text).unwrap_err();
        assert_eq!(error.exit_code(), 2, "{text}");
        assert!(error.to_string().contains(hint), "{text}: {error}");
    }
    for text in ["--help", "--version", "reload --help"] {
        assert_eq!(line(text).unwrap_err().exit_code(), 0, "{text}");
    }
    assert!(line("--version").unwrap_err().to_string().starts_with("forkmaster "));
    let help = line("--help").unwrap_err().to_string();
    assert!(help.contains("   78  the configuration is wrong; a restart does not help"), "{help}");
}
