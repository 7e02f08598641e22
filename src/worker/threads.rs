//! The application's threads, by name.

use forkmaster_wire::text::cut_names;
use pyo3::prelude::*;
use pyo3::types::PyDict;

/// Threads do not survive a fork: those that a preloaded import has started are missing in every worker.
pub fn besides_main(py: Python<'_>) -> PyResult<Vec<String>> {
    names(py, |_| Ok(true))
}

/// The interpreter's end waits for threads that are no daemons.
pub fn waited_for(py: Python<'_>) -> PyResult<Vec<String>> {
    names(py, |thread| Ok(!thread.getattr("daemon")?.is_truthy()?))
}

/// gevent has put greenlets of one thread in the place of threads. The server's threads wait in the kernel, and all of
/// them would with the first.
pub fn are_greenlets(py: Python<'_>) -> PyResult<bool> {
    let modules = py.import("sys")?.getattr("modules")?.cast_into::<PyDict>()?;
    match modules.get_item("gevent.monkey")? {
        Some(monkey) => monkey.call_method1("is_module_patched", ("threading",))?.is_truthy(),
        None => Ok(false),
    }
}

fn names<'py>(py: Python<'py>, wanted: impl Fn(&Bound<'py, PyAny>) -> PyResult<bool>) -> PyResult<Vec<String>> {
    let threading = py.import("threading")?;
    let main = threading.call_method0("main_thread")?;
    let mut names = Vec::new();
    for thread in threading.call_method0("enumerate")?.try_iter()? {
        let thread = thread?;
        if !thread.is(&main) && wanted(&thread)? {
            names.push(thread.getattr("name")?.str()?.to_string_lossy().into_owned());
        }
    }
    Ok(cut_names(names))
}
