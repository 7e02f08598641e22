//! What a reload changes: what is fixed stands before anything is derived from it.

use super::*;
use crate::config::change::{diff, Fixed};
use crate::config::keys::Applies;

fn variable(settings: &Settings, name: &str) -> Option<String> {
    let found = settings.app.environment.iter().find(|(key, _)| key == name);
    found.map(|(_, value)| value.to_string_lossy().into_owned())
}

#[test]
fn a_changed_user_changes_nothing_before_a_restart() {
    let deploy = Deploy::new();
    let first = deploy.read(&format!("name = \"a\"\n{APP}[server]\nuser = \"nobody\"\n")).unwrap();
    let fixed = Fixed::of(&first.settings);
    let text = format!(
        "name = \"b\"\n{APP}[server]\nuser = \"daemon\"\npidfile = \"b.pid\"\nworkers = 2\n[control]\nsocket = \"c\"\n[status]\nbind = [\"127.0.0.1:9\"]\n"
    );
    std::fs::write(deploy.path("current/app.toml"), text).unwrap();
    let second = read(&deploy.source(), &deploy.context, Some(&fixed)).unwrap();
    let (before, after) = (&first.settings, &second.settings);
    assert_eq!(Fixed::of(after), fixed);
    // What was made of it: the socket's owner and the environment.
    assert_eq!(after.server.socket, before.server.socket);
    for name in ["USER", "LOGNAME", "HOME"] {
        assert_eq!(variable(after, name), variable(before, name), "{name}");
    }
    assert_eq!(after.server.workers, 2);
    let sentence =
        |key: &str| format!("{key} has changed: it takes effect with a restart; the reload goes on without it");
    let keys = ["name", "[server] user, group", "[server] pidfile", "[control] socket", "[status] bind"];
    assert_eq!(second.warnings, keys.map(sentence));
    // Unchanged: no warning, whatever else changes.
    let text = format!("name = \"a\"\n{APP}[server]\nuser = \"nobody\"\nworkers = 3\n");
    std::fs::write(deploy.path("current/app.toml"), text).unwrap();
    assert_eq!(read(&deploy.source(), &deploy.context, Some(&fixed)).unwrap().warnings, [""; 0]);
}

#[test]
fn what_is_different_is_told_with_when_it_applies() {
    let deploy = Deploy::new();
    let before = deploy
        .read(&format!("{APP}[env]\nA = \"1\"\nSECRET = \"x\"\n[server]\nworkers = 2\n[log]\nlevel = \"debug\"\n"));
    let after = deploy.read(&format!(
        "name = \"b\"\n{APP}[env]\nB = \"1\"\nSECRET = \"y\"\n[server]\nworkers = 4\nuser = \"nobody\"\n"
    ));
    let changes = diff(&before.unwrap().effective, &after.unwrap().effective);
    let told: Vec<(String, Applies)> = changes.iter().map(|change| (change.to_string(), change.applies)).collect();
    let expected = [
        ("[env] A = \"1\" -> unset", Applies::Generation),
        ("[env] B = unset -> \"1\"", Applies::Generation),
        ("[server] workers = 2 -> 4", Applies::Generation),
        ("[server] user = unset -> \"nobody\" (with a restart)", Applies::Restart),
        ("[log] level = \"debug\" -> \"info\"", Applies::Commit),
    ];
    for (text, applies) in expected {
        assert!(told.contains(&(text.to_owned(), applies)), "{text}: {told:#?}");
    }
    // With name and its control socket, and the socket's owner that follows the user.
    assert!(told.iter().all(|(text, _)| !text.contains("SECRET")), "{told:#?}");
}
