//! One request and its answer over a connection that was found. It waits as long as it is told to, and no longer.

use std::cell::RefCell;
use std::io::{self, Read, Write};
use std::mem::ManuallyDrop;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use serde::de::{DeserializeOwned, IgnoredAny};

use crate::doors::protocol::{read_reply, Refused, Request};

/// The largest answer is a status with thousands of workers, and a server may be anybody's that `--socket` names.
const ANSWER_BYTES_MAX: usize = 64 * 1024 * 1024;

/// What is kept of a refusal that nobody asked for: a line of some hundred bytes.
const REFUSAL_BYTES_MAX: usize = 4096;

/// Why there is no good answer.
#[derive(Debug, PartialEq)]
pub enum NoAnswer {
    Refused(Refused),
    /// The master ended before it answered.
    Ended,
    /// The time is over.
    Late,
}

impl From<io::Error> for NoAnswer {
    fn from(error: io::Error) -> NoAnswer {
        use io::ErrorKind as Kind;
        match error.kind() {
            Kind::WouldBlock | Kind::TimedOut => NoAnswer::Late,
            Kind::UnexpectedEof | Kind::ConnectionReset | Kind::BrokenPipe => NoAnswer::Ended,
            _ => NoAnswer::Refused(Refused::because(error.to_string())),
        }
    }
}

/// Asks and returns the answer's line, without its end.
pub fn ask(stream: &mut UnixStream, request: &Request, timeout: Option<Duration>) -> Result<String, NoAnswer> {
    ask_and_look(stream, request, timeout, None)
}

/// Something to be done again and again while there is no answer.
pub struct Meanwhile<'a> {
    pub every: Duration,
    pub look: &'a mut dyn FnMut(),
}

/// The same, and looks after something meanwhile.
pub fn ask_and_look(
    stream: &mut UnixStream,
    request: &Request,
    timeout: Option<Duration>,
    mut meanwhile: Option<Meanwhile<'_>>,
) -> Result<String, NoAnswer> {
    let deadline = timeout.map(|timeout| Instant::now() + timeout);
    // Whoever turns us away has said why, and does not listen any more.
    match stream.write_all(request.to_line().as_bytes()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {}
        written => written?,
    }
    let mut answer = Vec::new();
    loop {
        let mut bytes = [0; 4096];
        let look_at = meanwhile.as_ref().map(|meanwhile| Instant::now() + meanwhile.every);
        let until = deadline.into_iter().chain(look_at).min();
        match read_until(stream, &mut bytes, until) {
            Ok(0) => {
                stay(stream);
                return Err(NoAnswer::Ended);
            }
            Ok(read) => answer.extend_from_slice(&bytes[..read]),
            Err(error) => {
                let late = deadline.is_some_and(|deadline| deadline <= Instant::now());
                match (NoAnswer::from(error), &mut meanwhile) {
                    (NoAnswer::Late, Some(Meanwhile { look, .. })) if !late => look(),
                    (no_answer, _) => return Err(no_answer),
                }
                continue;
            }
        }
        if answer.ends_with(b"\n") {
            return Ok(String::from_utf8_lossy(&answer).trim_end().to_owned());
        }
        if answer.len() > ANSWER_BYTES_MAX {
            return Err(NoAnswer::Refused(Refused::because("its answer has no end")));
        }
    }
}

/// One request, and then as many lines as come.
pub struct Lines<'a> {
    stream: &'a mut UnixStream,
    unread: Vec<u8>,
}

impl Lines<'_> {
    pub fn ask<'a>(stream: &'a mut UnixStream, request: &Request) -> Result<Lines<'a>, NoAnswer> {
        stream.write_all(request.to_line().as_bytes())?;
        Ok(Lines { stream, unread: Vec::new() })
    }

    /// The next line, without its end.
    pub fn next(&mut self, deadline: Option<Instant>) -> Result<String, NoAnswer> {
        loop {
            if let Some(end) = self.unread.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.unread.drain(..=end).collect();
                return Ok(String::from_utf8_lossy(&line).trim_end().to_owned());
            }
            if self.unread.len() > ANSWER_BYTES_MAX {
                return Err(NoAnswer::Refused(Refused::because("its answer has no end")));
            }
            let mut bytes = [0; 4096];
            match read_until(self.stream, &mut bytes, deadline)? {
                0 => {
                    stay(self.stream);
                    return Err(NoAnswer::Ended);
                }
                read => self.unread.extend_from_slice(&bytes[..read]),
            }
        }
    }
}

pub fn read<T: DeserializeOwned>(line: &str) -> Result<T, NoAnswer> {
    read_reply(line).map_err(NoAnswer::Refused)
}

/// Waits for the end of the master, and stays connected then (`stay`).
pub fn wait_for_end(stream: &mut UnixStream, timeout: Option<Duration>) -> Result<(), NoAnswer> {
    wait_for_close(stream, timeout)?;
    stay(stream);
    Ok(())
}

/// Waits until the master closes the connection: at its end, and also when the connection was idle for long or there is
/// no room for it. A master that refuses this client says so first.
pub fn wait_for_close(stream: &mut UnixStream, timeout: Option<Duration>) -> Result<(), NoAnswer> {
    let deadline = timeout.map(|timeout| Instant::now() + timeout);
    let mut said = Vec::new();
    loop {
        let mut bytes = [0; 4096];
        match read_until(stream, &mut bytes, deadline).map_err(NoAnswer::from) {
            Ok(0) | Err(NoAnswer::Ended) => break,
            Ok(read) if said.len() < REFUSAL_BYTES_MAX => said.extend_from_slice(&bytes[..read]),
            Ok(_) => {}
            Err(error) => return Err(error),
        }
    }
    match String::from_utf8_lossy(&said).trim_end() {
        "" => Ok(()),
        line => read::<IgnoredAny>(line).map(|_| ()),
    }
}

thread_local! {
    /// The connection whose end was seen last. Nothing drops it: that would be before the exit code is set.
    static ENDED: RefCell<ManuallyDrop<Option<UnixStream>>> = const { RefCell::new(ManuallyDrop::new(None)) };
}

/// The master ends. As pid 1 of a container it waits until its clients have left, and its end kills whoever is still there
/// (pid_namespaces(7)). So the connection lasts as long as this process: the kernel closes it when the exit code is set.
/// One is enough: whoever goes on and sees another end has survived this one.
pub fn stay(stream: &UnixStream) {
    if let Ok(connection) = stream.try_clone() {
        ENDED.with_borrow_mut(|ended| **ended = Some(connection));
    }
}

/// Reads some bytes. `WouldBlock`: the time is over, also where bytes keep coming.
fn read_until(stream: &mut UnixStream, bytes: &mut [u8], deadline: Option<Instant>) -> io::Result<usize> {
    loop {
        let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
        if left.is_some_and(|left| left.is_zero()) {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        stream.set_read_timeout(left)?;
        match stream.read(bytes) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            read => return read,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doors::protocol::Reply;

    #[test]
    fn the_time_counts_for_the_whole_answer() {
        let (mut ours, mut theirs) = UnixStream::pair().unwrap();
        let began = Instant::now();
        let server = std::thread::spawn(move || while theirs.write_all(b"x").is_ok() {});
        assert_eq!(ask(&mut ours, &Request::Status, Some(Duration::from_millis(50))), Err(NoAnswer::Late));
        assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
        drop(ours);
        server.join().unwrap();
    }

    #[test]
    fn lines_come_one_by_one_however_they_arrive() {
        let (mut ours, mut theirs) = UnixStream::pair().unwrap();
        theirs.write_all(b"one\ntwo\nth").unwrap();
        let mut lines = Lines::ask(&mut ours, &Request::Events).unwrap();
        let soon = || Some(Instant::now() + Duration::from_secs(5));
        assert_eq!((lines.next(soon()), lines.next(soon())), (Ok("one".to_owned()), Ok("two".to_owned())));
        assert_eq!(lines.next(Some(Instant::now())), Err(NoAnswer::Late));
        theirs.write_all(b"ree\n").unwrap();
        assert_eq!(lines.next(soon()), Ok("three".to_owned()));
        drop(theirs);
        assert_eq!(lines.next(soon()), Err(NoAnswer::Ended));
    }

    #[test]
    fn a_master_that_ends_is_told_from_one_that_is_late() {
        let (mut ours, theirs) = UnixStream::pair().unwrap();
        assert_eq!(wait_for_end(&mut ours, Some(Duration::from_millis(1))), Err(NoAnswer::Late));
        drop(theirs);
        assert_eq!(ask(&mut ours, &Request::Status, None), Err(NoAnswer::Ended));
        assert_eq!(wait_for_end(&mut ours, None), Ok(()));
    }

    #[test]
    fn a_master_that_refuses_this_client_has_not_ended() {
        let (mut ours, mut theirs) = UnixStream::pair().unwrap();
        let refused = Refused::because("uid 8 may not ask this master; root may");
        theirs.write_all(Reply::Refused(refused.clone()).to_line().as_bytes()).unwrap();
        drop(theirs);
        assert_eq!(wait_for_end(&mut ours, None), Err(NoAnswer::Refused(refused)));
    }

    /// As found: in a container `stop` closed its connection, and was killed by the master's end before it had exited.
    #[test]
    fn whoever_has_seen_the_end_stays_connected() {
        let (mut ours, mut theirs) = UnixStream::pair().unwrap();
        theirs.shutdown(std::net::Shutdown::Write).unwrap();
        assert_eq!(wait_for_end(&mut ours, None), Ok(()));
        drop(ours);
        theirs.set_nonblocking(true).unwrap();
        let read = theirs.read(&mut [0; 1]).map_err(|error| error.kind());
        assert_eq!(read, Err(io::ErrorKind::WouldBlock), "the connection is closed before this process has ended");
    }

    /// As found: `wait down` and `ctl` live long, and kept a descriptor for each end that they had seen.
    #[test]
    fn whoever_goes_on_keeps_one_connection_and_no_more() {
        let end = || {
            let (mut ours, theirs) = UnixStream::pair().unwrap();
            theirs.shutdown(std::net::Shutdown::Write).unwrap();
            assert_eq!(wait_for_end(&mut ours, None), Ok(()));
            theirs.set_nonblocking(true).unwrap();
            theirs
        };
        let is_open = |mut theirs: &UnixStream| theirs.read(&mut [0; 1]).is_err();
        let (first, second) = (end(), end());
        assert_eq!((is_open(&first), is_open(&second)), (false, true));
    }
}
