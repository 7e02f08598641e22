//! Importing the application and proving that it can serve: further imports, Django's URLconf, the probe. Each
//! failure is told with the step it happened in.

use std::ffi::OsStr;
use std::io;

use forkmaster_wire::message::{Boot, Failure, ProofStep};
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyList};

use crate::application;
use crate::failure::{failure, from_exception};
use crate::pinned::Pinned;

/// The working directory and `sys.path` as the application finds them: the real release directory first (as
/// `python -m` would have it, except with `-P` or PYTHONSAFEPATH), then `pythonpath`.
pub fn enter_release(py: Python<'_>, boot: &Boot) -> Result<Pinned, Failure> {
    std::env::set_current_dir(&boot.release).map_err(|error: io::Error| {
        let reason = format!("cannot enter the release directory {}: {error}", boot.release.display());
        failure(ProofStep::Start, reason, "")
    })?;
    let arrange = || -> PyResult<Pinned> {
        let sys = py.import("sys")?;
        let path = sys.getattr("path")?.cast_into::<PyList>()?;
        let pinned = Pinned::hold(py, boot)?;
        let flags = sys.getattr("flags")?;
        let safe_path = match flags.getattr_opt("safe_path")? {
            Some(safe_path) => safe_path.is_truthy()?,
            None => false,
        };
        let release = (!safe_path).then_some(boot.release.as_os_str());
        let further = boot.pythonpath.iter().map(|path| path.as_os_str());
        let entries: Vec<&OsStr> = release.into_iter().chain(further).collect();
        for (place, entry) in entries.into_iter().enumerate() {
            path.insert(place, entry)?;
        }
        // Lines of the application's output appear when they are written, also where stdout is a pipe.
        let stdout = sys.getattr("stdout")?;
        if let Some(reconfigure) = stdout.getattr_opt("reconfigure")? {
            let arguments = PyDict::new(py);
            arguments.set_item("line_buffering", true)?;
            reconfigure.call((), Some(&arguments))?;
        }
        Ok(pinned)
    };
    arrange().map_err(|error| from_exception(py, ProofStep::Start, "while it was started", &error))
}

/// Everything but the probe, which may open connections that forks must not share: it runs in a worker.
pub fn import<'py>(py: Python<'py>, boot: &Boot, pinned: &Pinned) -> Result<Bound<'py, PyAny>, Failure> {
    const DOING: &str = "while it was imported";
    let application = application::load(py, boot, pinned)?;
    for module in &boot.imports {
        py.import(module.as_str()).map_err(|error| from_exception(py, ProofStep::Imports, DOING, &error))?;
    }
    evaluate_urlconf(py).map_err(|error| from_exception(py, ProofStep::Urlconf, "in its URLconf", &error))?;
    Ok(application)
}

/// A broken `urls.py` imports fine with the application object and fails every request: Django evaluates it at
/// the first one. Where Django is set up as a web application, it is evaluated now, with all that it includes.
fn evaluate_urlconf(py: Python<'_>) -> PyResult<()> {
    let modules = py.import("sys")?.getattr("modules")?.cast_into::<PyDict>()?;
    if !modules.contains("django")? {
        return Ok(());
    }
    let settings = py.import("django.conf")?.getattr("settings")?;
    if !settings.getattr("configured")?.is_truthy()? || settings.getattr_opt("ROOT_URLCONF")?.is_none() {
        return Ok(());
    }
    // Settings without `django.setup()`: some other framework borrows a part of Django.
    if !py.import("django.apps")?.getattr("apps")?.getattr("ready")?.is_truthy()? {
        return Ok(());
    }
    let root = py.import("django.urls")?.call_method0("get_resolver")?;
    let mut resolvers = vec![root];
    let mut seen = std::collections::HashSet::new();
    while let Some(resolver) = resolvers.pop() {
        // A URLconf may include itself.
        if !seen.insert(resolver.as_ptr()) {
            continue;
        }
        for pattern in resolver.getattr("url_patterns")?.try_iter()? {
            let pattern = pattern?;
            // Only resolvers have `url_patterns`; asking an instance would evaluate it and hide an AttributeError
            // of the module that it includes.
            if pattern.get_type().hasattr("url_patterns")? {
                resolvers.push(pattern);
            }
        }
    }
    Ok(())
}
