//! Processes as /proc shows them: the tests' second witness beside what the master says of itself.

use std::fmt;
use std::fs;
use std::path::Path;

use nix::sys::signal::{kill, Signal};
use nix::unistd::Pid;

/// One process at the moment it was looked at.
#[derive(Clone, Debug)]
pub struct Process {
    pub pid: i32,
    pub ppid: i32,
    /// `R`, `S`, `Z` ... as in proc(5).
    pub state: char,
    /// Clock ticks since boot; together with the pid it names a process for good.
    pub started: u64,
    /// The command line, or the title that the process gave itself.
    pub title: String,
}

impl Process {
    /// None: there is no such process (any more).
    pub fn of(pid: i32) -> Option<Process> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        // The second field is the name in parentheses and may contain anything, so fields are counted from the
        // last closing parenthesis (proc(5)).
        let (name, rest) = stat.rsplit_once(')')?;
        let fields: Vec<&str> = rest.split_whitespace().collect();
        let title = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let title = String::from_utf8_lossy(&title).replace('\0', " ").trim().to_string();
        let title = if title.is_empty() { format!("[{})", name.split_once('(')?.1).replace(')', "]") } else { title };
        Some(Process {
            pid,
            ppid: fields.get(1)?.parse().ok()?,
            state: fields.first()?.chars().next()?,
            started: fields.get(19)?.parse().ok()?,
            title,
        })
    }

    /// Every process that can be seen.
    pub fn all() -> Vec<Process> {
        let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
        let pids = entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok());
        pids.filter_map(Process::of).collect()
    }

    pub fn is_zombie(&self) -> bool {
        self.state == 'Z'
    }

    /// Whether this very process, not a later one with the same pid, still runs (a zombie does not).
    pub fn runs(&self) -> bool {
        Process::of(self.pid).is_some_and(|now| now.started == self.started && !now.is_zombie())
    }

    /// Sends a signal, unless the process has ended meanwhile.
    pub fn signal(&self, signal: Signal) {
        if self.runs() {
            let _ = kill(Pid::from_raw(self.pid), signal);
        }
    }
}

impl fmt::Display for Process {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let title: String = self.title.chars().take(150).collect();
        write!(f, "{:>7} {:>7} {} {}", self.pid, self.ppid, self.state, title)
    }
}

/// Children of a process, zombies included.
pub fn children(pid: i32) -> Vec<Process> {
    Process::all().into_iter().filter(|process| process.ppid == pid).collect()
}

/// All processes that work for a test: they carry its directory in their environment, command line or working
/// directory. A walk down from the master would miss what outlived it.
pub fn belonging_to(directory: &Path) -> Vec<Process> {
    let needle = directory.to_string_lossy().into_owned().into_bytes();
    let me = std::process::id() as i32;
    let mentions = |bytes: &[u8]| bytes.windows(needle.len()).any(|window| window == needle);
    let mut found: Vec<Process> = Process::all()
        .into_iter()
        .filter(|process| process.pid != me)
        .filter(|process| {
            let proc = format!("/proc/{}", process.pid);
            // A process between fork and exec in this very test binary has our own command line, not the test's
            // directory; it is found once it has exec'ed.
            mentions(&fs::read(format!("{proc}/environ")).unwrap_or_default())
                || mentions(&fs::read(format!("{proc}/cmdline")).unwrap_or_default())
                || fs::read_link(format!("{proc}/cwd")).is_ok_and(|cwd| mentions(cwd.as_os_str().as_encoded_bytes()))
        })
        .collect();
    found.sort_by_key(|process| (process.started, process.pid));
    found
}

/// How many file descriptors a process has open.
pub fn fd_count(pid: i32) -> usize {
    fs::read_dir(format!("/proc/{pid}/fd")).map(|entries| entries.count()).unwrap_or(0)
}

/// Resident memory that is the process's own, without the pages of its files (proc(5), RssAnon), in bytes.
pub fn rss_anon_bytes(pid: i32) -> u64 {
    status_field(pid, "RssAnon:").and_then(|value| value.split_whitespace().next()?.parse::<u64>().ok()).unwrap_or(0)
        * 1024
}

/// A field of /proc/PID/status, for instance `Threads:`.
pub fn status_field(pid: i32, field: &str) -> Option<String> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    status.lines().find_map(|line| Some(line.strip_prefix(field)?.trim().to_string()))
}

/// A list for people.
pub fn table(processes: &[Process]) -> String {
    let lines: Vec<String> = processes.iter().map(Process::to_string).collect();
    format!("    pid    ppid s title\n{}\n", lines.join("\n"))
}
