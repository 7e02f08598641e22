//! Who leads, with a loop that does nothing: the steps of two threads are made in each order that matters, one by one.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::serve::base::names::Blocking;
use crate::serve::event_loop::fair_line::Alike;
use crate::serve::event_loop::interface::{Doors, Loop, Step};
use crate::serve::event_loop::run_queue::RunQueue;
use crate::serve::io::parker::Parker;
use crate::serve::run::follower::{Event, Follower};
use crate::serve::run::leader::{Leader, Lease, Owner};

struct ToyDoors(RunQueue<()>);

impl Alike for () {
    fn likeness(&self) -> &[u8] {
        b""
    }
}

impl Doors<()> for ToyDoors {
    fn run_queue(&self) -> &RunQueue<()> {
        &self.0
    }
    fn wake(&self) {}
    fn take_request(&self) -> Option<()> {
        self.0.take()
    }
    fn if_wanted(&self, request: ()) -> Option<()> {
        Some(request)
    }
    fn is_behind(&self) -> bool {
        false
    }
    fn complete(&self) {}
    fn is_forgotten(&self) -> bool {
        false
    }
}

type During = Rc<RefCell<Box<dyn FnMut()>>>;

/// Runs something while answers are sent, early or not, as the app thread would at that moment.
struct ToyLoop(During);

impl Loop for ToyLoop {
    type Request = ();
    type Doors = ToyDoors;

    fn step(&mut self, _: Blocking) -> Step<()> {
        Step::Idle
    }
    fn fetch(&mut self, _is_main: bool) -> bool {
        false
    }
    fn now(&self) -> Instant {
        Instant::now()
    }
    fn share_rest(&mut self) {}
    fn may_defer(&self, _request: &Self::Request) -> bool {
        true
    }
    fn defer_answer(&mut self, _: &mut ()) {}
    fn holds_answers(&self) -> bool {
        true
    }
    fn flush(&mut self) {
        (self.0.borrow_mut())();
    }
    fn flush_early(&mut self) {
        (self.0.borrow_mut())();
    }
}

/// An app thread that leads has entered the application, and answers wait.
fn entered() -> (Rc<Leader<ToyLoop>>, Lease, During) {
    let during: During = Rc::new(RefCell::new(Box::new(|| {})));
    let doors = Arc::new(ToyDoors(RunQueue::with_parkers(vec![Parker::plain()], 1)));
    let leader = Rc::new(Leader::new(doors, ToyLoop(Rc::clone(&during)), 1));
    let lease = leader.acquire().expect("nobody leads").enter_app().expect("nothing waits");
    assert!(leader.is_holding());
    (leader, lease, during)
}

#[test]
fn answers_are_sent_early_and_the_lease_stays_good() {
    let (leader, lease, _) = entered();
    let word = leader.word();
    leader.flush_for(word);
    assert!(leader.word() == word && !leader.is_holding());
    // What is left for others from now on is seen again.
    assert!(leader.keeps_answer(lease) && leader.is_holding());
    assert!(leader.exit_app(lease).is_some());
}

#[test]
fn answers_that_wait_are_sent_before_a_request_that_was_long() {
    let (leader, lease, during) = entered();
    let sent = Rc::new(Cell::new(0));
    let count = Rc::clone(&sent);
    *during.borrow_mut() = Box::new(move || count.set(count.get() + 1));
    let mut guard = leader.exit_app(lease).expect("nobody has taken over");
    for (took, expected) in [(100, 0), (5000, 1), (5000, 2), (100, 2)] {
        leader.times().note(b"", Duration::from_micros(took));
        let lease = guard.enter_app_with(&mut ()).expect("nothing waits");
        assert_eq!(sent.get(), expected, "after one of {took} us");
        guard = leader.exit_app(lease).expect("nobody has taken over");
    }
}

#[test]
fn who_comes_back_while_answers_are_sent_early_has_the_lead_afterwards() {
    let (leader, lease, during) = entered();
    let at_work = Rc::clone(&leader);
    *during.borrow_mut() = Box::new(move || {
        assert!(!at_work.keeps_answer(lease) && at_work.exit_app(lease).is_none());
        // It is going to sleep.
        assert!(!at_work.may_lead(Some(lease)));
    });
    leader.flush_for(leader.word());
    assert_eq!(leader.word().owner(), Owner::Free);
    assert!(leader.exit_app(lease).is_none() && leader.acquire().is_some());
}

#[test]
fn who_asks_when_answers_have_been_sent_early_has_the_lead_at_once() {
    let (leader, lease, during) = entered();
    let at_work = Rc::clone(&leader);
    *during.borrow_mut() = Box::new(move || assert!(at_work.exit_app(lease).is_none()));
    leader.flush_for(leader.word());
    assert!(!leader.may_lead(None), "it is another's");
    assert!(leader.may_lead(Some(lease)) && leader.exit_app(lease).is_some());
}

#[test]
fn who_is_going_to_wait_while_answers_are_sent_early_gives_the_lead_up() {
    let (leader, lease, during) = entered();
    let at_work = Rc::clone(&leader);
    *during.borrow_mut() = Box::new(move || at_work.hand_over(lease));
    leader.flush_for(leader.word());
    assert_eq!(leader.word().owner(), Owner::Free);
}

/// As found: where requests were always there, the monitor kept the lead after a single long request.
#[test]
fn who_comes_back_gets_the_lead_from_the_monitor() {
    let (leader, lease, _) = entered();
    let guard = leader.take_over(leader.word()).expect("the word is this");
    assert!(!leader.was_wanted());
    assert!(leader.exit_app(lease).is_none() && leader.reclaim().is_none());
    assert!(leader.was_wanted() && !leader.was_wanted());
    guard.release();
    assert!(leader.reclaim().is_some());
}

/// The monitor leaves a request in the queue and gives the lead up, since a thread has asked for it.
#[test]
#[expect(clippy::arc_with_non_send_sync, reason = "the toy loop has one thread")]
fn who_gets_the_lead_looks_at_the_queue_first() {
    let doors = Arc::new(ToyDoors(RunQueue::with_parkers(vec![Parker::plain()], 1)));
    let leader = Arc::new(Leader::new(doors, ToyLoop(Rc::new(RefCell::new(Box::new(|| {})))), 1));
    let guard = leader.take_over(leader.word()).expect("nobody leads");
    let mut follower = Follower::new(Arc::clone(&leader), 0);
    assert!(follower.poll().is_none());
    leader.doors().run_queue().push(());
    assert!(leader.was_wanted());
    guard.release();
    // This would wait for ever.
    assert!(matches!(follower.wait(), Event::Request(taken) if taken.lease.is_some()));
}
