//! `wsgi.errors`: a text stream into the log. Unbuffered, so that the last words of a process that dies are not
//! lost, and one write(2) a call, so that the lines of several threads and processes do not mix.

use pyo3::prelude::*;
use pyo3::types::PyString;

#[pyclass(frozen, name = "Errors", module = "_forkmaster")]
pub struct Errors;

#[pymethods]
impl Errors {
    fn write(&self, py: Python<'_>, text: &Bound<'_, PyString>) -> PyResult<usize> {
        // As sys.stderr does it: whatever an application writes there, the writing itself never fails.
        let bytes = text.call_method1("encode", ("utf-8", "backslashreplace"))?;
        let bytes: &[u8] = bytes.extract()?;
        py.detach(|| write_all(bytes));
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
        libc::STDERR_FILENO
    }

    fn isatty(&self) -> bool {
        // SAFETY: any number may be asked about.
        unsafe { libc::isatty(libc::STDERR_FILENO) == 1 }
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

fn write_all(mut bytes: &[u8]) {
    // SAFETY: file descriptor 2 is open for the life of the process: Python sees to it at its start.
    let stderr = unsafe { std::os::fd::BorrowedFd::borrow_raw(libc::STDERR_FILENO) };
    while !bytes.is_empty() {
        match nix::unistd::write(stderr, bytes) {
            Ok(written) => bytes = &bytes[written..],
            Err(nix::errno::Errno::EINTR) => {}
            // Nobody is left to be told that the log cannot be written.
            Err(_) => return,
        }
    }
}
