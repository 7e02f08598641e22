//! Every answer carries the id of its own request: none is lost, torn, reordered or answered to another client. Clients pipeline,
//! cut their requests anywhere, read late and leave in every way; the application answers in every form, forks, and has threads
//! that use what they do not own; the service reloads meanwhile. Two mutants must make it fail.
//!
//! `FORKMASTER_STRESS_S` says for how many seconds (3 by default), `FORKMASTER_STRESS_SEED` repeats the choices of an earlier run:
//! the seed is printed.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::harness::client::{Address, Connection, Response};
use crate::harness::master::{Launch, Master};
use crate::harness::random::{number, Random};
use crate::harness::site::Site;
use crate::harness::{wait_for, wait_within, WAIT};

const CLIENTS: u64 = 12;

/// A request, and what its answer must be.
struct Request {
    id: String,
    form: &'static str,
    method: &'static str,
    /// Lines of the answer.
    lines: usize,
    bytes: Vec<u8>,
    /// It is not for the client to say whether the next one on the connection is answered.
    is_last: bool,
}

/// Whose answer can be told to the last byte.
const FORMS: [&str; 10] =
    ["whole", "pieces", "written", "from_a_thread", "file", "memory_file", "slow", "raises", "forks", "keeps"];

/// Whose answer may end early.
const CUT: [&str; 2] = ["cut", "stray"];

/// What all clients have in common.
struct Shared {
    address: Address,
    seed: u64,
    over: AtomicBool,
    answered: AtomicUsize,
    by_form: Mutex<BTreeMap<&'static str, usize>>,
    failures: Mutex<Vec<String>>,
}

struct Client {
    shared: Arc<Shared>,
    random: Random,
    name: u64,
    requests: u64,
    /// Where the next request is cut: each place comes in turn.
    place: usize,
}

impl Client {
    fn run(mut self) {
        while !self.shared.over.load(Ordering::Relaxed) {
            if let Err(what) = self.connection() {
                // What a stopped service does to its clients is not asked here.
                if !self.shared.over.load(Ordering::Relaxed) {
                    self.shared.failures.lock().expect("nothing panics").push(format!("client {}: {what}", self.name));
                }
            }
        }
    }

    /// One connection, to one of its ends.
    fn connection(&mut self) -> Result<(), String> {
        let mut connection = Connection::open(&self.shared.address).map_err(|failure| failure.to_string())?;
        let port = connection.local_port().ok_or("it has no port")?;
        for _ in 0..1 + self.random.below(6) {
            let batch = self.batch(port);
            match self.random.below(20) {
                // Leaves before it has all answers, or half of a request.
                way @ 0..=1 => {
                    let all: Vec<u8> = batch.iter().flat_map(|request| request.bytes.clone()).collect();
                    let sent = &all[..self.random.below(all.len() as u64 + 1) as usize];
                    let answers = self.random.below(3) as usize;
                    // It may have been closed for the form of a request, and what is asked for may not come.
                    if connection.send(sent).is_ok() && sent.len() == all.len() {
                        self.read(&mut connection, &batch[..answers.min(batch.len())])?;
                    }
                    match way {
                        0 => connection.reset(),
                        _ => drop(connection),
                    }
                    return Ok(());
                }
                way => {
                    self.send(&mut connection, &batch)?;
                    let half_closes = way == 2;
                    if half_closes {
                        connection.finish_sending().map_err(|failure| failure.to_string())?;
                    }
                    let goes_on = self.read(&mut connection, &batch)?;
                    if half_closes && goes_on && !connection.closed_within(WAIT) {
                        return Err("the last answer is not the last".to_owned());
                    }
                    if half_closes || !goes_on {
                        return Ok(());
                    }
                }
            }
        }
        Ok(())
    }

    /// Requests that are sent together.
    fn batch(&mut self, port: u16) -> Vec<Request> {
        let count = match self.random.below(3) {
            0 => 1,
            1 => 1 + self.random.below(3),
            _ => 1 + self.random.below(10),
        };
        let mut batch: Vec<Request> = (1..count).map(|_| self.request(port, false)).collect();
        batch.push(self.request(port, true));
        batch
    }

    fn request(&mut self, port: u16, is_last: bool) -> Request {
        self.requests += 1;
        let id = format!("{:x}-{}-{}", self.shared.seed, self.name, self.requests);
        let random = &mut self.random;
        let form = match random.below(40) {
            0 if is_last => CUT[random.below(2) as usize],
            // A fork of the process costs milliseconds.
            1..=38 => FORMS[random.below(8) as usize],
            _ => FORMS[8 + random.below(2) as usize],
        };
        let (mut lines, mut body_lines) = (random.below(50) as usize, 0);
        let has_body = random.below(3) == 0;
        if has_body {
            body_lines = random.below(200) as usize;
        }
        // More than sockets and memory take. Only the last one, or both ends would wait for each other.
        if is_last && random.below(60) == 0 {
            lines = 100_000;
        }
        if is_last && has_body && random.below(20) == 0 {
            body_lines = 40_000;
        }
        if form == "written" || form == "stray" {
            lines = lines.min(300);
        }
        let mut method = if has_body { "POST" } else { "GET" };
        if !has_body && !CUT.contains(&form) && random.below(10) == 0 {
            method = "HEAD";
        }
        let unread = if has_body && body_lines < 300 && random.below(10) == 0 { "&unread=1" } else { "" };
        let target = format!("/{form}/{id}?n={lines}&k={body_lines}{unread}");
        let head = format!("{method} {target} HTTP/1.1\r\nHost: h\r\nX-Id: {id}\r\nX-Port: {port}\r\n");
        let body = format!("{id}\n").repeat(body_lines).into_bytes();
        let mut bytes = head.into_bytes();
        if has_body && random.below(2) == 0 {
            bytes.extend_from_slice(b"Transfer-Encoding: chunked\r\n\r\n");
            let mut rest = &body[..];
            while !rest.is_empty() {
                let (chunk, after) = rest.split_at(rest.len().min(1 + random.below(30_000) as usize));
                bytes.extend_from_slice(format!("{:x}\r\n", chunk.len()).as_bytes());
                bytes.extend_from_slice(chunk);
                bytes.extend_from_slice(b"\r\n");
                rest = after;
            }
            bytes.extend_from_slice(b"0\r\n\r\n");
        } else if has_body {
            bytes.extend_from_slice(format!("Content-Length: {}\r\n\r\n", body.len()).as_bytes());
            bytes.extend_from_slice(&body);
        } else {
            bytes.extend_from_slice(b"\r\n");
        }
        Request { id, form, method, lines, bytes, is_last: CUT.contains(&form) }
    }

    /// In one piece, in two, or byte by byte.
    fn send(&mut self, connection: &mut Connection, batch: &[Request]) -> Result<(), String> {
        let all: Vec<u8> = batch.iter().flat_map(|request| request.bytes.clone()).collect();
        let mut send = |bytes: &[u8]| connection.send(bytes).map_err(|failure| format!("cannot send: {failure}"));
        match self.random.below(30) {
            0 if all.len() < 2000 => all.chunks(1).try_for_each(send),
            0..=14 => {
                self.place += 1;
                let (begin, rest) = all.split_at(self.place % all.len());
                send(begin)?;
                if self.random.below(4) == 0 {
                    std::thread::yield_now();
                    // Not a wait for something: the other half comes when the server has looked at the first one.
                    std::thread::sleep(Duration::from_millis(self.random.below(4)));
                }
                send(rest)
            }
            _ => send(&all),
        }
    }

    /// Reads the answers and compares them. Whether the connection goes on.
    fn read(&mut self, connection: &mut Connection, batch: &[Request]) -> Result<bool, String> {
        for (index, request) in batch.iter().enumerate() {
            if request.lines > 1000 && self.random.below(2) == 0 {
                // Not a wait for something: the answer is more than the sockets take.
                std::thread::sleep(Duration::from_millis(self.random.below(50)));
            }
            let goes_on = self.read_one(connection, request).map_err(|what| {
                format!("{} {}, {} of {} in its batch: {what}", request.form, request.id, index + 1, batch.len())
            })?;
            self.shared.answered.fetch_add(1, Ordering::Relaxed);
            *self.shared.by_form.lock().expect("nothing panics").entry(request.form).or_default() += 1;
            if !goes_on {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn read_one(&self, connection: &mut Connection, request: &Request) -> Result<bool, String> {
        let line = format!("{}\n", request.id);
        let whole = line.repeat(request.lines);
        let answer = match (request.method, request.is_last) {
            ("HEAD", _) => connection.read_to_head().map(|answer| (answer, false)),
            (_, true) => connection.read_partly(),
            (_, false) => connection.read().map(|answer| (answer, false)),
        };
        let (answer, is_cut) = answer.map_err(|failure| failure.to_string())?;
        let is = |wanted: &[u8]| request.method == "HEAD" || answer.body == wanted;
        let is_right = match (request.form, answer.status) {
            ("raises", 500) => is(b"Internal Server Error\n"),
            ("cut", 200) => is_cut && is_named(&answer, request) && whole.as_bytes().starts_with(&answer.body),
            // Nothing of it had been sent when it raised.
            ("cut", 500) => request.lines == 0,
            // The request was over before its thread had begun to write, or while it did.
            ("stray", 500) => true,
            ("stray", 200) => {
                is_named(&answer, request)
                    && whole.as_bytes().starts_with(&answer.body)
                    && (is_cut || answer.body.len() % line.len() == 0)
            }
            (_, 200) => is_named(&answer, request) && is(whole.as_bytes()),
            (_, _) => false,
        };
        if !is_right {
            let body = String::from_utf8_lossy(&answer.body[..answer.body.len().min(200)]).into_owned();
            return Err(format!("{} {:?} with {} bytes: {body:?}", answer.status, answer.headers, answer.body.len()));
        }
        Ok(!is_cut && !answer.closes())
    }
}

fn is_named(answer: &Response, request: &Request) -> bool {
    answer.header("X-Id") == Some(&request.id)
}

/// Clients at work, and what the application found wrong.
struct Stress {
    shared: Arc<Shared>,
    clients: Vec<JoinHandle<()>>,
    wrong: PathBuf,
}

impl Stress {
    fn new(name: &str, threads: u32, mutant: Option<&str>) -> (Site, Master, Stress) {
        let site = Site::with_app(name, "stress.py");
        site.set("server.threads", &threads.to_string()).set("server.workers", "2");
        let wrong = site.path().join("wrong");
        std::fs::write(&wrong, "").expect("it can be made");
        let launch = Launch::default().env("FAILURES", &wrong.display().to_string());
        let master = site.launch(match mutant {
            Some(mutant) => launch.env("FORKMASTER_MUTANT", mutant),
            None => launch,
        });
        master.wait_serving();
        let seed = Random::seed("FORKMASTER_STRESS_SEED");
        println!("FORKMASTER_STRESS_SEED={seed}");
        let shared = Arc::new(Shared {
            address: master.address(),
            seed,
            over: AtomicBool::new(false),
            answered: AtomicUsize::new(0),
            by_form: Mutex::default(),
            failures: Mutex::default(),
        });
        let clients = (0..CLIENTS)
            .map(|name| {
                let random = Random::new(seed.wrapping_mul(2 * name + 3));
                let client = Client { shared: Arc::clone(&shared), random, name, requests: 0, place: 0 };
                std::thread::spawn(move || client.run())
            })
            .collect();
        (site, master, Stress { shared, clients, wrong })
    }

    fn failures(&self) -> Vec<String> {
        let mut failures = self.shared.failures.lock().expect("nothing panics").clone();
        let wrong = std::fs::read_to_string(&self.wrong).expect("it is there");
        failures.extend(wrong.lines().map(|line| format!("the application: {line}")));
        failures
    }

    fn join(&mut self) {
        self.shared.over.store(true, Ordering::Relaxed);
        self.clients.drain(..).for_each(|client| client.join().expect("a client does not panic"));
    }
}

fn every_answer_is_its_requests_own(name: &str, threads: u32) {
    let limit = Duration::from_secs(number("FORKMASTER_STRESS_S", 3));
    let (_site, master, mut stress) = Stress::new(name, threads, None);
    let begun = Instant::now();
    while begun.elapsed() < limit && stress.failures().is_empty() {
        let before = stress.shared.answered.load(Ordering::Relaxed);
        master.reload();
        wait_for("answers of the new generation", || {
            let answered = stress.shared.answered.load(Ordering::Relaxed);
            (answered >= before + 200 || !stress.failures().is_empty()).then_some(())
        });
    }
    stress.join();
    let answered = stress.shared.answered.load(Ordering::Relaxed);
    let by_form = stress.shared.by_form.lock().expect("nothing panics").clone();
    println!("{answered} answers: {by_form:?}");
    let failures = stress.failures();
    assert!(failures.is_empty(), "{} of {answered}: {:#?}", failures.len(), &failures[..failures.len().min(20)]);
    assert_eq!(by_form.len(), FORMS.len() + CUT.len(), "{by_form:?}");
    let status = master.status().expect("it answers");
    assert_eq!(status.0["lost"], 0, "requests that ended with their worker");
}

#[test]
fn every_answer_is_its_requests_own_with_one_thread() {
    every_answer_is_its_requests_own("stress_1", 1);
}

#[test]
fn every_answer_is_its_requests_own_with_four_threads() {
    every_answer_is_its_requests_own("stress_4", 4);
}

fn assert_mutant_is_found(mutant: &str) {
    let (_site, master, mut stress) = Stress::new(mutant, 1, Some(mutant));
    let found = wait_within(WAIT, || {
        master.reload();
        stress.failures().into_iter().next()
    });
    // Clients of a mutant may wait for what never comes.
    stress.shared.over.store(true, Ordering::Relaxed);
    drop(master);
    stress.join();
    assert!(found.is_some(), "the mutant {mutant} was not found");
}

#[test]
fn the_mutant_whose_queue_mixes_connections_is_found() {
    assert_mutant_is_found("queue-mixes");
}

#[test]
fn the_mutant_whose_queue_loses_connections_is_found() {
    assert_mutant_is_found("queue-loses");
}
