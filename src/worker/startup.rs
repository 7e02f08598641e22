//! Importing the application and proving that it can serve: further imports, Django's URLconf, the probe. Each
//! failure is told with the step it happened in.

use std::ffi::OsStr;
use std::io;
use std::path::{Path, PathBuf};

use forkmaster_wire::alias::{self, Alias};
use forkmaster_wire::message::{Boot, Failure, ProofStep};
use pyo3::exceptions::PyImportError;
use pyo3::prelude::*;
use pyo3::types::{PyCFunction, PyDict, PyList, PyTuple};

use crate::application;
use crate::failure::{failure, from_exception};

/// The working directory and `sys.path` as the application finds them: the real release directory first (as
/// `python -m` would have it, except with `-P` or PYTHONSAFEPATH), then `pythonpath`.
pub fn enter_release(py: Python<'_>, boot: &Boot) -> Result<(), Failure> {
    std::env::set_current_dir(&boot.release).map_err(|error: io::Error| {
        let reason = format!("cannot enter the release directory {}: {error}", boot.release.display());
        failure(ProofStep::Start, reason, "")
    })?;
    let arrange = || -> PyResult<()> {
        let sys = py.import("sys")?;
        let path = sys.getattr("path")?.cast_into::<PyList>()?;
        pin(&sys, &path, &boot.aliases)?;
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
        Ok(())
    };
    arrange().map_err(|error| from_exception(py, ProofStep::Start, "while it was started", &error))
}

/// What PYTHONPATH and `.pth` files have put on `sys.path` by a name that the next deploy leads elsewhere gets its real name.
/// What the application puts there later keeps its name, and is looked for in the pinned directory all the same.
fn pin(sys: &Bound<'_, PyModule>, path: &Bound<'_, PyList>, aliases: &[Alias]) -> PyResult<()> {
    if aliases.is_empty() {
        return Ok(());
    }
    for place in 0..path.len() {
        // Any object may stand there.
        let Ok(entry) = path.get_item(place)?.extract::<PathBuf>() else {
            continue;
        };
        if let Some(pinned) = alias::pinned(aliases, &entry) {
            path.set_item(place, pinned.as_os_str())?;
        }
    }
    // Finders that were made for such names before.
    sys.getattr("path_importer_cache")?.call_method0("clear")?;
    let aliases = aliases.to_vec();
    let finder = move |arguments: &Bound<'_, PyTuple>, _: Option<&Bound<'_, PyDict>>| -> PyResult<Py<PyAny>> {
        let entry = arguments.get_item(0)?.extract::<PathBuf>().ok();
        match entry.and_then(|entry| alias::pinned(&aliases, &entry)) {
            Some(pinned) => finder_of(arguments.py(), &pinned),
            None => Err(PyImportError::new_err("no other name of the release")),
        }
    };
    let hook = PyCFunction::new_closure(sys.py(), Some(c"forkmaster_pinned"), None, finder)?;
    sys.getattr("path_hooks")?.call_method1("insert", (0, hook))?;
    Ok(())
}

/// What the other hooks have for this path. None of them asks ours again: the path is real.
fn finder_of(py: Python<'_>, path: &Path) -> PyResult<Py<PyAny>> {
    for hook in py.import("sys")?.getattr("path_hooks")?.try_iter()? {
        match hook?.call1((path.as_os_str(),)) {
            Ok(finder) => return Ok(finder.unbind()),
            Err(error) if error.is_instance_of::<PyImportError>(py) => {}
            Err(error) => return Err(error),
        }
    }
    Err(PyImportError::new_err("no finder for it"))
}

/// Everything but the probe, which may open connections that forks must not share: it runs in a worker.
pub fn import<'py>(py: Python<'py>, boot: &Boot) -> Result<Bound<'py, PyAny>, Failure> {
    const DOING: &str = "while it was imported";
    let application = application::load(py, boot)?;
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
