//! `history` and `report`: what is remembered of deploys, for people and as JSON. It only prints.

use std::fmt::Write;

use super::ask::{ask, read};
use super::client::{connect, told, ANSWER_WITHIN};
use super::output;
use crate::config::process_context::ProcessContext;
use crate::doors::protocol::{HistoryRead, Request};
use crate::exit_code::ExitCode;
use crate::facts::history::{Deploy, Entry, Served};
use crate::verbs::command_line::Client;
use forkmaster_wire::json;
use forkmaster_wire::message::GenerationId;

/// Deploys that are shown where nothing else is asked for: a screen.
const SHOWN: usize = 20;

pub fn history(client: &Client, context: &ProcessContext, json: bool, all: bool) -> ExitCode {
    let entries = match entries(client, context) {
        Ok(entries) => entries,
        Err(code) => return code,
    };
    if json {
        let lines: String = entries.iter().map(|entry| entry.to_line() + "\n").collect();
        output::print(output::printable_json(&lines));
        return ExitCode::Done;
    }
    let deploys: Vec<&Deploy> = entries.iter().filter_map(deploy).collect();
    let skipped = if all { 0 } else { deploys.len().saturating_sub(SHOWN) };
    let mut text = String::new();
    for deploy in &deploys[skipped..] {
        // Writing to a String cannot fail.
        let _ = write_deploy(&mut text, deploy);
    }
    output::print(output::printable(&text));
    ExitCode::Done
}

pub fn report(client: &Client, context: &ProcessContext, generation: Option<GenerationId>, json: bool) -> ExitCode {
    let entries = match entries(client, context) {
        Ok(entries) => entries,
        Err(code) => return code,
    };
    let served: Vec<&Served> = entries.iter().filter_map(served).collect();
    let found = match generation {
        // The numbers of earlier masters come again: the latest counts.
        Some(wanted) => served.iter().rposition(|served| served.generation == wanted.0),
        None => served.iter().rposition(|served| served.serving),
    };
    let Some(found) = found else {
        let which =
            generation.map_or_else(|| "what serves".to_owned(), |generation| format!("generation {generation}"));
        output::complain(format_args!("report: nothing is known of {which}; `forkmaster history` lists deploys"));
        return ExitCode::Refused;
    };
    let of = served[found];
    let before = served.iter().filter(|other| other.master == of.master && other.generation < of.generation);
    let before = before.max_by_key(|other| other.generation).copied();
    if json {
        let both = serde_json::json!({ "generation": json::value(of), "predecessor": json::value(&before) });
        output::print(output::printable_json(&format!("{both}\n")));
        return ExitCode::Done;
    }
    let deploys = entries.iter().filter_map(deploy);
    let is_its =
        |deploy: &&Deploy| deploy.master == of.master && deploy.generation.is_some_and(|id| id.0 == of.generation);
    let mut text = String::new();
    // Writing to a String cannot fail.
    let _ = deploys.filter(is_its).try_for_each(|deploy| write_deploy(&mut text, deploy));
    let _ = write_report(&mut text, of, before);
    output::print(output::printable(&text));
    ExitCode::Done
}

fn entries(client: &Client, context: &ProcessContext) -> Result<Vec<Entry>, ExitCode> {
    let mut stream = connect(client, context)?;
    let answer = ask(&mut stream, &Request::History, Some(ANSWER_WITHIN)).and_then(|line| read::<HistoryRead>(&line));
    let known = |history: HistoryRead| {
        history.entries.iter().filter_map(|entry| Entry::from_line(&entry.to_string())).collect()
    };
    answer.map(known).map_err(|no_answer| told("history", no_answer))
}

fn deploy(entry: &Entry) -> Option<&Deploy> {
    match entry {
        Entry::Deploy(deploy) => Some(deploy),
        Entry::Served(_) => None,
    }
}

fn served(entry: &Entry) -> Option<&Served> {
    match entry {
        Entry::Served(served) => Some(served),
        Entry::Deploy(_) => None,
    }
}

fn write_deploy(text: &mut String, deploy: &Deploy) -> std::fmt::Result {
    let number = deploy.generation.map_or_else(|| "-".to_owned(), |generation| generation.to_string());
    let time = deploy.at.get(..19).unwrap_or(&deploy.at).replace('T', " ");
    write!(
        text,
        "{time}  gen {number:<4} {:<10} {:>7.2}s  {}",
        deploy.result,
        deploy.took_s,
        deploy.release.display()
    )?;
    if let Some(revision) = &deploy.revision {
        write!(text, " ({})", revision.get(..12).unwrap_or(revision))?;
    }
    if let Some(back) = deploy.back {
        write!(text, " as gen {back}")?;
    }
    writeln!(text, "  by {}", deploy.asked)?;
    if deploy.turned_away > 0 {
        writeln!(text, "    maintenance: {} requests got 503", deploy.turned_away)?;
    }
    if !deploy.reason.is_empty() {
        writeln!(text, "    {}", deploy.reason)?;
    }
    if let Some(canary) = &deploy.canary {
        writeln!(text, "    canary {}: {}", canary.verdict, canary.why)?;
        canary.to_string().lines().try_for_each(|line| writeln!(text, "      {line}"))?;
    }
    if let Some(rehearsal) = &deploy.rehearsal {
        writeln!(text, "    rehearsal: {rehearsal}")?;
    }
    if !deploy.changes.is_empty() {
        writeln!(text, "    changes {}", deploy.changes.join("; "))?;
    }
    Ok(())
}

fn write_report(text: &mut String, of: &Served, before: Option<&Served>) -> std::fmt::Result {
    let name = |served: &Served| format!("gen {}", served.generation);
    let head = before.map_or_else(|| "-".to_owned(), name);
    writeln!(text, "{:<26} {:>14} {head:>14}", "", name(of))?;
    let mut row = |what: &str, value: &dyn Fn(&Served) -> String| {
        let before = before.map_or_else(|| "-".to_owned(), value);
        writeln!(text, "{what:<26} {:>14} {before:>14}", value(of))
    };
    row("served for", &|served| format!("{:.0} s", served.age_s))?;
    row("requests", &|served| served.requests.to_string())?;
    for (class, name) in [(3, "4xx"), (4, "5xx")] {
        row(name, &|served| share(served.status.get(class).copied().unwrap_or(0), served.requests))?;
    }
    row("503 in a maintenance", &|served| served.turned_away.to_string())?;
    row("exceptions", &|served| share(served.exceptions, served.requests))?;
    row("half answered within", &|served| milliseconds(served.p50_ms))?;
    row("99 of 100 within", &|served| milliseconds(served.p99_ms))?;
    row("memory per 1,000 requests", &|served| match served.growth_bytes_per_1000 {
        Some(bytes) => format!("{:+.2} MiB", bytes as f64 / (1024.0 * 1024.0)),
        None => "-".to_owned(),
    })?;
    row("workers replaced", &|served| {
        let all: u64 = served.restarts.values().sum();
        let why: Vec<String> = served.restarts.iter().map(|(why, count)| format!("{why} {count}")).collect();
        if all == 0 {
            "0".to_owned()
        } else {
            why.join(", ")
        }
    })
}

fn share(count: u64, of: u64) -> String {
    match (count, of) {
        (0, _) | (_, 0) => count.to_string(),
        (count, of) => format!("{count} ({:.1} %)", count as f64 * 100.0 / of as f64),
    }
}

fn milliseconds(value: Option<f64>) -> String {
    value.map_or_else(|| "-".to_owned(), |value| format!("{value:.1} ms"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_stands_beside_its_predecessor() {
        let before = Served { generation: 1, requests: 1000, status: vec![0, 1000, 0, 0, 0], ..Served::default() };
        let of = Served {
            generation: 2,
            requests: 1000,
            status: vec![0, 950, 0, 0, 50],
            exceptions: 50,
            p99_ms: Some(20.5),
            growth_bytes_per_1000: Some(2 * 1024 * 1024),
            restarts: [("max_rss".to_owned(), 3)].into(),
            ..Served::default()
        };
        let mut text = String::new();
        write_report(&mut text, &of, Some(&before)).unwrap();
        let row = |name: &str| {
            let line = text.lines().find(|line| line.starts_with(name)).unwrap();
            line[name.len()..].split_whitespace().collect::<Vec<_>>().join(" ")
        };
        assert_eq!(row("5xx"), "50 (5.0 %) 0");
        assert_eq!(row("99 of 100 within"), "20.5 ms -");
        assert_eq!(row("memory per 1,000 requests"), "+2.00 MiB -");
        assert_eq!(row("workers replaced"), "max_rss 3 0");
    }
}
