//! The application's `bytes` objects while they are sent, and the question whether anybody else has one: where nobody has, its
//! pages may go back to the kernel before it is freed (`Budget::let_go` of the HTTP crate). Knows no response.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::Arc;

use forkmaster_http::serve::Piece;
use pyo3::prelude::*;
use pyo3::types::PyBytes;

use super::capi::references;

/// Of smaller ones it is never asked.
const LARGE_BYTES: usize = 1024 * 1024;

/// An object that is being sent, and lives until that has been done.
#[derive(Debug)]
pub struct Held {
    /// Nobody else has it; none: that is not known, and never will be. It is dropped before the object: see `Latest::end`.
    is_ours: Option<Arc<AtomicBool>>,
    /// Let go of without the interpreter's lock it is noted, and freed by the next who has the lock (PyO3 does so).
    _object: Py<PyBytes>,
    start: *const u8,
    length: usize,
}

// SAFETY: the bytes never change while somebody can read them, and stay where they are while there is a reference to their
// object.
unsafe impl Send for Held {}

impl Held {
    fn new(object: &Bound<'_, PyBytes>, is_ours: Option<Arc<AtomicBool>>) -> Held {
        let bytes = object.as_bytes();
        Held { is_ours, _object: object.clone().unbind(), start: bytes.as_ptr(), length: bytes.len() }
    }
}

impl Piece for Held {
    fn bytes(&self) -> &[u8] {
        // SAFETY: see above; the reference lives as long as `self`.
        unsafe { std::slice::from_raw_parts(self.start, self.length) }
    }

    fn is_ours(&self) -> bool {
        self.is_ours.as_ref().is_some_and(|is_ours| is_ours.load(Ordering::Acquire))
    }
}

/// The latest large object of an answer, until it is known who has it besides.
#[derive(Default)]
pub struct Latest<'py>(Option<(Bound<'py, PyBytes>, Arc<AtomicBool>)>);

impl<'py> Latest<'py> {
    /// The next object. What is to be freed of the one before.
    pub fn next(&mut self, object: &Bound<'py, PyBytes>) -> Option<Held> {
        // A subclass may have a `__del__` that reads it.
        let is_large = object.as_bytes().len() >= LARGE_BYTES && object.is_exact_instance_of::<PyBytes>();
        if !is_large && self.0.is_none() {
            return None;
        }
        let before = self.end();
        self.0 = is_large.then(|| (object.clone(), Arc::default()));
        before
    }

    /// A hold on the object.
    pub fn hold(&self, object: &Bound<'py, PyBytes>) -> Held {
        let latest = self.0.as_ref().filter(|(latest, _)| latest.is(object));
        Held::new(object, latest.map(|(_, is_ours)| Arc::clone(is_ours)))
    }

    /// Whoever gave the object has let go of it, or never will. If nobody has it but us and its `Held`, that is told so; if
    /// there is no such one, the object is returned, to be let go of.
    pub fn end(&mut self) -> Option<Held> {
        let (object, is_ours) = self.0.take()?;
        // A `Held` that ends in this moment lets go of the object afterwards, and that reference counts until somebody takes
        // the interpreter's lock after us. Of one that ended before, nobody knows whether its reference still counts.
        let is_held = Arc::strong_count(&is_ours) > 1;
        if references(&object) != 1 + isize::from(is_held) {
            return None;
        }
        is_ours.store(true, Ordering::Release);
        (!is_held).then(|| Held::new(&object, Some(is_ours)))
    }
}
