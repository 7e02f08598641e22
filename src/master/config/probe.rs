//! `[app] probe`, a request that proves a release, as a path or as a table; and `[app] warmup`, paths of the same kind.

use forkmaster_wire::message::Probe;

use super::file::{quoted, Value, Written};
use super::values::{integer, string};

/// `"/healthz"` or `{ path = "/healthz", host = "shop.example", scheme = "https", status = [200] }`.
pub fn parse(value: &Value) -> Result<Probe, String> {
    let mut probe = plain(String::new());
    let Value::Table(entries) = value else {
        probe.path = string(value).map_err(|reason| format!("{reason}; write \"/healthz\""))?.to_owned();
        return check(probe);
    };
    for (key, Written { value, .. }) in entries {
        match key.as_str() {
            "path" => probe.path = string(value)?.to_owned(),
            "host" => probe.host = string(value)?.to_owned(),
            "scheme" => probe.scheme = string(value)?.to_owned(),
            "status" => match value {
                Value::List(items) => {
                    let status = |item: &Written| integer(&item.value, 100, 599).map(|code| code as u16);
                    let all = items.iter().map(status).collect::<Result<_, _>>();
                    probe.status = all.map_err(|reason| format!("status: {reason}"))?;
                }
                other => return Err(format!("status is a list; write [{}]", other.shown())),
            },
            other => return Err(format!("unknown key `{other}`; there are path, host, scheme and status")),
        }
    }
    check(probe)
}

/// A path of `[app] warmup`.
pub fn parse_warmup(text: &str) -> Result<Probe, String> {
    check(plain(text.to_owned()))
}

fn plain(path: String) -> Probe {
    Probe { path, host: "localhost".to_owned(), scheme: "http".to_owned(), status: Vec::new() }
}

pub fn show(probe: &Probe) -> String {
    let Probe { path, host, scheme, status } = probe;
    let mut text = format!("{{ path = {}, host = {}, scheme = {}", quoted(path), quoted(host), quoted(scheme));
    if !status.is_empty() {
        text.push_str(&format!(", status = {status:?}"));
    }
    text + " }"
}

fn check(probe: Probe) -> Result<Probe, String> {
    let plain = |text: &str| text.bytes().all(|byte| byte.is_ascii_graphic());
    if !probe.path.starts_with('/') || !plain(&probe.path) || probe.path.contains('#') {
        return Err(
            "a path begins with a slash and has no blanks or other characters beyond ASCII; write \"/healthz\""
                .to_owned(),
        );
    }
    if probe.host.is_empty() || !plain(&probe.host) || probe.host.contains('/') {
        return Err(format!("`{}` is not a host", probe.host));
    }
    if probe.scheme != "http" && probe.scheme != "https" {
        return Err(format!("`{}` is not a scheme; there are \"http\" and \"https\"", probe.scheme));
    }
    Ok(probe)
}
