//! The rehearsal in the candidate: requests that the old generation has answered go through the application, for nobody but
//! the master, who compares the statuses. In the main thread, which is an app thread, after the boot and before the worker
//! serves. They are no requests of clients: nothing counts or logs them.

use std::io;
use std::os::fd::RawFd;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock};

use forkmaster_wire::message::FromWorker;
use forkmaster_wire::rehearsal::Remembered;
use forkmaster_wire::text::cut_text;
use pyo3::prelude::*;

use crate::failure::{summary, traceback};
use crate::probe::{self, Asked, Reads};
use crate::wsgi::environ::Common;

/// The traceback that an answer carries: its end says the most.
const DETAILS_BYTES_MAX: usize = 4 * 1024;

/// What the master asks next, between the thread that hears it and the one that answers.
#[derive(Default)]
pub struct Prompt {
    asked: Mutex<Option<(u32, Remembered)>>,
    /// The write end of the main thread's signal pipe, which wakes it.
    wakeup: OnceLock<RawFd>,
}

impl Prompt {
    pub fn wake_by(&self, wakeup: RawFd) {
        // Called once in the life of a worker.
        let _ = self.wakeup.set(wakeup);
    }

    /// Does not wait: the main thread takes it when it has nothing else to do.
    pub fn ask(&self, number: u32, request: Remembered) {
        *self.lock() = Some((number, request));
        let Some(wakeup) = self.wakeup.get() else { return };
        // SAFETY: writes one byte from a valid buffer; the descriptor stays open for the life of the process.
        let written = unsafe { libc::write(*wakeup, [0u8].as_ptr().cast(), 1) };
        // A full pipe wakes as well.
        if written < 0 && io::Error::last_os_error().kind() != io::ErrorKind::WouldBlock {
            log::error!("the main thread cannot be woken: {}", io::Error::last_os_error());
        }
    }

    pub fn take(&self) -> Option<(u32, Remembered)> {
        self.lock().take()
    }

    /// Held for a few instructions only.
    fn lock(&self) -> MutexGuard<'_, Option<(u32, Remembered)>> {
        self.asked.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

/// Has the application answer. Only what a client would see of an answer before its body counts, so an answer without end ends
/// with its first piece.
pub fn answer(
    py: Python<'_>,
    application: &Bound<'_, PyAny>,
    common: &Arc<Common>,
    number: u32,
    request: &Remembered,
) -> FromWorker {
    let scheme = if request.https { "https" } else { "http" };
    let mut fields = vec![("Host", request.host.as_str()), ("User-Agent", "forkmaster-rehearsal"), ("Accept", "*/*")];
    fields.extend(request.forwarded_host.as_deref().map(|host| ("X-Forwarded-Host", host)));
    fields.extend(request.forwarded_proto.then_some(("X-Forwarded-Proto", scheme)));
    let asked = Asked { target: &request.target, is_https: request.https, fields };
    match probe::send(py, application, Arc::clone(common), &asked, Reads::Beginning) {
        Ok(record) => {
            let code = record.status.and_then(|status| status.get(..3).and_then(|code| code.parse::<u16>().ok()));
            FromWorker::Rehearsed { number, status: code.unwrap_or_default(), details: String::new() }
        }
        // As a client would get it.
        Err(error) => {
            let raised = traceback(py, &error);
            let end =
                raised.char_indices().rev().map(|(at, _)| at).take_while(|at| raised.len() - at <= DETAILS_BYTES_MAX);
            let start = end.last().unwrap_or_default();
            let details = if raised.is_empty() { summary(py, &error) } else { raised[start..].to_owned() };
            FromWorker::Rehearsed { number, status: 500, details: cut_text(&details) }
        }
    }
}
