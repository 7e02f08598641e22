//! What is measured of a service, as plain data: counters since the start, and what is so at the moment. `/metrics`
//! shows it. Nothing here looks anything up.

use std::collections::BTreeMap;

use forkmaster_wire::histogram::Counted;
use forkmaster_wire::message::{GenerationId, SlotIndex};
use forkmaster_wire::scoreboard::STATUS_CLASSES;
use serde::{Deserialize, Serialize};

use super::outcome::Reload;
use super::snapshot::Handoffs;
use crate::saved::constant_keys;

/// What processes have counted, also those that are gone. A sum never goes back.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Totals {
    pub requests: u64,
    pub accepted: u64,
    pub errors: u64,
    /// Ran beyond their limit, and were answered in place of the application.
    pub timed_out: u64,
    pub shed: u64,
    /// Got 503 because of a maintenance.
    pub turned_away: u64,
    /// Ended with their worker, which died or was killed.
    pub lost: u64,
    pub status: [u64; STATUS_CLASSES],
    pub latency: Counted,
    pub queued: Counted,
    pub handoffs: Handoffs,
}

impl Totals {
    pub fn add(&mut self, other: &Totals) {
        self.requests = self.requests.saturating_add(other.requests);
        self.accepted = self.accepted.saturating_add(other.accepted);
        self.errors = self.errors.saturating_add(other.errors);
        self.timed_out = self.timed_out.saturating_add(other.timed_out);
        self.shed = self.shed.saturating_add(other.shed);
        self.turned_away = self.turned_away.saturating_add(other.turned_away);
        self.lost = self.lost.saturating_add(other.lost);
        for (sum, more) in self.status.iter_mut().zip(other.status) {
            *sum = sum.saturating_add(more);
        }
        self.latency.add(&other.latency);
        self.queued.add(&other.queued);
        self.handoffs.add(other.handoffs);
    }

    /// The larger of each: the application can write to a worker's cell, and take back what was shown.
    pub fn raise(&mut self, other: &Totals) {
        self.requests = self.requests.max(other.requests);
        self.accepted = self.accepted.max(other.accepted);
        self.errors = self.errors.max(other.errors);
        self.timed_out = self.timed_out.max(other.timed_out);
        self.shed = self.shed.max(other.shed);
        self.turned_away = self.turned_away.max(other.turned_away);
        self.lost = self.lost.max(other.lost);
        for (most, now) in self.status.iter_mut().zip(other.status) {
            *most = now.max(*most);
        }
        self.latency.raise(&other.latency);
        self.queued.raise(&other.queued);
        self.handoffs.raise(other.handoffs);
    }
}

/// What happened since the start, by its kind.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Tally {
    /// Workers of a generation that served that were replaced, or are to be.
    #[serde(deserialize_with = "constant_keys")]
    pub restarts: BTreeMap<&'static str, u64>,
    pub boots_failed: u64,
    #[serde(deserialize_with = "constant_keys")]
    pub reloads: BTreeMap<&'static str, u64>,
}

/// Each is there from the start, with 0: a rate needs a first value.
pub const RESTART_REASONS: [&str; 8] =
    ["exit", "leave", "max_lifetime", "max_requests", "max_rss", "recycle", "signal", "timeout"];
/// `End::word` of each.
pub const RELOAD_RESULTS: [&str; 4] = ["committed", "refused", "stopped", "superseded"];

impl Tally {
    pub fn reload(&mut self, reload: &Reload) {
        *self.reloads.entry(reload.end.word()).or_default() += 1;
    }

    pub fn restart(&mut self, reason: &'static str) {
        *self.restarts.entry(reason).or_default() += 1;
    }
}

#[derive(Clone, Debug, Default)]
pub struct Measures {
    pub version: &'static str,
    pub ready: bool,
    /// Requests are held back.
    pub paused: bool,
    /// They get 503 meanwhile.
    pub maintenance: bool,
    pub uptime_s: f64,
    pub totals: Totals,
    pub tally: Tally,
    /// None: there was no reload yet.
    pub last_reload_ok: Option<bool>,
    /// The generation that serves, and how many workers it should have.
    pub serving: Option<(GenerationId, u32)>,
    pub generations: Vec<OfGeneration>,
    /// Of the generation that serves.
    pub threads_max: u64,
    /// No temporary directory is writable, for the generation that serves.
    pub bodies_in_memory: bool,
    pub listeners: Vec<OfListener>,
    pub services: Vec<OfService>,
    pub master_bytes: u64,
}

/// One generation that still has processes.
#[derive(Clone, Debug)]
pub struct OfGeneration {
    pub generation: GenerationId,
    /// The workers in each state.
    pub workers: BTreeMap<&'static str, u64>,
    /// What its living workers have counted, and those of it that are gone.
    pub totals: Totals,
    pub busy: u64,
    pub connections: u64,
    /// Resident bytes of the workers of each slot.
    pub memory: BTreeMap<SlotIndex, u64>,
}

/// A service of the generation that serves. Its counters live on over deploys.
#[derive(Clone, Debug)]
pub struct OfService {
    pub name: String,
    pub wanted: u32,
    /// Processes that run, and are ready.
    pub running: u64,
    pub restarts: u64,
    /// Only of one that runs every so often: runs that went well, failed, were skipped.
    pub runs: Option<[u64; 3]>,
}

#[derive(Clone, Debug)]
pub struct OfListener {
    pub address: String,
    /// Connections that no worker has taken yet, and how many the kernel holds. None: it does not tell.
    pub queue: Option<(u32, u32)>,
}
