//! Parts of an answer to a socket, in as few system calls as there can be.

use std::io::{self, IoSlice};
use std::os::fd::{AsFd, RawFd};

use crate::serve::base::settings::SHARE_BYTES_MAX;
use crate::serve::io::socket;

pub fn send_some(fd: RawFd, file: &impl AsFd, offset: &mut u64, left: &mut u64, share: usize) -> io::Result<usize> {
    let sent = socket::send_file(fd, file.as_fd(), offset, (*left).min(share as u64))?;
    *left -= sent as u64;
    Ok(sent)
}

/// Sends as much as the socket takes; `WouldBlock` when it is full. Ok: all was sent, or the file ended early.
pub fn send_head_and_file(
    fd: RawFd,
    head: &mut &[u8],
    file: &impl AsFd,
    offset: &mut u64,
    left: &mut u64,
) -> io::Result<()> {
    while !head.is_empty() {
        let sent = send_parts(fd, &[head], *left > 0)?;
        *head = &head[sent..];
    }
    while *left > 0 {
        if send_some(fd, file, offset, left, SHARE_BYTES_MAX)? == 0 {
            return Ok(());
        }
    }
    Ok(())
}

/// More parts than an answer ever has: head, chunk line, piece, line end.
const PARTS_MAX: usize = 4;

/// Up to this, parts are copied together: a head and a small body.
pub const GATHERED_BYTES_MAX: usize = 1024;

pub fn send_parts(fd: RawFd, parts: &[&[u8]], more: bool) -> io::Result<usize> {
    let total: usize = parts.iter().map(|part| part.len()).sum();
    if total == 0 {
        return Ok(0);
    }
    if let [part] = parts {
        return socket::send_one(fd, part, more);
    }
    if total <= GATHERED_BYTES_MAX {
        let mut gathered = [0; GATHERED_BYTES_MAX];
        let mut end = 0;
        for part in parts {
            gathered[end..end + part.len()].copy_from_slice(part);
            end += part.len();
        }
        return socket::send_one(fd, &gathered[..end], more);
    }
    let mut slices = [IoSlice::new(&[]); PARTS_MAX];
    let mut count = 0;
    for part in parts.iter().filter(|part| !part.is_empty()).take(PARTS_MAX) {
        slices[count] = IoSlice::new(part);
        count += 1;
    }
    socket::send(fd, &slices[..count], more)
}
