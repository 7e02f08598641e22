//! The answers of a rehearsal beside those that the old generation gave: which requests are worth asking again, what counts
//! as "as before", and the sentence that an operator reads. Plain functions of what was told; nothing here asks or waits.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use forkmaster_wire::rehearsal::Remembered;
use forkmaster_wire::text::cut_text;

/// So many differences are told one by one; the others are counted.
const TOLD_MAX: usize = 5;

/// Whether a release answers as well as the one before it. The numbers of one class are as good as each other: 200 and 204,
/// 301 and 302. What was a page and is none any more is a difference, also where a redirect stands in its place; what was not
/// there (404) and is there now is none. Who was refused (401, 403), or sent elsewhere (302 to a login), and is let in now is
/// a difference, too. What failed before is nothing to hold a release to.
pub fn as_before(before: u16, now: u16) -> bool {
    let (class_before, class_now) = (before / 100, now / 100);
    let lets_in = matches!(before, 401 | 403) && class_now == 2;
    let was_not_there = class_before == 4 && matches!(class_now, 2 | 3) && !lets_in;
    class_before == 5 || class_before == class_now || was_not_there
}

/// What workers remember as one list: so many requests, each once, the latest first. Where workers differ the latest answer
/// counts. What no worker of ours would say is left out.
pub fn merge(told: Vec<Remembered>, requests: u32) -> Vec<Remembered> {
    let mut latest: BTreeMap<(String, String), Remembered> = BTreeMap::new();
    for request in told.into_iter().filter(Remembered::is_sound) {
        let key = (request.target.clone(), request.host.clone());
        match latest.get(&key) {
            Some(known) if known.age_us <= request.age_us => {}
            Some(_) | None => drop(latest.insert(key, request)),
        }
    }
    let mut merged: Vec<Remembered> = latest.into_values().collect();
    merged.sort_unstable_by_key(|request| request.age_us);
    merged.truncate(requests as usize);
    merged
}

/// How the candidate has answered so far.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Answers {
    as_before: usize,
    differences: Vec<Difference>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Difference {
    request: Remembered,
    now: Now,
    details: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Now {
    Status(u16),
    /// `start_response` was not called.
    Nothing,
    /// None came within this time.
    Hangs(Duration),
}

impl Answers {
    pub fn answered(&mut self, request: &Remembered, status: u16, details: String) {
        if as_before(request.status, status) {
            self.as_before += 1;
            return;
        }
        let now = if status == 0 { Now::Nothing } else { Now::Status(status) };
        self.differs(request, now, details);
    }

    pub fn hangs(&mut self, request: &Remembered, limit: Duration, stacks: String) {
        self.differs(request, Now::Hangs(limit), stacks);
    }

    fn differs(&mut self, request: &Remembered, now: Now, details: String) {
        // Those that are not told need none.
        let details = if self.differences.len() < TOLD_MAX { details } else { String::new() };
        self.differences.push(Difference { request: request.clone(), now, details });
    }

    pub fn number(&self) -> usize {
        self.as_before + self.differences.len()
    }

    pub fn are_as_before(&self) -> bool {
        self.differences.is_empty()
    }

    /// What the application said of those that are told, bounded whatever a candidate says.
    pub fn details(&self) -> String {
        let told = self.differences.iter().take(TOLD_MAX).filter(|difference| !difference.details.is_empty());
        let details =
            told.map(|difference| format!("GET {}\n{}", difference.request.shown(), difference.details.trim()));
        cut_text(&details.collect::<Vec<_>>().join("\n"))
    }
}

/// `198 of 200 as before; /reports 200 -> 500, /cart 200 -> 404`
impl fmt::Display for Answers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} of {} as before", self.as_before, self.number())?;
        for (place, difference) in self.differences.iter().take(TOLD_MAX).enumerate() {
            write!(f, "{} {difference}", if place == 0 { ";" } else { "," })?;
        }
        match self.differences.len().saturating_sub(TOLD_MAX) {
            0 => Ok(()),
            more => write!(f, ", and {more} more"),
        }
    }
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} -> ", self.request.shown(), self.request.status)?;
        match self.now {
            Now::Status(status) => write!(f, "{status}"),
            Now::Nothing => f.write_str("no status"),
            Now::Hangs(limit) => write!(f, "no answer within {:.1}s", limit.as_secs_f64()),
        }
    }
}

#[cfg(test)]
mod tests {
    use forkmaster_wire::text::TEXT_BYTES_MAX;

    use super::*;

    fn request(target: &str, status: u16, age_us: u64) -> Remembered {
        let (https, forwarded_proto, forwarded_host) = (false, false, None);
        let (target, host) = (target.to_owned(), "shop.example".to_owned());
        Remembered { target, host, https, forwarded_proto, forwarded_host, status, age_us }
    }

    #[test]
    fn what_is_as_before_and_what_is_not() {
        for (before, now) in [
            (200, 200),
            (200, 204),
            (301, 302),
            (404, 404),
            (404, 410),
            (404, 200),
            (404, 302),
            (400, 200),
            (429, 200),
            (401, 403),
            (403, 302),
            (500, 200),
            (500, 503),
            (503, 404),
        ] {
            assert!(as_before(before, now), "{before} -> {now}");
        }
        for (before, now) in [
            (200, 500),
            (200, 404),
            (200, 302),
            (200, 429),
            (200, 0),
            (302, 200),
            (302, 404),
            (404, 500),
            (404, 0),
            (401, 200),
            (403, 200),
        ] {
            assert!(!as_before(before, now), "{before} -> {now}");
        }
    }

    #[test]
    fn each_request_is_there_once_with_its_latest_answer() {
        let other_host = Remembered { host: "other.example".to_owned(), ..request("/", 302, 60) };
        let told = vec![
            request("/", 200, 50),
            request("/a", 404, 30),
            other_host.clone(),
            request("/", 301, 10),
            request("/", 404, 90),
            request("/b", 200, 20),
        ];
        let merged = merge(told.clone(), 10);
        let expected = vec![request("/", 301, 10), request("/b", 200, 20), request("/a", 404, 30), other_host];
        assert_eq!(merged, expected);
        assert_eq!(merge(told, 2), expected[..2]);
    }

    #[test]
    fn what_no_worker_would_say_is_left_out() {
        let told = vec![request("/", 500, 1), request("no path", 200, 1), request("/good", 200, 1)];
        assert_eq!(merge(told, 10), [request("/good", 200, 1)]);
    }

    #[test]
    fn the_first_differences_are_told_and_the_others_counted() {
        let mut answers = Answers::default();
        for number in 0..198 {
            answers.answered(&request(&format!("/{number}"), 200, 1), 200, String::new());
        }
        assert_eq!(answers.to_string(), "198 of 198 as before");
        assert!(answers.are_as_before());
        answers.answered(&request("/reports?year=2026", 200, 1), 500, "KeyError: 'year'\n".to_owned());
        answers.hangs(&request("/slow", 404, 1), Duration::from_secs(5), "stacks".to_owned());
        assert_eq!(
            answers.to_string(),
            "198 of 200 as before; /reports?... 200 -> 500, /slow 404 -> no answer within 5.0s"
        );
        assert_eq!(answers.details(), "GET /reports?...\nKeyError: 'year'\nGET /slow\nstacks");
        for number in 0..5 {
            answers.answered(&request(&format!("/new{number}"), 200, 1), 0, "more".to_owned());
        }
        let words = answers.to_string();
        assert!(words.ends_with(", /new0 200 -> no status, /new1 200 -> no status, /new2 200 -> no status, and 2 more"));
        assert_eq!((answers.number(), answers.are_as_before()), (205, false));
        assert_eq!(answers.details().matches("more").count(), 3);
        let mut answers = Answers::default();
        for number in 0..5 {
            answers.answered(&request(&format!("/{number}"), 200, 1), 500, "x".repeat(60_000));
        }
        assert!(answers.details().len() <= TEXT_BYTES_MAX + 100, "{}", answers.details().len());
    }
}
