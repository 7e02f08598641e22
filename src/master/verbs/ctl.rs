//! `ctl`: a small shell over the verbs. Each line is one of them, run as a program of its own, so that Ctrl-C ends what runs
//! and not the shell. Four words are the shell's own: `stop` switches the workers off, `start` on again, `shutdown` ends
//! the master, `quit` leaves.

use std::ffi::OsString;
use std::io::IsTerminal;
use std::process::Command;
use std::sync::atomic::AtomicBool;
use std::sync::Arc;

use rustyline::completion::{Completer, Pair};
use rustyline::error::ReadlineError;
use rustyline::highlight::Highlighter;
use rustyline::hint::Hinter;
use rustyline::history::MemHistory;
use rustyline::validate::Validator;
use rustyline::{Config, Context, Editor, Helper};

use super::ask::{ask, read, NoAnswer};
use super::client::{connect, told, ANSWER_WITHIN};
use super::{command_line, output};
use crate::config::process_context::ProcessContext;
use crate::doors::protocol::Request;
use crate::exit_code::ExitCode;
use crate::facts::snapshot::Snapshot;
use crate::verbs::command_line::Client;

/// Words of the shell itself, with what they do.
const OWN: [(&str, &str); 5] = [
    ("start", "Switch the workers on again"),
    ("stop", "Switch all workers off; the sockets are held, and what comes waits"),
    ("shutdown", "End the master; running requests finish first"),
    ("help", "This list"),
    ("quit", "Leave; the master goes on"),
];

/// They serve, or are about other things than a running master.
const NOT_HERE: [&str; 7] = ["run", "dev", "ctl", "convert", "completions", "man", "config"];

type Prompt = Editor<Words, MemHistory>;

/// Returns the exit code: of the last verb, where the lines come from a script.
pub fn shell(client: &Client, context: &ProcessContext) -> i32 {
    let snapshot = match look(client, context) {
        Ok(snapshot) => snapshot,
        Err(code) => return code.into(),
    };
    // Ctrl-C is for what runs: a handler, other than SIG_IGN, does not outlive exec (execve(2)).
    let noticed = Arc::new(AtomicBool::new(false));
    let handled = signal_hook::flag::register(signal_hook::consts::SIGINT, noticed);
    let prompt = handled.map_err(ReadlineError::from).and_then(|_| Prompt::with_config(Config::default()));
    let mut prompt = match prompt {
        Ok(prompt) => prompt,
        Err(error) => {
            output::complain(error);
            return ExitCode::Refused.into();
        }
    };
    prompt.set_helper(Some(Words::new(&command_line::definition())));
    let name = output::printable(snapshot.name.as_deref().unwrap_or("forkmaster"));
    let mut last = 0;
    loop {
        let line = match prompt.readline(&format!("{name}> ")) {
            Ok(line) => line,
            Err(ReadlineError::Interrupted) => continue,
            Err(ReadlineError::Eof) => break,
            Err(error) => {
                output::complain(error);
                return ExitCode::Refused.into();
            }
        };
        let words: Vec<&str> = line.split_whitespace().collect();
        if words.is_empty() {
            continue;
        }
        // Only in memory; one line more or less is no matter.
        let _ = prompt.add_history_entry(&line);
        last = match words.as_slice() {
            ["quit" | "exit", ..] => break,
            ["help", ..] => {
                output::print(prompt.helper().map_or_else(String::new, Words::help));
                0
            }
            ["stop", options @ ..] => match agrees(&mut prompt, options, "Switch all workers off?") {
                true => run(client, &["scale", "0"]),
                false => ExitCode::Refused.into(),
            },
            ["start"] => start(client, context),
            ["shutdown", options @ ..] => match agrees(&mut prompt, options, "End the master?") {
                true => run(client, &["stop"]),
                false => ExitCode::Refused.into(),
            },
            [verb, ..] if NOT_HERE.contains(verb) => {
                output::complain(format_args!("`{verb}` is not for a running master"));
                ExitCode::Usage.into()
            }
            words => run(client, words),
        };
    }
    if std::io::stdin().is_terminal() {
        0
    } else {
        last
    }
}

fn look(client: &Client, context: &ProcessContext) -> Result<Snapshot, ExitCode> {
    let mut stream = connect(client, context)?;
    let answer = ask(&mut stream, &Request::Status, Some(ANSWER_WITHIN)).and_then(|line| read::<Snapshot>(&line));
    answer.map_err(|no_answer: NoAnswer| told("no status", no_answer))
}

/// Asks first, since one word would stop the service. `-y`: for scripts.
fn agrees(prompt: &mut Prompt, options: &[&str], question: &str) -> bool {
    match options {
        ["-y"] => true,
        [] => prompt.readline(&format!("{question} [y/N] ")).is_ok_and(|answer| matches!(answer.trim(), "y" | "yes")),
        [other, ..] => {
            output::complain(format_args!("`{}` is not understood; -y does not ask", output::printable(other)));
            false
        }
    }
}

/// As many workers as before they were switched off.
fn start(client: &Client, context: &ProcessContext) -> i32 {
    let workers = match look(client, context) {
        Ok(snapshot) => snapshot.generations.iter().find(|one| one.state == "serving").map(|one| one.workers_when_on),
        Err(code) => return code.into(),
    };
    match workers.filter(|workers| *workers > 0) {
        Some(workers) => run(client, &["scale", &workers.to_string()]),
        None => {
            output::complain("no generation serves yet");
            ExitCode::Refused.into()
        }
    }
}

/// Runs a verb for the same master.
fn run(client: &Client, words: &[&str]) -> i32 {
    let place: Vec<OsString> = match (&client.socket, &client.source.file) {
        (Some(socket), _) => vec!["--socket".into(), socket.into()],
        (None, Some(file)) => vec!["-c".into(), file.path.clone().into()],
        (None, None) => Vec::new(),
    };
    match Command::new("/proc/self/exe").args(place).args(words).status() {
        // Ended by Ctrl-C, as a shell says it.
        Ok(status) => status.code().unwrap_or(130),
        Err(error) => {
            output::complain(error);
            ExitCode::Refused.into()
        }
    }
}

/// What can be said, for Tab and `help`.
struct Words {
    /// Each verb with what it does and its options.
    verbs: Vec<Verb>,
}

struct Verb {
    name: String,
    about: String,
    options: Vec<String>,
}

impl Words {
    fn new(definition: &clap::Command) -> Words {
        let verbs = definition.get_subcommands().filter(|verb| {
            // The shell's `stop` is another one.
            !NOT_HERE.contains(&verb.get_name()) && OWN.iter().all(|(own, _)| *own != verb.get_name())
        });
        let of_the_master = verbs.map(|verb| Verb {
            name: verb.get_name().to_owned(),
            about: verb.get_about().map(ToString::to_string).unwrap_or_default(),
            options: verb
                .get_arguments()
                .filter_map(|option| option.get_long())
                .map(|long| format!("--{long}"))
                .collect(),
        });
        let own = OWN.iter().map(|(name, about)| Verb {
            name: (*name).to_owned(),
            about: (*about).to_owned(),
            options: Vec::new(),
        });
        Words { verbs: of_the_master.chain(own).collect() }
    }

    fn help(&self) -> String {
        let width = self.verbs.iter().map(|verb| verb.name.len()).max().unwrap_or(0);
        self.verbs.iter().map(|verb| format!("{:width$}  {}\n", verb.name, verb.about)).collect()
    }

    /// What may stand in place of the last word, which is still being typed.
    fn candidates(&self, line: &str) -> (usize, Vec<&str>) {
        let at = line.rfind(char::is_whitespace).map_or(0, |blank| blank + 1);
        let typed = &line[at..];
        let words: Vec<&str> = match line[..at].split_whitespace().next() {
            None => self.verbs.iter().map(|verb| verb.name.as_str()).collect(),
            Some(first) => {
                let verb = self.verbs.iter().find(|verb| verb.name == first);
                verb.map_or_else(Vec::new, |verb| verb.options.iter().map(String::as_str).collect())
            }
        };
        (at, words.into_iter().filter(|word| word.starts_with(typed)).collect())
    }
}

impl Completer for Words {
    type Candidate = Pair;

    fn complete(&self, line: &str, at: usize, _context: &Context<'_>) -> rustyline::Result<(usize, Vec<Pair>)> {
        let (start, words) = self.candidates(&line[..at]);
        let pair = |word: &str| Pair { display: word.to_owned(), replacement: format!("{word} ") };
        Ok((start, words.into_iter().map(pair).collect()))
    }
}

impl Hinter for Words {
    type Hint = String;
}

impl Highlighter for Words {}
impl Validator for Words {}
impl Helper for Words {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tab_completes_verbs_and_their_options() {
        let words = Words::new(&command_line::definition());
        assert_eq!(words.candidates("rel"), (0, vec!["reload"]));
        assert_eq!(words.candidates("  relo"), (2, vec!["reload"]));
        let (at, options) = words.candidates("reload --no");
        assert_eq!((at, options), (7, vec!["--no-wait"]));
        assert!(words.candidates("st").1.contains(&"start") && words.candidates("ru").1.is_empty());
        assert_eq!(words.candidates("nonsense --"), (9, vec![]));
        assert!(words.help().contains("stop ") && words.help().contains("scale"), "{}", words.help());
    }
}
