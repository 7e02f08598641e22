//! How a service stands, in one sentence: for the service manager's STATUS= and for probes. Plain data that is cheap
//! to make, since it is looked at in every pass of the master's loop.

use std::fmt;

use forkmaster_wire::message::GenerationId;

use super::outcome::Verb;

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Standing {
    pub phase: Phase,
    /// A worker serves, and the master was not told to stop.
    pub ready: bool,
    /// The generation that serves, with its workers that serve, out of how many.
    pub serving: Option<(GenerationId, usize, u32)>,
    /// The generation of the reload that is under way.
    pub coming: Option<(GenerationId, &'static str)>,
    /// How often a reload was asked for.
    pub reloads: u64,
    /// Requests are held back.
    pub held: Option<Held>,
    /// Worker processes of all generations.
    pub processes: usize,
    /// What was refused last, and why; the first line.
    pub refused: Option<(Verb, String)>,
}

/// What that means to clients.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Held {
    Waiting,
    TurnedAway,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Phase {
    /// No generation has served yet.
    #[default]
    Starting,
    /// A generation serves, and no reload is under way.
    Running,
    /// A reload is under way: its configuration is read, or its generation proves itself or rolls.
    Reloading,
    /// It was told to stop, or cannot start.
    Stopping,
}

impl fmt::Display for Standing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.phase {
            Phase::Starting => f.write_str("starting")?,
            Phase::Running => {}
            Phase::Reloading => match self.coming {
                Some((generation, word)) => write!(f, "reloading: generation {generation} is {word}; ")?,
                None => f.write_str("reloading: reading the configuration; ")?,
            },
            Phase::Stopping => write!(f, "stopping: {} processes left", self.processes)?,
        }
        if let (Phase::Running | Phase::Reloading, Some((generation, serving, wanted))) = (self.phase, self.serving) {
            write!(f, "generation {generation}: {serving} of {wanted} workers serve")?;
            match self.held {
                None => {}
                Some(Held::Waiting) => f.write_str("; paused: clients wait")?,
                Some(Held::TurnedAway) => f.write_str("; maintenance: clients get 503")?,
            }
        }
        if let (Phase::Running | Phase::Stopping, Some((verb, reason))) = (self.phase, &self.refused) {
            match verb {
                Verb::Start => write!(f, "; the start was refused: {reason}")?,
                Verb::Reload | Verb::Rollback | Verb::Upgrade => write!(f, "; the last {verb} was refused: {reason}")?,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_sentence_says_how_it_stands() {
        let serving = Some((GenerationId(3), 4, 4));
        let running = Standing { phase: Phase::Running, serving, ..Standing::default() };
        assert_eq!(running.to_string(), "generation 3: 4 of 4 workers serve");
        let paused =
            Standing { held: Some(Held::TurnedAway), serving: Some((GenerationId(3), 0, 4)), ..running.clone() };
        assert_eq!(paused.to_string(), "generation 3: 0 of 4 workers serve; maintenance: clients get 503");
        let refused = Standing { refused: Some((Verb::Reload, "no module named shop".to_owned())), ..running.clone() };
        let sentence = "generation 3: 4 of 4 workers serve; the last reload was refused: no module named shop";
        assert_eq!(refused.to_string(), sentence);
        let reloading = Standing { phase: Phase::Reloading, coming: Some((GenerationId(4), "proving")), ..refused };
        let sentence = "reloading: generation 4 is proving; generation 3: 4 of 4 workers serve";
        assert_eq!(reloading.to_string(), sentence);
        assert_eq!(Standing::default().to_string(), "starting");
        let stopping = Standing { phase: Phase::Stopping, processes: 2, ..running.clone() };
        assert_eq!(stopping.to_string(), "stopping: 2 processes left");
        let rolled_back = Standing { refused: Some((Verb::Rollback, "it is gone".to_owned())), ..running.clone() };
        let sentence = "generation 3: 4 of 4 workers serve; the last rollback was refused: it is gone";
        assert_eq!(rolled_back.to_string(), sentence);
        let refused = Some((Verb::Start, "no".to_owned()));
        let failed = Standing { phase: Phase::Stopping, refused, ..Standing::default() };
        assert_eq!(failed.to_string(), "stopping: 0 processes left; the start was refused: no");
    }
}
