//! The page that clients are shown during a maintenance: a text file of moderate size, read once. What it says is nobody's
//! matter here.

use std::path::Path;

use forkmaster_wire::message::Page;

use crate::config;

/// Each worker has a copy, and so has each client that takes it slowly.
const PAGE_BYTES_MAX: usize = 256 * 1024;

const HTML: &str = "text/html; charset=utf-8";

/// By the suffix of the name; the text is UTF-8.
const CONTENT_TYPES: [(&str, &str); 6] = [
    ("html", HTML),
    ("htm", HTML),
    ("txt", "text/plain; charset=utf-8"),
    ("json", "application/json"),
    ("xml", "application/xml"),
    ("md", "text/markdown; charset=utf-8"),
];

pub fn read(path: &Path) -> Result<Page, String> {
    let failed = |reason: String| format!("the page cannot be read: {reason}");
    let (body, _) = config::file::read_text(path).map_err(failed)?;
    if body.len() > PAGE_BYTES_MAX {
        return Err(failed(format!("{} is larger than {} KiB", path.display(), PAGE_BYTES_MAX / 1024)));
    }
    Ok(Page { content_type: content_type(path).to_owned(), body })
}

fn content_type(path: &Path) -> &'static str {
    let suffix = path.extension().and_then(|suffix| suffix.to_str()).unwrap_or_default();
    let known = CONTENT_TYPES.iter().find(|(known, _)| suffix.eq_ignore_ascii_case(known));
    known.map_or(HTML, |(_, content_type)| content_type)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_is_a_regular_file_of_text_that_is_not_too_large() {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        std::fs::write(at("back-soon.JSON"), "{}").unwrap();
        let page = read(&at("back-soon.JSON")).unwrap();
        assert_eq!((page.content_type.as_str(), page.body.as_str()), ("application/json", "{}"));
        std::fs::write(at("503"), "<p>").unwrap();
        assert_eq!(read(&at("503")).unwrap().content_type, HTML);
        std::fs::write(at("large.html"), "x".repeat(PAGE_BYTES_MAX + 1)).unwrap();
        std::fs::write(at("latin.html"), b"\xe4").unwrap();
        nix::unistd::mkfifo(&at("fifo.html"), nix::sys::stat::Mode::from_bits_truncate(0o600)).unwrap();
        let cases = [
            ("large.html", "large.html is larger than 256 KiB"),
            ("latin.html", "latin.html is not UTF-8"),
            ("fifo.html", "fifo.html is not a regular file"),
            ("", "is not a regular file"),
            ("none.html", "none.html"),
        ];
        for (name, words) in cases {
            let reason = read(&at(name)).unwrap_err();
            assert!(reason.starts_with("the page cannot be read: ") && reason.contains(words), "{reason}");
        }
    }
}
