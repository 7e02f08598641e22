//! What `status` tells: the state of the supervisor joined with what the scoreboards count. Durations in seconds,
//! sizes in bytes; the fields are an interface for programs, the text is for people.

use std::sync::atomic::Ordering;

use forkmaster_wire::scoreboard::Scoreboard;
use serde_json::{json, Value};

use crate::service::Service;
use crate::shared::Shared;
use crate::supervisor::{Phase, Supervisor};

/// What processes that are gone have counted: totals never go back.
#[derive(Clone, Copy, Debug, Default)]
pub struct Totals {
    pub requests: u64,
    pub accepted: u64,
    pub errors: u64,
}

impl Totals {
    pub fn add(&mut self, board: &Scoreboard, cell: u32) {
        let cell = board.cell(cell);
        self.requests = self.requests.saturating_add(cell.requests.load(Ordering::Relaxed));
        self.accepted = self.accepted.saturating_add(cell.accepted.load(Ordering::Relaxed));
        self.errors = self.errors.saturating_add(cell.errors.load(Ordering::Relaxed));
    }
}

pub fn status(service: &Service, shared: &Shared) -> Value {
    let now = shared.clock.now();
    let supervisor = &service.supervisor;
    let mut totals = service.totals;
    for worker in service.workers.values() {
        if let Some(processes) = service.generations.get(&worker.generation) {
            totals.add(&processes.board, worker.cell);
        }
    }
    let generations: Vec<Value> = supervisor
        .generations()
        .iter()
        .filter_map(|generation| {
            let processes = service.generations.get(&generation.id)?;
            let workers: Vec<Value> = generation
                .workers
                .iter()
                .map(|worker| {
                    let process = service.workers.get(&worker.id);
                    let cell = process.map(|process| processes.board.cell(process.cell));
                    json!({
                        "slot": worker.slot,
                        "pid": worker.pid,
                        "state": worker.state.word(),
                        "age_s": now.saturating_duration_since(worker.born).as_secs_f64(),
                        "requests": cell.map_or(0, |cell| cell.requests.load(Ordering::Relaxed)),
                        "busy": cell.map_or(0, |cell| cell.busy.load(Ordering::Relaxed)),
                        "connections": cell.map_or(0, |cell| cell.connections.load(Ordering::Relaxed)),
                    })
                })
                .collect();
            Some(json!({
                "generation": generation.id,
                "state": generation.state.word(),
                "release": processes.settings.app.release,
                "venv": processes.settings.app.interpreter.venv,
                "python": processes.interpreter.as_ref().map(|interpreter| interpreter.version.clone()),
                "preload": processes.settings.app.preload,
                "in_place": processes.in_place,
                "age_s": now.saturating_duration_since(processes.began).as_secs_f64(),
                "workers_wanted": supervisor.wanted_of(generation),
                "template": {
                    "pid": processes.template.as_ref().map(|template| template.pid),
                    "state": generation.template.word(),
                },
                "workers": workers,
            }))
        })
        .collect();
    let serving = supervisor.serving();
    let listeners = serving.and_then(|generation| service.generations.get(&generation.id)).map(|processes| {
        let addresses = processes.listeners.iter().filter_map(|id| shared.listeners.address(*id));
        addresses.map(|address| json!({"address": address})).collect::<Vec<Value>>()
    });
    json!({
        "ok": true,
        "name": service.generations.values().next().map(|processes| processes.settings.name.clone()),
        "version": env!("CARGO_PKG_VERSION"),
        "pid": std::process::id(),
        "state": word(supervisor),
        "ready": service.is_ready(),
        "generations": generations,
        "listeners": listeners.unwrap_or_default(),
        "requests": totals.requests,
        "accepted": totals.accepted,
        "errors": totals.errors,
        "last_reload": service.last_reload.as_ref().map(|last| last.to_json()),
    })
}

/// The master's own state.
fn word(supervisor: &Supervisor) -> &'static str {
    match supervisor.phase() {
        Phase::Delaying { .. } | Phase::Stopping { .. } => "stopping",
        Phase::Ending { .. } | Phase::Ended => "ending",
        Phase::Running => match (supervisor.serving(), supervisor.in_transaction()) {
            (None, _) => "starting",
            (Some(_), Some(_)) => "reloading",
            (Some(generation), None) if generation.serving() < supervisor.wanted_of(generation) as usize => "degraded",
            (Some(_), None) => "running",
        },
    }
}

/// `status` for people.
pub fn text(status: &Value) -> String {
    let get = |value: &Value, key: &str| match &value[key] {
        Value::String(text) => text.clone(),
        Value::Null => "-".to_owned(),
        other => other.to_string(),
    };
    let mut text = format!(
        "{} pid {}: {}{}\n",
        get(status, "name"),
        get(status, "pid"),
        get(status, "state"),
        if status["ready"] == true { "" } else { ", not ready" }
    );
    let addresses: Vec<String> =
        status["listeners"].as_array().into_iter().flatten().map(|listener| get(listener, "address")).collect();
    text.push_str(&format!("listening on {}\n", addresses.join(", ")));
    for generation in status["generations"].as_array().into_iter().flatten() {
        let in_place = if generation["in_place"] == true { ", in place: code on disk is not pinned" } else { "" };
        text.push_str(&format!(
            "generation {} {}: {} (Python {}){in_place}\n",
            get(generation, "generation"),
            get(generation, "state"),
            get(generation, "release"),
            get(generation, "python")
        ));
        let template = &generation["template"];
        text.push_str(&format!("  template pid {} {}\n", get(template, "pid"), get(template, "state")));
        for worker in generation["workers"].as_array().into_iter().flatten() {
            text.push_str(&format!(
                "  worker {} pid {} {}, {:.0} s, {} requests\n",
                get(worker, "slot"),
                get(worker, "pid"),
                get(worker, "state"),
                worker["age_s"].as_f64().unwrap_or_default(),
                get(worker, "requests")
            ));
        }
    }
    let last = &status["last_reload"];
    if last["ok"] == false {
        text.push_str(&format!("the latest reload was refused: {}\n", get(last, "reason")));
    }
    text
}
