//! What a thread that may wait is doing just now, in words: whoever waits for it and gives up says what for.

use std::cell::RefCell;
use std::sync::{Arc, Mutex, PoisonError};

thread_local! {
    static HERE: RefCell<Progress> = RefCell::default();
}

/// The words of one piece of work.
#[derive(Clone, Debug, Default)]
pub struct Progress(Arc<Mutex<String>>);

impl Progress {
    /// From now on this thread's notes go here.
    pub fn follow(&self) {
        HERE.with_borrow_mut(|here| *here = self.clone());
    }

    /// The latest note; empty where nothing was begun.
    pub fn words(&self) -> String {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// Says what this thread begins to do: `looking up user shop (NSS)`.
pub fn note(words: String) {
    HERE.with_borrow(|here| *here.0.lock().unwrap_or_else(PoisonError::into_inner) = words);
}
