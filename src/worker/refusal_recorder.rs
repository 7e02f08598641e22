//! What of a request that the application never saw goes into its line of the access log: with `[log] access_refused`, and
//! during a maintenance. The loop has answered it, so nothing here knows Python; `wsgi::access_recorder` does the same for requests
//! that the application has answered.

use std::sync::Arc;

use forkmaster_http::serve::{Refused, Version, Why};

use crate::access::{begin, value, AccessLog, Facts, How, Wanted};
use crate::wsgi::environ::Common;

pub struct RefusalRecorder {
    log: Arc<AccessLog>,
    /// Who is believed about where a request comes from.
    common: Arc<Common>,
}

impl RefusalRecorder {
    pub fn new(log: Arc<AccessLog>, common: Arc<Common>) -> RefusalRecorder {
        RefusalRecorder { log, common }
    }

    pub fn note(&self, refused: &Refused<'_>, record: &mut Vec<u8>) {
        let wants = match refused.why {
            Why::Unfit => self.log.wants_refused(refused.path(), refused.status),
            // Its client would have been answered, and whoever counts requests counts it too.
            Why::Maintenance => self.log.wants(refused.path(), refused.status),
        };
        if !wants {
            return;
        }
        let line = refused.first_line();
        let facts = Facts {
            // These are known at the end.
            at_ms: 0,
            took_us: 0,
            bytes: 0,
            how: How::Refused,
            queued_us: u64::try_from(refused.waited.as_micros()).unwrap_or(u64::MAX),
            status: refused.status,
            is_http10: line.version == Version::Http10,
            client: self.common.client(refused.peer, || refused.fields()),
        };
        begin(record, &facts, line.method, line.target);
        for wanted in self.log.wanted() {
            match wanted {
                Wanted::RequestId => value(record, refused.id.into_iter()),
                Wanted::RequestHeader(name) => {
                    let is_it = |(known, _): &(&[u8], &[u8])| known.eq_ignore_ascii_case(name.as_bytes());
                    value(record, refused.fields().filter(is_it).map(|(_, value)| value));
                }
                // There is no environ, and an answer of ours has no field that anybody asks for.
                Wanted::ResponseHeader(_) | Wanted::Environ(_) => value(record, std::iter::empty()),
            }
        }
    }
}
