//! Where values come from, and which of two counts.

use super::*;

#[test]
fn layers_in_their_order() {
    let mut deploy = Deploy::new();
    deploy.set("PORT", "5000");
    deploy.set("WEB_CONCURRENCY", "7");
    deploy.set("FORWARDED_ALLOW_IPS", "10.0.0.1, 10.0.0.2");
    let loaded = deploy.read(APP).unwrap();
    assert_eq!(loaded.settings.server.bind[0].to_string(), "0.0.0.0:5000");
    assert_eq!(loaded.settings.server.workers, 7);
    assert_eq!(peers(&loaded.settings.http), ["10.0.0.1", "10.0.0.2"]);
    assert!(loaded.show(false).contains("# WEB_CONCURRENCY"));
    let text = format!("{APP}[server]\nworkers = \"auto\"\nbind = [\"127.0.0.1:1\"]\n");
    let loaded = deploy.read(&text).unwrap();
    assert_eq!(
        (loaded.settings.server.workers, loaded.settings.server.bind[0].to_string()),
        (3, "127.0.0.1:1".to_owned())
    );
    assert!(loaded.show(false).contains("# app.toml:4"));
    deploy.set("FORKMASTER_SERVER__WORKERS", "5");
    deploy.set("FORKMASTER_SERVER__BIND", "127.0.0.1:2,[::1]:2");
    deploy.set("FORKMASTER_APP__PRELOAD", "true");
    deploy.set("FORKMASTER_NAME", "shop");
    deploy.set("FORKMASTER_SERVER__THREADS", "");
    // A service of Kubernetes that has our name says nothing to us.
    deploy.set("FORKMASTER_PORT", "tcp://10.0.0.1:80");
    deploy.set("FORKMASTER_PORT_80_TCP_PROTO", "tcp");
    deploy.set("FORKMASTER_SERVICE_HOST", "10.0.0.1");
    deploy.set("FORKMASTER_WORKERS", "9");
    let loaded = deploy.read(&text).unwrap();
    assert_eq!((loaded.settings.server.workers, loaded.settings.server.bind.len()), (5, 2));
    assert!(loaded.settings.app.preload && loaded.settings.name == "shop");
    let ignored = "ignored, since no setting is called so: FORKMASTER_WORKERS (did you mean \
                   FORKMASTER_SERVER__WORKERS?)";
    assert_eq!(loaded.warnings, [ignored]);
    deploy.overrides.workers = Some("6".to_owned());
    deploy.overrides.bind = vec!["127.0.0.1:3".to_owned()];
    deploy.overrides.module = Some("other:app".to_owned());
    let loaded = deploy.read(&text).unwrap();
    assert_eq!(
        (loaded.settings.server.workers, loaded.settings.server.bind[0].to_string()),
        (6, "127.0.0.1:3".to_owned())
    );
    assert_eq!(loaded.settings.app.application.module, "other");
    // A wrong value is reported where it is.
    deploy.overrides = Overrides::default();
    deploy.set("FORKMASTER_SERVER__WORKERS", "many");
    let refused = deploy.refused(&text);
    assert_eq!(refused, ["FORKMASTER_SERVER__WORKERS: [server] workers = \"many\": a number is needed, or \"auto\""]);
}

#[test]
fn expansion_uses_the_start_environment_and_env_file_and_stands_for_numbers() {
    let mut deploy = Deploy::new();
    deploy.set("WORKERS", "4");
    deploy.set("NOTIFY_SOCKET", "/n");
    std::fs::write(
        deploy.path("current/shop.env"),
        "export PRELOAD=true\nADDRESSES=127.0.0.1:1,127.0.0.1:2\nLITERAL='${WORKERS}'\n",
    )
    .unwrap();
    let text = format!(
        "{APP}env_file = \"${{NAME:-shop}}.env\"\npreload = \"${{PRELOAD}}\"\n[server]\nworkers = \"${{WORKERS}}\"\n\
         bind = \"${{ADDRESSES}}\"\n[env]\nTOTAL = \"${{WORKERS}} of $$5\"\nPASSWORD = \"x${{WORKERS}}\"\n"
    );
    let loaded = deploy.read(&text).unwrap();
    let settings = &loaded.settings;
    assert!(settings.app.preload && settings.server.workers == 4 && settings.server.bind.len() == 2);
    let variable = |name: &str| {
        settings.app.environment.iter().find(|(key, _)| key == name).map(|(_, value)| value.to_str().unwrap())
    };
    assert_eq!(variable("TOTAL"), Some("4 of $5"));
    assert_eq!(variable("LITERAL"), Some("${WORKERS}"));
    assert_eq!(variable("PASSWORD"), Some("x4"));
    assert_eq!(variable("NOTIFY_SOCKET"), None);
    assert!(loaded.show(false).contains("PASSWORD = \"***\"") && !loaded.show(false).contains("x4"));
    // Not from [env], and the supervisor's variables are none of ours.
    let refused = deploy.refused(&format!("{APP}[env]\nA = \"1\"\nB = \"${{A}}\"\nC = \"${{NOTIFY_SOCKET}}\"\n"));
    assert_eq!(refused.len(), 3, "{refused:?}");
    std::fs::write(deploy.path("current/shop.env"), "secret stuff\n").unwrap();
    let refused = deploy.refused(&format!("{APP}env_file = \"shop.env\"\n"));
    assert_eq!(refused, ["/T/releases/1/shop.env:1: not KEY=VALUE"]);
}

#[test]
fn no_file_is_needed() {
    let mut deploy = Deploy::new();
    deploy.context.cwd = deploy.path("current");
    let source = |module: Option<&str>| Source {
        file: None,
        overrides: Overrides { module: module.map(str::to_owned), ..Overrides::default() },
    };
    let settings = read(&source(Some("shop.wsgi:app")), &deploy.context, None).unwrap().settings;
    assert_eq!(settings.app.release, deploy.path("releases/1"));
    assert!(settings.name.starts_with("current-"));
    let message = read(&source(None), &deploy.context, None).unwrap_err().to_string();
    assert!(message.contains("[app] module: missing"), "{message}");
    let message = read(&source(Some("a:")), &deploy.context, None).unwrap_err().to_string();
    assert!(message.starts_with("MODULE: [app] module = \"a:\": "), "{message}");
}

#[test]
fn a_client_finds_the_socket_whatever_else_is_wrong() {
    let mut deploy = Deploy::new();
    let text = "name = \"shop\"\n[app]\nmodule = 3\nvenv = \"gone\"\nenv_file = \"gone.env\"\nunknown = 1\n";
    std::fs::write(deploy.path("current/app.toml"), text).unwrap();
    deploy.set("RUNTIME_DIRECTORY", "/run/shop");
    let found = control(&deploy.source(), &deploy.context).unwrap();
    let ControlSocket::Auto(places) = found.socket else { panic!("not auto: {:?}", found.socket) };
    assert_eq!((found.name.as_str(), places[0].path.as_path()), ("shop", Path::new("/run/shop/shop.sock")));
    // The owner of the file and the user that the service runs as may be its masters.
    let text = "name = \"shop\"\n[server]\nuser = 1234\nworkers = \"many\"\n";
    std::fs::write(deploy.path("current/app.toml"), text).unwrap();
    let owner = std::fs::metadata(deploy.path("current/app.toml")).unwrap();
    let owner = std::os::unix::fs::MetadataExt::uid(&owner);
    assert_eq!(control(&deploy.source(), &deploy.context).unwrap().uids, [owner, 1234]);
    std::fs::write(deploy.path("current/app.toml"), "[server]\nuser = \"no such user\"\n").unwrap();
    assert_eq!(control(&deploy.source(), &deploy.context).unwrap().uids, [owner]);
    std::fs::write(deploy.path("current/app.toml"), "name = \"a/b\"\n[control]\nsocket = \"none\"\n").unwrap();
    assert!(control(&deploy.source(), &deploy.context).unwrap_err().to_string().contains("name = \"a/b\""));
    std::fs::write(deploy.path("current/app.toml"), "name = = 1").unwrap();
    assert!(control(&deploy.source(), &deploy.context).is_err());
}
