//! `wsgi.errors`: a text stream into the error log. Unbuffered, so that the last words of a process that dies are not
//! lost, and one write(2) a call, so that the lines of several threads and processes do not mix.

use pyo3::prelude::*;
use pyo3::types::PyString;

use crate::logger;

#[pyclass(frozen, name = "Errors", module = "_forkmaster")]
pub struct Errors;

#[pymethods]
impl Errors {
    fn write(&self, py: Python<'_>, text: &Bound<'_, PyString>) -> PyResult<usize> {
        // As sys.stderr does it: whatever an application writes there, the writing itself never fails.
        let bytes = text.call_method1("encode", ("utf-8", "backslashreplace"))?;
        let bytes: &[u8] = bytes.extract()?;
        py.detach(|| logger::write(bytes));
        text.len()
    }

    fn writelines(&self, py: Python<'_>, lines: &Bound<'_, PyAny>) -> PyResult<()> {
        for line in lines.try_iter()? {
            self.write(py, line?.cast::<PyString>()?)?;
        }
        Ok(())
    }

    fn flush(&self) {}

    fn fileno(&self) -> i32 {
        logger::fd()
    }

    fn isatty(&self) -> bool {
        // SAFETY: any number may be asked about.
        unsafe { libc::isatty(logger::fd()) == 1 }
    }

    fn writable(&self) -> bool {
        true
    }

    #[getter]
    fn encoding(&self) -> &'static str {
        "utf-8"
    }

    #[getter]
    fn errors(&self) -> &'static str {
        "backslashreplace"
    }
}
