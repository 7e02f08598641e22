//! The log's own thread, which does nothing but write lines, and the queue before it. Whoever logs puts a line into
//! the queue and goes on: where the reader of the log has stopped, lines are dropped and counted, and the log says
//! how many as soon as it can be written again. The queue's lock is never held over a system call that waits.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use nix::poll::{poll, PollFd, PollFlags, PollTimeout};
use nix::sys::eventfd::{EfdFlags, EventFd};

use super::outlet::Outlet;
use crate::signals::start_thread;

/// What the queue holds at most. A stop of some hundred workers is a thousand lines; a dump of stacks is one line of
/// up to 1 MiB.
const LIMITS: Limits = Limits { lines: 4096, bytes: 2 * 1024 * 1024 };

#[derive(Clone, Copy)]
struct Limits {
    lines: usize,
    bytes: usize,
}

/// A handle to the thread; cheap to clone. The thread ends with `finish` or with the process.
#[derive(Clone)]
pub struct Writer(Arc<Shared>);

struct Shared {
    queue: Mutex<Queue>,
    limits: Limits,
    /// Wakes the thread, which may also wait for a pipe.
    wake: EventFd,
    ended: Condvar,
    /// All is written.
    idle: Condvar,
}

#[derive(Default)]
struct Queue {
    items: VecDeque<Item>,
    bytes: usize,
    /// Dropped since the latest item.
    lost: u64,
    waiting: Waiting,
    /// From then on the thread waits for nothing any more.
    end_by: Option<Instant>,
    ended: bool,
}

enum Item {
    Line(Vec<u8>),
    /// So many lines are missing here.
    Lost(u64),
    /// All lines from here on go there.
    Outlet(Arc<Outlet>),
}

/// What the thread waits for: whoever adds something to the queue wakes it only where that helps.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Waiting {
    #[default]
    Nothing,
    Lines,
    /// Its outlet is full: another outlet helps, or the end.
    Room,
}

impl Writer {
    pub fn start(outlet: Arc<Outlet>) -> io::Result<Writer> {
        Writer::start_with(outlet, LIMITS)
    }

    fn start_with(outlet: Arc<Outlet>, limits: Limits) -> io::Result<Writer> {
        let wake = EventFd::from_value_and_flags(0, EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?;
        let shared =
            Arc::new(Shared { queue: Mutex::default(), limits, wake, ended: Condvar::new(), idle: Condvar::new() });
        let thread = Thread { shared: Arc::clone(&shared), outlet, line: Vec::new(), written: 0, lost: 0, told: 0 };
        start_thread("log", move || thread.run())?;
        Ok(Writer(shared))
    }

    /// Takes a whole line, or drops and counts it.
    pub fn line(&self, line: Vec<u8>) {
        let mut queue = self.0.lock();
        if queue.items.len() >= self.0.limits.lines || queue.bytes + line.len() > self.0.limits.bytes {
            queue.lost += 1;
            return;
        }
        if queue.lost > 0 {
            let lost = std::mem::take(&mut queue.lost);
            queue.items.push_back(Item::Lost(lost));
        }
        queue.bytes += line.len();
        queue.items.push_back(Item::Line(line));
        self.0.wake_if(queue, &[Waiting::Lines]);
    }

    /// Lines from now on go there; those before it go where they were to go, if that takes them.
    pub fn turn_to(&self, outlet: Arc<Outlet>) {
        let mut queue = self.0.lock();
        queue.items.push_back(Item::Outlet(outlet));
        self.0.wake_if(queue, &[Waiting::Lines, Waiting::Room]);
    }

    /// Waits until all is written. False: the time is over, and there is more.
    pub fn flush(&self, within: Duration) -> bool {
        let is_busy = |queue: &mut Queue| queue.waiting != Waiting::Lines || !queue.items.is_empty();
        let waited = self.0.idle.wait_timeout_while(self.0.lock(), within, is_busy);
        waited.is_ok_and(|(_, timeout)| !timeout.timed_out())
    }

    /// Ends the thread when all is written or the time is over: whatever does not fit is lost.
    pub fn finish(&self, within: Duration) {
        let by = Instant::now() + within;
        let mut queue = self.0.lock();
        queue.end_by = Some(by);
        self.0.wake_if(queue, &[Waiting::Lines, Waiting::Room]);
        let ended = self.0.ended.wait_timeout_while(self.0.lock(), within, |queue| !queue.ended);
        // Written or not: nobody logs after this.
        drop(ended);
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Queue> {
        // Nothing panics while it is held; and a log that was poisoned all the same must still log.
        self.queue.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    fn wake_if(&self, mut queue: MutexGuard<'_, Queue>, helped: &[Waiting]) {
        if helped.contains(&queue.waiting) {
            queue.waiting = Waiting::Nothing;
            drop(queue);
            // It fails only where the thread is to be woken 2^64 times already.
            let _ = self.wake.write(1);
        }
    }
}

/// What the thread does next.
enum Next {
    Item(Item),
    Wait { until: Option<Instant> },
    End,
}

struct Thread {
    shared: Arc<Shared>,
    outlet: Arc<Outlet>,
    /// The line that is being written, and how much of it is.
    line: Vec<u8>,
    written: usize,
    /// Lines that the log does not know of yet, and how many of them the present line tells of.
    lost: u64,
    told: u64,
}

impl Thread {
    fn run(mut self) {
        loop {
            if self.written < self.line.len() {
                if self.write() {
                    continue;
                }
                if !self.wait_for_room() {
                    break;
                }
                continue;
            }
            match self.next() {
                Next::Item(Item::Line(line)) => self.begin(line),
                Next::Item(Item::Lost(lines)) => {
                    self.lost += lines;
                    self.begin(Vec::new());
                }
                Next::Item(Item::Outlet(outlet)) => self.outlet = outlet,
                Next::Wait { until } => self.wait(until, None),
                Next::End => break,
            }
        }
        self.shared.lock().ended = true;
        self.shared.ended.notify_all();
    }

    fn next(&self) -> Next {
        let mut queue = self.shared.lock();
        if let Some(item) = queue.items.pop_front() {
            if let Item::Line(line) = &item {
                queue.bytes -= line.len();
            }
            return Next::Item(item);
        }
        if queue.lost > 0 {
            return Next::Item(Item::Lost(std::mem::take(&mut queue.lost)));
        }
        if queue.end_by.is_some() {
            return Next::End;
        }
        queue.waiting = Waiting::Lines;
        self.shared.idle.notify_all();
        Next::Wait { until: None }
    }

    /// Begins a line. What is missing before it is told with it, in one write.
    fn begin(&mut self, line: Vec<u8>) {
        self.written = 0;
        self.told = self.lost;
        self.line = match self.lost {
            0 => line,
            lost => [lost_line(lost).as_bytes(), &line].concat(),
        };
    }

    /// Writes some of the line. False: there is no room.
    fn write(&mut self) -> bool {
        match self.outlet.put(&self.line[self.written..]) {
            Ok(bytes) => {
                self.written += bytes;
                if self.written == self.line.len() {
                    self.lost -= std::mem::take(&mut self.told);
                }
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return false,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            // Its reader is gone (EPIPE), or the disk is full.
            Err(_) => self.forsake(),
        }
        true
    }

    /// Gives up the line that is being written.
    fn forsake(&mut self) {
        // Where it only tells of others, they stay untold.
        if self.line.len() > lost_line(self.told).len() || self.told == 0 {
            self.lost += 1;
        }
        self.told = 0;
        self.written = self.line.len();
    }

    /// Waits until the outlet takes more. Where another one waits in the queue, the lines before it are lost, unless it
    /// is the same file once more. False: it is time to end.
    fn wait_for_room(&mut self) -> bool {
        let mut queue = self.shared.lock();
        let here = Arc::clone(&self.outlet);
        queue.items.retain(|item| !matches!(item, Item::Outlet(outlet) if outlet.is_same_file(&here)));
        let turn = queue.items.iter().position(|item| matches!(item, Item::Outlet(_)));
        if let Some(turn) = turn {
            let mut lost = 0;
            for item in queue.items.drain(..turn).collect::<Vec<_>>() {
                match item {
                    Item::Line(line) => {
                        queue.bytes -= line.len();
                        lost += 1;
                    }
                    Item::Lost(lines) => lost += lines,
                    Item::Outlet(_) => {}
                }
            }
            drop(queue);
            self.forsake();
            self.lost += lost;
            return true;
        }
        let until = queue.end_by;
        if until.is_some_and(|until| until <= Instant::now()) {
            return false;
        }
        queue.waiting = Waiting::Room;
        drop(queue);
        let outlet = Arc::clone(&self.outlet);
        self.wait(until, Some(&outlet));
        true
    }

    fn wait(&self, until: Option<Instant>, room: Option<&Outlet>) {
        let left = until.map(|until| until.saturating_duration_since(Instant::now()));
        // Rounded up, so that it does not wake a moment too early again and again.
        let timeout = left.map_or(PollTimeout::NONE, |left| {
            PollTimeout::try_from(left + Duration::from_millis(1)).unwrap_or(PollTimeout::MAX)
        });
        let mut fds = vec![PollFd::new(self.shared.wake.as_fd(), PollFlags::POLLIN)];
        fds.extend(room.map(|outlet| PollFd::new(outlet.as_fd(), PollFlags::POLLOUT)));
        // Whatever it says, the caller looks again.
        let _ = poll(&mut fds, timeout);
        self.shared.lock().waiting = Waiting::Nothing;
        let _ = self.shared.wake.read();
    }
}

fn lost_line(lines: u64) -> String {
    let mut line = String::with_capacity(100);
    forkmaster_wire::timestamp::push_now(&mut line);
    let noun = if lines == 1 { "line" } else { "lines" };
    line.push_str(&format!(" WARN  {lines} {noun} lost: the log could not be written in time\n"));
    line
}

/// Writes to a descriptor from the thread that calls, which waits for so long at most: for the last words of a
/// process whose log may have no reader.
pub fn write_within(fd: OwnedFd, text: &[u8], within: Duration) {
    let by = Instant::now() + within;
    let outlet = Outlet::new(fd);
    let mut rest = text;
    while !rest.is_empty() {
        match outlet.put(rest) {
            Ok(bytes) => rest = &rest[bytes..],
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                let left = by.saturating_duration_since(Instant::now());
                if left.is_zero() {
                    return;
                }
                let timeout = PollTimeout::try_from(left + Duration::from_millis(1)).unwrap_or(PollTimeout::ZERO);
                let _ = poll(&mut [PollFd::new(outlet.as_fd(), PollFlags::POLLOUT)], timeout);
            }
            Err(_) => return,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;
    use std::io::Read;

    use nix::fcntl::OFlag;

    const SMALL: Limits = Limits { lines: 8, bytes: 64 * 1024 };
    const LONG: Duration = Duration::from_secs(10);

    fn ends() -> (File, OwnedFd) {
        let (read, write) = nix::unistd::pipe2(OFlag::O_CLOEXEC).unwrap();
        (read.into(), write)
    }

    fn pipe() -> (File, Arc<Outlet>) {
        let (read, write) = ends();
        (read, Arc::new(Outlet::new(write)))
    }

    fn fill(outlet: &Outlet) -> usize {
        let mut bytes = 0;
        while let Ok(written) = outlet.put(&[b'x'; 4096]) {
            bytes += written;
        }
        bytes
    }

    /// All that a pipe holds when its writing ends are gone.
    fn text(mut read: File) -> String {
        let mut text = String::new();
        read.read_to_string(&mut text).unwrap();
        text
    }

    /// Waits until the thread has taken what it could and waits for room.
    fn wait_until_full(writer: &Writer) {
        let by = Instant::now() + LONG;
        while writer.0.lock().waiting != Waiting::Room {
            assert!(Instant::now() < by, "it does not wait for room");
            std::thread::yield_now();
        }
    }

    #[test]
    fn lines_come_in_order_and_the_end_waits_for_them() {
        let (read, outlet) = pipe();
        let writer = Writer::start(outlet).unwrap();
        for number in 0..1000 {
            writer.line(format!("{number}\n").into_bytes());
        }
        let reader = std::thread::spawn(move || text(read));
        writer.finish(LONG);
        drop(writer);
        assert_eq!(reader.join().unwrap(), (0..1000).map(|number| format!("{number}\n")).collect::<String>());
    }

    #[test]
    fn what_nobody_reads_is_dropped_and_counted_where_it_is_missing() {
        let (mut read, outlet) = pipe();
        let filled = fill(&outlet);
        let writer = Writer::start_with(outlet, SMALL).unwrap();
        writer.line(b"first\n".to_vec());
        wait_until_full(&writer);
        for number in 0..20 {
            writer.line(format!("{number}\n").into_bytes());
        }
        read.read_exact(&mut vec![0; filled]).unwrap();
        writer.finish(LONG);
        drop(writer);
        let text = text(read);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines[..9], ["first", "0", "1", "2", "3", "4", "5", "6", "7"], "{text}");
        assert!(lines[9].ends_with("Z WARN  12 lines lost: the log could not be written in time"), "{text}");
        assert_eq!(lines.len(), 10, "{text}");
    }

    #[test]
    fn a_count_stands_before_the_next_line() {
        let (mut read, outlet) = pipe();
        let filled = fill(&outlet);
        let writer = Writer::start_with(outlet, SMALL).unwrap();
        writer.line(b"first\n".to_vec());
        wait_until_full(&writer);
        writer.line(vec![b'y'; SMALL.bytes + 1]);
        writer.line(b"next\n".to_vec());
        read.read_exact(&mut vec![0; filled]).unwrap();
        writer.finish(LONG);
        drop(writer);
        let text = text(read);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!((lines[0], lines[2], lines.len()), ("first", "next", 3), "{text}");
        assert!(lines[1].contains(" WARN  1 line lost: "), "{text}");
    }

    #[test]
    fn another_outlet_frees_it_from_a_full_one_and_hears_what_is_missing() {
        let (_full, outlet) = pipe();
        fill(&outlet);
        let writer = Writer::start(outlet).unwrap();
        writer.line(b"one\n".to_vec());
        wait_until_full(&writer);
        writer.line(b"two\n".to_vec());
        let (read, other) = pipe();
        writer.turn_to(other);
        writer.line(b"three\n".to_vec());
        writer.finish(LONG);
        drop(writer);
        let text = text(read);
        assert!(text.contains(" WARN  2 lines lost: "), "{text}");
        assert!(text.ends_with("\nthree\n") && text.lines().count() == 2, "{text}");
    }

    #[test]
    fn the_same_file_once_more_costs_no_line() {
        let (mut read, outlet) = pipe();
        let again = Arc::new(Outlet::new(outlet.as_fd().try_clone_to_owned().unwrap()));
        let filled = fill(&outlet);
        let writer = Writer::start(outlet).unwrap();
        writer.line(b"one\n".to_vec());
        wait_until_full(&writer);
        writer.turn_to(again);
        writer.line(b"two\n".to_vec());
        wait_until_full(&writer);
        read.read_exact(&mut vec![0; filled]).unwrap();
        writer.finish(LONG);
        drop(writer);
        assert_eq!(text(read), "one\ntwo\n");
    }

    #[test]
    fn the_end_does_not_wait_longer_than_it_may_and_half_a_line_is_finished() {
        let (mut read, outlet) = pipe();
        let writer = Writer::start(outlet).unwrap();
        let long = [vec![b'z'; 1024 * 1024], b"\n".to_vec()].concat();
        writer.line(long.clone());
        wait_until_full(&writer);
        let mut bytes = vec![0; 512 * 1024];
        read.read_exact(&mut bytes).unwrap();
        assert!(bytes.iter().all(|byte| *byte == b'z'));
        let began = Instant::now();
        writer.finish(Duration::from_millis(50));
        assert!(began.elapsed() < LONG, "{:?}", began.elapsed());
    }

    #[test]
    fn a_reader_that_is_gone_ends_nothing() {
        let (read, outlet) = pipe();
        drop(read);
        let writer = Writer::start(outlet).unwrap();
        writer.line(b"one\n".to_vec());
        writer.line(b"two\n".to_vec());
        let (read, other) = pipe();
        writer.turn_to(other);
        writer.line(b"three\n".to_vec());
        writer.finish(LONG);
        drop(writer);
        let text = text(read);
        assert!(text.contains(" WARN  2 lines lost: ") && text.ends_with("\nthree\n"), "{text}");
    }

    #[test]
    fn last_words_to_a_full_pipe_take_their_time_and_no_more() {
        let (mut read, write) = ends();
        let filled = fill(&Outlet::new(write.try_clone().unwrap()));
        write_within(write.try_clone().unwrap(), b"lost\n", Duration::from_millis(20));
        read.read_exact(&mut vec![0; filled]).unwrap();
        write_within(write, b"said\n", LONG);
        assert_eq!(text(read), "said\n");
    }
}
