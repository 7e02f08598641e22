//! `Measures` as Prometheus reads them (text exposition format 0.0.4). Base units, `_total` on counters, slots instead
//! of pids, no label that clients have a hand in. It only writes text.

use std::fmt::{Display, Write};

use forkmaster_wire::histogram::{upper_micros, Counted};

use crate::facts::measures::{Measures, OfService, RELOAD_RESULTS, RESTART_REASONS};

/// Of the answer.
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

const CLASSES: [&str; 5] = ["1xx", "2xx", "3xx", "4xx", "5xx"];

pub fn text(measures: &Measures) -> String {
    let mut page = Page::default();
    master(&mut page, measures);
    workers(&mut page, measures);
    requests(&mut page, measures);
    connections(&mut page, measures);
    times(&mut page, measures);
    listeners(&mut page, measures);
    services(&mut page, &measures.services);
    memory(&mut page, measures);
    page.text
}

fn master(page: &mut Page, measures: &Measures) {
    page.family("forkmaster_build_info", "gauge", "What runs.");
    page.sample("forkmaster_build_info", &[("version", &measures.version)], 1);
    page.one(
        "forkmaster_ready",
        "gauge",
        "1: a worker serves, and the master was not told to stop.",
        flag(measures.ready),
    );
    page.one("forkmaster_paused", "gauge", "1: no request is begun.", flag(measures.paused));
    let help = "1: the service is paused, and clients get 503.";
    page.one("forkmaster_maintenance", "gauge", help, flag(measures.maintenance));
    page.one("forkmaster_uptime_seconds", "gauge", "Since the master's start.", measures.uptime_s);
    page.one("forkmaster_resident_memory_bytes", "gauge", "Of the master.", measures.master_bytes);
}

/// Workers, and the deploys that brought them.
fn workers(page: &mut Page, measures: &Measures) {
    if let Some((generation, workers)) = measures.serving {
        page.one("forkmaster_generation", "gauge", "The generation that serves.", generation.0);
        page.one("forkmaster_workers_desired", "gauge", "Workers that it should have.", workers);
    }
    page.family("forkmaster_workers", "gauge", "Worker processes by generation and state.");
    for one in &measures.generations {
        for (state, count) in &one.workers {
            page.sample("forkmaster_workers", &[("generation", &one.generation), ("state", state)], count);
        }
    }
    page.family("forkmaster_worker_restarts_total", "counter", "Workers that were replaced, by the reason.");
    for reason in RESTART_REASONS {
        let count = measures.tally.restarts.get(reason).copied().unwrap_or(0);
        page.sample("forkmaster_worker_restarts_total", &[("reason", &reason)], count);
    }
    let failed = measures.tally.boots_failed;
    page.one("forkmaster_worker_boot_failures_total", "counter", "Workers that did not become ready.", failed);
    page.family("forkmaster_reloads_total", "counter", "Reloads by their result.");
    for result in RELOAD_RESULTS {
        let count = measures.tally.reloads.get(result).copied().unwrap_or(0);
        page.sample("forkmaster_reloads_total", &[("result", &result)], count);
    }
    if let Some(ok) = measures.last_reload_ok {
        page.one(
            "forkmaster_last_reload_success",
            "gauge",
            "1: the last reload, or the start, has committed.",
            flag(ok),
        );
    }
}

fn requests(page: &mut Page, measures: &Measures) {
    let totals = &measures.totals;
    page.family("forkmaster_requests_total", "counter", "Requests that the application answered, by status class.");
    for (class, count) in CLASSES.iter().zip(totals.status) {
        page.sample("forkmaster_requests_total", &[("status", class)], count);
    }
    let help = "The same for each generation that still has processes.";
    page.family("forkmaster_generation_requests_total", "counter", help);
    for one in &measures.generations {
        for (class, count) in CLASSES.iter().zip(one.totals.status) {
            let labels: [(&str, &dyn Display); 2] = [("generation", &one.generation), ("status", class)];
            page.sample("forkmaster_generation_requests_total", &labels, count);
        }
    }
    let help = "Exceptions that left the application.";
    page.one("forkmaster_application_errors_total", "counter", help, totals.errors);
    let help = "Requests that got 504, since they took longer than request_timeout.";
    page.one("forkmaster_requests_timed_out_total", "counter", help, totals.timed_out);
    let help = "Requests that got 503, since they had waited too long for a thread (queue_timeout).";
    page.one("forkmaster_requests_shed_total", "counter", help, totals.shed);
    let help = "Requests that got 503 because of a maintenance (pause --max, --maintenance).";
    page.one("forkmaster_requests_turned_away_total", "counter", help, totals.turned_away);
    let help = "Requests that ended with their worker, which died or was killed.";
    page.one("forkmaster_requests_lost_total", "counter", help, totals.lost);
}

fn connections(page: &mut Page, measures: &Measures) {
    let totals = &measures.totals;
    page.one("forkmaster_accepted_connections_total", "counter", "Connections that workers took.", totals.accepted);
    let handoffs = totals.handoffs;
    let help = "Connections that workers gave to other workers, by the reason.";
    page.family("forkmaster_handoffs_given_total", "counter", help);
    for (why, count) in [("leaving", handoffs.left()), ("busy", handoffs.shared)] {
        page.sample("forkmaster_handoffs_given_total", &[("reason", &why)], count);
    }
    let help = "Connections that workers took from other workers.";
    page.one("forkmaster_handoffs_taken_total", "counter", help, handoffs.taken);
    let help = "Connections that did not go to another worker: the queue was full and they waited, or they were lost.";
    page.family("forkmaster_handoffs_refused_total", "counter", help);
    for (why, count) in [("full", handoffs.queue_full), ("lost", handoffs.lost)] {
        page.sample("forkmaster_handoffs_refused_total", &[("reason", &why)], count);
    }
    let sum = |of: fn(&crate::facts::measures::OfGeneration) -> u64| measures.generations.iter().map(of).sum::<u64>();
    page.one("forkmaster_connections", "gauge", "Open client connections.", sum(|one| one.connections));
    page.one("http_server_active_requests", "gauge", "Requests in the application.", sum(|one| one.busy));
    page.one("forkmaster_threads_busy", "gauge", "App threads in the application.", sum(|one| one.busy));
    let help = "App threads of the workers that serve.";
    page.one("forkmaster_threads_max", "gauge", help, measures.threads_max);
    let help = "1: no temporary directory is writable, so request bodies have only memory.";
    page.one("forkmaster_bodies_in_memory", "gauge", help, flag(measures.bodies_in_memory));
}

fn times(page: &mut Page, measures: &Measures) {
    let totals = &measures.totals;
    let help = "What app threads have spent on requests.";
    page.one("forkmaster_thread_busy_seconds_total", "counter", help, seconds(totals.latency.sum_ns));
    let help = "From an app thread's taking the request to the end of the answer.";
    page.histogram("http_server_request_duration_seconds", help, &totals.latency);
    let help = "From the complete request to an app thread's taking it.";
    page.histogram("forkmaster_request_queue_seconds", help, &totals.queued);
}

fn listeners(page: &mut Page, measures: &Measures) {
    page.family("forkmaster_listen_queue", "gauge", "Connections in the kernel that no worker has taken yet.");
    for listener in &measures.listeners {
        if let Some((waiting, _)) = listener.queue {
            page.sample("forkmaster_listen_queue", &[("listener", &listener.address)], waiting);
        }
    }
    page.family("forkmaster_listen_queue_limit", "gauge", "Connections that the kernel holds at most.");
    for listener in &measures.listeners {
        if let Some((_, limit)) = listener.queue {
            page.sample("forkmaster_listen_queue_limit", &[("listener", &listener.address)], limit);
        }
    }
}

fn memory(page: &mut Page, measures: &Measures) {
    let help = "Resident memory of the workers in a slot, shared pages included.";
    page.family("forkmaster_worker_resident_memory_bytes", "gauge", help);
    for one in &measures.generations {
        for (slot, bytes) in &one.memory {
            let labels: [(&str, &dyn Display); 2] = [("generation", &one.generation), ("worker", slot)];
            page.sample("forkmaster_worker_resident_memory_bytes", &labels, bytes);
        }
    }
}

fn services(page: &mut Page, services: &[OfService]) {
    page.family("forkmaster_service_processes", "gauge", "Processes of a service that run and are ready.");
    for one in services {
        page.sample("forkmaster_service_processes", &[("service", &one.name)], one.running);
    }
    page.family("forkmaster_service_processes_desired", "gauge", "Processes that a service should have.");
    for one in services {
        page.sample("forkmaster_service_processes_desired", &[("service", &one.name)], one.wanted);
    }
    let help = "Processes of a service that were started again after they had ended by themselves.";
    page.family("forkmaster_service_restarts_total", "counter", help);
    for one in services {
        page.sample("forkmaster_service_restarts_total", &[("service", &one.name)], one.restarts);
    }
    let help = "Runs of a service that runs every so often, by their result.";
    page.family("forkmaster_service_runs_total", "counter", help);
    for one in services {
        for (result, count) in ["ok", "failed", "skipped"].iter().zip(one.runs.into_iter().flatten()) {
            page.sample("forkmaster_service_runs_total", &[("service", &one.name), ("result", result)], count);
        }
    }
}

#[derive(Default)]
struct Page {
    text: String,
}

impl Page {
    fn family(&mut self, name: &str, kind: &str, help: &str) {
        self.line(format_args!("# HELP {name} {help}\n# TYPE {name} {kind}"));
    }

    fn one(&mut self, name: &str, kind: &str, help: &str, value: impl Display) {
        self.family(name, kind, help);
        self.sample(name, &[], value);
    }

    fn sample(&mut self, name: &str, labels: &[(&str, &dyn Display)], value: impl Display) {
        let labels: Vec<String> =
            labels.iter().map(|(label, text)| format!("{label}=\"{}\"", escaped(&text.to_string()))).collect();
        match labels.is_empty() {
            true => self.line(format_args!("{name} {value}")),
            false => self.line(format_args!("{name}{{{}}} {value}", labels.join(","))),
        }
    }

    fn histogram(&mut self, name: &str, help: &str, counted: &Counted) {
        self.family(name, "histogram", help);
        let mut below: u64 = 0;
        for (at, count) in counted.buckets.iter().enumerate() {
            below = below.saturating_add(*count);
            let bound = upper_micros(at).map_or_else(|| "+Inf".to_owned(), |micros| (micros as f64 / 1e6).to_string());
            self.sample(&format!("{name}_bucket"), &[("le", &bound)], below);
        }
        self.sample(&format!("{name}_sum"), &[], seconds(counted.sum_ns));
        self.sample(&format!("{name}_count"), &[], below);
    }

    fn line(&mut self, line: std::fmt::Arguments<'_>) {
        // Into a String it cannot fail.
        let _ = writeln!(self.text, "{line}");
    }
}

fn seconds(ns: u64) -> f64 {
    ns as f64 / 1e9
}

fn flag(is: bool) -> u8 {
    u8::from(is)
}

/// Backslash, quote and line feed, as the format has it.
fn escaped(text: &str) -> String {
    text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::facts::measures::OfListener;

    #[test]
    fn a_page_has_every_reason_and_escapes_what_it_quotes() {
        let listener = OfListener { address: "unix:/a\"b\\c".to_owned(), queue: Some((3, 4096)) };
        let text = text(&Measures { listeners: vec![listener], version: "1", ..Measures::default() });
        assert!(text.contains("forkmaster_worker_restarts_total{reason=\"max_rss\"} 0\n"), "{text}");
        assert!(text.contains("forkmaster_listen_queue{listener=\"unix:/a\\\"b\\\\c\"} 3\n"), "{text}");
        assert!(text.contains("http_server_request_duration_seconds_bucket{le=\"0.000064\"} 0\n"), "{text}");
        assert!(text.contains("http_server_request_duration_seconds_bucket{le=\"+Inf\"} 0\n"), "{text}");
    }
}
