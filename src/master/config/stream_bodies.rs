//! `[http] stream_bodies`: a word, or a list of paths.

use forkmaster_wire::message::StreamBodies;

use super::file::{quoted, Value};
use super::values::string;

/// `"never"`, `"fast"`, or `["/upload/"]`; from a variable `/upload/,/import/`.
pub fn parse(value: &Value) -> Result<StreamBodies, String> {
    let paths: Vec<&str> = match value {
        Value::List(items) => items.iter().map(|item| string(&item.value)).collect::<Result<_, _>>()?,
        Value::Loose(text) if text.starts_with('/') => text.split(',').map(str::trim).collect(),
        other => {
            return match string(other)? {
                "never" => Ok(StreamBodies::Never),
                "fast" => Ok(StreamBodies::Fast),
                path if path.starts_with('/') => Err(format!("a list of paths is needed; write [{}]", quoted(path))),
                word => Err(format!("`{word}` is neither \"never\" nor \"fast\" nor a list of paths")),
            }
        }
    };
    let is_path = |path: &&str| path.starts_with('/') && path.bytes().all(|byte| byte.is_ascii_graphic());
    match paths.iter().find(|path| !is_path(path)) {
        Some(wrong) => Err(format!("`{wrong}` is no path: it begins with a slash, as clients send it")),
        None => Ok(StreamBodies::Under(paths.into_iter().map(str::to_owned).collect())),
    }
}

pub fn show(which: &StreamBodies) -> String {
    match which {
        StreamBodies::Never => quoted("never"),
        StreamBodies::Fast => quoted("fast"),
        StreamBodies::Under(paths) => {
            let paths: Vec<String> = paths.iter().map(|path| quoted(path)).collect();
            format!("[{}]", paths.join(", "))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn loose(text: &str) -> Result<StreamBodies, String> {
        parse(&Value::Loose(text.to_owned()))
    }

    #[test]
    fn words_and_paths() {
        assert_eq!((loose("never"), loose("fast")), (Ok(StreamBodies::Never), Ok(StreamBodies::Fast)));
        let paths = StreamBodies::Under(vec!["/upload/".to_owned(), "/import".to_owned()]);
        assert_eq!(loose("/upload/, /import"), Ok(paths.clone()));
        assert_eq!(show(&paths), "[\"/upload/\", \"/import\"]");
        assert!(loose("/upload/, import").is_err_and(|reason| reason.contains("`import`")));
        assert!(loose("always").is_err());
        let reason = parse(&Value::Text("/upload/".to_owned())).expect_err("no list");
        assert_eq!(reason, "a list of paths is needed; write [\"/upload/\"]");
    }
}
