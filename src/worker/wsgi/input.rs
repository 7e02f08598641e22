//! `wsgi.input`: a request's body, as a file for the application. The body is complete before the application is called,
//! and lies in memory or in an unlinked temporary file; or, where that is allowed, it comes as it is read (`live`). Reading
//! beyond its end gives `b""`.
//!
//! The object owns what it reads from: an application may keep it longer than the request lives. It has all methods of an
//! `io.BufferedIOBase`, and is registered as one, since applications wrap it as a file (`io.TextIOWrapper`, `csv`,
//! `tarfile`).

use std::fs::File;
use std::io;
use std::os::fd::BorrowedFd;
use std::os::unix::fs::FileExt;

use pyo3::exceptions::PyValueError;
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyList, PyMemoryView, PySlice};

use super::live::Live;

/// How much of a file is read ahead for lines: a system call for so many bytes, and not for each line.
const WINDOW_BYTES: usize = 64 * 1024;

/// `read1` without a size gives so much, as Python's buffered files do.
const READ1_BYTES: isize = 8 * 1024;

#[pyclass(name = "Input", module = "_forkmaster")]
pub struct Input {
    source: Source,
    /// May lie beyond the end, as a file's.
    position: u64,
    length: u64,
}

enum Source {
    Memory(Py<PyBytes>),
    /// A large one: what is read is copied from here, so the whole is not copied before.
    Buffer(Vec<u8>),
    File(File, Window),
    /// Of the one whose length is not known, `Input::length` says how much has been read.
    Live(Live),
}

/// A stretch of a file, read for the lines in it.
#[derive(Default)]
struct Window {
    start: u64,
    bytes: Vec<u8>,
}

impl Window {
    /// The bytes from this position on that are here.
    fn from(&self, position: u64) -> &[u8] {
        let skipped = position.checked_sub(self.start).and_then(|skipped| usize::try_from(skipped).ok());
        skipped.and_then(|skipped| self.bytes.get(skipped..)).unwrap_or_default()
    }

    fn fill(&mut self, file: &File, start: u64, bytes: usize) -> io::Result<()> {
        // Should the read fail, nothing is here.
        self.bytes.clear();
        self.start = start;
        let mut read = std::mem::take(&mut self.bytes);
        read.resize(bytes, 0);
        file.read_exact_at(&mut read, start)?;
        self.bytes = read;
        Ok(())
    }
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
            Source::Memory(_) | Source::File(..) | Source::Live(_) => None,
        }
    }

    /// The empty body is that of many requests.
    pub fn rewind(&mut self) {
        self.position = 0;
    }

    /// A descriptor of its own for the same file; read at explicit offsets, since the file's own is shared.
    pub fn file(file: BorrowedFd<'_>, length: u64) -> io::Result<Input> {
        let file = File::from(file.try_clone_to_owned()?);
        Ok(Input { source: Source::File(file, Window::default()), position: 0, length })
    }

    /// A body that is still coming.
    pub fn live(live: Live) -> Input {
        let length = live.length().unwrap_or(u64::MAX);
        Input { source: Source::Live(live), position: 0, length }
    }

    /// `isinstance(environ["wsgi.input"], io.BufferedIOBase)`.
    pub fn register(py: Python<'_>) -> PyResult<()> {
        let base = py.import(intern!(py, "io"))?.getattr(intern!(py, "BufferedIOBase"))?;
        base.call_method1(intern!(py, "register"), (py.get_type::<Input>(),))?;
        Ok(())
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

    /// Of a live body whose length is not known: no more than there is, read ahead to be counted.
    fn reach(&mut self, py: Python<'_>, bytes: usize) -> PyResult<usize> {
        match &mut self.source {
            Source::Live(live) if live.length().is_none() => Ok(live.reach(py, bytes)?.min(bytes)),
            Source::Memory(_) | Source::Buffer(_) | Source::File(..) | Source::Live(_) => Ok(bytes),
        }
    }

    fn take<'py>(&mut self, py: Python<'py>, bytes: usize) -> PyResult<Bound<'py, PyBytes>> {
        let bytes = self.reach(py, bytes)?;
        let piece = match &mut self.source {
            _ if bytes == 0 => PyBytes::new(py, b""),
            // The whole body at once is handed out as it is.
            Source::Memory(body) if self.position == 0 && bytes as u64 == self.length => body.bind(py).clone(),
            Source::Live(live) => PyBytes::new_with(py, bytes, |place| live.fill(py, place))?,
            Source::Memory(_) | Source::Buffer(_) | Source::File(..) => {
                PyBytes::new_with(py, bytes, |place| self.copy(py, place).map_err(PyErr::from))?
            }
        };
        self.position += bytes as u64;
        Ok(piece)
    }

    /// Fills `place` from here on; there must be enough. The interpreter's lock is given up where the file is read.
    fn copy(&self, py: Python<'_>, place: &mut [u8]) -> io::Result<()> {
        let memory = match &self.source {
            Source::Memory(body) => body.bind(py).as_bytes(),
            Source::Buffer(body) => body,
            Source::File(file, window) => {
                let here = window.from(self.position);
                let (begin, rest) = place.split_at_mut(here.len().min(place.len()));
                begin.copy_from_slice(&here[..begin.len()]);
                let position = self.position + begin.len() as u64;
                return if rest.is_empty() { Ok(()) } else { py.detach(|| file.read_exact_at(rest, position)) };
            }
            // It is read by `take`.
            Source::Live(_) => return Err(io::ErrorKind::Unsupported.into()),
        };
        let start = self.position as usize;
        place.copy_from_slice(&memory[start..start + place.len()]);
        Ok(())
    }

    /// The length of the next line with its newline, at most `limit` bytes.
    fn line_bytes(&mut self, py: Python<'_>, limit: usize) -> PyResult<usize> {
        let (start, length) = (self.position, self.length);
        let line_in = |body: &[u8]| {
            let rest = &body[start as usize..][..limit];
            find_newline(rest).map_or(limit, |at| at + 1)
        };
        match &mut self.source {
            _ if limit == 0 => Ok(0),
            Source::Memory(body) => Ok(line_in(body.bind(py).as_bytes())),
            Source::Buffer(body) => Ok(line_in(body)),
            Source::File(file, window) => {
                let mut looked = 0;
                while looked < limit {
                    let position = start + looked as u64;
                    if window.from(position).is_empty() {
                        let bytes = (length - position).min(WINDOW_BYTES as u64) as usize;
                        py.detach(|| window.fill(file, position, bytes))?;
                    }
                    let here = window.from(position);
                    let here = &here[..here.len().min(limit - looked)];
                    if let Some(at) = find_newline(here) {
                        return Ok(looked + at + 1);
                    }
                    looked += here.len();
                }
                Ok(limit)
            }
            Source::Live(live) => {
                let mut looked = 0;
                while looked < limit {
                    let here = live.ahead();
                    if let Some(at) = find_newline(&here[looked..here.len().min(limit)]) {
                        return Ok(looked + at + 1);
                    }
                    looked = here.len().min(limit);
                    if looked < limit && live.more(py)? == 0 {
                        break;
                    }
                }
                Ok(looked)
            }
        }
    }

    /// What one look gives, at most so much: for a live body at least something.
    fn wanted_now(&mut self, py: Python<'_>, bytes: usize) -> PyResult<usize> {
        match &mut self.source {
            Source::Live(live) if bytes > 0 => {
                if live.ahead().is_empty() {
                    live.more(py)?;
                }
                Ok(bytes.min(live.ahead().len()))
            }
            Source::Memory(_) | Source::Buffer(_) | Source::File(..) | Source::Live(_) => Ok(bytes),
        }
    }

    fn is_live(&self) -> bool {
        matches!(self.source, Source::Live(_))
    }
}

/// `readinto`; `at_once`: what is there. What an exotic buffer runs of the application is run while nothing is borrowed.
fn read_into(this: &Bound<'_, Input>, buffer: &Bound<'_, PyAny>, at_once: bool) -> PyResult<usize> {
    let py = this.py();
    let place = PyMemoryView::from(buffer)?.call_method1(intern!(py, "cast"), (intern!(py, "B"),))?;
    let room: usize = place.getattr(intern!(py, "nbytes"))?.extract()?;
    let piece = {
        let mut input = this.try_borrow_mut()?;
        let bytes = room.min(input.remaining());
        let bytes = if at_once { input.wanted_now(py, bytes)? } else { bytes };
        input.take(py, bytes)?
    };
    let bytes = piece.as_bytes().len();
    place.set_item(PySlice::new(py, 0, bytes as isize, 1), piece)?;
    Ok(bytes)
}

#[pymethods]
impl Input {
    #[pyo3(signature = (size=None, /))]
    fn read<'py>(&mut self, py: Python<'py>, size: Option<isize>) -> PyResult<Bound<'py, PyBytes>> {
        let bytes = self.wanted(size);
        self.take(py, bytes)
    }

    #[pyo3(signature = (size=-1, /))]
    fn read1<'py>(&mut self, py: Python<'py>, size: isize) -> PyResult<Bound<'py, PyBytes>> {
        let bytes = self.wanted(Some(if size < 0 { READ1_BYTES } else { size }));
        let bytes = self.wanted_now(py, bytes)?;
        self.take(py, bytes)
    }

    #[pyo3(signature = (buffer, /))]
    fn readinto(this: &Bound<'_, Self>, buffer: &Bound<'_, PyAny>) -> PyResult<usize> {
        read_into(this, buffer, false)
    }

    #[pyo3(signature = (buffer, /))]
    fn readinto1(this: &Bound<'_, Self>, buffer: &Bound<'_, PyAny>) -> PyResult<usize> {
        read_into(this, buffer, true)
    }

    #[pyo3(signature = (size=None, /))]
    fn readline<'py>(&mut self, py: Python<'py>, size: Option<isize>) -> PyResult<Bound<'py, PyBytes>> {
        let limit = self.wanted(size);
        let bytes = self.line_bytes(py, limit)?;
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
            if line.as_bytes().is_empty() {
                break;
            }
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

    /// A body that is complete may be read again.
    #[pyo3(signature = (offset, whence=0, /))]
    fn seek(&mut self, py: Python<'_>, offset: i64, whence: i32) -> PyResult<u64> {
        if self.is_live() {
            return Err(unsupported(py, "seek"));
        }
        let from = match whence {
            0 if offset < 0 => return Err(PyValueError::new_err(format!("negative seek position {offset}"))),
            0 => 0,
            1 => self.position,
            2 => self.length,
            _ => return Err(PyValueError::new_err(format!("whence must be 0, 1 or 2, not {whence}"))),
        };
        // Before the beginning is the beginning, as for `io.BytesIO`.
        let position = from.saturating_add_signed(offset);
        self.position = position;
        Ok(position)
    }

    fn tell(&self) -> u64 {
        self.position
    }

    fn readable(&self) -> bool {
        true
    }

    fn seekable(&self) -> bool {
        !self.is_live()
    }

    fn writable(&self) -> bool {
        false
    }

    fn isatty(&self) -> bool {
        false
    }

    fn flush(&self) {}

    /// Belongs to the server (PEP 3333): an application that closes it changes nothing.
    fn close(&self) {}

    #[getter]
    fn closed(&self) -> bool {
        false
    }

    fn __enter__(this: Bound<'_, Self>) -> Bound<'_, Self> {
        this
    }

    #[pyo3(signature = (*_exc_info))]
    fn __exit__(&self, _exc_info: &Bound<'_, PyAny>) {}

    #[pyo3(signature = (_bytes, /))]
    fn write(&self, py: Python<'_>, _bytes: &Bound<'_, PyAny>) -> PyResult<()> {
        Err(unsupported(py, "write"))
    }

    #[pyo3(signature = (_lines, /))]
    fn writelines(&self, py: Python<'_>, _lines: &Bound<'_, PyAny>) -> PyResult<()> {
        Err(unsupported(py, "writelines"))
    }

    #[pyo3(signature = (_size=None, /))]
    fn truncate(&self, py: Python<'_>, _size: Option<&Bound<'_, PyAny>>) -> PyResult<()> {
        Err(unsupported(py, "truncate"))
    }

    /// Where the body lies in a file, that is not to be had.
    fn fileno(&self, py: Python<'_>) -> PyResult<()> {
        Err(unsupported(py, "fileno"))
    }

    fn detach(&self, py: Python<'_>) -> PyResult<()> {
        Err(unsupported(py, "detach"))
    }
}

/// As Python's own files say it: an OSError and a ValueError.
fn unsupported(py: Python<'_>, what: &str) -> PyErr {
    let kind = py.import(intern!(py, "io")).and_then(|io| io.getattr(intern!(py, "UnsupportedOperation")));
    match kind.and_then(|kind| kind.call1((what,))) {
        Ok(error) => PyErr::from_value(error),
        Err(error) => error,
    }
}

fn find_newline(bytes: &[u8]) -> Option<usize> {
    bytes.iter().position(|byte| *byte == b'\n')
}
