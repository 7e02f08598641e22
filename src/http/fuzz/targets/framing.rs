//! See `forkmaster_http::proto::check::framing`.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| forkmaster_http::proto::check::framing(data));
