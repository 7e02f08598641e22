//! A maintenance: the service is paused, and clients are answered with 503 at once rather than held. The loop answers, before
//! Python and whatever a thread is at. What was begun before is finished; the application gets nothing new.

use std::sync::Arc;

use crate::proto::refusal;
use crate::proto::response::Asked;
use crate::proto::Version;
use crate::serve::base::observers::How;
use crate::serve::base::refused::Why;
use crate::serve::conn::answer::After;
use crate::serve::conn::answering::split_id;
use crate::serve::conn::request::Request;

use super::table::SlotState;
use super::EventLoop;

/// What clients are shown.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Page {
    pub content_type: Vec<u8>,
    pub body: Vec<u8>,
}

impl Page {
    fn plain() -> Page {
        let refusal::Refusal { status, reason, .. } = refusal::MAINTENANCE;
        let body = format!("{}: {reason}\n", refusal::phrase(status)).into_bytes();
        Page { content_type: b"text/plain; charset=utf-8".to_vec(), body }
    }
}

impl EventLoop {
    /// None: a line of text.
    pub(super) fn set_page(&mut self, page: Option<Arc<Page>>) {
        self.page = page.unwrap_or_else(|| Arc::new(Page::plain()));
    }

    /// Bodies that were coming when it began are not waited for: their requests would be turned away at their end.
    pub(super) fn turn_bodies_away(&mut self) {
        for index in 0..self.table.slots() {
            let Some(request) = self.take_waiting(index) else { continue };
            if self.table.slot(index).reader.awaits_body() && !request.body.is_away() {
                self.refuse_later(request, refusal::MAINTENANCE);
            } else {
                self.table.slot(index).state = SlotState::Waiting(request);
            }
        }
    }

    /// Answers a request that came during the maintenance, and closes. One with a body is answered when its head is there: what
    /// its client still sends is read and dropped for a while, so that it sees the answer.
    #[cold]
    pub(super) fn turn_away(&mut self, mut request: Box<Request>) {
        if request.is_complete() && self.asks_for_health(&request) {
            return self.answer_health(request);
        }
        let index = request.token.index;
        self.timers.clear(index);
        let page = Arc::clone(&self.page);
        let status = refusal::MAINTENANCE.status;
        let head = self.table.slot(index).reader.asks_for_head(&request);
        let asked = Asked { version: Version::Http11, head, keep_alive: false };
        let id = self.id_of(&request);
        let line = self.id_line(id.as_deref());
        let retry_after = Some(refusal::MAINTENANCE_RETRY_AFTER_S);
        let (content_type, bytes) = (&page.content_type[..], page.body.len());
        let has_body = request.answer.close_with(status, content_type, retry_after, bytes, asked, split_id(&line));
        let body = if has_body { &page.body[..] } else { b"" };
        self.tell_refused(&mut request, Why::Maintenance, status, id.as_deref());
        request.answer.sent = body.len() as u64;
        request.answer.how = How::Refused;
        // What became of it `settle` sees as well.
        let _sent = request.write_half.send(&[request.answer.head.bytes(), body], &self.shared.rules.temp);
        let sends_on = request.head.keep_alive || !request.is_complete();
        request.answer.after = if sends_on { After::Linger } else { After::Close };
        self.settle(request);
    }

    /// The field with which a proxy of ours, if it named the request, finds its answer.
    fn id_line(&self, id: Option<&str>) -> Vec<u8> {
        let name = self.shared.rules.settings.request_id_header.as_deref();
        id.zip(name).map_or_else(Vec::new, |(id, name)| format!("{name}: {id}").into_bytes())
    }
}
