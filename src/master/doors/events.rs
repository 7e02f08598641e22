//! Notes for whoever listens: one JSON object a line over the control socket. A listener that does not read loses
//! notes, which are counted, and costs nobody anything. It knows how a note looks, not who listens.

use forkmaster_wire::{json, timestamp};

use crate::facts::note::Note;

/// What a listener may have left unread before it loses notes. A refusal with its traceback has some kilobytes.
pub const UNREAD_BYTES_MAX: usize = 256 * 1024;

/// Those who listen stay for long, and the control socket is for others, too.
pub const LISTENERS_MAX: usize = 16;

/// The line of a note, with its end: its fields, when it was, and the line of the log.
pub fn line(note: &Note) -> String {
    let mut event = json::value(note);
    event["level"] = note.level().as_str().to_ascii_lowercase().into();
    event["text"] = note.to_string().into();
    finish(event)
}

/// In place of notes that a listener has lost.
pub fn lost(notes: u64) -> String {
    finish(serde_json::json!({
        "event": "lost", "notes": notes, "level": "warn", "text": format!("{notes} events were not read in time and are lost")
    }))
}

fn finish(mut event: serde_json::Value) -> String {
    let mut time = String::new();
    timestamp::push_now(&mut time);
    event["time"] = time.into();
    format!("{event}\n")
}

#[cfg(test)]
mod tests {
    use forkmaster_wire::message::GenerationId;
    use serde_json::Value;

    use super::*;

    #[test]
    fn an_event_has_its_fields_and_its_line() {
        let note = Note::Generation { generation: GenerationId(3), from: Some("rolling"), to: "serving" };
        let event: Value = serde_json::from_str(&line(&note)).unwrap();
        assert_eq!(
            (&event["event"], &event["generation"], &event["to"]),
            (&"generation".into(), &3.into(), &"serving".into())
        );
        assert_eq!((&event["level"], &event["text"]), (&"info".into(), &"generation gen=3 rolling -> serving".into()));
        assert!(event["time"].as_str().unwrap().ends_with('Z'));
        assert!(lost(7).contains("\"notes\":7") && line(&note).ends_with('\n'));
    }
}
