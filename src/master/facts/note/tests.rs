//! How notes read: a line for people, an object for programs.

use super::*;

#[test]
fn a_note_is_a_line_for_people_and_an_object_for_programs() {
    let worker = WorkerName { generation: GenerationId(3), slot: SlotIndex(1), pid: Some(77) };
    let note = Note::Worker { worker, from: Some("starting"), to: "ready", after_ms: 12 };
    assert_eq!(note.to_string(), "worker gen=3 slot=1 pid=77 starting -> ready after=12ms");
    let json = serde_json::to_value(&note).unwrap();
    assert_eq!((&json["event"], &json["worker"]["pid"], &json["to"]), (&"worker".into(), &77.into(), &"ready".into()));
}

#[test]
fn a_roll_says_what_was_decided_and_why() {
    const MIB: u64 = 1024 * 1024;
    let roll = |at_once, boots, free| Note::Rolling {
        generation: GenerationId(7),
        at_once,
        of: 8,
        boots,
        bytes_each: 62 * MIB,
        bytes_free: Some(free),
    };
    assert_eq!(roll(8, 8, 3174 * MIB).to_string(), "generation gen=7 rolling: 8 at once (62 MiB each, 3.1 GiB free)");
    assert_eq!(
        roll(2, 2, 150 * MIB).to_string(),
        "generation gen=7 rolling: 2 at once (62 MiB each, 150 MiB free): not all 8 fit beside the old ones"
    );
    assert!(roll(8, 2, 3174 * MIB).to_string().ends_with(", 2 boot at a time"));
}

#[test]
fn whoever_held_a_process_is_named() {
    let worker = WorkerName { generation: GenerationId(3), slot: SlotIndex(1), pid: Some(77) };
    let line = Note::Held { worker, threads: vec!["bg".to_owned()], limit_s: 25.0 }.to_string();
    assert!(line.contains("thread 'bg' is not a daemon"), "{line}");
}
