//! The id of a request: what a trusted proxy calls it, if that is well-formed, else one of ours, as nginx's `$request_id`
//! 32 hexadecimal digits. The application finds it in its environ as if the client had sent it, and whoever reads logs finds
//! it there.

use forkmaster_http::serve::{is_request_id, Exchange};
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyString};

const DIGITS: &[u8; 16] = b"0123456789abcdef";

/// One app thread's ids.
pub struct RequestIds {
    /// As it is sent.
    header: String,
    /// `HTTP_X_REQUEST_ID`
    key: Py<PyString>,
    /// Of the running request.
    id: Vec<u8>,
    /// Of the generator.
    state: u64,
    /// What is the same in all ids of this thread.
    own: u64,
}

impl RequestIds {
    pub fn new(py: Python<'_>, header: String) -> RequestIds {
        let key = format!("HTTP_{}", header.to_ascii_uppercase().replace('-', "_"));
        let key = PyString::intern(py, &key).unbind();
        RequestIds { header, key, id: Vec::new(), state: random(), own: random() }
    }

    /// A request has come.
    pub fn begin(&mut self, exchange: &mut Exchange, is_trusted: bool) -> &[u8] {
        self.id.clear();
        {
            let is_it = |(name, _): &(&[u8], &[u8])| name.eq_ignore_ascii_case(self.header.as_bytes());
            let mut sent = exchange.fields().filter(is_it).map(|(_, value)| value);
            let id = sent.next().filter(|_| is_trusted && sent.next().is_none());
            self.id.extend_from_slice(id.filter(|id| is_request_id(id)).unwrap_or_default());
        }
        if self.id.is_empty() {
            self.make();
        }
        exchange.set_id(self.header.as_bytes(), &self.id);
        &self.id
    }

    pub fn current(&self) -> &[u8] {
        &self.id
    }

    /// Also where an untrusted client has sent another one.
    pub fn put(&self, environ: &Bound<'_, PyDict>) -> PyResult<()> {
        environ.set_item(&self.key, String::from_utf8_lossy(&self.id))
    }

    fn make(&mut self) {
        // SplitMix64 (Steele, Lea, Flood 2014): each number once in its period. An id has to be unique, and is no secret.
        self.state = self.state.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = self.state;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^= mixed >> 31;
        for number in [self.own, mixed] {
            for shift in (0..64).step_by(4).rev() {
                self.id.push(DIGITS[(number >> shift & 15) as usize]);
            }
        }
    }
}

/// From the kernel: workers are forks of one process, and must not have the same ids.
fn random() -> u64 {
    let mut bytes = [0; 8];
    // SAFETY: the kernel writes at most so many bytes there. Before it has randomness the call fails, early in a boot.
    let length = unsafe { libc::getrandom(bytes.as_mut_ptr().cast(), bytes.len(), libc::GRND_NONBLOCK) };
    if length != bytes.len() as isize {
        return u64::from(std::process::id()) << 32 ^ forkmaster_wire::scoreboard::monotonic_ns();
    }
    u64::from_ne_bytes(bytes)
}
