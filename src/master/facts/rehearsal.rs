//! How a rehearsal went, or why there was none, as plain data: the candidate of a release answers what the old generation has
//! answered.

use std::fmt;

use forkmaster_wire::message::GenerationId;
use log::Level;
use serde::Serialize;

#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Rehearsal {
    pub generation: GenerationId,
    pub result: Verdict,
    /// `198 of 200 as before; ...`, or why there was none.
    pub words: String,
    /// What the application said of those that differ.
    pub details: String,
    pub after_ms: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    AsBefore,
    Differs,
    LeftOut,
}

impl Rehearsal {
    pub fn level(&self) -> Level {
        match self.result {
            Verdict::AsBefore | Verdict::LeftOut => Level::Info,
            Verdict::Differs => Level::Warn,
        }
    }
}

impl fmt::Display for Rehearsal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Rehearsal { generation, result, words, details, after_ms } = self;
        match result {
            Verdict::LeftOut => write!(f, "rehearsal gen={generation} left out: {words}"),
            Verdict::AsBefore | Verdict::Differs => {
                write!(f, "rehearsal gen={generation} after={after_ms}ms: {words}")?;
                details.lines().try_for_each(|line| write!(f, "\n{line}"))
            }
        }
    }
}
