//! Free text in a message: tracebacks, stacks, names. It is cut so that the packet stays below the channel's bound,
//! whatever the text holds. It never changes a text that fits.

/// Free text takes at most so much of a packet, JSON's escapes included: a control character takes six bytes there. The
/// rest of `channel::PACKET_BYTES_MAX` is for what stands beside it.
pub const TEXT_BYTES_MAX: usize = 40 * 1024;

/// A list of names in a message: so many names, each of so many characters.
pub const NAMES_MAX: usize = 20;
pub const NAME_CHARS_MAX: usize = 80;

/// Cuts a text for a message: the first and the last part are kept, since a traceback's last line says the most.
pub fn cut_text(text: &str) -> String {
    if text.chars().map(escaped_bytes).sum::<usize>() <= TEXT_BYTES_MAX {
        return text.to_owned();
    }
    let head = fitting(text.chars(), TEXT_BYTES_MAX / 4);
    let tail = text.len() - fitting(text.chars().rev(), TEXT_BYTES_MAX - TEXT_BYTES_MAX / 4);
    format!("{}\n[... {} bytes left out ...]\n{}", &text[..head], tail - head, &text[tail..])
}

/// Names for a message and then for a log line: printable, bounded in length and number.
pub fn cut_names(names: impl IntoIterator<Item = String>) -> Vec<String> {
    let mut names = names.into_iter();
    let printable = |c: char| if c.is_control() { '?' } else { c };
    let mut cut: Vec<String> =
        names.by_ref().take(NAMES_MAX).map(|name| name.chars().take(NAME_CHARS_MAX).map(printable).collect()).collect();
    match names.count() {
        0 => {}
        more => cut.push(format!("and {more} more")),
    }
    cut
}

/// How many bytes of the text, from the iterator's end of it, fit into `room` bytes of JSON.
pub fn fitting(characters: impl Iterator<Item = char>, room: usize) -> usize {
    let (mut bytes, mut escaped) = (0, 0);
    for character in characters {
        escaped += escaped_bytes(character);
        if escaped > room {
            break;
        }
        bytes += character.len_utf8();
    }
    bytes
}

/// What a character takes in serde_json's output: RFC 8259 section 7, with the short escapes where there are some.
fn escaped_bytes(character: char) -> usize {
    match character {
        '"' | '\\' | '\n' | '\r' | '\t' | '\u{8}' | '\u{c}' => 2,
        '\0'..='\x1f' => 6,
        other => other.len_utf8(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::channel::Channel;
    use crate::message::FromWorker;

    #[test]
    fn a_long_traceback_keeps_both_ends() {
        let long = format!("first{}last", "é".repeat(TEXT_BYTES_MAX));
        let cut = cut_text(&long);
        assert!(cut.starts_with("first") && cut.ends_with("last") && cut.len() < TEXT_BYTES_MAX + 64);
        assert_eq!(cut_text("short\x01"), "short\x01");
    }

    #[test]
    fn any_text_fits_into_a_packet() {
        let (one, other) = Channel::pair().unwrap();
        for text in ["\x01", "\n\"", "\\", "\u{7f}", "é", "\u{1f600}", "a"] {
            let text = cut_text(&text.repeat(100_000));
            one.send(&FromWorker::Stacks { id: 1, text }, &[]).unwrap();
            other.receive::<FromWorker>(true).unwrap();
        }
    }

    #[test]
    fn every_control_character_is_counted_as_it_is_written() {
        for character in (0..0x80u8).map(char::from).chain(['é', '\u{2028}', '\u{1f600}']) {
            let written = serde_json::to_string(&character.to_string()).unwrap().len() - 2;
            assert_eq!(escaped_bytes(character), written, "{character:?}");
        }
    }

    #[test]
    fn names_are_bounded_in_number_and_length() {
        let names = cut_names((0..30).map(|number| format!("{number}\n{}", "x".repeat(200))));
        assert_eq!(names.len(), NAMES_MAX + 1);
        assert!(names[0].starts_with("0?x") && names[0].len() == NAME_CHARS_MAX);
        assert_eq!(names[NAMES_MAX], "and 10 more");
        assert_eq!(cut_names(["a".to_owned()]), ["a"]);
    }
}
