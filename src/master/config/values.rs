//! Values by type: how each kind of setting is read from what was written, and shown as it would be written. What a
//! type may be is said by the `Kind` of its row in `keys`; kinds of one setting only have their reader elsewhere.

use std::path::{Path, PathBuf};
use std::time::Duration;

use super::file::{quoted, Value};
use super::keys::{Kind, WORKERS_MAX};
use super::process_context::absolute;
use super::units::{parse_duration, parse_mode, parse_size, show_duration, show_mode, show_size};

/// What values may depend on besides what was written.
#[derive(Clone, Debug)]
pub struct Place {
    /// For what outlives a generation: the configuration file's directory by name.
    pub named: PathBuf,
    /// The configuration file's real directory.
    pub real: PathBuf,
    /// For `auto`.
    pub cpus: u32,
}

/// A type that a kind of setting is read as. A kind that is read as another type is a mistake in the program: every
/// reading reads every row, so the first one finds it.
pub trait Setting: Sized {
    fn parse(value: &Value, kind: Kind, place: &Place) -> Result<Self, String>;
    fn show(&self, kind: Kind) -> String;
}

impl Setting for bool {
    fn parse(value: &Value, kind: Kind, _: &Place) -> Result<bool, String> {
        match kind {
            Kind::Boolean => boolean(value),
            other => mistaken(other),
        }
    }

    fn show(&self, _: Kind) -> String {
        self.to_string()
    }
}

impl Setting for u32 {
    fn parse(value: &Value, kind: Kind, place: &Place) -> Result<u32, String> {
        match kind {
            Kind::Count { min, max } => count(value, min, max),
            Kind::CountOrAuto { min, max } => count_or_auto(value, min, max, place.cpus),
            Kind::SizeBetween { min, max } => size_between(value, min, max),
            Kind::Mode => mode(value),
            other => mistaken(other),
        }
    }

    fn show(&self, kind: Kind) -> String {
        match kind {
            Kind::SizeBetween { .. } => quoted(&show_size(&u64::from(*self))),
            Kind::Mode => quoted(&show_mode(self)),
            _count => self.to_string(),
        }
    }
}

impl Setting for u64 {
    fn parse(value: &Value, kind: Kind, _: &Place) -> Result<u64, String> {
        match kind {
            Kind::Number => integer(value, 0, i64::MAX as u64),
            Kind::Size => size(value),
            other => mistaken(other),
        }
    }

    fn show(&self, kind: Kind) -> String {
        match kind {
            Kind::Size => quoted(&show_size(self)),
            _number => self.to_string(),
        }
    }
}

impl Setting for Option<u32> {
    fn parse(value: &Value, kind: Kind, _: &Place) -> Result<Option<u32>, String> {
        match kind {
            Kind::CountOrNone { .. } if is_word(value, "none") => Ok(None),
            Kind::CountOrNone { min, max } => {
                count(value, min, max).map(Some).map_err(|reason| format!("{reason}, or \"none\""))
            }
            Kind::ModeOrInherit if is_word(value, "inherit") => Ok(None),
            Kind::ModeOrInherit => mode(value).map(Some),
            other => mistaken(other),
        }
    }

    fn show(&self, kind: Kind) -> String {
        match (self, kind) {
            (None, Kind::ModeOrInherit) => quoted("inherit"),
            (None, _none) => quoted("none"),
            (Some(mode), Kind::ModeOrInherit) => quoted(&show_mode(mode)),
            (Some(count), _count) => count.to_string(),
        }
    }
}

impl Setting for Option<u64> {
    fn parse(value: &Value, kind: Kind, _: &Place) -> Result<Option<u64>, String> {
        match kind {
            Kind::SizeOrNone if is_word(value, "none") => Ok(None),
            Kind::SizeOrNone => size_or_none(value),
            other => mistaken(other),
        }
    }

    fn show(&self, _: Kind) -> String {
        quoted(&self.as_ref().map_or("none".to_owned(), show_size))
    }
}

impl Setting for Duration {
    fn parse(value: &Value, kind: Kind, _: &Place) -> Result<Duration, String> {
        match kind {
            Kind::Duration => duration(value),
            Kind::Timeout => duration(value).and_then(positive),
            other => mistaken(other),
        }
    }

    fn show(&self, _: Kind) -> String {
        quoted(&show_duration(self))
    }
}

impl Setting for Option<Duration> {
    fn parse(value: &Value, kind: Kind, _: &Place) -> Result<Option<Duration>, String> {
        match kind {
            Kind::DurationOrNone => duration_or_none(value),
            Kind::TimeoutOrNone(then) => timeout_or_none(value, then),
            other => mistaken(other),
        }
    }

    fn show(&self, _: Kind) -> String {
        quoted(&self.as_ref().map_or("none".to_owned(), show_duration))
    }
}

impl Setting for Option<PathBuf> {
    fn parse(value: &Value, kind: Kind, place: &Place) -> Result<Option<PathBuf>, String> {
        match kind {
            Kind::PathOrNone if is_word(value, "none") => Ok(None),
            Kind::PathOrNone => path(value, &place.named).map(Some),
            other => mistaken(other),
        }
    }

    fn show(&self, _: Kind) -> String {
        self.as_ref().map_or_else(|| quoted("none"), |path| quoted_path(path))
    }
}

fn mistaken<T>(kind: Kind) -> Result<T, String> {
    Err(format!("{kind:?} is not read as {}", std::any::type_name::<T>()))
}

// From values to types.

pub fn string(value: &Value) -> Result<&str, String> {
    match value {
        Value::Text(text) | Value::Loose(text) if text.contains('\0') => Err("a NUL byte in a string".to_owned()),
        Value::Text(text) | Value::Loose(text) => Ok(text),
        Value::Integer { text, .. } => Err(format!("a string is needed; write \"{text}\"")),
        other => Err(format!("a string is needed, not {}", other.kind())),
    }
}

pub fn non_empty(text: &str) -> Result<&str, String> {
    if text.is_empty() {
        Err("a path is missing".to_owned())
    } else {
        Ok(text)
    }
}

/// Absolute by name, from `base`.
pub fn path(value: &Value, base: &Path) -> Result<PathBuf, String> {
    let text = non_empty(string(value)?)?;
    Ok(absolute(base, Path::new(text)))
}

pub fn is_word(value: &Value, word: &str) -> bool {
    matches!(value, Value::Text(text) | Value::Loose(text) if text == word)
}

pub fn integer(value: &Value, min: u64, max: u64) -> Result<u64, String> {
    let number = match value {
        Value::Integer { value, .. } => value.and_then(|number| u64::try_from(number).ok()),
        Value::Loose(text) => Some(text.trim().parse().map_err(|_| "a number is needed".to_owned())?),
        Value::Text(text) if text.parse::<u64>().is_ok() => {
            return Err(format!("a number is needed; write {text}, without quotes"))
        }
        other => return Err(format!("a number is needed, not {}", other.kind())),
    };
    number.filter(|number| (min..=max).contains(number)).ok_or_else(|| {
        if max == i64::MAX as u64 {
            format!("must be at least {min}")
        } else {
            format!("must be from {min} to {max}")
        }
    })
}

pub fn count(value: &Value, min: u32, max: u32) -> Result<u32, String> {
    integer(value, u64::from(min), u64::from(max)).map(|number| number as u32)
}

pub fn count_or_auto(value: &Value, min: u32, max: u32, auto: u32) -> Result<u32, String> {
    if is_word(value, "auto") {
        return Ok(auto.clamp(min, max.min(WORKERS_MAX)));
    }
    count(value, min, max).map_err(|reason| format!("{reason}, or \"auto\""))
}

pub fn boolean(value: &Value) -> Result<bool, String> {
    match value {
        Value::Boolean(boolean) => Ok(*boolean),
        Value::Loose(text) => match text.to_ascii_lowercase().as_str() {
            "true" | "1" | "yes" | "on" => Ok(true),
            "false" | "0" | "no" | "off" => Ok(false),
            _ => Err("write true or false".to_owned()),
        },
        Value::Text(text) if text == "true" || text == "false" => Err(format!("write {text}, without quotes")),
        other => Err(format!("write true or false, not {}", other.kind())),
    }
}

fn duration(value: &Value) -> Result<Duration, String> {
    match value {
        Value::Text(text) | Value::Loose(text) if text == "none" => {
            Err("it cannot be \"none\"; write a long one, as \"1d\"".to_owned())
        }
        Value::Text(text) | Value::Loose(text) => parse_duration(text),
        Value::Integer { text, .. } => Err(format!("a duration needs a unit; write \"{text}s\"")),
        other => Err(format!("a duration is needed, not {}; write it as \"30s\"", other.kind())),
    }
}

fn positive(duration: Duration) -> Result<Duration, String> {
    if duration.is_zero() {
        Err("must be more than zero".to_owned())
    } else {
        Ok(duration)
    }
}

/// Zero never means unlimited, and who writes it is told so at once.
pub fn duration_or_none(value: &Value) -> Result<Option<Duration>, String> {
    let zero = match value {
        Value::Integer { value, .. } => *value == Some(0),
        Value::Text(text) | Value::Loose(text) => text.trim() == "0",
        Value::Boolean(_) | Value::List(_) | Value::Table(_) | Value::Other { .. } => false,
    };
    if zero {
        return Err("zero is not a limit; without a limit write \"none\"".to_owned());
    }
    if is_word(value, "none") {
        return Ok(None);
    }
    positive(duration(value)?).map(Some).map_err(|reason| format!("{reason}; without a limit it is \"none\""))
}

/// Zero seconds are meant as none, whatever the unit.
fn timeout_or_none(value: &Value, then: &str) -> Result<Option<Duration>, String> {
    if is_word(value, "none") {
        return Ok(None);
    }
    let instead = format!("write \"none\": {then}");
    let zero = match value {
        Value::Integer { value, .. } => *value == Some(0),
        Value::Text(text) | Value::Loose(text) => text.trim() == "0",
        Value::Boolean(is_on) => !is_on,
        Value::List(_) | Value::Table(_) | Value::Other { .. } => false,
    };
    if zero {
        return Err(instead);
    }
    match duration(value)? {
        Duration::ZERO => Err(instead),
        duration => Ok(Some(duration)),
    }
}

/// Zero never means unlimited here either: every worker is larger.
fn size_or_none(value: &Value) -> Result<Option<u64>, String> {
    let is_zero = match value {
        Value::Integer { value, .. } => *value == Some(0),
        Value::Text(text) | Value::Loose(text) => text.trim() == "0" || parse_size(text) == Ok(0),
        Value::Boolean(_) | Value::List(_) | Value::Table(_) | Value::Other { .. } => false,
    };
    match is_zero {
        true => Err("zero is not a limit; without a limit write \"none\"".to_owned()),
        false => size(value).map(Some),
    }
}

fn size(value: &Value) -> Result<u64, String> {
    match value {
        Value::Text(text) | Value::Loose(text) if text == "none" => {
            Err("it cannot be \"none\"; write a large one, as \"1TiB\"".to_owned())
        }
        Value::Text(text) | Value::Loose(text) => parse_size(text),
        Value::Integer { text, value } => {
            let bytes = value.and_then(|bytes| u64::try_from(bytes).ok());
            let example = bytes.map_or_else(|| format!("{text}B"), |bytes| show_size(&bytes));
            Err(format!("a size needs a unit; write \"{example}\""))
        }
        other => Err(format!("a size is needed, not {}; write it as \"8MiB\"", other.kind())),
    }
}

fn size_between(value: &Value, min: u64, max: u64) -> Result<u32, String> {
    let bytes = size(value)?;
    u32::try_from(bytes)
        .ok()
        .filter(|_| (min..=max).contains(&bytes))
        .ok_or_else(|| format!("must be from \"{}\" to \"{}\"", show_size(&min), show_size(&max)))
}

fn mode(value: &Value) -> Result<u32, String> {
    match value {
        Value::Integer { text, .. } => {
            let digits = text.trim_start_matches("0o");
            Err(format!("a mode is a string of octal digits; write \"0{}\"", digits.trim_start_matches('0')))
        }
        other => string(other).and_then(parse_mode),
    }
}

/// A user or a group: a name, or a number with or without quotes.
pub fn id_text(value: &Value) -> Result<String, String> {
    match value {
        Value::Integer { text, value } => {
            let id = value.and_then(|id| u32::try_from(id).ok());
            id.map(|id| id.to_string()).ok_or_else(|| format!("`{text}` is not an id"))
        }
        other => string(other).map(str::to_owned),
    }
}

pub fn quoted_path(path: &Path) -> String {
    quoted(&path.to_string_lossy())
}

/// A key as TOML writes it: bare where it can be.
pub fn toml_key(name: &str) -> String {
    if !name.is_empty() && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '-' || c == '_') {
        name.to_owned()
    } else {
        quoted(name)
    }
}

// For the command line.

/// `4` or `auto`.
pub fn parse_workers(text: &str) -> Result<String, String> {
    count_or_auto(&Value::Loose(text.to_owned()), 1, WORKERS_MAX, 1).map(|_| text.to_owned())
}

/// A number of a descriptor that somebody opened for the master.
pub fn parse_descriptor(text: &str) -> Result<String, String> {
    count(&Value::Loose(text.to_owned()), 3, super::keys::DESCRIPTOR_MAX).map(|_| text.to_owned())
}

/// A number of threads.
pub fn parse_count(text: &str) -> Result<String, String> {
    count(&Value::Loose(text.to_owned()), 1, super::keys::THREADS_MAX).map(|_| text.to_owned())
}
