//! Deliberately broken variants, for the tests only: a zero-loss test that has never failed proves nothing. Debug
//! builds obey `FORKMASTER_MUTANT`; in release builds there is no such code.

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mutant {
    /// A reload kills the old workers before the new ones are ready.
    KillOldFirst,
    /// A draining worker closes idle connections at once instead of answering once more.
    DrainClosesIdle,
}

#[cfg(debug_assertions)]
pub fn is(mutant: Mutant) -> bool {
    let name = match mutant {
        Mutant::KillOldFirst => "kill-old-first",
        Mutant::DrainClosesIdle => "drain-closes-idle",
    };
    std::env::var_os("FORKMASTER_MUTANT").is_some_and(|wanted| wanted == name)
}

#[cfg(not(debug_assertions))]
pub fn is(_: Mutant) -> bool {
    false
}
