//! The Python stacks of all threads, as text for the master's log.

use std::sync::atomic::{AtomicBool, Ordering};

use pyo3::prelude::*;
use pyo3::types::PyDict;

/// A worker's threads may touch Python only when its interpreter has got over the fork.
static ALLOWED: AtomicBool = AtomicBool::new(false);

/// The interpreter is past the fork.
pub fn allow() {
    ALLOWED.store(true, Ordering::Release);
}

/// Takes the stacks from a native thread: the control thread asks while the application's threads may be anywhere. None:
/// the interpreter is ending, or still runs fork handlers. Waits for the interpreter's lock; if C code does not give it
/// up, the master turns to faulthandler.
pub fn all_threads() -> Option<String> {
    if !ALLOWED.load(Ordering::Acquire) {
        return None;
    }
    Python::try_attach(|py| match format(py) {
        Ok(text) => text,
        Err(error) => format!("the stacks cannot be read: {}", crate::failure::summary(py, &error)),
    })
}

fn format(py: Python<'_>) -> PyResult<String> {
    let traceback = py.import("traceback")?;
    let threads = py.import("threading")?;
    let own: u64 = threads.call_method0("get_ident")?.extract()?;
    let main: Option<u64> = threads.call_method0("main_thread")?.getattr("ident")?.extract()?;
    // Read without `threading.enumerate()`, whose lock the very thread that hangs may hold.
    let active = threads.getattr("_active")?;
    let frames = py.import("sys")?.call_method0("_current_frames")?.cast_into::<PyDict>()?;
    let mut texts = Vec::new();
    for (ident, frame) in frames.iter() {
        let ident_number: u64 = ident.extract()?;
        if ident_number == own {
            continue;
        }
        let name = match active.get_item(&ident).and_then(|thread| thread.getattr("name")) {
            Ok(name) => name.str()?.to_string_lossy().into_owned(),
            Err(_) => String::from("unknown to threading"),
        };
        let mut text = format!("Thread {name} ({ident_number}), most recent call last:\n");
        for line in traceback.call_method1("format_stack", (frame,))?.try_iter()? {
            text.push_str(&line?.str()?.to_string_lossy());
        }
        // The main thread first: with one app thread it is the one asked about.
        let place = if Some(ident_number) == main { 0 } else { texts.len() };
        texts.insert(place, text);
    }
    Ok(texts.concat())
}
