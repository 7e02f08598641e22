//! The status page: one static file, and the JSON that it shows. It only looks, and loads nothing from anywhere. What could
//! tell strangers something is left out where strangers may ask.

use forkmaster_wire::histogram::{upper_micros, Counted};
use forkmaster_wire::json;
use serde::Serialize;

use super::status::Answer;
use crate::facts::history::Deploy;
use crate::facts::measures::Measures;
use crate::facts::snapshot::Snapshot;

const HTML: &str = include_str!("page.html");

/// Nothing but the file's own script and style runs, by their hashes (CSP level 3, section 6.7.2), and only this listener is
/// asked. A test compares the hashes with the file, and says what they should be.
const POLICY: &str = "Content-Security-Policy: default-src 'none'; connect-src 'self'; img-src data:; \
     script-src 'sha256-cXSLphE22nRoNP3DVIgZSZoKULTd6iS3olB0tW6b+Ig='; \
     style-src 'sha256-SPoMq0B8RPbsaNfUuk6/9lc9Spq/ShNrrJPl6dO1W68='; \
     base-uri 'none'; form-action 'none'; frame-ancestors 'none'\r\n\
     X-Content-Type-Options: nosniff\r\nReferrer-Policy: no-referrer\r\n";

pub fn html() -> Answer {
    Answer { status: 200, content_type: "text/html; charset=utf-8", fields: POLICY, text: HTML.to_owned() }
}

/// `status --json` and what changes with time.
#[derive(Serialize)]
struct State<'a> {
    #[serde(flatten)]
    snapshot: &'a Snapshot,
    /// The requests that run are in it.
    requests_shown: bool,
    /// The latest first.
    deploys: &'a [Deploy],
    /// App threads of a worker, and of all workers that serve.
    threads: u64,
    threads_max: u64,
    listen_queues: Vec<ListenQueue<'a>>,
    /// How long the application took, and how long requests waited for a thread, since the start.
    latency: Buckets,
    queued: Buckets,
}

#[derive(Serialize)]
struct ListenQueue<'a> {
    address: &'a str,
    /// Connections that no worker has taken; none: the kernel does not tell.
    queue: Option<u32>,
    limit: Option<u32>,
}

#[derive(Serialize)]
struct Buckets {
    counts: Vec<u64>,
    /// What all of a bucket lie below; the last has no bound, and stands for all that is longer.
    upper_s: Vec<f64>,
}

impl Buckets {
    fn of(counted: &Counted) -> Buckets {
        let upper = (0..counted.buckets.len()).filter_map(upper_micros).map(|micros| micros as f64 / 1e6);
        Buckets { counts: counted.buckets.to_vec(), upper_s: upper.collect() }
    }
}

/// `among_us`: nobody else can reach the address. Otherwise no client, no path and no traceback is told.
pub fn json(mut snapshot: Snapshot, measures: &Measures, mut deploys: Vec<Deploy>, among_us: bool) -> Answer {
    if !among_us {
        hide(&mut snapshot);
    }
    if !among_us {
        for deploy in &mut deploys {
            (deploy.asked, deploy.command, deploy.changes) = (String::new(), Vec::new(), Vec::new());
            hide_reason(&mut deploy.reason);
            // It names paths.
            deploy.rehearsal = None;
        }
    }
    let workers = snapshot
        .generations
        .iter()
        .find(|one| one.state == "serving")
        .map_or(0, |serving| serving.workers.iter().filter(|worker| worker.state == "serving").count() as u64);
    let state = State {
        snapshot: &snapshot,
        requests_shown: among_us,
        deploys: &deploys,
        threads: measures.threads_max.checked_div(workers).unwrap_or(0),
        threads_max: measures.threads_max,
        listen_queues: (measures.listeners.iter())
            .map(|one| ListenQueue {
                address: &one.address,
                queue: one.queue.map(|(queue, _)| queue),
                limit: one.queue.map(|(_, limit)| limit),
            })
            .collect(),
        latency: Buckets::of(&measures.totals.latency),
        queued: Buckets::of(&measures.totals.queued),
    };
    let text = json::value(&state).to_string();
    Answer { status: 200, content_type: "application/json", fields: "X-Content-Type-Options: nosniff\r\n", text }
}

fn hide(snapshot: &mut Snapshot) {
    for worker in snapshot.generations.iter_mut().flat_map(|generation| &mut generation.workers) {
        worker.running.clear();
    }
    for reload in snapshot.last_reload.iter_mut().chain(&mut snapshot.last_refusal) {
        reload.details.clear();
        hide_reason(&mut reload.reason);
        reload.rehearsal = None;
    }
    snapshot.logs = None;
}

/// The last line of a traceback may have anything in it, a password of a database for instance.
fn hide_reason(reason: &mut String) {
    if !reason.is_empty() {
        "the log says why".clone_into(reason);
    }
}

#[cfg(test)]
mod tests {
    use std::borrow::Cow;

    use forkmaster_wire::message::{GenerationId, SlotIndex};

    use super::*;
    use crate::facts::snapshot::{Generation, LastReload, Running, Worker};

    fn snapshot() -> Snapshot {
        let running =
            vec![Running { path: "/secret".to_owned(), client: Some("192.0.2.7".to_owned()), ..Running::default() }];
        let worker = Worker {
            slot: SlotIndex(0),
            pid: Some(7),
            state: Cow::Borrowed("serving"),
            age_s: 1.0,
            requests: 1,
            busy: 1,
            connections: 1,
            private_bytes: 0,
            pss_bytes: 0,
            resident_bytes: 0,
            running,
        };
        let generation: Generation = serde_json::from_str(r#"{"generation":1,"state":"serving"}"#).unwrap();
        let generations = vec![Generation { generation: GenerationId(1), workers: vec![worker], ..generation }];
        let refusal = LastReload {
            reason: "RuntimeError: secret".to_owned(),
            details: "Traceback: secret".to_owned(),
            rehearsal: Some("/secret 200 -> 500".to_owned()),
            ..LastReload::default()
        };
        Snapshot { generations, last_refusal: Some(refusal), ..Snapshot::default() }
    }

    #[test]
    fn strangers_see_no_request_and_no_traceback() {
        let rehearsal = Some("/secret 200 -> 500".to_owned());
        let deploy = Deploy { asked: "secret".to_owned(), rehearsal, ..Deploy::default() };
        let text = |among_us| json(snapshot(), &Measures::default(), vec![deploy.clone()], among_us).text;
        let ours = text(true);
        assert!(ours.contains("/secret") && ours.contains("192.0.2.7") && ours.contains("Traceback"), "{ours}");
        let theirs = text(false);
        assert!(!theirs.contains("secret") && !theirs.contains("192.0.2.7"), "{theirs}");
        assert!(theirs.contains("\"requests_shown\":false") && theirs.contains("\"pid\":7"), "{theirs}");
    }

    #[test]
    fn the_page_refers_to_nothing_outside() {
        for outside in ["http:", "https:", "//cdn", "src=", "@import", "url(", "innerHTML", "eval("] {
            let found = HTML.matches(outside).count();
            // A name of SVG, which is no address that anybody asks.
            let allowed = if outside == "http:" { HTML.matches("http://www.w3.org/2000/svg").count() } else { 0 };
            assert_eq!(found, allowed, "{outside}");
        }
        assert_eq!(HTML.matches("fetch(").count(), 1);
        assert_eq!((HTML.matches("<script").count(), HTML.matches("<style").count()), (1, 1));
        assert!(!HTML.contains(" style=\"") && !HTML.contains(" onclick"), "the policy forbids it");
    }
}
