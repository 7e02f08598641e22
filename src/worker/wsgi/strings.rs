//! Python strings of what requests repeat. Real clients send the same values again and again (a browser's
//! `Accept-Encoding`, a proxy's addresses, the path of a health check); to find the string that was made last time
//! costs less than to make it. One cache an app thread, a fixed table: nothing is allocated for it later, a value that
//! is there once just takes another one's place.

use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::types::PyString;

/// Longer values are seldom the same twice (cookies, tokens), and cost more to compare. User agents have about 120.
const BYTES_MAX: usize = 246;

/// A power of two. 64 KiB in all, touched as they are used.
const PLACES: usize = 256;

pub struct Strings {
    places: Box<[Place]>,
}

struct Place {
    text: Option<Py<PyString>>,
    length: u8,
    bytes: [u8; BYTES_MAX],
}

impl Strings {
    pub fn new() -> Strings {
        let place = || Place { text: None, length: 0, bytes: [0; BYTES_MAX] };
        Strings { places: (0..PLACES).map(|_| place()).collect() }
    }

    /// As `latin1`.
    pub fn get<'py>(&mut self, py: Python<'py>, bytes: &[u8]) -> PyResult<Bound<'py, PyString>> {
        if bytes.len() > BYTES_MAX {
            return latin1(py, bytes);
        }
        let place = &mut self.places[hash(bytes) as usize % PLACES];
        if let Some(text) = place.text.as_ref().filter(|_| place.bytes[..usize::from(place.length)] == *bytes) {
            return Ok(text.bind(py).clone());
        }
        let text = latin1(py, bytes)?;
        place.length = bytes.len() as u8;
        place.bytes[..bytes.len()].copy_from_slice(bytes);
        place.text = Some(text.clone().unbind());
        Ok(text)
    }
}

/// A "native string" of PEP 3333: bytes as the code points of the same number.
pub fn latin1<'py>(py: Python<'py>, bytes: &[u8]) -> PyResult<Bound<'py, PyString>> {
    // SAFETY: pointer and length are of one slice; its length fits, since slices have at most isize::MAX bytes.
    let string = unsafe { ffi::PyUnicode_DecodeLatin1(bytes.as_ptr().cast(), bytes.len() as isize, std::ptr::null()) };
    // SAFETY: a new reference, or null with an exception set.
    let string = unsafe { Bound::from_owned_ptr_or_err(py, string) }?;
    Ok(string.cast_into::<PyString>()?)
}

/// For tables that are small and forget: fast, eight bytes at a time. Whoever makes values collide gets fewer hits.
pub fn hash(bytes: &[u8]) -> u64 {
    // The odd number nearest to 2^64 divided by the golden ratio (Knuth, volume 3, section 6.4).
    const FACTOR: u64 = 0x9e37_79b9_7f4a_7c15;
    let mix = |hash: u64, word: u64| (hash.rotate_left(23) ^ word).wrapping_mul(FACTOR);
    let mut hash = mix(0, bytes.len() as u64);
    let words = bytes.chunks_exact(8);
    let mut last = [0; 8];
    last[..words.remainder().len()].copy_from_slice(words.remainder());
    for word in words {
        hash = mix(hash, word.try_into().map_or(0, u64::from_le_bytes));
    }
    // The upper half of a product is the better mixed one.
    mix(hash, u64::from_le_bytes(last)) >> 32
}
