//! Why a service answers nobody although what was asked for is done: it was paused, or its workers are switched off. In words,
//! from the word that the master has for the service. It asks nobody.

/// None: whatever is there serves. A word of a later master says nothing.
pub fn held(state: &str) -> Option<&'static str> {
    match state {
        "pausing" | "paused" => Some("the service is paused, and clients wait for `forkmaster resume`"),
        "maintenance" => Some("the service is in maintenance, and clients get 503 until `forkmaster resume`"),
        "off" => Some("the workers are switched off: `forkmaster scale N` switches them on"),
        _other => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_serves_needs_no_word_and_who_does_not_has_one() {
        for state in ["running", "degraded", "reloading", "starting", "stopping", "", "of a later master"] {
            assert_eq!(held(state), None, "{state}");
        }
        for (state, words) in [("pausing", "resume"), ("paused", "resume"), ("maintenance", "503"), ("off", "scale")] {
            assert!(held(state).is_some_and(|why| why.contains(words)), "{state}");
        }
    }
}
