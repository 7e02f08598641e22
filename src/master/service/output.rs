//! What a program of the release writes to its standard output and error: a line each in the log, with the program's
//! name, and the last of it for whoever wants to know why it failed. Reading never waits.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

/// A line that is longer is cut into pieces.
const LINE_BYTES_MAX: usize = 8 * 1024;

/// What is kept: a traceback, and some lines before it.
const TAIL_BYTES_MAX: usize = 16 * 1024;

/// Reads in one pass: a program that never stops writing must not keep the master from anything.
const READS_PER_PASS_MAX: usize = 16;

pub struct Output {
    pipe: OwnedFd,
    /// Of the line that has no end yet.
    line: Vec<u8>,
    tail: Vec<u8>,
}

/// What came of a pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pass {
    /// All that was there was read.
    Empty,
    /// There may be more.
    More,
    /// Nobody writes any more.
    Ended,
}

impl AsRawFd for Output {
    fn as_raw_fd(&self) -> RawFd {
        self.pipe.as_raw_fd()
    }
}

impl AsFd for Output {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.pipe.as_fd()
    }
}

impl Output {
    pub fn new(pipe: OwnedFd) -> Output {
        Output { pipe, line: Vec::new(), tail: Vec::new() }
    }

    /// The line that has no end yet.
    pub fn unfinished(&self) -> &[u8] {
        &self.line
    }

    /// Goes on with it.
    pub fn after(mut self, unfinished: Vec<u8>) -> Output {
        self.line = unfinished;
        self
    }

    /// Reads what is there. `log` gets each whole line.
    pub fn read(&mut self, mut log: impl FnMut(&str)) -> Pass {
        let mut bytes = [0; 4096];
        for _ in 0..READS_PER_PASS_MAX {
            match nix::unistd::read(&self.pipe, &mut bytes) {
                Ok(0) => {
                    self.end_line(&mut log);
                    return Pass::Ended;
                }
                Ok(read) => self.take(&bytes[..read], &mut log),
                Err(nix::errno::Errno::EINTR) => {}
                Err(_) => return Pass::Empty,
            }
        }
        Pass::More
    }

    /// The program has ended: what is left in the pipe, and the line without an end.
    pub fn finish(mut self, mut log: impl FnMut(&str)) -> String {
        // Whoever it has left behind may go on writing for ever.
        self.read(&mut log);
        self.end_line(&mut log);
        String::from_utf8_lossy(&self.tail).trim_end().to_owned()
    }

    fn take(&mut self, bytes: &[u8], log: &mut impl FnMut(&str)) {
        self.tail.extend_from_slice(bytes);
        if self.tail.len() > TAIL_BYTES_MAX {
            let cut = self.tail.len() - TAIL_BYTES_MAX;
            // From the beginning of a line, where there is one.
            let line = self.tail[cut..].iter().position(|byte| *byte == b'\n').map_or(0, |at| at + 1);
            self.tail.drain(..cut + line);
        }
        for byte in bytes {
            match byte {
                b'\n' => self.end_line(log),
                byte => {
                    self.line.push(*byte);
                    if self.line.len() >= LINE_BYTES_MAX {
                        self.end_line(log);
                    }
                }
            }
        }
    }

    fn end_line(&mut self, log: &mut impl FnMut(&str)) {
        let text = String::from_utf8_lossy(&self.line);
        let text = text.trim_end();
        if !text.is_empty() {
            log(text);
        }
        self.line.clear();
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn pipe() -> (Output, std::fs::File) {
        let (ours, theirs) = nix::unistd::pipe2(nix::fcntl::OFlag::O_NONBLOCK).unwrap();
        (Output::new(ours), theirs.into())
    }

    #[test]
    fn whole_lines_are_logged_and_the_rest_at_the_end() {
        let (mut output, mut program) = pipe();
        let mut lines = Vec::new();
        program.write_all(b"one\r\n\ntw").unwrap();
        assert_eq!(output.read(|line| lines.push(line.to_owned())), Pass::Empty);
        assert_eq!(lines, ["one"]);
        program.write_all(b"o\nthree").unwrap();
        drop(program);
        let tail = output.finish(|line| lines.push(line.to_owned()));
        assert_eq!((lines.join(" "), tail.as_str()), ("one two three".to_owned(), "one\r\n\ntwo\nthree"));
    }

    #[test]
    fn a_program_that_never_stops_is_read_in_passes_and_its_last_words_are_kept() {
        let (mut output, mut program) = pipe();
        let writer = std::thread::spawn(move || {
            let mut written = 0;
            while written < 400_000 {
                match program.write(&[b'x'; 999]) {
                    Ok(bytes) => written += bytes,
                    Err(_) => std::thread::yield_now(),
                }
            }
            while program.write(b"\nlast words\n").is_err() {}
        });
        let mut longest = 0;
        while output.read(|line| longest = longest.max(line.len())) != Pass::Ended {}
        writer.join().unwrap();
        assert_eq!((longest, output.finish(|_| {})), (LINE_BYTES_MAX, "last words".to_owned()));
    }
}
