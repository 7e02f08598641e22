//! Memory that nobody reads any more, and that the C library would keep for what comes next: it knows nothing of our bounds.
//! malloc_trim(3) is not used: it locks an arena for as long as it gives pages back, 12 ms for 50 MB and 63 ms for 200 MB, and
//! a request that wants memory waits for it.

use nix::unistd::{sysconf, SysconfVar};

use crate::serve::base::piece::Spent;

/// Who wants to change the process's mappings waits for one step, which takes a quarter of a millisecond.
const STEP_BYTES: usize = 1024 * 1024;

/// Gives the pages of a piece back to the kernel, and then frees it. No lock of the C library is held meanwhile.
pub fn give_back(spent: Spent) {
    let Spent { piece, charge } = spent;
    let page = sysconf(SysconfVar::PAGE_SIZE).ok().flatten().and_then(|bytes| usize::try_from(bytes).ok());
    if let Some(page) = page.filter(|_| piece.is_ours()) {
        for (start, length) in steps(piece.bytes().as_ptr() as usize, piece.bytes().len(), page) {
            let start = std::ptr::with_exposed_provenance_mut(start);
            // SAFETY: these pages hold nothing but bytes of the piece, which nobody reads again (`Piece::is_ours`), and stay
            // mapped. Where the kernel refuses (memory that is locked, madvise(2)) nothing changes.
            unsafe { libc::madvise(start, length, libc::MADV_DONTNEED) };
        }
    }
    drop(piece);
    drop(charge);
}

/// The whole pages of some bytes, a step at a time: what shares a page with them is the object's head and the allocator's.
fn steps(start: usize, length: usize, page: usize) -> impl Iterator<Item = (usize, usize)> {
    let (first, end) = (start.next_multiple_of(page), (start + length) / page * page);
    let step = STEP_BYTES.max(page);
    (first..end).step_by(step).map(move |at| (at, step.min(end - at)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_that_others_share_are_left() {
        let all = |start, length| steps(start, length, 4096).collect::<Vec<_>>();
        assert_eq!(all(4096, 8192), [(4096, 8192)]);
        assert_eq!(all(4095, 8192), [(4096, 4096)]);
        assert_eq!(all(4097, 8192), [(8192, 4096)]);
        assert_eq!(all(4097, 4096), []);
        assert_eq!(all(4096, STEP_BYTES + 5000), [(4096, STEP_BYTES), (4096 + STEP_BYTES, 4096)]);
    }
}
