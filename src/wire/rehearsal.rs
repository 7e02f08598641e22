//! A request that a worker has answered, as its master hands it to the candidate of the next release, which is to answer it
//! too: what is kept of a request, within which bounds, and what is believed of one that comes back from a worker. Never a
//! cookie, a credential, a body, or another method than GET.

use serde::{Deserialize, Serialize};

/// Of target, host and forwarded host together. Longer requests are left out: they are searches and signatures, of which no
/// two are the same.
pub const REQUEST_BYTES_MAX: usize = 448;

/// How many requests a rehearsal has at most: each is answered alone, and each worker keeps so many.
pub const REQUESTS_MAX: u32 = 500;

/// What the requests of one message may take as JSON: it has to fit into a packet (`channel::PACKET_BYTES_MAX`). Three
/// hundred usual ones do; the master asks for the rest.
pub const MESSAGE_BYTES_MAX: usize = 48 * 1024;

/// What a worker must know to keep requests.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Remember {
    pub requests: u32,
    /// Answers that took longer are left out.
    pub took_ms_max: u64,
}

/// A GET without a body, and the status of its answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Remembered {
    /// Path and query, as they were sent.
    pub target: String,
    /// The field `Host`, as it was sent.
    pub host: String,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub https: bool,
    /// There was an `X-Forwarded-Proto`, which the application may read itself.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub forwarded_proto: bool,
    /// The field `X-Forwarded-Host`, as it was sent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub forwarded_host: Option<String>,
    pub status: u16,
    /// For how long it has been so.
    pub age_us: u64,
}

impl Remembered {
    /// A worker runs the application, which may write what it likes into the channel: what is sent on, and printed, is
    /// bounded and plain.
    pub fn is_sound(&self) -> bool {
        let Remembered { target, host, forwarded_host, status, .. } = self;
        let forwarded_host = forwarded_host.as_deref().unwrap_or_default();
        target.starts_with('/')
            && !host.is_empty()
            && target.len() + host.len() + forwarded_host.len() <= REQUEST_BYTES_MAX
            && [target, host, forwarded_host].iter().all(|text| is_plain(text.as_bytes()))
            && is_kept(*status)
    }

    /// For logs and people. What stands in a query may be a secret: a token, an address.
    pub fn shown(&self) -> String {
        match self.target.split_once('?') {
            Some((path, _)) => format!("{path}?..."),
            None => self.target.clone(),
        }
    }
}

/// No blank, no control character, nothing that needs an escape.
pub fn is_plain(text: &[u8]) -> bool {
    text.iter().all(u8::is_ascii_graphic)
}

/// A 5xx is nothing that a release could be held to, and 1xx are no answers.
pub fn is_kept(status: u16) -> bool {
    (200..500).contains(&status)
}

/// The first of these, as many as fit into a message.
pub fn as_fit(requests: impl Iterator<Item = Remembered>) -> Vec<Remembered> {
    let mut room = MESSAGE_BYTES_MAX;
    let fits = |request: &Remembered| {
        let bytes = serde_json::to_string(request).map_or(usize::MAX, |text| text.len() + 1);
        room.checked_sub(bytes).map(|rest| room = rest).is_some()
    };
    requests.take_while(fits).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::channel::PACKET_BYTES_MAX;
    use crate::message::FromWorker;

    fn request(target: &str, host: &str, status: u16) -> Remembered {
        let (target, host) = (target.to_owned(), host.to_owned());
        let (https, forwarded_proto, forwarded_host) = (false, false, None);
        Remembered { target, host, https, forwarded_proto, forwarded_host, status, age_us: 0 }
    }

    #[test]
    fn what_is_too_long_or_not_plain_is_not_believed() {
        assert!(request("/a?b=%20", "shop.example:8000", 200).is_sound());
        for (target, host, status) in [
            ("a", "h", 200),
            ("http://h/", "h", 200),
            ("/", "", 200),
            ("/a b", "h", 200),
            ("/a\n", "h", 200),
            ("/\u{e4}", "h", 200),
            ("/", "h h", 200),
            ("/", "h", 500),
            ("/", "h", 199),
            ("/", "h", 0),
        ] {
            assert!(!request(target, host, status).is_sound(), "{target:?} {host:?} {status}");
        }
        let long = format!("/{}", "x".repeat(REQUEST_BYTES_MAX - 2));
        assert!(request(&long, "h", 200).is_sound() && !request(&long, "hh", 200).is_sound());
        let forwarded = |host: &str| Remembered { forwarded_host: Some(host.to_owned()), ..request("/", "h", 200) };
        assert!(forwarded("shop.example").is_sound() && !forwarded("a\r\nb").is_sound());
    }

    #[test]
    fn a_query_is_not_shown() {
        assert_eq!(request("/reset?token=secret", "h", 200).shown(), "/reset?...");
        assert_eq!(request("/reports", "h", 200).shown(), "/reports");
    }

    /// What the largest message takes beside its requests.
    #[test]
    fn a_full_message_fits_into_a_packet() {
        // JSON escapes two of the plain characters.
        let worst = Remembered { forwarded_host: Some("\\".repeat(200)), ..request("/\\\\", "\"", 200) };
        let message = FromWorker::Remembered { requests: as_fit(std::iter::repeat_n(worst, 500)), more: true };
        let bytes = serde_json::to_string(&message).unwrap().len();
        assert!((MESSAGE_BYTES_MAX - 1024..PACKET_BYTES_MAX).contains(&bytes), "{bytes}");
    }
}
