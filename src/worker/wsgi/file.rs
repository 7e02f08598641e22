//! `wsgi.file_wrapper` (PEP 3333, "Optional Platform-Specific File Handling").

use std::os::fd::RawFd;

use pyo3::intern;
use pyo3::prelude::*;

use super::response::close;

/// As an iterable it is what PEP 3333 shows; given back by the application for a plain
/// file, the file is sent by the kernel.
#[pyclass(frozen, name = "FileWrapper", module = "_forkmaster")]
pub struct FileWrapper {
    file: Py<PyAny>,
    block_bytes: usize,
}

#[pymethods]
impl FileWrapper {
    #[new]
    #[pyo3(signature = (filelike, blksize=8192))]
    fn new(filelike: Py<PyAny>, blksize: usize) -> FileWrapper {
        FileWrapper { file: filelike, block_bytes: blksize.max(1) }
    }

    #[getter]
    fn filelike(&self, py: Python<'_>) -> Py<PyAny> {
        self.file.clone_ref(py)
    }

    fn __iter__(this: Bound<'_, Self>) -> Bound<'_, Self> {
        this
    }

    fn __next__<'py>(&self, py: Python<'py>) -> PyResult<Option<Bound<'py, PyAny>>> {
        let block = self.file.bind(py).call_method1(intern!(py, "read"), (self.block_bytes,))?;
        Ok(block.is_truthy()?.then_some(block))
    }

    fn close(&self, py: Python<'_>) -> PyResult<()> {
        close(self.file.bind(py))
    }
}

impl FileWrapper {
    /// The descriptor, and where the application would read next, which is not where the descriptor stands if the file
    /// has read ahead. None: not a plain file of Python's.
    /// Only Python's own binary files are taken: others have a `fileno()` too and read something else than its
    /// bytes (gzip.GzipFile), or have read ahead of what they tell.
    pub fn plain_file(&self, py: Python<'_>) -> PyResult<Option<(RawFd, u64)>> {
        let file = self.file.bind(py);
        let io = py.import(intern!(py, "io"))?;
        let plain = io.getattr(intern!(py, "FileIO"))?;
        let raw = if file.get_type().is(&io.getattr(intern!(py, "BufferedReader"))?)
            || file.get_type().is(&io.getattr(intern!(py, "BufferedRandom"))?)
        {
            file.getattr(intern!(py, "raw"))?
        } else {
            file.clone()
        };
        if !raw.get_type().is(&plain) {
            return Ok(None);
        }
        let position = file.call_method0(intern!(py, "tell"));
        let (Ok(position), Ok(descriptor)) = (position, file.call_method0(intern!(py, "fileno"))) else {
            return Ok(None);
        };
        Ok(Some((descriptor.extract()?, position.extract()?)))
    }
}
