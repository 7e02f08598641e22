//! `status`: what the master and its workers do, once or again and again, for people and for programs. Names, paths and
//! reasons come from configuration and applications, and a terminal obeys some characters, so all of it is made
//! harmless before it is arranged.

use std::fmt::Write;
use std::io::IsTerminal;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use forkmaster_wire::json;
use serde_json::Value;
use terminal_size::{terminal_size, Height, Width};

use super::ask::{ask, read, wait_for_end, NoAnswer};
use super::client::{connect, told, ANSWER_WITHIN};
use super::columns::{columns, Cell, Side};
use super::output;
use crate::config::process_context::ProcessContext;
use crate::doors::protocol::Request;
use crate::exit_code::ExitCode;
use crate::facts::snapshot::{Generation, Handoffs, LastReload, Running, Runs, ServiceProcess, Snapshot, Worker};
use crate::verbs::command_line::Client;

/// As often as top(1) would be looked at by somebody who waits for something.
const WATCH_EVERY: Duration = Duration::from_secs(1);

/// What is wanted of a status.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wanted {
    pub json: bool,
    /// Only what runs now.
    pub requests: bool,
    /// Again and again, until the master ends or this time is over.
    pub watch: Option<Option<Duration>>,
}

pub fn status(client: &Client, context: &ProcessContext, wanted: Wanted) -> ExitCode {
    let mut stream = match connect(client, context) {
        Ok(stream) => stream,
        Err(code) => return code,
    };
    match wanted.watch {
        Some(timeout) => watch(&mut stream, wanted, timeout),
        None => match take(&mut stream) {
            Ok((snapshot, line)) => {
                output::print(shown(&snapshot, &line, wanted, None, paints()));
                exit_code(&snapshot)
            }
            Err(no_answer) => told("no status", no_answer),
        },
    }
}

fn exit_code(snapshot: &Snapshot) -> ExitCode {
    match snapshot.ready {
        true => ExitCode::Done,
        false => ExitCode::Refused,
    }
}

/// The master's own words as well: it may be newer and know fields that are not known here.
fn take(stream: &mut UnixStream) -> Result<(Snapshot, String), NoAnswer> {
    let line = ask(stream, &Request::Status, Some(ANSWER_WITHIN))?;
    Ok((read::<Snapshot>(&line)?, line))
}

/// Until the master ends, which is the end that was waited for.
fn watch(stream: &mut UnixStream, wanted: Wanted, timeout: Option<Duration>) -> ExitCode {
    let deadline = timeout.map(|timeout| Instant::now() + timeout);
    let mut before: Option<(Instant, u64)> = None;
    loop {
        let (snapshot, line) = match take(stream) {
            Ok(taken) => taken,
            Err(NoAnswer::Ended) => return ended(),
            Err(no_answer) => return told("no status", no_answer),
        };
        let now = Instant::now();
        let rate = before.map(|(then, requests)| {
            snapshot.requests.saturating_sub(requests) as f64 / now.duration_since(then).as_secs_f64()
        });
        before = Some((now, snapshot.requests));
        let text = shown(&snapshot, &line, wanted, rate, paints());
        match terminal_size().filter(|_| std::io::stdout().is_terminal() && !wanted.json) {
            Some((Width(columns), Height(rows))) => output::print(in_place(&text, columns.into(), rows.into())),
            None => output::print(if wanted.json { text } else { format!("{text}\n") }),
        }
        let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
        if left.is_some_and(|left| left.is_zero()) {
            return ExitCode::Timeout;
        }
        match wait_for_end(stream, Some(left.map_or(WATCH_EVERY, |left| left.min(WATCH_EVERY)))) {
            Ok(()) => return ended(),
            Err(NoAnswer::Late) => {}
            Err(no_answer) => return told("no status", no_answer),
        }
    }
}

fn ended() -> ExitCode {
    output::complain("the master has ended");
    ExitCode::NotRunning
}

/// The text at the top of the screen, in place of what was there: nothing flickers, and what does not fit is cut, since
/// a scrolled screen could not be written over. ECMA-48: CUP, EL, ED.
fn in_place(text: &str, columns: usize, rows: usize) -> String {
    let mut screen = String::from("\x1b[H");
    for line in text.lines().take(rows.saturating_sub(1)) {
        screen.push_str(&cut(line, columns));
        screen.push_str("\x1b[K\n");
    }
    screen.push_str("\x1b[J");
    screen
}

/// So many characters of a line; colours take no room, and end with the line.
fn cut(line: &str, columns: usize) -> String {
    let (mut shown, mut left, mut in_colour) = (String::new(), columns, false);
    for character in line.chars() {
        match (character, in_colour) {
            ('\x1b', _) => in_colour = true,
            ('m', true) => in_colour = false,
            (_, true) => {}
            (_, false) if left == 0 => return shown + "\x1b[0m",
            (_, false) => left -= 1,
        }
        shown.push(character);
    }
    shown
}

/// Colours are for a person at a terminal who has not said no (no-color.org).
fn paints() -> bool {
    std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}

/// The page, or the line of JSON.
fn shown(snapshot: &Snapshot, line: &str, wanted: Wanted, rate: Option<f64>, paints: bool) -> String {
    if wanted.json {
        return format!("{}\n", output::printable_json(line));
    }
    let snapshot = harmless(snapshot);
    let mut text = String::new();
    // Writing to a String cannot fail.
    let _ = match wanted.requests {
        true => write_requests(&mut text, &snapshot),
        false => write_status(&mut text, &snapshot, rate, paints),
    };
    text
}

/// The same with every string made printable.
fn harmless(snapshot: &Snapshot) -> Snapshot {
    fn each(value: &mut Value) {
        match value {
            Value::String(text) => *text = output::printable(text),
            Value::Array(values) => values.iter_mut().for_each(each),
            Value::Object(values) => values.values_mut().for_each(each),
            Value::Null | Value::Bool(_) | Value::Number(_) => {}
        }
    }
    let mut value = json::value(snapshot);
    each(&mut value);
    json::read(value.to_string().as_bytes()).unwrap_or_default()
}

fn write_status(text: &mut String, snapshot: &Snapshot, rate: Option<f64>, paints: bool) -> std::fmt::Result {
    let name = snapshot.name.as_deref().unwrap_or("-");
    let ready = if snapshot.ready { "" } else { ", not ready" };
    write!(text, "{name} pid {}: {}{ready}", snapshot.pid, state(&snapshot.state, paints))?;
    if snapshot.uptime_s > 0.0 {
        write!(text, ", up {}", age(snapshot.uptime_s))?;
    }
    if let Some(rate) = rate {
        write!(text, ", {rate:.1} requests/s")?;
    }
    writeln!(text)?;
    let addresses: Vec<&str> = snapshot.listeners.iter().map(|listener| listener.address.as_str()).collect();
    match addresses.is_empty() {
        true => writeln!(text, "not listening yet")?,
        false => writeln!(text, "listening on {}", addresses.join(", "))?,
    }
    write_handoffs(text, snapshot.handoffs)?;
    for generation in &snapshot.generations {
        write_generation(text, generation, paints)?;
    }
    match &snapshot.kept {
        Some(kept) if kept.given_up => writeln!(
            text,
            "rollback to generation {} starts Python anew: memory was short, and its template was given up ({})",
            kept.generation,
            size(kept.bytes)
        )?,
        Some(kept) => writeln!(
            text,
            "rollback to generation {} forks from its template ({}), which is kept for {}",
            kept.generation,
            size(kept.bytes),
            age(kept.left_s)
        )?,
        None => {}
    }
    match (&snapshot.last_refusal, &snapshot.last_reload) {
        (Some(refused), _) => write_refusal(text, refused),
        // Of a master before 0.2.
        (None, Some(last)) if !last.ok => write_refusal(text, last),
        (None, Some(_) | None) => Ok(()),
    }
}

/// Connections that went from worker to worker, where there were any.
fn write_handoffs(text: &mut String, handoffs: Handoffs) -> std::fmt::Result {
    let Handoffs { given, shared, taken, queue_full, lost } = handoffs;
    if handoffs == Handoffs::default() {
        return Ok(());
    }
    write!(text, "connections between workers: {given} given ({shared} by busy ones), {taken} taken")?;
    match (queue_full, lost) {
        (0, 0) => {}
        (0, lost) => write!(text, ", {lost} lost")?,
        (full, lost) => write!(text, ", {full} times the queue was full, {lost} lost")?,
    }
    writeln!(text)
}

/// In full: it is why the release that was deployed does not serve.
fn write_refusal(text: &mut String, refused: &LastReload) -> std::fmt::Result {
    let what = match refused.verb.as_ref() {
        // Of a master that does not tell.
        "" => "latest reload".to_owned(),
        "start" => "start".to_owned(),
        verb => format!("latest {verb}"),
    };
    writeln!(text, "the {what} was refused: {}", refused.reason)?;
    refused.details.lines().try_for_each(|line| writeln!(text, "  {line}"))
}

fn write_generation(text: &mut String, generation: &Generation, paints: bool) -> std::fmt::Result {
    let in_place = if generation.in_place { ", in place: code on disk is not pinned" } else { "" };
    writeln!(
        text,
        "generation {} {}: {} (Python {}){in_place}",
        generation.generation,
        state(&generation.state, paints),
        generation.release.display(),
        generation.python.as_deref().unwrap_or("-")
    )?;
    if let Some(waiting) = &generation.waiting {
        writeln!(text, "  waits for {waiting}")?;
    }
    if let Some(canary) = &generation.canary {
        writeln!(text, "  canary {}{}{}", canary.verdict, if canary.why.is_empty() { "" } else { ": " }, canary.why)?;
        canary.to_string().lines().try_for_each(|line| writeln!(text, "    {line}"))?;
    }
    if generation.bodies_in_memory {
        writeln!(text, "  no temporary directory is writable: large request bodies have only memory")?;
    }
    writeln!(text, "  template pid {} {}", pid(generation.template.pid), state(&generation.template.state, paints))?;
    write_services(text, &generation.services, paints)?;
    write_workers(text, &generation.workers, paints)
}

fn write_services(text: &mut String, services: &[ServiceProcess], paints: bool) -> std::fmt::Result {
    for service in services {
        let restarts =
            if service.restarts > 0 { format!(", started again {} times", service.restarts) } else { String::new() };
        let (name, number, pid) = (&service.name, service.number, pid(service.pid));
        let on = match &service.listeners[..] {
            [] => String::new(),
            listeners => format!(" on {}", listeners.join(" ")),
        };
        let runs = service.runs.as_ref().map_or_else(String::new, runs);
        writeln!(text, "  service {name} {number} pid {pid} {}{on}{restarts}{runs}", state(&service.state, paints))?;
    }
    Ok(())
}

/// A table of the workers, and below each what it runs.
fn write_workers(text: &mut String, workers: &[Worker], paints: bool) -> std::fmt::Result {
    if workers.is_empty() {
        return Ok(());
    }
    const HEAD: [(&str, Side); 9] = [
        ("worker", Side::Right),
        ("pid", Side::Right),
        ("state", Side::Left),
        ("age", Side::Right),
        ("requests", Side::Right),
        ("busy", Side::Right),
        ("connections", Side::Right),
        ("private", Side::Right),
        ("resident", Side::Right),
    ];
    let row = |worker: &Worker| {
        vec![
            Cell::plain(worker.slot),
            Cell::plain(pid(worker.pid)),
            Cell { text: worker.state.to_string(), shown: state(&worker.state, paints) },
            Cell::plain(age(worker.age_s)),
            Cell::plain(worker.requests),
            Cell::plain(worker.busy),
            Cell::plain(worker.connections),
            Cell::plain(size(worker.private_bytes)),
            Cell::plain(size(worker.resident_bytes)),
        ]
    };
    let lines = columns(&HEAD, workers.iter().map(row).collect());
    let (head, lines) = lines.split_first().map_or(("", &[][..]), |(head, lines)| (head.as_str(), lines));
    writeln!(text, "  {head}")?;
    for (worker, line) in workers.iter().zip(lines) {
        writeln!(text, "  {line}")?;
        for running in &worker.running {
            writeln!(text, "    {:.1} s {} {}", running.age_s, running.method, running.path)?;
        }
    }
    Ok(())
}

/// What runs now in all workers, the oldest first.
fn write_requests(text: &mut String, snapshot: &Snapshot) -> std::fmt::Result {
    const HEAD: [(&str, Side); 7] = [
        ("age", Side::Right),
        ("method", Side::Left),
        ("path", Side::Left),
        ("client", Side::Left),
        ("worker", Side::Right),
        ("pid", Side::Right),
        ("generation", Side::Right),
    ];
    let of_worker = |generation: &'_ Generation| -> Vec<(f64, Vec<Cell>)> {
        let number = generation.generation;
        let row = |worker: &Worker, running: &Running| {
            let cells = vec![
                Cell::plain(format_args!("{:.1} s", running.age_s)),
                Cell::plain(&running.method),
                Cell::plain(&running.path),
                Cell::plain(running.client.as_deref().unwrap_or("-")),
                Cell::plain(worker.slot),
                Cell::plain(pid(worker.pid)),
                Cell::plain(number),
            ];
            (running.age_s, cells)
        };
        generation.workers.iter().flat_map(|worker| worker.running.iter().map(move |one| row(worker, one))).collect()
    };
    let mut rows: Vec<(f64, Vec<Cell>)> = snapshot.generations.iter().flat_map(of_worker).collect();
    if rows.is_empty() {
        return writeln!(text, "nothing runs");
    }
    rows.sort_unstable_by(|one, other| other.0.total_cmp(&one.0));
    let lines = columns(&HEAD, rows.into_iter().map(|(_, cells)| cells).collect());
    lines.iter().try_for_each(|line| writeln!(text, "{line}"))
}

/// `, next in 240s, 3 runs (1 failed, 1 skipped), the last: exit code 0`
fn runs(runs: &Runs) -> String {
    let last = runs.last.as_ref().map_or_else(String::new, |last| format!(", the last: {last}"));
    let Runs { next_s, ended, failed, skipped, .. } = runs;
    format!(", next in {next_s:.0}s, {ended} runs ({failed} failed, {skipped} skipped){last}")
}

/// Green: all is well. Red: somebody should look. Yellow: something goes on.
fn state(word: &str, paints: bool) -> String {
    let colour = match word {
        "running" | "serving" | "ready" => 32,
        "degraded" | "failed" | "killed" | "terminating" | "lost" => 31,
        _other => 33,
    };
    match paints {
        true => format!("\x1b[{colour}m{word}\x1b[0m"),
        false => word.to_owned(),
    }
}

fn pid(pid: Option<i32>) -> String {
    pid.map_or_else(|| "-".to_owned(), |pid| pid.to_string())
}

/// `59 s`, `59 m`, `47 h`, `2 d`
fn age(seconds: f64) -> String {
    match seconds {
        seconds if seconds < 120.0 => format!("{seconds:.0} s"),
        seconds if seconds < 7200.0 => format!("{:.0} m", seconds / 60.0),
        seconds if seconds < 172_800.0 => format!("{:.0} h", seconds / 3600.0),
        seconds => format!("{:.0} d", seconds / 86_400.0),
    }
}

/// `-` where it is not known.
fn size(bytes: u64) -> String {
    match bytes {
        0 => "-".to_owned(),
        bytes => format!("{} MiB", bytes.div_ceil(1024 * 1024)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAGE: Wanted = Wanted { json: false, requests: false, watch: None };

    fn page(line: &str, wanted: Wanted) -> String {
        shown(&serde_json::from_str(line).unwrap(), line, wanted, None, false)
    }

    const SHOP: &str = r#"{"name":"shop","pid":7,"state":"running","ready":true,"listeners":[{"address":"127.0.0.1:80"}],
            "uptime_s":7300,
            "generations":[{"generation":4,"state":"serving","release":"/srv/1","python":"3.12.1","in_place":true,
                "template":{"pid":8,"state":"ready"},
                "workers":[{"slot":0,"pid":9,"state":"serving","age_s":61.4,"requests":3,"private_bytes":32000000,
                    "running":[{"method":"GET","path":"/a\u001b[2J","age_s":1.26,"client":"192.0.2.7"}]},
                    {"slot":1,"pid":null,"state":"starting","running":[{"method":"PUT","path":"/b","age_s":99}]}]}],
            "last_refusal":{"ok":false,"reason":"\u001b]0;owned\u0007","details":"Traceback\n  line"}}"#;

    #[test]
    fn a_status_for_people() {
        let text = "shop pid 7: running, up 2 h\n\
            listening on 127.0.0.1:80\n\
            generation 4 serving: /srv/1 (Python 3.12.1), in place: code on disk is not pinned\n\
            \x20 template pid 8 ready\n\
            \x20 worker  pid  state      age  requests  busy  connections  private  resident\n\
            \x20      0    9  serving   61 s         3     0            0   31 MiB         -\n\
            \x20   1.3 s GET /a\\u{1b}[2J\n\
            \x20      1    -  starting   0 s         0     0            0        -         -\n\
            \x20   99.0 s PUT /b\n\
            the latest reload was refused: \\u{1b}]0;owned\\u{7}\n\
            \x20 Traceback\n\
            \x20   line\n";
        assert_eq!(page(SHOP, PAGE), text);
    }

    #[test]
    fn connections_that_moved_are_told_where_there_are_any() {
        let page = |given, queue_full, lost| {
            let mut text = String::new();
            write_handoffs(&mut text, Handoffs { given, shared: 0, taken: given, queue_full, lost }).unwrap();
            text
        };
        assert_eq!(page(0, 0, 0), "");
        assert_eq!(page(2, 0, 0), "connections between workers: 2 given (0 by busy ones), 2 taken\n");
        assert_eq!(page(2, 0, 1), "connections between workers: 2 given (0 by busy ones), 2 taken, 1 lost\n");
        let full =
            "connections between workers: 2 given (0 by busy ones), 2 taken, 3 times the queue was full, 0 lost\n";
        assert_eq!(page(2, 3, 0), full);
    }

    #[test]
    fn what_runs_now_the_oldest_first() {
        let text = "   age  method  path         client     worker  pid  generation\n\
                    99.0 s  PUT     /b           -               1    -           4\n\
                    \x201.3 s  GET     /a\\u{1b}[2J  192.0.2.7       0    9           4\n";
        assert_eq!(page(SHOP, Wanted { requests: true, ..PAGE }), text);
        assert_eq!(page("{}", Wanted { requests: true, ..PAGE }), "nothing runs\n");
    }

    #[test]
    fn a_master_that_has_nothing_to_tell_yet() {
        assert_eq!(page("{}", PAGE), "- pid 0: , not ready\nnot listening yet\n");
    }

    #[test]
    fn colours_change_no_place() {
        let snapshot: Snapshot = serde_json::from_str(SHOP).unwrap();
        let (plain, painted) = (shown(&snapshot, "", PAGE, None, false), shown(&snapshot, "", PAGE, None, true));
        assert!(painted.contains("\x1b[32mserving\x1b[0m"), "{painted:?}");
        let without: String = painted
            .split("\x1b[")
            .map(|part| part.trim_start_matches(|c: char| c.is_ascii_digit()))
            .map(|part| part.strip_prefix('m').unwrap_or(part))
            .collect();
        assert_eq!(without, plain);
    }

    #[test]
    fn a_screen_is_written_over_and_never_scrolled() {
        assert_eq!(in_place("abcdef\nb\nc\n", 3, 3), "\x1b[Habc\x1b[0m\x1b[K\nb\x1b[K\n\x1b[J");
        assert_eq!(cut("\x1b[32mabc\x1b[0m d", 4), "\x1b[32mabc\x1b[0m \x1b[0m");
    }
}
