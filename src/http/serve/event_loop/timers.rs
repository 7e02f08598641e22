//! Deadlines of connections: one list for each kind. All deadlines of a kind lie equally far ahead when they are
//! set, so appending keeps a list sorted, its head is the next to expire, and setting, moving and clearing cost
//! nothing but pointers. The keep-alive list's head also is the longest-idle connection.

use std::time::Instant;

use crate::serve::base::names::{TimerKind, TIMER_KINDS};

const NONE: u32 = u32::MAX;

#[derive(Clone, Copy, Debug)]
struct Entry {
    kind: Option<TimerKind>,
    deadline: Instant,
    previous: u32,
    next: u32,
}

#[derive(Clone, Copy, Debug)]
struct List {
    first: u32,
    last: u32,
}

/// Timers by slot index, at most one for each slot.
#[derive(Debug)]
pub struct Timers {
    entries: Vec<Entry>,
    lists: [List; TIMER_KINDS.len()],
}

impl Timers {
    /// Room for so many.
    pub fn new(slots: usize) -> Timers {
        Timers { entries: Vec::with_capacity(slots), lists: [List { first: NONE, last: NONE }; TIMER_KINDS.len()] }
    }

    pub fn kind(&self, index: u32) -> Option<TimerKind> {
        self.entries.get(index as usize)?.kind
    }

    /// Sets the slot's timer, in place of the one it had.
    pub fn set(&mut self, index: u32, kind: TimerKind, deadline: Instant) {
        self.clear(index);
        while self.entries.len() <= index as usize {
            // Slots are taken in order, so it is one.
            self.entries.push(Entry { kind: None, deadline, previous: NONE, next: NONE });
        }
        let list = &mut self.lists[kind as usize];
        let last = std::mem::replace(&mut list.last, index);
        if last == NONE {
            list.first = index;
        } else {
            debug_assert!(self.entries[last as usize].deadline <= deadline, "{kind:?} is no longer sorted");
            self.entries[last as usize].next = index;
        }
        self.entries[index as usize] = Entry { kind: Some(kind), deadline, previous: last, next: NONE };
    }

    pub fn clear(&mut self, index: u32) {
        let Some(entry) = self.entries.get_mut(index as usize) else { return };
        let Some(kind) = entry.kind.take() else { return };
        let (previous, next) = (entry.previous, entry.next);
        let list = &mut self.lists[kind as usize];
        if previous == NONE {
            list.first = next;
        } else {
            self.entries[previous as usize].next = next;
        }
        if next == NONE {
            list.last = previous;
        } else {
            self.entries[next as usize].previous = previous;
        }
    }

    /// The slot whose timer of this kind is the oldest.
    pub fn first(&self, kind: TimerKind) -> Option<u32> {
        let first = self.lists[kind as usize].first;
        (first != NONE).then_some(first)
    }

    pub fn next_deadline(&self) -> Option<Instant> {
        TIMER_KINDS.iter().filter_map(|&kind| self.first(kind)).map(|index| self.entries[index as usize].deadline).min()
    }

    /// Takes one timer that has expired.
    pub fn expired(&mut self, now: Instant) -> Option<(u32, TimerKind)> {
        for kind in TIMER_KINDS {
            if let Some(index) = self.first(kind).filter(|&index| self.entries[index as usize].deadline <= now) {
                self.clear(index);
                return Some((index, kind));
            }
        }
        None
    }

    /// No deadline of this kind is later than this from now on.
    pub fn bring_forward(&mut self, kind: TimerKind, deadline: Instant) {
        let mut index = self.lists[kind as usize].first;
        while index != NONE {
            let entry = &mut self.entries[index as usize];
            entry.deadline = entry.deadline.min(deadline);
            index = entry.next;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn lists_stay_sorted() {
        let now = Instant::now();
        let at = |seconds| now + Duration::from_secs(seconds);
        let mut timers = Timers::new(4);
        assert_eq!(timers.next_deadline(), None);
        for index in 0..4 {
            timers.set(index, TimerKind::Keepalive, at(10 + u64::from(index)));
        }
        timers.set(2, TimerKind::Body, at(5));
        assert_eq!((timers.next_deadline(), timers.first(TimerKind::Keepalive)), (Some(at(5)), Some(0)));
        timers.set(0, TimerKind::Keepalive, at(14));
        assert_eq!(timers.first(TimerKind::Keepalive), Some(1));
        timers.clear(1);
        timers.clear(1);
        timers.bring_forward(TimerKind::Keepalive, at(13));
        assert_eq!(timers.expired(at(4)), None);
        let mut order = Vec::new();
        while let Some(expired) = timers.expired(at(13)) {
            order.push(expired);
        }
        assert_eq!(order, [(3, TimerKind::Keepalive), (0, TimerKind::Keepalive), (2, TimerKind::Body)]);
        assert_eq!(timers.next_deadline(), None);
    }
}
