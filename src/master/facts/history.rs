//! What is remembered of deploys, as plain data: how each transaction ended, and what each generation did while it served.
//! One JSON object a line in the history's file, and over the control socket. Fields are only ever added; a reader
//! skips what it does not know. Nothing here reads or writes.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use forkmaster_wire::histogram::{upper_micros, Counted};
use forkmaster_wire::json;
use forkmaster_wire::message::GenerationId;
use serde::{Deserialize, Serialize};

use super::canary::Canary;
use super::measures::Totals;

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "what", rename_all = "snake_case")]
pub enum Entry {
    Deploy(Box<Deploy>),
    Served(Box<Served>),
}

/// How a start, a reload or a rollback ended.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Deploy {
    /// `2026-11-22T23:25:59.123Z`: when it had ended.
    pub at: String,
    /// The master that did it: generations are numbered anew by each.
    pub master: u32,
    /// None: it was refused before it had a number.
    pub generation: Option<GenerationId>,
    /// `committed`, `refused`, `superseded`, `stopped`.
    pub result: String,
    pub reason: String,
    /// Who asked: `uid=0 pid=4711: reload`, `signal`, `start`.
    pub asked: String,
    pub release: PathBuf,
    /// The first line of the release's file RELEASE or REVISION, or its git commit.
    pub revision: Option<String>,
    pub python: Option<String>,
    pub in_place: bool,
    /// The generation that it goes back to.
    pub back: Option<GenerationId>,
    /// What ran in the pause.
    pub command: Vec<String>,
    /// Requests that got 503 meanwhile because of a maintenance.
    pub turned_away: u64,
    /// Settings that are others than those of the generation before.
    pub changes: Vec<String>,
    /// From the ask until the candidate was ready, and until the end.
    pub proved_s: Option<f64>,
    pub took_s: f64,
    /// What its canary has shown; none where there was no canary.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub canary: Option<Box<Canary>>,
    /// How its rehearsal went; none where there was no rehearsal.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rehearsal: Option<String>,
}

/// What a generation did while it served.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Served {
    /// When its last process was gone; for one that serves: now.
    pub at: String,
    pub master: u32,
    pub generation: u32,
    pub revision: Option<String>,
    pub release: PathBuf,
    /// It serves still.
    pub serving: bool,
    pub age_s: f64,
    pub requests: u64,
    /// Answers by the class of their status, from 1xx on.
    pub status: Vec<u64>,
    /// Exceptions that left the application.
    pub exceptions: u64,
    /// Requests that got 503 because of a maintenance, and are none of the others.
    pub turned_away: u64,
    /// Half of the answers, and 99 of 100, took less.
    pub p50_ms: Option<f64>,
    pub p99_ms: Option<f64>,
    /// Workers that were replaced, by the reason.
    pub restarts: BTreeMap<String, u64>,
    /// How much a worker's memory grew in 1,000 requests, on the average; none where too few were answered to tell.
    pub growth_bytes_per_1000: Option<i64>,
}

/// The rollback by which somebody got rid of a release, if nobody has deployed it again since. A start is no decision.
pub fn rolled_back_from<'a>(entries: &'a [Entry], release: &Path) -> Option<&'a Deploy> {
    let mut serves: BTreeMap<u32, &Path> = BTreeMap::new();
    let mut rollback = None;
    for entry in entries {
        let Entry::Deploy(deploy) = entry else { continue };
        if deploy.result != "committed" {
            continue;
        }
        let before = serves.insert(deploy.master, &deploy.release);
        if deploy.back.is_some() && before == Some(release) && deploy.release != release {
            rollback = Some(&**deploy);
        } else if deploy.release == release && deploy.asked != "start" {
            rollback = None;
        }
    }
    rollback
}

impl Served {
    pub fn count(&mut self, totals: &Totals) {
        self.requests = totals.requests;
        self.status = totals.status.to_vec();
        self.exceptions = totals.errors;
        self.turned_away = totals.turned_away;
        self.p50_ms = quantile_ms(&totals.latency, 0.50);
        self.p99_ms = quantile_ms(&totals.latency, 0.99);
    }
}

/// The upper bound of the bucket that holds the quantile: it may be a fifth too high, never too low.
fn quantile_ms(latency: &Counted, share: f64) -> Option<f64> {
    // An application may have written what it likes there.
    let all = latency.buckets.iter().fold(0u64, |all, count| all.saturating_add(*count));
    let wanted = (all as f64 * share).ceil() as u64;
    let mut below = 0u64;
    let found = latency.buckets.iter().position(|count| {
        below = below.saturating_add(*count);
        below >= wanted
    });
    found.filter(|_| all > 0).and_then(upper_micros).map(|micros| micros as f64 / 1000.0)
}

/// Memory and requests of one worker, at its first and its latest look. What the first requests fill (imports, caches,
/// connections) is no leak.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Growth {
    first: (u64, u64),
    last: (u64, u64),
}

/// Requests that a worker has answered before it is looked at.
const WARM_AFTER: u64 = 20;

/// Fewer requests between two looks say nothing of a slope.
const TELLING: u64 = 100;

/// All workers of a generation, also those that are gone.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Grown {
    bytes: i64,
    requests: u64,
}

impl Growth {
    /// A look would show something new: the worker has answered requests since the one before, and is warm.
    pub fn is_due(seen: Option<Growth>, requests: u64) -> bool {
        seen.map_or(requests >= WARM_AFTER, |growth| growth.last.1 != requests)
    }

    /// A look at a worker: so many bytes resident, so many requests answered.
    pub fn look(seen: Option<Growth>, bytes: u64, requests: u64) -> Option<Growth> {
        let now = (bytes, requests);
        match seen {
            Some(growth) => Some(Growth { last: now, ..growth }),
            None => (requests >= WARM_AFTER).then_some(Growth { first: now, last: now }),
        }
    }
}

impl Grown {
    pub fn add(&mut self, growth: Growth) {
        let bytes = (growth.last.0 as i64).saturating_sub(growth.first.0 as i64);
        self.bytes = self.bytes.saturating_add(bytes);
        self.requests = self.requests.saturating_add(growth.last.1.saturating_sub(growth.first.1));
    }

    pub fn bytes_per_1000(self) -> Option<i64> {
        (self.requests >= TELLING).then(|| (i128::from(self.bytes) * 1000 / i128::from(self.requests)) as i64)
    }
}

impl Entry {
    pub fn to_line(&self) -> String {
        json::value(self).to_string()
    }

    /// None: it is torn, or of a kind that a later version writes.
    pub fn from_line(line: &str) -> Option<Entry> {
        json::read(line.as_bytes()).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_read_back_and_a_torn_one_is_not() {
        let deploy = Deploy { generation: Some(GenerationId(3)), result: "committed".to_owned(), ..Deploy::default() };
        let entries = [Entry::Deploy(Box::new(deploy)), Entry::Served(Box::default())];
        for entry in entries {
            let line = entry.to_line();
            assert!(!line.contains('\n'));
            assert_eq!(Entry::from_line(&line), Some(entry));
            assert_eq!((0..line.len()).find_map(|end| Entry::from_line(&line[..end])), None);
        }
        // Of another version.
        assert!(Entry::from_line(r#"{"what":"deploy","result":"refused","who_knows":1}"#).is_some());
        assert_eq!(Entry::from_line(r#"{"what":"canary"}"#), None);
    }

    #[test]
    fn a_release_that_was_rolled_back_from_is_known_until_it_is_deployed_again() {
        let deploy = |master, release: &str, asked: &str, back: Option<u32>, result: &str| {
            let (release, asked, result) = (release.into(), asked.to_owned(), result.to_owned());
            let deploy = Deploy { master, release, asked, back: back.map(GenerationId), result, ..Deploy::default() };
            Entry::Deploy(Box::new(deploy))
        };
        let committed = |master, release: &str, asked: &str, back| deploy(master, release, asked, back, "committed");
        let from = |entries: &[Entry], release: &str| {
            rolled_back_from(entries, Path::new(release)).map(|deploy| deploy.release.display().to_string())
        };
        let mut entries = vec![
            committed(7, "/1", "start", None),
            committed(7, "/2", "uid=0 pid=1: reload", None),
            // Of a service that shares the file.
            committed(8, "/other", "start", None),
            deploy(7, "/1", "uid=0 pid=2: rollback", Some(1), "refused"),
        ];
        assert_eq!(from(&entries, "/2"), None);
        entries.push(committed(7, "/1", "uid=0 pid=3: rollback", Some(1)));
        assert_eq!(
            (from(&entries, "/2"), from(&entries, "/1"), from(&entries, "/other")),
            (Some("/1".into()), None, None)
        );
        // A start from it, and other deploys, change nothing.
        entries.push(committed(9, "/2", "start", None));
        entries.push(committed(9, "/3", "uid=0 pid=4: reload", None));
        assert_eq!(from(&entries, "/2"), Some("/1".into()));
        // Back to it, or by force.
        let mut back = entries.clone();
        back.push(committed(9, "/2", "uid=0 pid=5: rollback --to 2", Some(2)));
        assert_eq!((from(&back, "/2"), from(&back, "/3")), (None, Some("/2".into())));
        entries.push(committed(9, "/2", "uid=0 pid=5: reload --force", None));
        assert_eq!(from(&entries, "/2"), None);
    }

    #[test]
    fn counts_that_cannot_be_are_added_up_all_the_same() {
        let lies = Counted { buckets: [u64::MAX; forkmaster_wire::histogram::BUCKETS], sum_ns: u64::MAX };
        assert!(quantile_ms(&lies, 0.99).is_some());
        let mut grown = Grown::default();
        for _ in 0..3 {
            grown.add(Growth { first: (0, 0), last: (u64::MAX / 2, u64::MAX) });
        }
        assert!(grown.bytes_per_1000().is_some());
    }

    #[test]
    fn quantiles_are_the_upper_bounds_of_their_buckets() {
        let mut latency = Counted::default();
        assert_eq!(quantile_ms(&latency, 0.5), None);
        // Two buckets that lie far apart.
        (latency.buckets[4], latency.buckets[40]) = (98, 2);
        let bound = |bucket| upper_micros(bucket).map(|micros| micros as f64 / 1000.0);
        assert_eq!((quantile_ms(&latency, 0.5), quantile_ms(&latency, 0.99)), (bound(4), bound(40)));
    }

    #[test]
    fn growth_is_counted_from_a_warm_worker_on() {
        let mut growth = None;
        for (bytes, requests) in [(10_000_000, 0), (30_000_000, 19), (50_000_000, 20), (50_300_000, 320)] {
            assert_eq!(Growth::is_due(growth, requests), requests >= 20);
            growth = Growth::look(growth, bytes, requests);
            assert!(!Growth::is_due(growth, requests));
        }
        let mut grown = Grown::default();
        grown.add(growth.unwrap());
        assert_eq!(grown.bytes_per_1000(), Some(1_000_000));
        // Another one shrank.
        grown.add(Growth { first: (50_000_000, 20), last: (49_700_000, 320) });
        assert_eq!(grown.bytes_per_1000(), Some(0));
        assert_eq!(Grown { bytes: 1 << 40, requests: TELLING - 1 }.bytes_per_1000(), None);
    }
}
