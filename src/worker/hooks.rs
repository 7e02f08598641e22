//! `[hooks] worker_start` and `worker_exit`: callables of the release that each worker calls without arguments, before its
//! first request and after its last. Both are looked up before the first one runs, so that a name that is wrong refuses the
//! worker and not its end. What `worker_exit` raises is logged and changes nothing.

use forkmaster_wire::message::{Application, Boot, Failure, ProofStep};
use pyo3::prelude::*;

use crate::failure::{failure, from_exception, summary, traceback};

/// What is left to call when the worker has served.
pub struct AtExit(Option<(String, Py<PyAny>)>);

/// Runs `worker_start`. The application is imported by now.
pub fn start(py: Python<'_>, boot: &Boot) -> Result<AtExit, Failure> {
    let begin = boot.worker_start.as_ref().map(|hook| find(py, "worker_start", hook)).transpose()?;
    let end = boot.worker_exit.as_ref().map(|hook| find(py, "worker_exit", hook)).transpose()?;
    if let Some((shown, hook)) = begin {
        let raised = |error: &PyErr| {
            let failed = from_exception(py, ProofStep::Hook, "in it", error);
            Failure { reason: format!("{shown}: {}", failed.reason), ..failed }
        };
        let result = hook.call0().map_err(|error| raised(&error))?;
        if is_coroutine(&result) {
            // Nobody will await it, and Python would say so.
            let _closed = result.call_method0("close");
            return Err(awaited_by_nobody(&shown));
        }
    }
    Ok(AtExit(end.map(|(shown, hook)| (shown, hook.unbind()))))
}

impl AtExit {
    pub fn run(self, py: Python<'_>, worker: &dyn std::fmt::Display) {
        let Some((shown, hook)) = self.0 else { return };
        if let Err(error) = hook.call0(py) {
            log::error!("{worker}: {shown} raised {}\n{}", summary(py, &error), traceback(py, &error));
        }
    }
}

/// As it is configured, and the callable.
fn find<'py>(py: Python<'py>, key: &str, hook: &Application) -> Result<(String, Bound<'py, PyAny>), Failure> {
    let shown = format!("[hooks] {key} = \"{}:{}\"", hook.module, hook.attributes.join("."));
    let missing = |error: &PyErr| {
        let failed = from_exception(py, ProofStep::Hook, "while it was imported", error);
        Failure { reason: format!("{shown}: {}", failed.reason), ..failed }
    };
    let mut found = py.import(hook.module.as_str()).map_err(|error| missing(&error))?.into_any();
    for attribute in &hook.attributes {
        found =
            found.getattr(attribute.as_str()).map_err(|error| Failure { details: String::new(), ..missing(&error) })?;
    }
    if !found.is_callable() {
        return Err(refused(format!("{shown} cannot be called; it is a function without arguments")));
    }
    let asked = py.import("inspect").and_then(|inspect| inspect.call_method1("iscoroutinefunction", (&found,)));
    match asked.and_then(|answer| answer.is_truthy()).map_err(|error| missing(&error))? {
        true => Err(awaited_by_nobody(&shown)),
        false => Ok((shown, found)),
    }
}

fn awaited_by_nobody(shown: &str) -> Failure {
    refused(format!("{shown} is a coroutine function, which nobody awaits here; write `def`"))
}

fn refused(reason: String) -> Failure {
    failure(ProofStep::Hook, reason, "")
}

fn is_coroutine(object: &Bound<'_, PyAny>) -> bool {
    object.get_type().name().is_ok_and(|name| name == "coroutine")
}
