//! The verbs that change the engine in flight, or look into it: scale, recycle, reopen-logs, dump, and waiting for the
//! end. Each waits until it is done and tells the truth; with `--no-wait` it only asks.

use std::time::{Duration, Instant};

use forkmaster_wire::message::SlotIndex;
use serde::de::{DeserializeOwned, IgnoredAny};

use super::ask::{ask, read, stay, wait_for_close, NoAnswer};
use super::client::{connect, target, told, ANSWER_WITHIN, LOOK_EVERY};
use super::held::held;
use super::{find, output};
use crate::config::process_context::ProcessContext;
use crate::doors::protocol::{Done, Dumped, Recycled, Request, Scaled, ServiceScaled, Upgraded};
use crate::exit_code::ExitCode;
use crate::verbs::command_line::{Answering, Client, Scale, Waiting};

/// Workers answer within half a second, and where they do not, faulthandler does in another.
const DUMP_WITHIN: Duration = Duration::from_secs(10);

pub fn scale(client: &Client, context: &ProcessContext, to: Scale, waiting: Waiting) -> ExitCode {
    let request = |wait| match to {
        Scale::By(by) => Request::Scale { by, wait },
        Scale::To(workers) => Request::ScaleTo { workers, wait },
    };
    let are = |workers| if workers == 1 { "worker is" } else { "workers are" };
    let told_waiting = |scaled: &Scaled, waited: bool| match (scaled.workers, waited, held(&scaled.state)) {
        (0, _, _) => "no worker serves; the sockets are held, and what comes waits\n".to_owned(),
        (workers, true, None) => {
            format!("{workers} {}\n", if workers == 1 { "worker serves" } else { "workers serve" })
        }
        (workers, true, Some(why)) => format!("{workers} {} ready; {why}\n", are(workers)),
        (workers, false, _) => format!("{workers} {} wanted\n", are(workers)),
    };
    act(client, context, "scale", request, waiting, told_waiting)
}

pub fn recycle(
    client: &Client,
    context: &ProcessContext,
    slot: SlotIndex,
    keep: Option<Duration>,
    waiting: Waiting,
) -> ExitCode {
    let request = |wait| match keep {
        None => Request::Recycle { slot, wait },
        Some(keep) => Request::RecycleKept { slot, keep_ms: keep.as_millis() as u64, wait },
    };
    let Waiting::Until(_) = waiting else {
        let asked = |_: &IgnoredAny, _| format!("the worker in slot {slot} is being replaced\n");
        return act(client, context, "recycle", request, waiting, asked);
    };
    let text = |recycled: &Recycled, _| {
        let serves = match recycled.pid {
            Some(pid) => format!("slot {slot}: pid {pid} serves\n"),
            None => format!("slot {slot}: another worker serves\n"),
        };
        let kept = recycled.kept_pid.map_or_else(String::new, |pid| {
            format!("pid {pid} is out of service and stays alive for now: gdb -p {pid}, py-spy dump --pid {pid}\n")
        });
        serves + &kept
    };
    act(client, context, "recycle", request, waiting, text)
}

pub fn scale_service(client: &Client, context: &ProcessContext, name: &str, to: Scale, waiting: Waiting) -> ExitCode {
    let request = |wait| {
        let (by, to) = match to {
            Scale::By(by) => (Some(by), None),
            Scale::To(to) => (None, Some(to)),
        };
        Request::ScaleService { name: name.to_owned(), by, to, wait }
    };
    let text = |scaled: &ServiceScaled, waited: bool| match waited {
        true => format!(
            "{name}: {} {}\n",
            scaled.processes,
            if scaled.processes == 1 { "process runs" } else { "processes run" }
        ),
        false => format!(
            "{name}: {} {} wanted\n",
            scaled.processes,
            if scaled.processes == 1 { "process is" } else { "processes are" }
        ),
    };
    act(client, context, "scale", request, waiting, text)
}

pub fn recycle_service(
    client: &Client,
    context: &ProcessContext,
    name: &str,
    number: Option<u32>,
    waiting: Waiting,
) -> ExitCode {
    let text = |_: &IgnoredAny, waited: bool| match waited {
        true => format!("{name} runs anew\n"),
        false => format!("{name} is being begun anew\n"),
    };
    let request = |wait| Request::RecycleService { name: name.to_owned(), number, wait };
    act(client, context, "recycle", request, waiting, text)
}

/// The master resumes by itself where requests still run when the time is over.
pub fn pause(client: &Client, context: &ProcessContext, timeout: Duration, answering: Option<&Answering>) -> ExitCode {
    let clients = match answering {
        None => "wait for `forkmaster resume`".to_owned(),
        Some(Answering { after: Duration::ZERO, .. }) => "get 503 until `forkmaster resume`".to_owned(),
        Some(Answering { after, .. }) => {
            format!("wait for {} s, then get 503, until `forkmaster resume`", after.as_secs_f64())
        }
    };
    let text = |_: &IgnoredAny, _| format!("paused: no request is in the application, and clients {clients}\n");
    let timeout_ms = timeout.as_millis() as u64;
    let request = |_| match answering {
        None => Request::Pause { timeout_ms },
        Some(Answering { after, page }) => {
            Request::PauseAnswering { timeout_ms, after_ms: after.as_millis() as u64, page: page.clone() }
        }
    };
    act(client, context, "pause", request, Waiting::Until(None), text)
}

pub fn abandon(client: &Client, context: &ProcessContext) -> ExitCode {
    let text = |done: &Done, _| {
        let then = held(&done.state).unwrap_or("the old generation serves as before");
        format!("the canary is given up; {then}\n")
    };
    act(client, context, "abandon", |_| Request::Abandon, Waiting::Until(Some(ANSWER_WITHIN)), text)
}

pub fn resume(client: &Client, context: &ProcessContext, timeout: Option<Duration>) -> ExitCode {
    let text = |done: &Done, _| match held(&done.state) {
        None => "all workers serve again\n".to_owned(),
        Some(why) => format!("the pause is over; {why}\n"),
    };
    act(client, context, "resume", |_| Request::Resume, Waiting::Until(timeout), text)
}

/// The new binary answers, over the same connection. The master bounds the wait, and the client only its own.
pub fn upgrade(client: &Client, context: &ProcessContext, timeout: Duration) -> ExitCode {
    let text = |upgraded: &Upgraded, _| {
        let Upgraded { from, to, pid } = upgraded;
        format!("upgraded from {from} to {to}; pid {pid} and its workers serve on\n")
    };
    let timeout_ms = timeout.as_millis() as u64;
    let waiting = Waiting::Until(Some(timeout + ANSWER_WITHIN));
    act(client, context, "upgrade", |_| Request::Upgrade { timeout_ms }, waiting, text)
}

pub fn reopen_logs(client: &Client, context: &ProcessContext, timeout: Option<Duration>) -> ExitCode {
    let text = |_: &IgnoredAny, _| "the logs were opened again\n".to_owned();
    act(client, context, "reopen-logs", |_| Request::ReopenLogs, Waiting::Until(timeout), text)
}

/// The stacks of all threads, and before them what each worker runs.
pub fn dump(client: &Client, context: &ProcessContext, slot: Option<SlotIndex>) -> ExitCode {
    let text = |dumped: &Dumped, _| {
        let worker = |of: &crate::doors::protocol::Stacks| {
            let pid = of.pid.map_or_else(|| "?".to_owned(), |pid| pid.to_string());
            let stacks = match of.stacks.trim_end() {
                "" => "it did not tell its stacks".to_owned(),
                stacks => output::printable(stacks),
            };
            let more = match of.cut {
                true => format!("\n[cut here; `forkmaster dump {}` shows all of it]", of.slot),
                false => String::new(),
            };
            format!("worker gen={} slot={} pid={pid}\n{stacks}{more}\n\n", of.generation, of.slot)
        };
        dumped.workers.iter().map(worker).collect()
    };
    act(client, context, "dump", |_| Request::Dump { slot }, Waiting::Until(Some(DUMP_WITHIN)), text)
}

/// Waits until no master is there. One that was never there is down.
pub fn wait_down(client: &Client, context: &ProcessContext, timeout: Option<Duration>) -> ExitCode {
    let target = match target(client, context) {
        Ok(target) => target,
        Err(code) => return code,
    };
    let deadline = timeout.map(|timeout| Instant::now() + timeout);
    let mut last = None;
    loop {
        let began = Instant::now();
        let left = deadline.map(|deadline| deadline.saturating_duration_since(began));
        match find::find(&target) {
            // A connection also ends when it was idle for long, or when the master has no room for it.
            Ok(mut found) => match wait_for_close(&mut found.stream, left) {
                Ok(()) => {
                    // Not a wait for something that would tell when it comes: nothing tells that there is room.
                    std::thread::sleep(LOOK_EVERY.saturating_sub(began.elapsed()));
                    last = Some(found.stream);
                }
                Err(NoAnswer::Late) => {
                    output::complain("still there after the time given");
                    return ExitCode::Timeout;
                }
                Err(no_answer @ (NoAnswer::Refused(_) | NoAnswer::Ended)) => return told("not waited", no_answer),
            },
            Err(not_found) if not_found.exit_code == ExitCode::NotRunning => {
                last.iter().for_each(stay);
                return ExitCode::Done;
            }
            Err(not_found) => {
                output::complain(output::printable(&not_found.reason));
                return not_found.exit_code;
            }
        }
    }
}

/// Asks, and prints what came of it. `text` gets the answer, and whether it was waited for.
fn act<T: DeserializeOwned>(
    client: &Client,
    context: &ProcessContext,
    verb: &str,
    request: impl Fn(bool) -> Request,
    waiting: Waiting,
    text: impl Fn(&T, bool) -> String,
) -> ExitCode {
    let mut stream = match connect(client, context) {
        Ok(stream) => stream,
        Err(code) => return code,
    };
    let (wait, timeout) = match waiting {
        Waiting::No => (false, Some(ANSWER_WITHIN)),
        Waiting::Until(timeout) => (true, timeout),
    };
    match ask(&mut stream, &request(wait), timeout).and_then(|line| read::<T>(&line)) {
        Ok(answer) => {
            output::print(text(&answer, wait));
            ExitCode::Done
        }
        Err(NoAnswer::Late) if wait => {
            output::complain(format_args!("{verb}: not done within the time given; it goes on"));
            ExitCode::Timeout
        }
        Err(no_answer) => told(verb, no_answer),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;
    use crate::config::Source;

    #[test]
    fn a_master_without_room_is_not_asked_again_and_again() {
        let directory = tempfile::tempdir().expect("directory");
        let path = directory.path().join("full.sock");
        let listener = UnixListener::bind(&path).expect("socket");
        let client = Client { socket: Some(path), source: Source::default() };
        let waiter =
            std::thread::spawn(move || wait_down(&client, &ProcessContext::gather(), Some(Duration::from_millis(500))));
        listener.set_nonblocking(true).expect("nonblocking");
        let mut closed = 0;
        while !waiter.is_finished() {
            match listener.accept() {
                Ok(_) => closed += 1,
                Err(_) => std::thread::sleep(Duration::from_millis(1)),
            }
        }
        assert_eq!(waiter.join().expect("no panic"), ExitCode::Timeout);
        assert!((2..=6).contains(&closed), "{closed} connections in 0.5 s");
    }
}
