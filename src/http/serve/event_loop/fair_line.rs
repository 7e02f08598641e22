//! The order in which requests wait for a thread. Decides only.
//!
//! Requests for the same path are alike: they cost about the same. Each path that has requests in line gets the same share of
//! the threads' time, and within a path the first to come is the first to go (start-time fair queueing, as network
//! schedulers do it with flows). So a request for a path of which nothing waits is begun after at most one request of each
//! other path that has some in line, whatever those cost and however many they are. Where all ask for the same path the
//! line is an ordinary one.
//!
//! A path's place is its number among `CLASSES`, by a hash that no client can know. Who shares the number shares the line.

use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;
use std::time::Duration;

const CLASSES: usize = 256;

/// What a request is taken to cost before one like it has ended.
const UNKNOWN: Duration = Duration::from_millis(1);

/// The cost of a path is the average of about so many of its latest requests.
const WEIGHT: u64 = 4;

/// What waits in line.
pub trait Alike {
    /// Requests for which this is the same cost about the same.
    fn likeness(&self) -> &[u8];
}

/// It makes its memory when it is made: requests that wait cost no allocation.
pub struct FairLine<T> {
    hasher: RandomState,
    classes: Vec<Class>,
    /// The numbers of those in which somebody waits.
    waiting: Vec<usize>,
    /// Those who wait, each with the next of its class, and places that are free.
    places: Vec<Place<T>>,
    free: u32,
    /// How far the class had come that was served last.
    clock_ns: u64,
    /// Numbers what comes, so that nobody overtakes without a reason.
    arrivals: u64,
    length: usize,
}

const NONE: u32 = u32::MAX;

struct Place<T> {
    item: Option<T>,
    arrival: u64,
    next: u32,
}

struct Class {
    first: u32,
    last: u32,
    /// The time that its requests have had, by the line's clock: who has had the least is next.
    at_ns: u64,
    cost_ns: u64,
}

impl<T: Alike> FairLine<T> {
    /// With room for so many; for more where they come.
    pub fn new(length: usize) -> FairLine<T> {
        let class = || Class { first: NONE, last: NONE, at_ns: 0, cost_ns: UNKNOWN.as_nanos() as u64 };
        FairLine {
            hasher: RandomState::new(),
            classes: (0..CLASSES).map(|_| class()).collect(),
            waiting: Vec::with_capacity(CLASSES),
            places: Vec::with_capacity(length),
            free: NONE,
            clock_ns: 0,
            arrivals: 0,
            length: 0,
        }
    }

    pub fn len(&self) -> usize {
        self.length
    }

    pub fn is_empty(&self) -> bool {
        self.length == 0
    }

    fn number(&self, likeness: &[u8]) -> usize {
        self.hasher.hash_one(likeness) as usize % CLASSES
    }

    fn place(&mut self, item: T, arrival: u64, next: u32) -> u32 {
        self.length += 1;
        let place = Place { item: Some(item), arrival, next };
        let index = self.free;
        match self.places.get_mut(index as usize) {
            Some(free) => {
                self.free = free.next;
                *free = place;
                index
            }
            None => {
                self.places.push(place);
                self.places.len() as u32 - 1
            }
        }
    }

    pub fn push(&mut self, item: T) {
        let number = self.number(item.likeness());
        self.arrivals += 1;
        let index = self.place(item, self.arrivals, NONE);
        let class = &mut self.classes[number];
        let last = std::mem::replace(&mut class.last, index);
        if last == NONE {
            class.first = index;
            // Nobody saves up time while it asks for none.
            class.at_ns = class.at_ns.max(self.clock_ns);
            self.waiting.push(number);
        } else {
            self.places[last as usize].next = index;
        }
    }

    /// It was taken, and stays the next after all.
    pub fn put_back(&mut self, item: T) {
        let number = self.number(item.likeness());
        let first = self.classes[number].first;
        let index = self.place(item, 0, first);
        let class = &mut self.classes[number];
        class.first = index;
        class.at_ns = class.at_ns.saturating_sub(class.cost_ns);
        if first == NONE {
            class.last = index;
            self.waiting.push(number);
        }
    }

    pub fn pop(&mut self) -> Option<T> {
        let turn = |number: usize| {
            let class = &self.classes[number];
            (class.at_ns, self.places[class.first as usize].arrival)
        };
        let index = (0..self.waiting.len()).min_by_key(|&index| turn(self.waiting[index]))?;
        let class = &mut self.classes[self.waiting[index]];
        self.clock_ns = class.at_ns;
        class.at_ns += class.cost_ns;
        self.take_first(index)
    }

    /// The first of some path that is such a one. It will not be run, so it costs its path nothing.
    pub fn pop_if(&mut self, is_meant: impl Fn(&T) -> bool) -> Option<T> {
        let is_it = |&number: &usize| {
            let first = &self.places[self.classes[number].first as usize];
            first.item.as_ref().is_some_and(&is_meant)
        };
        let index = self.waiting.iter().position(is_it)?;
        self.take_first(index)
    }

    /// Of the class at this index of those in which somebody waits.
    fn take_first(&mut self, index: usize) -> Option<T> {
        let class = &mut self.classes[self.waiting[index]];
        let first = class.first;
        let place = &mut self.places[first as usize];
        class.first = std::mem::replace(&mut place.next, self.free);
        self.free = first;
        if class.first == NONE {
            class.last = NONE;
            self.waiting.swap_remove(index);
        }
        self.length -= 1;
        place.item.take()
    }

    /// A request like this has kept a thread for so long.
    pub fn learn(&mut self, likeness: &[u8], took: Duration) {
        let number = self.number(likeness);
        let cost_ns = &mut self.classes[number].cost_ns;
        let took_ns = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX / WEIGHT);
        // At least one, or a class could be served for ever.
        *cost_ns = ((*cost_ns * (WEIGHT - 1)).saturating_add(took_ns) / WEIGHT).max(1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, PartialEq, Eq)]
    struct Asked(&'static str, usize);

    impl Alike for Asked {
        fn likeness(&self) -> &[u8] {
            self.0.as_bytes()
        }
    }

    /// A line in which these paths do not share a number: which they do is left to chance.
    fn line(paths: &[&str]) -> FairLine<Asked> {
        loop {
            let line = FairLine::new(8);
            let mut numbers: Vec<usize> = paths.iter().map(|path| line.number(path.as_bytes())).collect();
            numbers.sort_unstable();
            numbers.dedup();
            if numbers.len() == paths.len() {
                return line;
            }
        }
    }

    fn order(line: &mut FairLine<Asked>) -> Vec<Asked> {
        std::iter::from_fn(|| line.pop()).collect()
    }

    #[test]
    fn a_stranger_waits_for_one_request_of_each_other_path() {
        let mut line = line(&["/big", "/report", "/"]);
        for number in 0..500 {
            line.push(Asked("/big", number));
            line.push(Asked("/report", number));
        }
        for round in 0..200 {
            assert!(line.pop().is_some());
            line.learn(b"/big", Duration::from_millis(20));
            line.learn(b"/report", Duration::from_millis(5));
            line.push(Asked("/", round));
            let before = std::iter::from_fn(|| line.pop()).take_while(|asked| asked.0 != "/").count();
            assert!(before <= 2, "{before} went before the stranger in round {round}");
            line.learn(b"/", Duration::from_micros(200));
        }
    }

    #[test]
    fn who_waits_no_longer_leaves_the_order_of_the_others_as_it_is() {
        let mut line = line(&["/big", "/"]);
        for number in 0..3 {
            line.push(Asked("/big", number));
        }
        line.push(Asked("/", 3));
        assert_eq!(line.pop_if(|asked| asked.1 == 1), None, "it is not the first of its path");
        assert_eq!(line.pop_if(|asked| asked.0 == "/"), Some(Asked("/", 3)));
        assert_eq!(line.pop_if(|asked| asked.1 == 0), Some(Asked("/big", 0)));
        assert_eq!((line.len(), order(&mut line)), (2, vec![Asked("/big", 1), Asked("/big", 2)]));
    }

    /// Nothing is known of any cost yet: the thousand have just come.
    #[test]
    fn nobody_has_to_be_known_to_be_costly() {
        let mut line = line(&["/big", "/"]);
        for number in 0..1000 {
            line.push(Asked("/big", number));
        }
        assert_eq!(line.pop(), Some(Asked("/big", 0)));
        line.push(Asked("/", 0));
        assert_eq!(line.pop(), Some(Asked("/", 0)));
        assert_eq!(line.len(), 999);
    }

    #[test]
    fn shares_are_of_time_and_not_of_requests() {
        let mut line = line(&["/slow", "/fast"]);
        for _ in 0..20 {
            line.learn(b"/slow", Duration::from_millis(50));
            line.learn(b"/fast", Duration::from_millis(5));
        }
        for number in 0..1000 {
            line.push(Asked("/slow", number));
            line.push(Asked("/fast", number));
        }
        let slow = (0..550).filter(|_| line.pop().is_some_and(|asked| asked.0 == "/slow")).count();
        assert!((45..=55).contains(&slow), "{slow} of 550 were slow");
    }

    #[test]
    fn within_a_path_and_between_equals_the_first_to_come_is_the_first_to_go() {
        let mut line = line(&["/a", "/b", "/c"]);
        for number in 0..3 {
            line.push(Asked("/a", number));
        }
        assert_eq!(order(&mut line), [Asked("/a", 0), Asked("/a", 1), Asked("/a", 2)]);
        let mut line = super::tests::line(&["/a", "/b", "/c"]);
        for path in ["/b", "/c", "/a"] {
            line.push(Asked(path, 0));
        }
        let first = line.pop().expect("three wait");
        assert_eq!(first, Asked("/b", 0));
        line.put_back(first);
        assert_eq!(order(&mut line), [Asked("/b", 0), Asked("/c", 0), Asked("/a", 0)]);
        assert!(line.is_empty());
    }

    /// A path that asked for nothing for long has no claim to what the others had meanwhile.
    #[test]
    fn time_is_not_saved_up() {
        let mut line = line(&["/a", "/b"]);
        for number in 0..100 {
            line.push(Asked("/a", number));
        }
        (0..50).for_each(|_| assert!(line.pop().is_some()));
        for number in 0..50 {
            line.push(Asked("/b", number));
        }
        let of_b = (0..20).filter(|_| line.pop().is_some_and(|asked| asked.0 == "/b")).count();
        assert!((9..=11).contains(&of_b), "{of_b} of 20");
    }
}
