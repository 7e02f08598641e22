//! Python exceptions in words: one line for the reason, the traceback for the details.

use forkmaster_wire::message::{Failure, ProofStep};
use forkmaster_wire::text::cut_text;
use pyo3::exceptions::PySystemExit;
use pyo3::prelude::*;

/// A reason is one line of a log; some exceptions carry a whole page in their message.
const REASON_CHARS_MAX: usize = 500;

pub fn failure(stage: ProofStep, reason: impl AsRef<str>, details: &str) -> Failure {
    Failure { stage, reason: one_line(reason.as_ref()), details: cut_text(details) }
}

/// What the application did wrong while it was imported (or otherwise made ready: `doing` says what).
pub fn from_exception(py: Python<'_>, stage: ProofStep, doing: &str, error: &PyErr) -> Failure {
    let reason = if error.is_instance_of::<PySystemExit>(py) {
        let code = error.value(py).getattr("code").and_then(|code| code.repr()).map(|code| code.to_string());
        match code.as_deref() {
            Ok("None") => format!("the application called sys.exit() {doing}"),
            Ok(code) => format!("the application called sys.exit({code}) {doing}"),
            Err(_) => format!("the application called sys.exit {doing}"),
        }
    } else {
        summary(py, error)
    };
    failure(stage, reason, &traceback(py, error))
}

/// `ModuleNotFoundError: No module named 'dep'`.
pub fn summary(py: Python<'_>, error: &PyErr) -> String {
    let kind = error.get_type(py);
    let name = match (kind.module(), kind.qualname()) {
        (Ok(module), Ok(name)) if module != "builtins" => format!("{module}.{name}"),
        (_, Ok(name)) => name.to_string(),
        (_, Err(_)) => String::from("exception"),
    };
    match error.value(py).str() {
        Ok(text) if text.to_string_lossy().is_empty() => name,
        Ok(text) => one_line(&format!("{name}: {}", text.to_string_lossy())),
        Err(_) => name,
    }
}

/// The traceback as Python prints it, chained exceptions included.
pub fn traceback(py: Python<'_>, error: &PyErr) -> String {
    let format = || -> PyResult<String> {
        let arguments = (error.get_type(py), error.value(py), error.traceback(py));
        let lines = py.import("traceback")?.call_method1("format_exception", arguments)?;
        let mut text = String::new();
        for line in lines.try_iter()? {
            text.push_str(&line?.str()?.to_string_lossy());
        }
        Ok(text)
    };
    // An exception whose own __str__ raises, or an interpreter that has run out of memory.
    let mut text = format().unwrap_or_else(|_| summary(py, error));
    text.truncate(text.trim_end().len());
    text
}

fn one_line(text: &str) -> String {
    let line = text.trim().lines().next().unwrap_or_default();
    let mut short: String = line.chars().take(REASON_CHARS_MAX).map(|c| if c.is_control() { '?' } else { c }).collect();
    if line.chars().nth(REASON_CHARS_MAX).is_some() {
        short.push_str("...");
    }
    short
}
