//! What a test did: the commands that it ran and the last answer that it read. A test that fails prints it.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard};

use super::client::Response;
use super::master::Output;

/// More than a test runs by hand; one that reloads two hundred times shows its last ones.
const COMMANDS_MAX: usize = 20;

/// What is printed of a body or of a command's output.
const TEXT_MAX: usize = 2_000;

/// The journal of one test's thread. The watchdog prints it from a thread of its own.
#[derive(Clone, Default)]
pub struct Journal {
    entries: Arc<Mutex<Entries>>,
}

#[derive(Default)]
struct Entries {
    commands: VecDeque<String>,
    answer: Option<String>,
}

thread_local! {
    static JOURNAL: RefCell<Journal> = RefCell::default();
}

impl Journal {
    /// The journal of this thread.
    pub fn mine() -> Journal {
        JOURNAL.with_borrow(Journal::clone)
    }

    /// The next test of this thread begins with an empty one.
    pub fn forget() {
        JOURNAL.set(Journal::default());
    }

    fn entries(&self) -> MutexGuard<'_, Entries> {
        self.entries.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

/// A command that was run. Polling `status` would push everything else out, so the last one of its kind replaces the
/// one before.
pub fn note_command(args: &[&str], output: &Output) {
    let said = shortened(&output.text());
    let entry = format!("$ forkmaster {}\n{} after {:?}\n{said}", args.join(" "), output.ended(), output.took);
    let command = format!("$ forkmaster {}\n", args.join(" "));
    let journal = Journal::mine();
    let mut entries = journal.entries();
    if entries.commands.back().is_some_and(|last| last.starts_with(&command)) {
        entries.commands.pop_back();
    }
    if entries.commands.len() == COMMANDS_MAX {
        entries.commands.pop_front();
    }
    entries.commands.push_back(entry);
}

/// An answer that was read, whole or in part.
pub fn note_answer(response: &Response) {
    let fields: String = response.headers.iter().map(|(name, value)| format!("{name}: {value}\n")).collect();
    let body = &response.body[..response.body.len().min(TEXT_MAX)];
    let body = shortened(&String::from_utf8_lossy(body));
    let entry = format!("{}\n{fields}({} bytes) {body}", response.status, response.body.len());
    Journal::mine().entries().answer = Some(entry);
}

fn shortened(text: &str) -> String {
    let end = text.char_indices().nth(TEXT_MAX).map_or(text.len(), |(at, _)| at);
    let dots = if end < text.len() { " [...]" } else { "" };
    format!("{}{dots}", &text[..end])
}

impl std::fmt::Display for Journal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let entries = self.entries();
        writeln!(f, "---- commands")?;
        for command in &entries.commands {
            writeln!(f, "{}", command.trim_end())?;
        }
        writeln!(f, "---- last answer\n{}", entries.answer.as_deref().unwrap_or("none").trim_end())
    }
}
