//! `logs`: where the logs of a running master are, their last lines, and what comes. It follows names, not files: after
//! logrotate it goes on with the new one.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::fd::AsFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::poll::{poll, PollFd, PollFlags, PollTimeout};
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};

use super::ask::{ask, read};
use super::client::{connect, told, ANSWER_WITHIN};
use super::output;
use crate::config::process_context::ProcessContext;
use crate::doors::protocol::Request;
use crate::exit_code::ExitCode;
use crate::facts::snapshot::{Logs, Snapshot};
use crate::verbs::command_line::Client;

/// How much of the end of a log is searched for the last lines: enough for some hundred long ones.
const TAIL_BYTES_MAX: u64 = 256 * 1024;

/// Read at a time.
const PIECE_BYTES: usize = 64 * 1024;

/// Network file systems tell nothing of what other machines write.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// What is wanted of the logs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// Only their names.
    pub places: bool,
    pub lines: u32,
    /// None: what is there, and no more.
    pub follow: Option<Option<Duration>>,
}

pub fn logs(client: &Client, context: &ProcessContext, wanted: Wanted) -> ExitCode {
    let mut stream = match connect(client, context) {
        Ok(stream) => stream,
        Err(code) => return code,
    };
    let snapshot =
        match ask(&mut stream, &Request::Status, Some(ANSWER_WITHIN)).and_then(|line| read::<Snapshot>(&line)) {
            Ok(snapshot) => snapshot,
            Err(no_answer) => return told("no logs", no_answer),
        };
    let Some(logs) = snapshot.logs else {
        output::complain("this master does not tell where its logs are");
        return ExitCode::Refused;
    };
    if wanted.places {
        output::print(output::printable(&places(&logs)));
        return ExitCode::Done;
    }
    let files: Vec<PathBuf> =
        [logs.error.path(), logs.access.as_ref().and_then(|place| place.path())].into_iter().flatten().collect();
    if files.is_empty() {
        output::complain(format_args!(
            "the log goes to where the master was started; under systemd: journalctl -f _PID={}. `forkmaster events` follows \
             the master's own lines",
            snapshot.pid
        ));
        return ExitCode::Refused;
    }
    match show(&files, wanted) {
        Ok(code) => code,
        Err(error) => {
            output::complain(output::printable(&error.to_string()));
            ExitCode::Refused
        }
    }
}

fn places(logs: &Logs) -> String {
    let access = logs.access.as_ref().map_or_else(|| "none".to_owned(), ToString::to_string);
    format!("error: {}\naccess: {access}\n", logs.error)
}

fn show(files: &[PathBuf], wanted: Wanted) -> io::Result<ExitCode> {
    let inotify = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK)?;
    let watched = AddWatchFlags::IN_MODIFY | AddWatchFlags::IN_CREATE | AddWatchFlags::IN_MOVED_TO;
    for directory in files.iter().filter_map(|file| file.parent()) {
        // Where it cannot be watched it is looked at now and then.
        let _ = inotify.add_watch(directory, watched);
    }
    let several = files.len() > 1;
    let mut followed: Vec<Followed> =
        files.iter().map(|file| Followed::open(file, wanted.lines)).collect::<io::Result<_>>()?;
    let deadline = wanted.follow.flatten().map(|timeout| Instant::now() + timeout);
    loop {
        for one in &mut followed {
            one.print(several)?;
        }
        if wanted.follow.is_none() || output::is_closed() {
            return Ok(ExitCode::Done);
        }
        let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
        if left.is_some_and(|left| left.is_zero()) {
            return Ok(ExitCode::Timeout);
        }
        let limit = left.map_or(LOOK_EVERY, |left| left.min(LOOK_EVERY));
        // An interrupted wait is a look early.
        let _ = poll(
            &mut [PollFd::new(inotify.as_fd(), PollFlags::POLLIN)],
            PollTimeout::try_from(limit).unwrap_or(PollTimeout::MAX),
        );
        while inotify.read_events().is_ok_and(|events| !events.is_empty()) {}
    }
}

/// A log by its name.
struct Followed {
    path: PathBuf,
    file: File,
    /// The beginning of a line whose end has not come.
    begun: Vec<u8>,
}

impl Followed {
    fn open(path: &Path, lines: u32) -> io::Result<Followed> {
        let named = |error: io::Error| io::Error::new(error.kind(), format!("{}: {error}", path.display()));
        // fifo(7): the opening of a FIFO for reading waits for a writer without O_NONBLOCK.
        let mut file = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path).map_err(named)?;
        let length = file.metadata()?.len();
        // What is read from a FIFO is lost for its other readers.
        if !file.metadata()?.is_file() {
            return Err(io::Error::other(format!("{} is not a regular file", path.display())));
        }
        file.seek(SeekFrom::Start(length.saturating_sub(TAIL_BYTES_MAX)))?;
        let mut tail = Vec::new();
        file.by_ref().take(TAIL_BYTES_MAX).read_to_end(&mut tail)?;
        let begun = last_lines(&tail, lines as usize).to_vec();
        Ok(Followed { path: path.to_owned(), file, begun })
    }

    /// Prints whole lines that have come, of the new file as well, if there is one.
    fn print(&mut self, with_name: bool) -> io::Result<()> {
        self.read(with_name)?;
        let named = std::fs::metadata(&self.path);
        let here = self.file.metadata()?;
        match named {
            Ok(named) if (named.dev(), named.ino()) != (here.dev(), here.ino()) => {
                // What came into the old one at its end.
                self.read(with_name)?;
                self.file = File::open(&self.path)?;
                self.read(with_name)
            }
            // Emptied in place (copytruncate).
            Ok(named) if named.len() < self.file.stream_position()? => {
                self.file.seek(SeekFrom::Start(0))?;
                self.read(with_name)
            }
            // Between its move and the new one, it is waited for.
            Ok(_) | Err(_) => Ok(()),
        }
    }

    fn read(&mut self, with_name: bool) -> io::Result<()> {
        let mut bytes = vec![0; PIECE_BYTES];
        loop {
            let read = self.file.read(&mut bytes)?;
            self.begun.extend_from_slice(&bytes[..read]);
            if let Some(end) = self.begun.iter().rposition(|byte| *byte == b'\n') {
                let lines: Vec<u8> = self.begun.drain(..=end).collect();
                let text = String::from_utf8_lossy(&lines).into_owned();
                output::print(output::printable(&labelled(&text, with_name.then_some(self.path.as_path()))));
            }
            if read == 0 {
                return Ok(());
            }
        }
    }
}

/// Each line with its file's name, where there are several.
fn labelled(text: &str, path: Option<&Path>) -> String {
    let Some(name) = path.and_then(Path::file_name) else { return text.to_owned() };
    text.lines().map(|line| format!("{}: {line}\n", name.to_string_lossy())).collect()
}

fn last_lines(text: &[u8], lines: usize) -> &[u8] {
    let mut ends = text.iter().enumerate().rev().filter(|(_, byte)| **byte == b'\n').map(|(at, _)| at);
    match ends.nth(lines) {
        Some(end) => &text[end + 1..],
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_lines() {
        assert_eq!(last_lines(b"a\nb\nc\n", 2), b"b\nc\n");
        assert_eq!(last_lines(b"a\nb\nc", 1), b"b\nc");
        assert_eq!(last_lines(b"a\n", 5), b"a\n");
        assert_eq!(last_lines(b"a\nb\n", 0), b"");
    }

    #[test]
    fn a_fifo_is_refused_at_once() {
        let directory = tempfile::tempdir().expect("directory");
        let path = directory.path().join("error.log");
        nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRUSR).expect("mkfifo");
        let (sender, outcome) = std::sync::mpsc::channel();
        std::thread::spawn(move || sender.send(Followed::open(&path, 10).map(|_| ())));
        let error = outcome.recv_timeout(Duration::from_secs(10)).expect("an answer").expect_err("refused");
        assert!(error.to_string().ends_with("error.log is not a regular file"), "{error}");
    }

    #[test]
    fn lines_of_several_files_have_names() {
        assert_eq!(labelled("a\nb\n", Some(Path::new("/x/access.log"))), "access.log: a\naccess.log: b\n");
        assert_eq!(labelled("a\n", None), "a\n");
    }
}
