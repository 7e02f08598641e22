//! `forkmaster config schema`: the table of settings as a JSON Schema (draft 2020-12), for editors that complete and check
//! TOML. It says of each value what a form can say; what must hold between settings is for `check`.

use serde_json::{json, Map, Value};

use super::keys::{KeySpec, Kind, Preset, KEYS, REQUEST_TIMEOUTS, SECTIONS};
use super::services;

/// `"1m30s"`; a variable may stand in it or for it.
const DURATION: &str = r"^\s*([0-9]+\s*(d|h|m|s|ms)\s*)+$|\$\{";
const SIZE: &str = r"^\s*[0-9]+\s*(B|kB|MB|GB|TB|KiB|MiB|GiB|TiB)\s*$|\$\{";
const OCTAL: &str = r"^[0-7]{1,4}$|\$\{";
const VARIABLE: &str = r"\$\{";

pub fn schema() -> String {
    let mut properties = Map::new();
    for spec in KEYS.iter().filter(|spec| spec.section.is_empty()) {
        properties.insert(spec.key.to_owned(), property(spec));
    }
    for (section, doc) in SECTIONS {
        properties.insert(section.to_owned(), table(section, doc));
    }
    properties.insert("service".to_owned(), services());
    let whole = json!({
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "forkmaster",
        "description": "Settings of forkmaster, as TOML",
        "type": "object",
        "additionalProperties": false,
        "properties": properties,
    });
    format!("{whole:#}\n")
}

/// `[[service]]` has no rows in the table: each is a table of its own.
fn services() -> Value {
    let mut properties = json!({
        "name": { "type": "string" },
        "command": { "type": "array", "items": { "type": "string" }, "minItems": 1 },
        "count": { "type": "integer", "minimum": 1, "maximum": 64, "default": 1 },
        "every": { "type": "string", "pattern": DURATION },
        "bind": { "type": "array", "items": { "type": "string" }, "maxItems": 16, "default": [] },
        "notify": { "type": "boolean", "default": false },
        "ready_timeout": { "type": "string", "pattern": DURATION, "default": "30s" },
        "stop_timeout": { "type": "string", "pattern": DURATION, "default": "25s" },
        "stop_signal": { "enum": ["TERM", "INT", "QUIT", "HUP", "USR1"], "default": "TERM" },
    });
    for spec in services::KEYS {
        properties[spec.key]["description"] = json!(spec.doc);
    }
    json!({
        "description": "Programs of the release that run beside its workers, from the commit of their generation to the next one.",
        "type": "array",
        "items": {
            "type": "object",
            "additionalProperties": false,
            "required": ["name", "command"],
            "properties": properties,
        },
    })
}

fn table(section: &str, doc: &str) -> Value {
    if section == "env" {
        return json!({ "description": doc, "type": "object", "additionalProperties": { "type": "string" } });
    }
    let keys = KEYS.iter().filter(|spec| spec.section == section);
    let properties: Map<String, Value> = keys.map(|spec| (spec.key.to_owned(), property(spec))).collect();
    json!({ "description": doc, "type": "object", "additionalProperties": false, "properties": properties })
}

fn property(spec: &KeySpec) -> Value {
    let mut property = match kind(spec) {
        Value::Object(property) => property,
        _other => Map::new(),
    };
    property.insert("description".to_owned(), json!(spec.doc));
    let default = match spec.default {
        Preset::Text(text) => json!(text),
        Preset::Number(number) => json!(number),
        Preset::Boolean(boolean) => json!(boolean),
        Preset::List(items) => json!(items),
        Preset::Table => json!({}),
        Preset::Words(_) => return Value::Object(property),
    };
    property.insert("default".to_owned(), default);
    Value::Object(property)
}

fn kind(spec: &KeySpec) -> Value {
    let text = |pattern: &str| json!({ "type": "string", "pattern": pattern });
    let or_word = |pattern: &str, word: &str| json!({ "type": "string", "pattern": format!("{pattern}|^{word}$") });
    let number = |min: u32, max: Option<u32>, pattern: &str| {
        let mut integer = json!({ "type": "integer", "minimum": min });
        if let (Some(max), Some(integer)) = (max, integer.as_object_mut()) {
            integer.insert("maximum".to_owned(), json!(max));
        }
        json!({ "anyOf": [integer, text(pattern)] })
    };
    match spec.kind {
        Kind::Boolean => json!({ "anyOf": [{ "type": "boolean" }, text(VARIABLE)] }),
        Kind::Count { min, max } => number(min, Some(max), VARIABLE),
        Kind::CountOrAuto { min, max } => number(min, Some(max), r"^auto$|\$\{"),
        Kind::CountOrNone { min, max } => number(min, Some(max), r"^none$|\$\{"),
        Kind::Number => number(0, None, VARIABLE),
        Kind::Duration | Kind::Timeout => text(DURATION),
        Kind::DurationOrNone | Kind::TimeoutOrNone(_) => or_word(DURATION, "none"),
        Kind::Size | Kind::SizeBetween { .. } => text(SIZE),
        Kind::SizeOrNone => or_word(SIZE, "none"),
        Kind::Mode => text(OCTAL),
        Kind::ModeOrInherit => or_word(OCTAL, "inherit"),
        Kind::Id => json!({ "type": ["string", "integer"] }),
        Kind::PathOrNone => json!({ "type": "string" }),
        Kind::List(_) => json!({ "type": "array", "items": { "type": "string" } }),
        Kind::Own(_) if spec.at() == REQUEST_TIMEOUTS => {
            json!({ "type": "object", "additionalProperties": or_word(DURATION, "none") })
        }
        Kind::Own(words) => match (spec.default, words.contains("table"), words.contains("number")) {
            (Preset::Table, _, _) => json!({ "type": "object" }),
            (_, true, _) => json!({ "type": ["string", "object"] }),
            (_, _, true) => json!({ "type": ["string", "integer"] }),
            (_, false, false) => json!({ "type": "string" }),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_setting_is_in_the_schema_with_its_words() {
        let schema: Value = serde_json::from_str(&schema()).unwrap();
        for spec in KEYS {
            let place = if spec.section.is_empty() {
                "/properties".to_owned()
            } else {
                format!("/properties/{}/properties", spec.section)
            };
            let found = schema.pointer(&format!("{place}/{}", spec.key));
            let found = found.unwrap_or_else(|| panic!("{} is missing", spec.shown()));
            assert_eq!(found["description"], json!(spec.doc));
            assert!(found.get("type").is_some() || found.get("anyOf").is_some(), "{}", spec.shown());
        }
        assert_eq!(schema.pointer("/properties/server/properties/workers/anyOf/0/maximum"), Some(&json!(4096)));
        assert_eq!(schema.pointer("/properties/app/additionalProperties"), Some(&json!(false)));
        let of_services = schema.pointer("/properties/service/items/properties").and_then(Value::as_object).unwrap();
        let keys: Vec<&str> = services::KEYS.iter().map(|spec| spec.key).collect();
        assert!(
            of_services.len() == keys.len()
                && keys.iter().all(|key| of_services[*key].get("type").is_some() || *key == "stop_signal")
        );
    }
}
