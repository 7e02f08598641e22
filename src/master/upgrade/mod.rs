//! Upgrade in place: this process executes another binary of the master, which goes on with the same children, listeners,
//! connections and counters. `state` is what travels, `attempt` the look that the new binary takes at a copy of it, `exec`
//! the step itself. When it may happen the supervisor decides.
//!
//! Exec keeps the pid, children, who reaps orphans, the signal mask and what is pending, limits, priorities and open
//! descriptors that say so. Templates are told of the end of the *thread* that forked them (prctl(2), PR_SET_PDEATHSIG),
//! which is the main thread; that one executes, and so does not end. Exec loses memory, other threads, signal handlers,
//! and descriptors that are CLOEXEC: all that are not named in the state.

pub mod attempt;
pub mod exec;
pub mod state;
