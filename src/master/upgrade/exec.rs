//! The step itself: this process becomes the new binary, or goes on as it was.

use std::ffi::{CString, OsStr, OsString};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use super::attempt::{LOOK, STATE};
use super::state::State;
use crate::saved::set_close_on_exec;

/// Arguments, environment and state, as execve(2) takes them.
pub struct Step {
    executable: CString,
    arguments: Vec<CString>,
    environment: Vec<CString>,
    state: OwnedFd,
    numbers: Vec<i32>,
}

impl Step {
    pub fn new(executable: &Path, state: &State) -> io::Result<Step> {
        let numbers = state.numbers().collect();
        let state = state.seal()?;
        let variables = std::env::vars_os().filter(|(name, _)| name != STATE);
        let ours = (OsString::from(STATE), OsString::from(state.as_raw_fd().to_string()));
        let variable = |(name, value): (OsString, OsString)| {
            c_string(OsStr::from_bytes(&[name.as_bytes(), b"=", value.as_bytes()].concat()))
        };
        Ok(Step {
            executable: c_string(executable)?,
            arguments: std::env::args_os().map(c_string).collect::<io::Result<_>>()?,
            environment: variables.chain([ours]).map(variable).collect::<io::Result<_>>()?,
            state,
            numbers,
        })
    }

    /// Called from the main thread, with all signals blocked: what comes from here on waits for the new binary, which has no
    /// handlers yet. Returns only where the exec has failed; then nothing has changed.
    pub fn take(self) -> io::Error {
        debug_assert!(!self.arguments.iter().any(|argument| argument.as_bytes() == LOOK.as_bytes()));
        let pointers = |strings: &[CString]| -> Vec<*const libc::c_char> {
            strings.iter().map(|string| string.as_ptr()).chain([std::ptr::null()]).collect()
        };
        let (arguments, environment) = (pointers(&self.arguments), pointers(&self.environment));
        let all = || self.numbers.iter().copied().chain([self.state.as_raw_fd()]);
        let error = match all().try_for_each(|descriptor| set_close_on_exec(descriptor, false)) {
            Ok(()) => {
                // SAFETY: NUL-terminated strings, and arrays of such with a null pointer at their end, all of which live.
                unsafe { libc::execve(self.executable.as_ptr(), arguments.as_ptr(), environment.as_ptr()) };
                io::Error::last_os_error()
            }
            Err(error) => error,
        };
        // Before anything is forked again.
        all().for_each(|descriptor| drop(set_close_on_exec(descriptor, true)));
        error
    }
}

fn c_string(text: impl AsRef<OsStr>) -> io::Result<CString> {
    Ok(CString::new(text.as_ref().as_bytes())?)
}
