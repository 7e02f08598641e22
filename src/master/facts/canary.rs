//! What a canary has shown, as plain data: the first workers of a new generation beside those of the old one, over the
//! same minutes. `Display` is the table for people, the fields are for programs. It judges nothing.

use std::fmt;

use serde::{Deserialize, Serialize};

/// The verdict before there is one.
pub const RUNNING: &str = "running";

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Canary {
    /// `running`, `good`, `worse`, `died`, `too_little_traffic`, `promoted`, `abandoned`, `cut_short`.
    pub verdict: String,
    /// In a sentence; empty while it runs.
    pub why: String,
    pub new: Side,
    pub old: Side,
    /// Of 100 answers, so many within `within_us`: 90, and 99 where there are 1,000 answers.
    pub of_100: u32,
    /// What is allowed: `+1pp`, `x1.5`.
    pub max_errors: String,
    pub max_latency: String,
}

/// One of the two generations.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Side {
    pub generation: u32,
    /// Workers that serve.
    pub workers: u32,
    /// Requests since the canary began.
    pub answered: u64,
    /// The same without the first ones of each worker.
    pub compared: u64,
    /// Of those compared: answered with 5xx, left by an exception, shed, or lost with their worker.
    pub failed: u64,
    /// Of those answered: not by the application, since they ran beyond their limit, were shed, or lost with their worker.
    pub cut: u64,
    /// For how long its oldest request runs; 0: none does.
    pub running_us: u64,
    pub within_us: Option<u64>,
}

/// `+1pp`: percentage points.
pub fn show_points(points: f64) -> String {
    format!("+{points}pp")
}

/// `x1.5`
pub fn show_times(times: f64) -> String {
    format!("x{times}")
}

impl Canary {
    /// As it is kept: one whose verdict was not waited for says so.
    pub fn ended(mut self: Box<Canary>) -> Box<Canary> {
        if self.verdict == RUNNING {
            self.verdict = "cut_short".to_owned();
        }
        self
    }

    /// The canary's share of the requests that both have answered, in percent.
    pub fn share(&self) -> f64 {
        percent(self.new.answered, self.new.answered + self.old.answered)
    }
}

impl fmt::Display for Canary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (new, old) = (&self.new, &self.old);
        let failed = |side: &Side| format!("{} ({:.1} %)", side.failed, percent(side.failed, side.compared));
        let within = |side: &Side| match side.within_us {
            Some(micros) => format!("{:.1} ms", micros as f64 / 1000.0),
            None => "-".to_owned(),
        };
        let row = |f: &mut fmt::Formatter<'_>, what: &str, new: &str, old: &str, allowed: &str| {
            let line = format!("{what:<22} {new:>16} {old:>16} {allowed:>8}");
            writeln!(f, "{}", line.trim_end())
        };
        row(f, "", &format!("gen {} (canary)", new.generation), &format!("gen {}", old.generation), "allowed")?;
        row(f, "workers", &new.workers.to_string(), &old.workers.to_string(), "")?;
        row(f, "requests answered", &new.answered.to_string(), &old.answered.to_string(), "")?;
        let share = |share: f64| format!("{share:.1} %");
        let rest = if new.answered + old.answered == 0 { 0.0 } else { 100.0 - self.share() };
        row(f, "share of them", &share(self.share()), &share(rest), "")?;
        row(f, "of these compared", &new.compared.to_string(), &old.compared.to_string(), "")?;
        row(f, "failed", &failed(new), &failed(old), &self.max_errors)?;
        let cut = |side: &Side| format!("{} ({:.1} %)", side.cut, percent(side.cut, side.answered));
        row(f, "cut, shed or lost", &cut(new), &cut(old), &self.max_errors)?;
        let runs = |side: &Side| match side.running_us {
            0 => "-".to_owned(),
            micros => format!("{:.1} s", micros as f64 / 1_000_000.0),
        };
        row(f, "a request has run for", &runs(new), &runs(old), "")?;
        row(f, &format!("{} of 100 within", self.of_100), &within(new), &within(old), &self.max_latency)
    }
}

fn percent(part: u64, all: u64) -> f64 {
    if all == 0 {
        return 0.0;
    }
    part as f64 * 100.0 / all as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_for_people() {
        let side = |generation, answered, failed, within_us| Side {
            generation,
            workers: 4,
            answered,
            compared: answered - 12,
            failed,
            cut: failed / 10,
            running_us: failed * 100_000,
            within_us,
        };
        let canary = Canary {
            new: side(2, 412, 20, Some(12_400)),
            old: side(1, 1212, 0, None),
            of_100: 90,
            max_errors: show_points(1.0),
            max_latency: show_times(1.5),
            ..Canary::default()
        };
        let table = "                         gen 2 (canary)            gen 1  allowed
workers                               4                4
requests answered                   412             1212
share of them                    25.4 %           74.6 %
of these compared                   400             1200
failed                       20 (5.0 %)        0 (0.0 %)     +1pp
cut, shed or lost             2 (0.5 %)        0 (0.0 %)     +1pp
a request has run for             2.0 s                -
90 of 100 within                12.4 ms                -     x1.5
";
        assert_eq!(canary.to_string(), table);
        assert_eq!(Canary::default().share(), 0.0);
    }
}
