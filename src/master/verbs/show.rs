//! `config show`, and `status` for people. It only prints.

use std::fmt::Write;

use crate::config::process_context::ProcessContext;
use crate::config::{self, Source};
use crate::exit_code::ExitCode;
use crate::facts::snapshot::{Generation, Snapshot, Worker};
use crate::verbs::output;

pub fn config(source: &Source, context: &ProcessContext, explain: bool) -> ExitCode {
    match config::read(source, context, None) {
        Ok(loaded) => {
            for warning in &loaded.warnings {
                output::complain(format_args!("warning: {warning}"));
            }
            output::print(loaded.show(explain));
            ExitCode::Done
        }
        Err(problems) => {
            output::complain(&problems);
            problems.exit_code()
        }
    }
}

pub fn schema() -> ExitCode {
    output::print(config::schema::schema());
    ExitCode::Done
}

pub fn reference() -> ExitCode {
    output::print(config::reference::markdown());
    ExitCode::Done
}

/// `status` for people. Names, paths and reasons come from configuration and applications, and a terminal obeys some
/// characters, so all of it is made printable.
pub fn status(snapshot: &Snapshot) -> String {
    let mut text = String::new();
    // Writing to a String cannot fail.
    let _ = write_status(&mut text, snapshot);
    output::printable(&text)
}

fn write_status(text: &mut String, snapshot: &Snapshot) -> std::fmt::Result {
    let name = snapshot.name.as_deref().unwrap_or("-");
    let ready = if snapshot.ready { "" } else { ", not ready" };
    writeln!(text, "{name} pid {}: {}{ready}", snapshot.pid, snapshot.state)?;
    let addresses: Vec<&str> = snapshot.listeners.iter().map(|listener| listener.address.as_str()).collect();
    match addresses.is_empty() {
        true => writeln!(text, "not listening yet")?,
        false => writeln!(text, "listening on {}", addresses.join(", "))?,
    }
    for generation in &snapshot.generations {
        write_generation(text, generation)?;
    }
    if let Some(last) = snapshot.last_reload.as_ref().filter(|last| !last.ok) {
        writeln!(text, "the latest reload was refused: {}", last.reason)?;
    }
    Ok(())
}

fn write_generation(text: &mut String, generation: &Generation) -> std::fmt::Result {
    let in_place = if generation.in_place { ", in place: code on disk is not pinned" } else { "" };
    writeln!(
        text,
        "generation {} {}: {} (Python {}){in_place}",
        generation.generation,
        generation.state,
        generation.release.display(),
        generation.python.as_deref().unwrap_or("-")
    )?;
    if let Some(waiting) = &generation.waiting {
        writeln!(text, "  waits for {waiting}")?;
    }
    writeln!(text, "  template pid {} {}", pid(generation.template.pid), generation.template.state)?;
    generation.workers.iter().try_for_each(|worker| write_worker(text, worker))
}

fn write_worker(text: &mut String, worker: &Worker) -> std::fmt::Result {
    writeln!(
        text,
        "  worker {} pid {} {}, {:.0} s, {} requests",
        worker.slot,
        pid(worker.pid),
        worker.state,
        worker.age_s,
        worker.requests
    )?;
    for running in &worker.running {
        writeln!(text, "    {:.1} s {} {}", running.age_s, running.method, running.path)?;
    }
    Ok(())
}

fn pid(pid: Option<i32>) -> String {
    pid.map_or_else(|| "-".to_owned(), |pid| pid.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_for_people() {
        let line = r#"{"name":"shop","pid":7,"state":"running","ready":true,"listeners":[{"address":"127.0.0.1:80"}],
            "generations":[{"generation":4,"state":"serving","release":"/srv/1","python":"3.12.1","in_place":true,
                "template":{"pid":8,"state":"ready"},
                "workers":[{"slot":0,"pid":9,"state":"serving","age_s":61.4,"requests":3,
                    "running":[{"method":"GET","path":"/a\u001b[2J","age_s":1.26}]},
                    {"slot":1,"pid":null,"state":"starting"}]}],
            "last_reload":{"ok":false,"reason":"\u001b]0;owned\u0007"}}"#;
        let text = "shop pid 7: running\n\
            listening on 127.0.0.1:80\n\
            generation 4 serving: /srv/1 (Python 3.12.1), in place: code on disk is not pinned\n\
            \x20 template pid 8 ready\n\
            \x20 worker 0 pid 9 serving, 61 s, 3 requests\n\
            \x20   1.3 s GET /a\\u{1b}[2J\n\
            \x20 worker 1 pid - starting, 0 s, 0 requests\n\
            the latest reload was refused: \\u{1b}]0;owned\\u{7}\n";
        assert_eq!(status(&serde_json::from_str(line).unwrap()), text);
    }

    #[test]
    fn a_master_that_has_nothing_to_tell_yet() {
        assert_eq!(status(&Snapshot::default()), "- pid 0: , not ready\nnot listening yet\n");
    }
}
