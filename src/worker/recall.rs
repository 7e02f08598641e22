//! What this worker has answered of late, for the rehearsal of the next release: the latest requests, each once, with the
//! status of its answer. Only where `[reload] rehearse` is set; a table that is allocated at boot. Noting a request allocates
//! nothing and never waits.
//!
//! Kept is what the next release can answer in the same way without being anybody: GETs without a body whose fields say
//! nothing of who asks or what they have already. Never kept: cookies, credentials, client addresses.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use forkmaster_wire::rehearsal::{as_fit, is_kept, is_plain, Remember, Remembered, REQUEST_BYTES_MAX};

pub struct Recall {
    took_max: Duration,
    table: Mutex<Table>,
}

/// Entries of one index belong together. Looking for a hash goes through 8 bytes a request, which takes less than a
/// microsecond for the largest table.
struct Table {
    hashes: Box<[u64]>,
    /// When it was last so; None: free.
    used: Box<[Option<Instant>]>,
    entries: Box<[Entry]>,
}

#[derive(Clone)]
struct Entry {
    status: u16,
    https: bool,
    forwarded_proto: bool,
    target: u16,
    host: u16,
    forwarded_host: u16,
    /// Target, host and forwarded host, one behind the other.
    text: [u8; REQUEST_BYTES_MAX],
}

/// A request that was answered.
pub struct Seen<'a, F> {
    pub target: &'a [u8],
    /// All its fields, from the first, as often as asked.
    pub fields: F,
    pub status: u16,
    pub took: Duration,
    pub at: Instant,
}

impl Recall {
    pub fn new(remember: &Remember) -> Recall {
        let requests = remember.requests as usize;
        let entry = Entry {
            status: 0,
            https: false,
            forwarded_proto: false,
            target: 0,
            host: 0,
            forwarded_host: 0,
            text: [0; REQUEST_BYTES_MAX],
        };
        let table = Table {
            hashes: vec![0; requests].into(),
            used: vec![None; requests].into(),
            entries: vec![entry; requests].into(),
        };
        Recall { took_max: Duration::from_millis(remember.took_ms_max), table: Mutex::new(table) }
    }

    /// A GET without a body. `is_https` is asked only where the request is new.
    pub fn note<'a, I, F>(&self, seen: &Seen<'a, F>, is_https: impl FnOnce() -> bool)
    where
        I: Iterator<Item = (&'a [u8], &'a [u8])>,
        F: Fn() -> I,
    {
        let Seen { target, fields, status, took, at } = seen;
        if !is_kept(*status) || *took > self.took_max || !target.starts_with(b"/") {
            return;
        }
        let field = |wanted: &str| {
            fields().find(|(name, _)| name.eq_ignore_ascii_case(wanted.as_bytes())).map(|(_, value)| value)
        };
        let Some(host) = field("host").filter(|host| !host.is_empty()) else { return };
        let mut hasher = DefaultHasher::new();
        (target, host).hash(&mut hasher);
        let hash = hasher.finish();
        // Whoever has it writes a message to the master: this request comes again, or is none of the latest.
        let Ok(mut table) = self.table.try_lock() else { return };
        let known = table.find(hash, target, host);
        if let Some(known) = known.filter(|known| table.entries[*known].status == *status) {
            table.used[known] = Some(*at);
            return;
        }
        if !fields().all(|(name, _)| is_nobodys(name)) {
            return;
        }
        let forwarded_host = field("x-forwarded-host").unwrap_or_default();
        if target.len() + host.len() + forwarded_host.len() > REQUEST_BYTES_MAX
            || ![*target, host, forwarded_host].into_iter().all(is_plain)
        {
            return;
        }
        let place = known.unwrap_or_else(|| table.oldest());
        let Some(entry) = table.entries.get_mut(place) else { return };
        (entry.status, entry.https, entry.forwarded_proto) =
            (*status, is_https(), field("x-forwarded-proto").is_some());
        // Each is at most REQUEST_BYTES_MAX.
        (entry.target, entry.host) = (target.len() as u16, host.len() as u16);
        entry.forwarded_host = forwarded_host.len() as u16;
        let mut from = 0;
        for part in [*target, host, forwarded_host] {
            entry.text[from..from + part.len()].copy_from_slice(part);
            from += part.len();
        }
        (table.hashes[place], table.used[place]) = (hash, Some(*at));
    }

    /// The latest first, as many as are asked for and fit into a message, without the first `skip`; and whether some did not fit.
    /// Meanwhile requests may have been answered: then one comes twice, which is no harm.
    pub fn latest(&self, requests: u32, skip: u32, now: Instant) -> (Vec<Remembered>, bool) {
        let table = self.table.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let places = table.used.iter().enumerate().filter_map(|(place, used)| used.map(|used| (used, place)));
        let mut latest: Vec<(Instant, usize)> = places.collect();
        latest.sort_by(|one, other| other.cmp(one));
        let asked = latest.len().min(requests as usize).saturating_sub(skip as usize);
        let told = latest.into_iter().take(requests as usize).skip(skip as usize).map(|(used, place)| {
            let age_us = now.saturating_duration_since(used).as_micros();
            table.entries[place].told(u64::try_from(age_us).unwrap_or(u64::MAX))
        });
        let told = as_fit(told);
        let more = told.len() < asked;
        (told, more)
    }
}

impl Table {
    fn find(&self, hash: u64, target: &[u8], host: &[u8]) -> Option<usize> {
        let is_it = |place: &usize| {
            let (entry, used) = (&self.entries[*place], self.used[*place]);
            used.is_some() && entry.parts()[..2] == [target, host]
        };
        let places = self.hashes.iter().enumerate().filter(|(_, known)| **known == hash).map(|(place, _)| place);
        places.into_iter().find(is_it)
    }

    /// The place for a new one: a free one, or of what is the longest ago.
    fn oldest(&self) -> usize {
        let oldest = self.used.iter().enumerate().min_by_key(|(_, used)| **used);
        oldest.map_or(0, |(place, _)| place)
    }
}

impl Entry {
    fn parts(&self) -> [&[u8]; 3] {
        let (target, rest) = self.text.split_at(self.target.into());
        let (host, rest) = rest.split_at(self.host.into());
        [target, host, &rest[..self.forwarded_host.into()]]
    }

    fn told(&self, age_us: u64) -> Remembered {
        let [target, host, forwarded_host] = self.parts().map(|part| String::from_utf8_lossy(part).into_owned());
        let forwarded_host = Some(forwarded_host).filter(|host| !host.is_empty());
        let Entry { status, https, forwarded_proto, .. } = *self;
        Remembered { target, host, https, forwarded_proto, forwarded_host, status, age_us }
    }
}

/// Names longer than this are nobody's invention that we know.
const NAME_BYTES_MAX: usize = 64;

/// Fields by which a client says who it is, or what it has already: an answer to them is not an answer to everybody. Names
/// differ (`X-Api-Key`, `X-Auth-Request-Email`, `X-Amzn-Oidc-Data`), so words in them count.
const SAYS_WHO: [&str; 20] = [
    "cookie",
    "auth",
    "token",
    "key",
    "secret",
    "session",
    "credential",
    "password",
    "user",
    "login",
    "account",
    "identity",
    "csrf",
    "xsrf",
    "jwt",
    "oidc",
    "assertion",
    "signature",
    "cert",
    "email",
];

/// And by which a proxy or a script asks for something else than the target says.
const SAYS_WHAT: [&str; 5] = ["range", "prefix", "script", "x-requested-with", "upgrade"];

/// Whether a field says nothing of who asks. Browsers set `User-Agent` and `Sec-...` for everybody, and
/// `Upgrade-Insecure-Requests` with each page.
fn is_nobodys(name: &[u8]) -> bool {
    let mut lower = [0; NAME_BYTES_MAX];
    let Some(lower) = lower.get_mut(..name.len()) else { return false };
    lower.copy_from_slice(name);
    lower.make_ascii_lowercase();
    let lower = &*lower;
    if matches!(lower, b"user-agent" | b"upgrade-insecure-requests") || lower.starts_with(b"sec-fetch-") {
        return true;
    }
    let has = |word: &&str| lower.windows(word.len()).any(|window| window == word.as_bytes());
    // Conditional requests (RFC 9110 section 13): 304 is an answer to who has it already.
    !lower.starts_with(b"if-") && !SAYS_WHO.iter().any(&has) && !SAYS_WHAT.iter().any(has)
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOST: (&str, &str) = ("Host", "shop.example");

    fn recall(requests: u32) -> (Recall, Instant) {
        (Recall::new(&Remember { requests, took_ms_max: 1000 }), Instant::now())
    }

    fn note_with(recall: &Recall, target: &str, fields: &[(&str, &str)], status: u16, at: Instant) {
        let fields = || fields.iter().map(|(name, value)| (name.as_bytes(), value.as_bytes()));
        let took = Duration::from_millis(1);
        recall.note(&Seen { target: target.as_bytes(), fields, status, took, at }, || true);
    }

    fn note(recall: &Recall, target: &str, status: u16, at: Instant) {
        note_with(recall, target, &[HOST, ("User-Agent", "x"), ("Accept", "*/*")], status, at);
    }

    fn known(recall: &Recall, now: Instant) -> Vec<(String, u16)> {
        recall.latest(100, 0, now).0.into_iter().map(|request| (request.target, request.status)).collect()
    }

    fn list(known: &[(&str, u16)]) -> Vec<(String, u16)> {
        known.iter().map(|(target, status)| ((*target).to_owned(), *status)).collect()
    }

    #[test]
    fn the_latest_requests_are_kept_each_once() {
        let (recall, began) = recall(3);
        let at = |ms: u64| began + Duration::from_millis(ms);
        for (time, target) in [(1, "/a"), (2, "/b?x=1"), (3, "/c"), (4, "/a"), (5, "/d")] {
            note(&recall, target, 200, at(time));
        }
        assert_eq!(known(&recall, at(9)), list(&[("/d", 200), ("/a", 200), ("/c", 200)]));
        note(&recall, "/c", 404, at(6));
        assert_eq!(known(&recall, at(9)), list(&[("/c", 404), ("/d", 200), ("/a", 200)]));
        let latest = recall.latest(1, 0, at(9)).0;
        assert_eq!(
            (latest.len(), latest[0].age_us, latest[0].host.as_str(), latest[0].https),
            (1, 3000, "shop.example", true)
        );
        note_with(&recall, "/c", &[("Host", "other.example")], 200, at(7));
        assert_eq!(known(&recall, at(9)), list(&[("/c", 200), ("/c", 404), ("/d", 200)]));
    }

    #[test]
    fn requests_of_somebody_are_not_kept() {
        let (recall, now) = recall(3);
        for field in [
            "Cookie",
            "authorization",
            "Proxy-Authorization",
            "X-Api-Key",
            "X-CSRFToken",
            "X-Auth-Request-Email",
            "X-Forwarded-User",
            "X-Amzn-Oidc-Data",
            "X-Client-Cert",
            "If-None-Match",
            "If-Modified-Since",
            "Range",
            "X-Forwarded-Prefix",
            "SCRIPT_NAME",
            "X-Requested-With",
            "Upgrade",
            "Sec-WebSocket-Key",
        ] {
            note_with(&recall, "/", &[HOST, (field, "1")], 200, now);
            assert_eq!(known(&recall, now), [], "{field}");
        }
        let long = "x".repeat(NAME_BYTES_MAX + 1);
        note_with(&recall, "/", &[HOST, (&long, "1")], 200, now);
        assert_eq!(known(&recall, now), []);
        let usual = [
            HOST,
            ("User-Agent", "x"),
            ("Sec-Fetch-User", "?1"),
            ("Upgrade-Insecure-Requests", "1"),
            ("Keep-Alive", "1"),
            ("X-Forwarded-For", "1"),
            ("X-Forwarded-Proto", "https"),
            ("X-Request-Id", "1"),
            ("CF-Connecting-IP", "1"),
            ("X-Forwarded-Host", "front.example"),
            ("Accept-Encoding", "gzip"),
            ("Traceparent", "1"),
        ];
        note_with(&recall, "/", &usual, 200, now);
        let latest = recall.latest(9, 0, now).0;
        assert_eq!(latest.len(), 1);
        assert_eq!((latest[0].forwarded_proto, latest[0].forwarded_host.as_deref()), (true, Some("front.example")));
        // Whoever is somebody changes nothing of what is known.
        note_with(&recall, "/", &[HOST, ("Cookie", "1")], 302, now);
        assert_eq!(known(&recall, now), list(&[("/", 200)]));
    }

    #[test]
    fn what_cannot_be_asked_again_is_not_kept() {
        let (recall, now) = recall(3);
        let long = format!("/{}", "x".repeat(REQUEST_BYTES_MAX));
        for (target, fields, status) in [
            ("/", &[HOST][..], 500),
            ("/", &[HOST], 0),
            ("/", &[], 200),
            ("/", &[("Host", "")], 200),
            ("http://shop.example/", &[HOST], 200),
            ("*", &[HOST], 200),
            ("/\u{e4}", &[HOST], 200),
            (&long, &[HOST], 200),
        ] {
            note_with(&recall, target, fields, status, now);
            assert_eq!(known(&recall, now), [], "{target} {fields:?} {status}");
        }
        let fields = || [(&b"Host"[..], &b"h"[..])].into_iter();
        let took = Duration::from_millis(1001);
        recall.note(&Seen { target: b"/slow", fields, status: 200, took, at: now }, || false);
        assert_eq!(known(&recall, now), []);
    }

    #[test]
    fn a_message_is_bounded_whatever_was_asked() {
        let (recall, now) = recall(forkmaster_wire::rehearsal::REQUESTS_MAX);
        for number in 0..forkmaster_wire::rehearsal::REQUESTS_MAX {
            note(&recall, &format!("/{number}/{}", "\\".repeat(400)), 200, now + Duration::from_millis(number.into()));
        }
        let (latest, more) = recall.latest(500, 0, now);
        assert!((40..60).contains(&latest.len()) && latest[0].target.starts_with("/499/"), "{}", latest.len());
        assert!(more && latest.iter().all(Remembered::is_sound));
        // The others come when they are asked for.
        let mut all = latest;
        while all.len() < 500 {
            let (next, more) = recall.latest(500, all.len() as u32, now);
            all.extend(next);
            assert_eq!(more, all.len() < 500);
        }
        assert!(all.iter().enumerate().all(|(at, one)| one.target.starts_with(&format!("/{}/", 499 - at))));
        assert_eq!(recall.latest(400, 399, now).0.len(), 1);
        assert_eq!(recall.latest(400, 500, now), (Vec::new(), false));
    }
}
