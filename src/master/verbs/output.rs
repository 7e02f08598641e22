//! What a verb prints. A reader that went away or a full disk changes nothing of what was done, so it is no panic and
//! no other exit code: a deploy script must not roll back because `| head` was satisfied.

use std::fmt::Display;
use std::io::{self, Write};
use std::sync::atomic::{AtomicBool, Ordering};

/// The reader of stdout went away.
static CLOSED: AtomicBool = AtomicBool::new(false);

/// For verbs that would otherwise print for ever.
pub fn is_closed() -> bool {
    CLOSED.load(Ordering::Relaxed)
}

/// Prints lines to stdout.
pub fn print(text: impl Display) {
    let mut stdout = io::stdout().lock();
    if let Err(error) = write!(stdout, "{text}").and_then(|()| stdout.flush()) {
        CLOSED.store(true, Ordering::Relaxed);
        // EPIPE: the reader had enough. Anything else is worth a word.
        if error.kind() != io::ErrorKind::BrokenPipe {
            complain(format_args!("stdout cannot be written: {error}"));
        }
    }
}

/// Says on stderr what is wrong.
pub fn complain(text: impl Display) {
    // Where stderr cannot be written either, the exit code still tells.
    let _ = writeln!(io::stderr().lock(), "forkmaster: {text}");
}

/// Text of somebody else's, such as a traceback, on stderr.
pub fn quote(text: &str) {
    if !text.is_empty() {
        // A closed stderr has no reader to miss it.
        let _ = writeln!(io::stderr().lock(), "{}", text.trim_end());
    }
}

/// Text of somebody else's made harmless for a terminal: escape sequences, and characters that reorder or hide
/// others, are spelled out. Line breaks stay.
pub fn printable(text: &str) -> String {
    spelled_out(text, |character| format!("\\u{{{:x}}}", u32::from(character)))
}

/// The same for a line of JSON, where the spelling is JSON's own: the value is the same.
pub fn printable_json(json: &str) -> String {
    spelled_out(json, |character| {
        let mut units = [0; 2];
        character.encode_utf16(&mut units).iter().map(|unit| format!("\\u{unit:04x}")).collect()
    })
}

fn spelled_out(text: &str, spell: impl Fn(char) -> String) -> String {
    let mut shown = String::with_capacity(text.len());
    for character in text.chars() {
        match is_hostile(character) {
            true => shown.push_str(&spell(character)),
            false => shown.push(character),
        }
    }
    shown
}

/// Control characters but line break and tab, and those of Unicode that act on the text around them: line and
/// paragraph separators, joiners, marks, embeddings, overrides and isolates, the byte order mark, tags.
fn is_hostile(character: char) -> bool {
    match character {
        '\n' | '\t' => false,
        '\u{ad}' | '\u{61c}' | '\u{180e}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' => true,
        '\u{2060}'..='\u{206f}' | '\u{feff}' | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e007f}' => true,
        other => other.is_control(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_acts_on_a_terminal_is_spelled_out() {
        assert_eq!(printable("a\x1b]0;owned\x07b\u{202e}c\u{9b}d"), "a\\u{1b}]0;owned\\u{7}b\\u{202e}c\\u{9b}d");
        assert_eq!(printable("Zug ä 列车\n\tline"), "Zug ä 列车\n\tline");
    }

    #[test]
    fn json_keeps_its_value() {
        let text = "\u{202e}\u{9b}\u{e0041}\u{e4}";
        let json = serde_json::to_string(text).unwrap();
        let shown = printable_json(&json);
        assert_eq!(shown, "\"\\u202e\\u009b\\udb40\\udc41\u{e4}\"");
        assert_eq!(serde_json::from_str::<String>(&shown).unwrap(), text);
    }
}
