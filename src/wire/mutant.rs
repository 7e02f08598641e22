//! Deliberately broken variants, for the tests only: a zero-loss test that has never failed proves nothing. Debug
//! builds obey `FORKMASTER_MUTANT`; in release builds there is no such code.

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mutant {
    /// A reload kills the old workers before the new ones are ready.
    KillOldFirst,
    /// A draining worker closes idle connections at once instead of answering once more.
    DrainClosesIdle,
    /// A connection now and then that is given to another worker does not arrive.
    QueueLoses,
    /// What was read of a connection that is given to another worker travels with the next one.
    QueueMixes,
    /// A connection that is given away stays in the epoll set of its old worker.
    GivenIsWatched,
    /// An upgrade does not carry the descriptor whose end tells workers that the master is gone.
    UpgradeLosesLifeline,
    /// This binary reads states of another format.
    UpgradeRefusesState,
    /// Every body comes fast enough to go live: what a test sends on a busy machine may not.
    BodiesAreFast,
    /// The thread that reads the configuration for a reload panics.
    ReadingPanics,
}

#[cfg(debug_assertions)]
pub fn is(mutant: Mutant) -> bool {
    let name = match mutant {
        Mutant::KillOldFirst => "kill-old-first",
        Mutant::DrainClosesIdle => "drain-closes-idle",
        Mutant::QueueLoses => "queue-loses",
        Mutant::QueueMixes => "queue-mixes",
        Mutant::GivenIsWatched => "given-is-watched",
        Mutant::UpgradeLosesLifeline => "upgrade-loses-lifeline",
        Mutant::UpgradeRefusesState => "upgrade-refuses-state",
        Mutant::BodiesAreFast => "bodies-are-fast",
        Mutant::ReadingPanics => "reading-panics",
    };
    std::env::var_os("FORKMASTER_MUTANT").is_some_and(|wanted| wanted == name)
}

#[cfg(not(debug_assertions))]
pub fn is(_: Mutant) -> bool {
    false
}
