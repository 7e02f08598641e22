//! What `forkmaster dev` shows in a browser: the traceback of a release that was refused, in place of one answer. The
//! old code goes on serving, and whoever saved a broken file may be looking at a page and not at the terminal.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

use forkmaster_http::serve::Exchange;

/// The refusal that the next page shows.
#[derive(Default)]
pub struct Refusal {
    /// To be looked at without the lock, for each request.
    is_there: AtomicBool,
    text: Mutex<Option<String>>,
}

impl Refusal {
    pub fn set(&self, text: String) {
        *self.text.lock().unwrap_or_else(PoisonError::into_inner) = Some(text);
        self.is_there.store(true, Ordering::Release);
    }

    /// The page, if there is a refusal to be shown and whoever asks is a browser that wants a page. Once.
    pub fn page_for(&self, exchange: &Exchange) -> Option<String> {
        if !self.is_there.load(Ordering::Acquire) || !wants_page(exchange.fields()) {
            return None;
        }
        self.is_there.store(false, Ordering::Release);
        let text = self.text.lock().unwrap_or_else(PoisonError::into_inner).take()?;
        Some(page(&text))
    }
}

/// Scripts ask for JSON, images and anything (`*/*`); they would not know what to do with a page.
fn wants_page<'a>(mut fields: impl Iterator<Item = (&'a [u8], &'a [u8])>) -> bool {
    fields.any(|(name, value)| {
        name.eq_ignore_ascii_case(b"accept") && value.windows(9).any(|part| part.eq_ignore_ascii_case(b"text/html"))
    })
}

/// It refers to nothing, so that it looks the same without a network.
fn page(text: &str) -> String {
    let first = escaped(text.lines().next().unwrap_or_default());
    format!(
        "<!doctype html><html lang=\"en\"><meta charset=\"utf-8\"><title>{first}</title>\
         <meta name=\"viewport\" content=\"width=device-width\"><style>:root{{color-scheme:light dark}}\
         body{{font:16px/1.5 system-ui,sans-serif;margin:2rem auto;max-width:60rem;padding:0 1rem}}\
         h1{{font-size:1.25rem}}pre{{overflow:auto;padding:1rem;border:1px solid GrayText;border-radius:4px;\
         font:14px/1.4 ui-monospace,monospace}}</style>\
         <h1>The new code was refused</h1><pre>{}</pre>\
         <p>The code from before goes on serving. Save a mended file, or reload this page to see the old code.</p>\n",
        escaped(text)
    )
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_browsers_get_the_page() {
        let asks = |value: &'static str| wants_page([(&b"Accept"[..], value.as_bytes())].into_iter());
        assert!(asks("text/html,application/xhtml+xml,*/*;q=0.8") && asks("TEXT/HTML"));
        assert!(
            !asks("*/*") && !asks("application/json") && !wants_page([(&b"Host"[..], &b"text/html"[..])].into_iter())
        );
    }

    #[test]
    fn what_the_application_says_is_text_and_no_markup() {
        let page = page("SyntaxError: <script>\n  File \"a&b.py\"");
        assert!(page.contains("<title>SyntaxError: &lt;script&gt;</title>") && page.contains("&quot;a&amp;b.py&quot;"));
        assert!(!page.contains("<script") && !page.contains("http"));
    }
}
