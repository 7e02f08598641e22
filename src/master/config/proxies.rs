//! What is believed of proxies: the peers and header fields of `[http]`, and the PROXY protocol of its addresses.

use std::path::Path;

use forkmaster_wire::message::{ForwardedHeader, ProxyProtocol};
use forkmaster_wire::peer::{NotAPeer, TrustedPeer};

use super::file::{quoted, Value, Written};
use super::settings::Bind;
use super::values::string;

pub fn parse_peer(text: &str) -> Result<TrustedPeer, String> {
    text.parse().map_err(|NotAPeer| "not an address; write \"10.0.0.1\", \"10.0.0.0/8\", \"unix\" or \"*\"".to_owned())
}

pub fn parse_forwarded_header(text: &str) -> Result<ForwardedHeader, String> {
    match text {
        "for" => Ok(ForwardedHeader::For),
        "proto" => Ok(ForwardedHeader::Proto),
        "host" => Ok(ForwardedHeader::Host),
        "prefix" => Ok(ForwardedHeader::Prefix),
        "script_name" => Ok(ForwardedHeader::ScriptName),
        "forwarded" => Ok(ForwardedHeader::Forwarded),
        _ => Err(format!(
            "`{text}` is not known; there are \"for\", \"proto\", \"host\", \"prefix\" and \"script_name\", or \"forwarded\""
        )),
    }
}

pub fn show_forwarded_header(header: ForwardedHeader) -> &'static str {
    match header {
        ForwardedHeader::For => "for",
        ForwardedHeader::Proto => "proto",
        ForwardedHeader::Host => "host",
        ForwardedHeader::Prefix => "prefix",
        ForwardedHeader::ScriptName => "script_name",
        ForwardedHeader::Forwarded => "forwarded",
    }
}

/// A proxy sets the one family or the other; what it does not set is passed on as the client sent it.
pub fn check_one_family(headers: &[ForwardedHeader]) -> Result<(), String> {
    let beside = [ForwardedHeader::For, ForwardedHeader::Proto, ForwardedHeader::Prefix];
    if !headers.contains(&ForwardedHeader::Forwarded) || !beside.iter().any(|header| headers.contains(header)) {
        return Ok(());
    }
    Err("\"forwarded\" (RFC 7239) stands for its own for and proto, and has no prefix: beside it there is only \"host\"; \
         keep the one that your proxy sets"
        .to_owned())
}

/// One word for all addresses, or `{ "unix:/run/shop/proxied.sock" = "v2" }` for those of `bind` that have it.
pub fn parse_proxy_protocol(value: &Value, bind: &[Bind], base: &Path) -> Result<Vec<(Bind, ProxyProtocol)>, String> {
    let version = |text: &str| match text {
        "off" => Ok(None),
        "v1" => Ok(Some(ProxyProtocol::V1)),
        "v2" => Ok(Some(ProxyProtocol::V2)),
        _ => Err(format!("`{text}` is not known; there are \"off\", \"v1\" and \"v2\"")),
    };
    let Value::Table(entries) = value else {
        let version = version(string(value)?)?;
        return Ok(bind.iter().filter_map(|bind| Some((bind.clone(), version?))).collect());
    };
    let mut proxied = Vec::new();
    for (address, written) in entries {
        let address = Bind::parse(address, base).map_err(|reason| format!("{address}: {reason}"))?;
        if !bind.contains(&address) {
            return Err(format!("{address} is not in [server] bind"));
        }
        if let Some(version) = version(string(&written.value)?)? {
            proxied.push((address, version));
        }
    }
    Ok(proxied)
}

pub fn show_proxy_protocol(proxied: &[(Bind, ProxyProtocol)], bind: &[Bind]) -> String {
    let word = |version: ProxyProtocol| match version {
        ProxyProtocol::V1 => quoted("v1"),
        ProxyProtocol::V2 => quoted("v2"),
    };
    match proxied {
        [] => quoted("off"),
        [(_, first), rest @ ..] if proxied.len() == bind.len() && rest.iter().all(|(_, version)| version == first) => {
            word(*first)
        }
        _ => {
            let entry =
                |(bind, version): &(Bind, ProxyProtocol)| format!("{} = {}", quoted(&bind.to_string()), word(*version));
            format!("{{ {} }}", proxied.iter().map(entry).collect::<Vec<_>>().join(", "))
        }
    }
}

/// `{ "X-Forwarded-Ssl" = "on" }`; in a variable `X-Forwarded-Ssl=on`, several with commas.
pub fn parse_secure_scheme_headers(value: &Value) -> Result<Vec<(String, String)>, String> {
    let written: Vec<(String, String)> = match value {
        Value::Table(entries) => {
            let entry =
                |(name, item): &(String, Written)| string(&item.value).map(|text| (name.clone(), text.to_owned()));
            entries.iter().map(entry).collect::<Result<_, _>>()?
        }
        Value::Loose(text) => {
            let items = text.split(',').map(str::trim).filter(|item| !item.is_empty());
            let entry = |item: &str| {
                let (name, value) = item.split_once('=').ok_or_else(|| format!("`{item}` is not NAME=VALUE"))?;
                Ok((name.trim().to_owned(), value.trim().to_owned()))
            };
            items.map(entry).collect::<Result<_, String>>()?
        }
        other => {
            return Err(format!("a table is needed, not {}; write {{ \"X-Forwarded-Ssl\" = \"on\" }}", other.kind()))
        }
    };
    for (name, value) in &written {
        let token = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-';
        if name.is_empty() || !name.bytes().all(token) {
            return Err(format!("`{name}` is not the name of a header; write it as it is sent, \"X-Forwarded-Ssl\""));
        }
        if value.is_empty() || !value.bytes().all(|byte| byte.is_ascii_graphic() || byte == b' ') {
            return Err(format!("`{value}` is not the value of a header"));
        }
    }
    Ok(written.into_iter().map(|(name, value)| (name.to_ascii_lowercase(), value)).collect())
}

pub fn parse_underscore_header(text: &str) -> Result<String, String> {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
    if text.contains('_') && text.bytes().all(plain) {
        return Ok(text.to_ascii_lowercase());
    }
    Err("not the name of a header with an underscore; write it as it is sent, \"SSL_CLIENT_S_DN\"".to_owned())
}

/// `X-Request-Id`, or `none`.
pub fn parse_request_id_header(text: &str) -> Result<Option<String>, String> {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-';
    match text {
        "none" => Ok(None),
        // Each answer has it.
        text if (3..=64).contains(&text.len()) && text.bytes().all(plain) && text.contains('-') => {
            let lower = text.to_ascii_lowercase();
            let has_a_meaning = ["content-", "x-forwarded-", "transfer-", "set-cookie"];
            match has_a_meaning.iter().any(|start| lower.starts_with(start)) {
                true => Err("this header has another meaning; the usual one is \"X-Request-Id\"".to_owned()),
                false => Ok(Some(text.to_owned())),
            }
        }
        _other => Err("not the name of a header for ids; the usual one is \"X-Request-Id\"".to_owned()),
    }
}

pub fn show_secure_scheme_headers(headers: &[(String, String)]) -> String {
    let entries: Vec<String> =
        headers.iter().map(|(name, value)| format!("{} = {}", quoted(name), quoted(value))).collect();
    if entries.is_empty() {
        "{}".to_owned()
    } else {
        format!("{{ {} }}", entries.join(", "))
    }
}
