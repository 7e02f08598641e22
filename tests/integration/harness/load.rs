//! Clients that ask without a pause for as long as a test runs, and a report of every answer and failure.
//!
//! Some open a connection per request, some keep theirs. Every other request is a POST whose body must come back
//! byte for byte. A keeping client thinks for a moment between two requests, each client for another time: its
//! connection is then idle at any moment of a reload.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::client::{head, Address, Connection, Failure, Response};
use super::wait_for;

/// What to send. `Load::on(address).closing(8).keeping(12).posting(200_000).start()`
#[derive(Clone, Debug)]
pub struct Load {
    address: Address,
    closing: usize,
    keeping: usize,
    post_bytes: usize,
    /// None: the tests' application, whose answers name their release.
    target: Option<String>,
}

/// One request that was answered as it should be.
#[derive(Clone, Debug)]
pub struct Answer {
    pub client: usize,
    pub release: String,
    pub opened: Instant,
    pub sent: Instant,
    pub received: Instant,
    /// The connection is over with this answer: the server said so, or the client had asked for it.
    pub closes: bool,
}

/// One request that was not.
#[derive(Clone, Debug)]
pub struct Failed {
    pub client: usize,
    pub sent: Instant,
    pub at: Instant,
    pub what: String,
    /// The client's end of the connection; None: there was none, or it has no port.
    pub port: Option<u16>,
}

/// Clients at work.
pub struct Running {
    clients: Vec<JoinHandle<(Vec<Answer>, Vec<Failed>)>>,
    stop: Arc<AtomicBool>,
    answered: Arc<AtomicUsize>,
    started: Instant,
}

/// What they saw.
#[derive(Debug)]
pub struct Report {
    pub started: Instant,
    pub answers: Vec<Answer>,
    pub failures: Vec<Failed>,
}

impl Load {
    pub fn on(address: &Address) -> Load {
        Load { address: address.clone(), closing: 1, keeping: 1, post_bytes: 0, target: None }
    }

    /// So many clients with a connection per request.
    pub fn closing(mut self, clients: usize) -> Load {
        self.closing = clients;
        self
    }

    /// So many clients that keep their connection.
    pub fn keeping(mut self, clients: usize) -> Load {
        self.keeping = clients;
        self
    }

    /// Every other request is a POST with a body of this size.
    pub fn posting(mut self, bytes: usize) -> Load {
        self.post_bytes = bytes;
        self
    }

    /// A page of another application than the tests' own: its answers must be 200 and need not name a release.
    pub fn target(mut self, target: &str) -> Load {
        self.target = Some(target.to_string());
        self
    }

    /// Starts the clients and returns when each request of a first round was answered or failed.
    pub fn start(self) -> Running {
        let stop = Arc::new(AtomicBool::new(false));
        let answered = Arc::new(AtomicUsize::new(0));
        let count = self.closing + self.keeping;
        let clients = (0..count)
            .map(|client| {
                let (load, stop, answered) = (self.clone(), stop.clone(), answered.clone());
                std::thread::spawn(move || load.run(client, &stop, &answered))
            })
            .collect();
        let running = Running { clients, stop, answered, started: Instant::now() };
        running.wait_answers(count);
        running
    }

    fn run(&self, client: usize, stop: &AtomicBool, answered: &AtomicUsize) -> (Vec<Answer>, Vec<Failed>) {
        let keeps = client >= self.closing;
        let body: Vec<u8> = (0..self.post_bytes).map(|at| (at * 31 + client) as u8).collect();
        let think = Duration::from_millis(if keeps { 3 * (client - self.closing) as u64 } else { 2 });
        let (mut answers, mut failures) = (Vec::new(), Vec::new());
        let mut kept: Option<Connection> = None;
        let mut number = client;
        while !stop.load(Ordering::Relaxed) {
            number += 1;
            let sent = Instant::now();
            let body = (self.post_bytes > 0 && number % 2 == 1).then_some(body.as_slice());
            let mut port = None;
            match self.ask(kept.take(), keeps, body, &mut port) {
                Ok((connection, response)) => {
                    let closes = response.closes();
                    answers.push(Answer {
                        client,
                        release: response.release().to_string(),
                        opened: connection.opened,
                        sent,
                        received: Instant::now(),
                        closes,
                    });
                    if keeps && !closes {
                        kept = Some(connection);
                    }
                }
                Err(what) => failures.push(Failed { client, sent, at: Instant::now(), what, port }),
            }
            answered.fetch_add(1, Ordering::Relaxed);
            // A pace, not a wait for something: two cores must also have time for the server.
            std::thread::sleep(think);
        }
        (answers, failures)
    }

    fn ask(
        &self,
        kept: Option<Connection>,
        keep: bool,
        body: Option<&[u8]>,
        port: &mut Option<u16>,
    ) -> Result<(Connection, Response), String> {
        let was_kept = kept.is_some();
        let said = |failure: Failure| format!("{failure}{}", if was_kept { " (on a kept connection)" } else { "" });
        let mut connection = match kept {
            Some(connection) => connection,
            None => Connection::open(&self.address).map_err(said)?,
        };
        *port = connection.local_port();
        let length = body.unwrap_or(b"").len().to_string();
        let mut fields = Vec::new();
        if body.is_some() {
            fields.push(("Content-Length", length.as_str()));
        }
        if !keep {
            fields.push(("Connection", "close"));
        }
        let target = self.target.as_deref().unwrap_or("/");
        let mut request = if body.is_some() { head("POST", "/echo", &fields) } else { head("GET", target, &fields) };
        request.extend_from_slice(body.unwrap_or(b""));
        connection.send(request).map_err(said)?;
        let response = connection.read().map_err(said)?;
        if response.status != 200 {
            return Err(format!("status {}: {}", response.status, response.text().lines().next().unwrap_or("")));
        }
        let expected = body.unwrap_or(response.release().as_bytes());
        if self.target.is_none() && (response.body != expected || response.release().is_empty()) {
            return Err(format!("wrong body: {} bytes, expected {}", response.body.len(), expected.len()));
        }
        Ok((connection, response))
    }
}

impl Running {
    pub fn started(&self) -> Instant {
        self.started
    }

    /// How many requests were answered or failed so far.
    pub fn answered(&self) -> usize {
        self.answered.load(Ordering::Relaxed)
    }

    /// Waits until so many more requests have been answered (or have failed).
    pub fn wait_answers(&self, more: usize) {
        let goal = self.answered() + more;
        wait_for(&format!("{more} more answers to the load"), || (self.answered() >= goal).then_some(()));
    }

    pub fn stop(self) -> Report {
        self.stop.store(true, Ordering::Relaxed);
        let mut report = Report { started: self.started, answers: Vec::new(), failures: Vec::new() };
        for client in self.clients {
            let (answers, failures) = client.join().expect("a client thread does not panic");
            report.answers.extend(answers);
            report.failures.extend(failures);
        }
        report.answers.sort_by_key(|answer| answer.received);
        report.failures.sort_by_key(|failed| failed.at);
        report
    }
}

impl Report {
    pub fn assert_no_failures(&self) {
        assert!(self.failures.is_empty(), "{self}");
        assert!(!self.answers.is_empty(), "the load got no answer at all");
    }

    /// Every request on a connection opened after a commit was answered by that release or a later one; an older
    /// connection may get one more answer from the old release, which closes it; and no connection went back. `commits` are the releases in their order with the moment each was known to be
    /// committed; the first one served before the load began.
    pub fn assert_releases_follow(&self, commits: &[(Instant, String)]) {
        let place = |release: &str| {
            let place = commits.iter().position(|(_, known)| known == release);
            place.unwrap_or_else(|| panic!("an answer from release {release:?}, which was never deployed"))
        };
        let mut last: BTreeMap<(usize, Instant), usize> = BTreeMap::new();
        for answer in &self.answers {
            let place_now = place(&answer.release);
            let committed = commits.iter().rposition(|(at, _)| *at < answer.opened).unwrap_or(0);
            assert!(
                place_now >= committed,
                "client {} opened a connection {:?} after release {} was committed, and release {} answered",
                answer.client,
                answer.opened - commits[committed].0,
                commits[committed].1,
                answer.release
            );
            let behind = commits.iter().rposition(|(at, _)| *at < answer.sent).unwrap_or(0);
            assert!(
                place_now >= behind || answer.closes,
                "release {} answered a request that was sent after release {} was committed, and keeps the connection",
                answer.release,
                commits[behind].1
            );
            let before = last.insert((answer.client, answer.opened), place_now).unwrap_or(0);
            assert!(place_now >= before, "a connection of client {} went back to {}", answer.client, answer.release);
        }
    }

    /// Not one answer said `Connection: close` to a client that keeps its connection.
    pub fn assert_no_connection_ended(&self) {
        let ended: Vec<&Answer> = self.answers.iter().filter(|answer| answer.closes).collect();
        let first = ended.first().map(|answer| (answer.client, answer.sent.duration_since(self.started)));
        assert!(ended.is_empty(), "{} answers said that they close, the first {first:?}", ended.len());
    }

    /// Every request that was sent after a commit was answered by that release or a later one, also on connections that
    /// are older.
    pub fn assert_releases_follow_at_once(&self, commits: &[(Instant, String)]) {
        for answer in &self.answers {
            let place = commits.iter().position(|(_, known)| *known == answer.release);
            let committed = commits.iter().rposition(|(at, _)| *at < answer.sent).unwrap_or(0);
            assert!(
                place >= Some(committed),
                "release {} answered client {} {:?} after release {} was committed",
                answer.release,
                answer.client,
                answer.sent - commits[committed].0,
                commits[committed].1
            );
        }
    }

    /// When the first answer of a release came.
    pub fn first_answer_of(&self, release: &str) -> Option<Instant> {
        self.answers.iter().find(|answer| answer.release == release).map(|answer| answer.received)
    }
}

impl std::fmt::Display for Report {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        writeln!(f, "{} requests answered, {} failed", self.answers.len(), self.failures.len())?;
        for failed in self.failures.iter().take(20) {
            let after = |at: Instant| at.duration_since(self.started).as_secs_f64();
            writeln!(
                f,
                "  client {} sent {:.3} s, failed {:.3} s: {}",
                failed.client,
                after(failed.sent),
                after(failed.at),
                failed.what
            )?;
        }
        Ok(())
    }
}
