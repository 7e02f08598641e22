//! The process title: what `ps` and `top` show. The kernel reads a process's command line from the process's own
//! memory (proc(5), /proc/PID/cmdline), so writing there is enough; the environment behind it is left alone, so
//! the title is cut to the length of the original command line. That holds the bootstrap's source, which is
//! longer than any title. The short name (`comm`) is `forkmaster` for `pgrep` and `killall`.

use std::ops::Range;
use std::sync::Mutex;

/// The area of the command line, as long as it could be found.
pub struct Title {
    area: Mutex<Option<Range<usize>>>,
}

impl Title {
    pub fn find() -> Title {
        // SAFETY: PR_SET_NAME reads at most 16 bytes from a terminated string.
        unsafe { libc::prctl(libc::PR_SET_NAME, c"forkmaster".as_ptr()) };
        let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
        Title { area: Mutex::new(command_line_area(&stat)) }
    }

    pub fn set(&self, title: &str) {
        if let Ok(area) = self.area.lock() {
            write(&area, title);
        }
    }

    /// As `set`, in a forked child: a thread that the child does not have may have held the lock at the fork.
    pub fn set_if_free(&self, title: &str) {
        if let Ok(area) = self.area.try_lock() {
            write(&area, title);
        }
    }
}

/// No-op where the area was not found (/proc is not mounted).
fn write(area: &Option<Range<usize>>, title: &str) {
    let Some(area) = area else { return };
    let bytes = area.len();
    // The last byte stays zero: otherwise the kernel takes the title to go on in the environment.
    let title = &title.as_bytes()[..title.len().min(bytes - 1)];
    // SAFETY: the kernel says that this process's command line is here; it lies on the initial stack, which stays
    // mapped and writable for the life of the process. Python and libc keep copies of their own.
    let memory = unsafe { std::slice::from_raw_parts_mut(area.start as *mut u8, bytes) };
    memory[..title.len()].copy_from_slice(title);
    memory[title.len()..].fill(0);
}

/// Fields 48 and 49 of /proc/self/stat are `arg_start` and `arg_end` (proc(5)). The second field, the name in
/// parentheses, may hold spaces and parentheses itself; fields are counted after its end.
fn command_line_area(stat: &str) -> Option<Range<usize>> {
    let (_, after_name) = stat.rsplit_once(')')?;
    let mut fields = after_name.split_ascii_whitespace().skip(45);
    let start = fields.next()?.parse().ok()?;
    let end = fields.next()?.parse().ok()?;
    (start != 0 && end > start).then_some(start..end)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_title_replaces_the_command_line() {
        let title = Title::find();
        title.set("forkmaster: t");
        let line = std::fs::read("/proc/self/cmdline").unwrap();
        assert!(line.starts_with(b"forkmaster: t\0"), "{line:?}");
        title.set(&"x".repeat(100_000));
        title.set_if_free(&"x".repeat(100_001));
        let line = std::fs::read("/proc/self/cmdline").unwrap();
        assert!(line.len() < 100_000 && line.starts_with(b"xxx") && line.ends_with(b"x\0"));
    }

    #[test]
    fn odd_process_names_do_not_shift_the_fields() {
        let fields: Vec<String> = (3..=52).map(|field| (field * 10).to_string()).collect();
        assert_eq!(command_line_area(&format!("1 (a) b (c) {}", fields.join(" "))), Some(480..490));
        assert_eq!(command_line_area("1 (a) 2 3"), None);
    }
}
