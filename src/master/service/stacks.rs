//! Dumps of Python stacks as text: which thread a part of it is of, and which request that thread runs. Workers write
//! them themselves (`traceback`), or faulthandler does. It only reads text.

use std::fmt::Write;

/// The number of the thread whose stack follows, if this line heads one. As `threading.get_ident()` says it:
/// `Thread MainThread (140234), most recent call last:` of a worker, `Thread 0x00007f8c (most recent call first):` and
/// `Current thread 0x00007f8c [python] (most recent call first):` of faulthandler.
fn heads(line: &str) -> Option<u64> {
    if let Some(named) = line.strip_prefix("Thread ").and_then(|rest| rest.strip_suffix("), most recent call last:")) {
        return named.rsplit_once('(')?.1.parse().ok();
    }
    let rest = line.strip_prefix("Current thread 0x").or_else(|| line.strip_prefix("Thread 0x"))?;
    let digits = rest.split(' ').next()?;
    line.ends_with("(most recent call first):").then(|| u64::from_str_radix(digits, 16).ok())?
}

/// The frames of one thread, without the line that heads them.
pub fn of_thread(text: &str, ident: u64) -> Option<String> {
    let mut lines = text.lines().skip_while(|line| heads(line) != Some(ident));
    lines.next()?;
    let frames: Vec<&str> = lines.take_while(|line| heads(line).is_none() && !line.is_empty()).collect();
    Some(frames.join("\n"))
}

/// The text with a line for each thread that runs a request: `requests` says what, by the thread's number.
pub fn with_requests(text: &str, request_of: impl Fn(u64) -> Option<String>) -> String {
    let mut shown = String::with_capacity(text.len());
    for line in text.lines() {
        shown.push_str(line);
        shown.push('\n');
        if let Some(request) = heads(line).and_then(&request_of) {
            // Into a String nothing can fail.
            let _ = writeln!(shown, "  {request}");
        }
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    const OWN: &str = "Thread MainThread (140234), most recent call last:\n  File \"a.py\", line 1, in f\n    wait()\n\
                       Thread pool (2) (77), most recent call last:\n  File \"b.py\", line 2, in g\n";
    const FAULTHANDLER: &str = "Thread 0x000000000000004d (most recent call first):\n  File \"b.py\", line 2 in g\n\n\
                                Current thread 0x00000000000223ca [python] (most recent call first):\n  File \"a.py\", line 1 in f\n";

    #[test]
    fn a_thread_is_found_in_either_form() {
        assert_eq!(of_thread(OWN, 140_234).unwrap(), "  File \"a.py\", line 1, in f\n    wait()");
        assert_eq!(of_thread(OWN, 77).unwrap(), "  File \"b.py\", line 2, in g");
        assert_eq!(of_thread(FAULTHANDLER, 77).unwrap(), "  File \"b.py\", line 2 in g");
        assert_eq!(of_thread(FAULTHANDLER, 140_234).unwrap(), "  File \"a.py\", line 1 in f");
        assert_eq!(of_thread(OWN, 5), None);
    }

    #[test]
    fn threads_are_shown_with_their_requests() {
        let shown = with_requests(OWN, |ident| (ident == 77).then(|| "runs \"GET /\"".to_owned()));
        assert!(shown.contains("(77), most recent call last:\n  runs \"GET /\"\n  File \"b.py\""), "{shown}");
        assert_eq!(shown.matches("runs").count(), 1);
    }

    /// Whatever an application calls its threads.
    #[test]
    fn names_of_threads_do_not_confuse() {
        let text = "Thread 0x4d (most recent call first): (9), most recent call last:\n  frame\n";
        assert_eq!(of_thread(text, 9).unwrap(), "  frame");
        assert_eq!(heads("  Thread x (9), most recent call last:"), None);
    }
}
