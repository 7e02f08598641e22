//! `wsgi.input`: the body, which is complete before the application is called. It lies in memory or in an
//! unlinked temporary file, and reading beyond its end gives `b""`. The object owns what it reads from: an
//! application may keep it longer than the request lives.

use std::fs::File;
use std::io;
use std::os::fd::BorrowedFd;
use std::os::unix::fs::FileExt;

use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyList};

/// How much of a file is looked through at once for the end of a line.
const LINE_BYTES_STEP: usize = 8 * 1024;

#[pyclass(name = "Input", module = "_forkmaster")]
pub struct Input {
    source: Source,
    position: u64,
    length: u64,
}

enum Source {
    Memory(Py<PyBytes>),
    /// A large one: what is read is copied from here, so the whole is not copied before.
    Buffer(Vec<u8>),
    File(File),
}

impl Input {
    pub fn memory(body: Bound<'_, PyBytes>) -> Input {
        let length = body.as_bytes().len() as u64;
        Input { source: Source::Memory(body.unbind()), position: 0, length }
    }

    pub fn buffer(body: Vec<u8>) -> Input {
        let length = body.len() as u64;
        Input { source: Source::Buffer(body), position: 0, length }
    }

    /// The large body's memory, when nobody will read it any more.
    pub fn take_buffer(&mut self) -> Option<Vec<u8>> {
        match &mut self.source {
            Source::Buffer(body) => {
                self.length = 0;
                self.position = 0;
                Some(std::mem::take(body))
            }
            Source::Memory(_) | Source::File(_) => None,
        }
    }

    /// A descriptor of its own for the same file; read at explicit offsets, since the file's own is shared.
    pub fn file(file: BorrowedFd<'_>, length: u64) -> io::Result<Input> {
        let file = File::from(file.try_clone_to_owned()?);
        Ok(Input { source: Source::File(file), position: 0, length })
    }

    fn remaining(&self) -> usize {
        usize::try_from(self.length.saturating_sub(self.position)).unwrap_or(usize::MAX)
    }

    /// `size` as Python's files take it: None and negative mean all.
    fn wanted(&self, size: Option<isize>) -> usize {
        match size {
            Some(size) => usize::try_from(size).map_or(self.remaining(), |size| size.min(self.remaining())),
            None => self.remaining(),
        }
    }

    fn take<'py>(&mut self, py: Python<'py>, bytes: usize) -> PyResult<Bound<'py, PyBytes>> {
        let start = self.position;
        let piece = match &self.source {
            // The whole body at once is handed out as it is.
            Source::Memory(body) if start == 0 && bytes as u64 == self.length => body.bind(py).clone(),
            Source::Memory(body) => {
                let start = start as usize;
                PyBytes::new(py, &body.bind(py).as_bytes()[start..start + bytes])
            }
            Source::Buffer(body) => PyBytes::new(py, &body[start as usize..start as usize + bytes]),
            Source::File(file) => PyBytes::new_with(py, bytes, |buffer| {
                py.detach(|| file.read_exact_at(buffer, start)).map_err(PyErr::from)
            })?,
        };
        self.position += bytes as u64;
        Ok(piece)
    }

    /// The length of the next line with its newline, at most `limit` bytes.
    fn line_bytes(&self, py: Python<'_>, limit: usize) -> PyResult<usize> {
        let line_in = |body: &[u8]| {
            let rest = &body[self.position as usize..][..limit];
            find_newline(rest).map_or(limit, |at| at + 1)
        };
        match &self.source {
            Source::Memory(body) => Ok(line_in(body.bind(py).as_bytes())),
            Source::Buffer(body) => Ok(line_in(body)),
            Source::File(file) => {
                let mut buffer = [0; LINE_BYTES_STEP];
                let mut looked = 0;
                while looked < limit {
                    let step = &mut buffer[..LINE_BYTES_STEP.min(limit - looked)];
                    file.read_exact_at(step, self.position + looked as u64)?;
                    if let Some(at) = find_newline(step) {
                        return Ok(looked + at + 1);
                    }
                    looked += step.len();
                }
                Ok(limit)
            }
        }
    }
}

#[pymethods]
impl Input {
    #[pyo3(signature = (size=None, /))]
    fn read<'py>(&mut self, py: Python<'py>, size: Option<isize>) -> PyResult<Bound<'py, PyBytes>> {
        let bytes = self.wanted(size);
        self.take(py, bytes)
    }

    #[pyo3(signature = (size=None, /))]
    fn readline<'py>(&mut self, py: Python<'py>, size: Option<isize>) -> PyResult<Bound<'py, PyBytes>> {
        let bytes = self.line_bytes(py, self.wanted(size))?;
        self.take(py, bytes)
    }

    /// Stops after the line with which the hint is reached, as `io.IOBase.readlines` does.
    #[pyo3(signature = (hint=None, /))]
    fn readlines<'py>(&mut self, py: Python<'py>, hint: Option<isize>) -> PyResult<Bound<'py, PyList>> {
        let enough = hint.and_then(|hint| usize::try_from(hint).ok()).filter(|hint| *hint > 0).unwrap_or(usize::MAX);
        let lines = PyList::empty(py);
        let mut bytes = 0;
        while self.remaining() > 0 && bytes < enough {
            let line = self.readline(py, None)?;
            bytes += line.as_bytes().len();
            lines.append(line)?;
        }
        Ok(lines)
    }

    fn __iter__(this: Bound<'_, Self>) -> Bound<'_, Self> {
        this
    }

    fn __next__<'py>(&mut self, py: Python<'py>) -> PyResult<Option<Bound<'py, PyBytes>>> {
        let line = self.readline(py, None)?;
        Ok((!line.as_bytes().is_empty()).then_some(line))
    }

    fn readable(&self) -> bool {
        true
    }

    /// Belongs to the server (PEP 3333): an application that closes it changes nothing.
    fn close(&self) {}
}

fn find_newline(bytes: &[u8]) -> Option<usize> {
    bytes.iter().position(|byte| *byte == b'\n')
}
