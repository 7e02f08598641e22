//! The verdict on a canary: whether its generation is worse than the one beside it. Arithmetic over what both have counted
//! in the same minutes, and nothing else: no clock, no state.
//!
//! Errors: the share of failed requests may be higher by `max_errors`. Whether it is higher than that is tested on one side at
//! 1 %, as the difference of two shares (Farrington and Manning, Statistics in Medicine 9, 1990: the shares are first fitted to
//! the bound, so that a generation without any error can be compared with). Fewer than five failures prove nothing.
//!
//! Latency: `max_latency` times what 90 of 100 requests of the old generation lie below (99 of 100 where both have 1,000) is
//! the bound. The new one is worse where more than 10 (1) of 100 of its requests lie above it, by the same test. So a slow
//! moment of one request decides nothing.
//!
//! A canary that hangs answers little, and must not pass for that. So requests that the application never answered (they ran
//! beyond `request_timeout`, were shed, or lost with their worker) are tested by themselves, from the first one on. Where only the
//! canary has too few requests to compare, it is worse if its share of these is higher by more than `max_errors` (the binomial
//! distribution at 1 %, since they may be few), or if a request of it still runs, for a second at least and `max_latency` times
//! as long as any of the old generation took or runs.
//!
//! While the canary serves only what leaves no doubt ends it: so many failures are a chance of one in a million (the binomial
//! distribution, exactly). A test at 1 % that is repeated each second would be wrong now and then.

use forkmaster_wire::histogram::{upper_micros, Counted};

/// Standard deviations: the normal distribution has 1 % above it.
const ONE_OF_100: f64 = 2.326;

/// The level of the exact test that is repeated while the canary serves: a chance of one in a million.
const NO_DOUBT: f64 = 1e-6;

/// The level of the exact test at the end, for few requests: 1 %.
const CHANCE_OF_100: f64 = 0.01;

/// A request that has run for less has not hung: it may have met a slow moment. In microseconds.
const HANGS_MIN: f64 = 1_000_000.0;

/// With fewer failures the normal distribution does not fit, and nothing is tested.
const FAILURES_MIN: f64 = 5.0;

/// From this number of requests on the 99th percentile is compared, not the 90th: ten requests lie above it then.
const MANY: u64 = 1000;

/// What one generation has counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Requests since the canary began.
    pub answered: u64,
    /// The same without the first ones of each worker.
    pub compared: u64,
    /// Of those compared.
    pub failed: u64,
    /// Of those answered: not by the application, but cut, shed or lost with their worker.
    pub cut: u64,
    /// For how long the oldest request has been running, in microseconds; 0: none runs.
    pub running_us: u64,
    pub latency: Counted,
}

/// What a new generation is allowed.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Bounds {
    /// Both must have as many requests to compare before there is a verdict.
    pub min_requests: u64,
    /// By how many percentage points the share of failed requests may be higher.
    pub max_errors: f64,
    /// By which factor the latency may be higher.
    pub max_latency: f64,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    Good,
    /// And why, in a sentence.
    TooLittle(String),
    Worse(String),
}

impl Counts {
    pub fn add(&mut self, other: &Counts) {
        self.answered += other.answered;
        self.compared += other.compared;
        self.failed += other.failed;
        self.cut += other.cut;
        self.running_us = self.running_us.max(other.running_us);
        self.latency.add(&other.latency);
    }

    fn failures(&self) -> Share {
        Share { part: self.failed.min(self.compared) as f64, of: self.compared as f64 }
    }

    fn cuts(&self) -> Share {
        Share { part: self.cut.min(self.answered) as f64, of: self.answered as f64 }
    }
}

/// The percentile at which latencies are compared.
pub fn of_100(old: &Counts, new: &Counts) -> u32 {
    match old.compared.min(new.compared) {
        MANY.. => 99,
        _fewer => 90,
    }
}

/// Why the canary has failed, if the counts leave no doubt although it has not served for its whole time.
pub fn doubtless(old: &Counts, new: &Counts, bounds: &Bounds) -> Option<String> {
    let (before, now) = (old.failures(), new.failures());
    let fails = is_more(before, now, bounds, NO_DOUBT).then(|| failing(before, now));
    fails.or_else(|| is_cut_more(old, new, bounds, NO_DOUBT))
}

/// The new share is higher than allowed, and the chance that a good release has so high a share is below `level`.
fn is_more(before: Share, now: Share, bounds: &Bounds, level: f64) -> bool {
    let margin = bounds.max_errors / 100.0;
    let is_higher = before.of >= 1.0 && now.of >= 1.0 && now.rate() > before.rate() + margin;
    is_higher && chance(now, at_the_bound(before, now, margin) + margin) < level
}

fn is_cut_more(old: &Counts, new: &Counts, bounds: &Bounds, level: f64) -> Option<String> {
    let (before, now) = (old.cuts(), new.cuts());
    is_more(before, now, bounds, level).then(|| {
        let (now, before) = (now.percent(), before.percent());
        format!("{now:.1} % of its requests were cut, shed or lost, and {before:.1} % of the old generation's")
    })
}

/// A request of the new one runs for longer than any of the old one.
fn hangs(old: &Counts, new: &Counts, bounds: &Bounds) -> Option<String> {
    let slowest = old.latency.buckets.iter().rposition(|count| *count > 0).map_or(0.0, |bucket| bounds_of(bucket).1);
    let slowest = slowest.max(old.running_us as f64);
    let running = new.running_us as f64;
    (running >= HANGS_MIN && running > slowest * bounds.max_latency).then(|| {
        let [running, slowest] = [running, slowest].map(|micros| micros / 1_000_000.0);
        format!("a request of it has run for {running:.1} s, and none of the old generation took longer than {slowest:.1} s")
    })
}

/// The verdict when the canary has served for its whole time.
pub fn judge(old: &Counts, new: &Counts, bounds: &Bounds) -> Verdict {
    if let Some(why) = doubtless(old, new, bounds) {
        return Verdict::Worse(why);
    }
    // Where both have few, nothing can be said. Where only the canary has, it may be that it hangs.
    if new.compared < bounds.min_requests && old.compared >= bounds.min_requests {
        let hangs = || hangs(old, new, bounds);
        if let Some(why) = is_cut_more(old, new, bounds, CHANCE_OF_100).or_else(hangs) {
            return Verdict::Worse(why);
        }
    }
    for (which, counts) in [("the canary", new), ("the old generation", old)] {
        if counts.compared < bounds.min_requests {
            let why = format!(
                "too little traffic for a verdict: {which} has {} requests that can be compared, and min_requests is {}",
                counts.compared, bounds.min_requests
            );
            return Verdict::TooLittle(why);
        }
    }
    match fails_more(old, new, bounds).or_else(|| is_slower(old, new, bounds)) {
        Some(why) => Verdict::Worse(why),
        None => Verdict::Good,
    }
}

fn fails_more(old: &Counts, new: &Counts, bounds: &Bounds) -> Option<String> {
    let (before, now) = (old.failures(), new.failures());
    let is_higher = now.part >= FAILURES_MIN && beyond(before, now, bounds.max_errors / 100.0) > ONE_OF_100;
    is_higher.then(|| failing(before, now))
}

fn failing(before: Share, now: Share) -> String {
    format!("{:.1} % of its requests failed, and {:.1} % of the old generation's", now.percent(), before.percent())
}

fn is_slower(old: &Counts, new: &Counts, bounds: &Bounds) -> Option<String> {
    let of_100 = of_100(old, new);
    let share = f64::from(of_100) / 100.0;
    let bound = quantile(&old.latency, share)? * bounds.max_latency;
    let (before, now) = (samples(&old.latency), samples(&new.latency));
    let before = Share { part: before * (1.0 - share), of: before };
    let now = Share { part: above(&new.latency, bound), of: now };
    (now.part >= FAILURES_MIN && beyond(before, now, 0.0) > ONE_OF_100).then(|| {
        let milliseconds = |counts: &Counts| quantile(&counts.latency, share).unwrap_or(0.0) / 1000.0;
        format!(
            "{of_100} of 100 requests took up to {:.1} ms, and {:.1} ms in the old generation",
            milliseconds(new),
            milliseconds(old)
        )
    })
}

/// The quantile `share` (from 0 to 1), in microseconds. The requests of a bucket are taken to be spread evenly.
pub fn quantile(latency: &Counted, share: f64) -> Option<f64> {
    let all = samples(latency);
    let mut wanted = all * share;
    for (bucket, count) in latency.buckets.iter().enumerate().filter(|(_, count)| **count > 0) {
        let count = *count as f64;
        if wanted <= count {
            let (lower, upper) = bounds_of(bucket);
            return Some(lower + (upper - lower) * (wanted / count));
        }
        wanted -= count;
    }
    None
}

/// How many requests took longer than `micros`, with those of a bucket spread evenly.
fn above(latency: &Counted, micros: f64) -> f64 {
    let part = |(bucket, count): (usize, &u64)| {
        let (lower, upper) = bounds_of(bucket);
        *count as f64 * ((upper - micros) / (upper - lower)).clamp(0.0, 1.0)
    };
    latency.buckets.iter().enumerate().map(part).sum()
}

fn samples(latency: &Counted) -> f64 {
    latency.buckets.iter().sum::<u64>() as f64
}

/// The last bucket has no end; twice its beginning will do, since nothing is compared within it.
fn bounds_of(bucket: usize) -> (f64, f64) {
    let lower = bucket.checked_sub(1).and_then(upper_micros).unwrap_or(0) as f64;
    (lower, upper_micros(bucket).map_or(lower * 2.0, |upper| upper as f64))
}

/// `part` of `of` requests.
#[derive(Clone, Copy, Debug)]
struct Share {
    part: f64,
    of: f64,
}

impl Share {
    fn rate(self) -> f64 {
        self.part / self.of.max(1.0)
    }

    fn percent(self) -> f64 {
        self.rate() * 100.0
    }
}

/// By how many standard deviations the new share lies above the old one and the margin.
fn beyond(old: Share, new: Share, margin: f64) -> f64 {
    if old.of < 1.0 || new.of < 1.0 || margin >= 1.0 {
        return 0.0;
    }
    let rate = at_the_bound(old, new, margin);
    let variance = |rate: f64, of: f64| rate * (1.0 - rate) / of;
    let deviation = (variance(rate, old.of) + variance(rate + margin, new.of)).sqrt();
    // Half a request is the step of what is counted (Yates).
    (new.rate() - old.rate() - margin - 0.5 / new.of) / deviation.max(f64::MIN_POSITIVE)
}

/// The most likely old share if the new one were exactly so much higher. The likelihood has one peak, and its slope
/// falls all the way.
fn at_the_bound(old: Share, new: Share, margin: f64) -> f64 {
    let slope = |rate: f64| {
        let of_one = |share: Share, rate: f64| share.part / rate - (share.of - share.part) / (1.0 - rate);
        of_one(old, rate) + of_one(new, rate + margin)
    };
    let (mut low, mut high) = (1e-9, 1.0 - margin - 1e-9);
    for _ in 0..60 {
        let middle = (low + high) / 2.0;
        if slope(middle) > 0.0 {
            low = middle;
        } else {
            high = middle;
        }
    }
    low
}

/// The chance of at least `seen.part` failures among `seen.of` requests that each fail with the probability `rate`: the
/// upper tail of the binomial distribution.
fn chance(seen: Share, rate: f64) -> f64 {
    let (part, of) = (seen.part as u64, seen.of as u64);
    let (log_rate, log_rest) = (rate.ln(), (1.0 - rate).ln());
    let ways = (0..part).map(|at| ((of - at) as f64).ln() - ((at + 1) as f64).ln()).sum::<f64>();
    let mut term = (ways + part as f64 * log_rate + (of - part) as f64 * log_rest).exp();
    let mut sum = term;
    for at in part..of {
        term *= (of - at) as f64 / (at + 1) as f64 * (rate / (1.0 - rate));
        sum += term;
        // Beyond the middle each term is smaller than the one before.
        if term < sum * 1e-12 {
            break;
        }
    }
    sum.min(1.0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use forkmaster_wire::histogram::BUCKETS;

    const BOUNDS: Bounds = Bounds { min_requests: 100, max_errors: 1.0, max_latency: 1.5 };

    /// A release in numbers: requests, the share that fails, and a latency that is spread as those of real services are
    /// (log-normal: a few take many times what most take). Some may be for a page that is slow.
    #[derive(Clone, Copy)]
    struct Release {
        requests: u32,
        failing: f64,
        median_ms: f64,
        spread: f64,
        slow: f64,
        slow_ms: f64,
    }

    const OLD: Release =
        Release { requests: 1000, failing: 0.002, median_ms: 12.0, spread: 0.6, slow: 0.0, slow_ms: 400.0 };

    /// xorshift64*: the same numbers in every run.
    struct Dice(u64);

    impl Dice {
        fn new(seed: u64) -> Dice {
            Dice(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1)
        }

        /// From 0 to 1.
        fn roll(&mut self) -> f64 {
            self.0 ^= self.0 >> 12;
            self.0 ^= self.0 << 25;
            self.0 ^= self.0 >> 27;
            (self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 11) as f64 / (1u64 << 53) as f64
        }

        /// Box and Muller.
        fn normal(&mut self) -> f64 {
            let (one, other) = (self.roll().max(1e-12), self.roll());
            (-2.0 * one.ln()).sqrt() * (std::f64::consts::TAU * other).cos()
        }

        fn serve(&mut self, release: Release) -> Counts {
            let requests = u64::from(release.requests);
            let mut counts = Counts { answered: requests, compared: requests, ..Counts::default() };
            for _ in 0..release.requests {
                counts.failed += u64::from(self.roll() < release.failing);
                let is_slow = release.slow > 0.0 && self.roll() < release.slow;
                let median_ms = if is_slow { release.slow_ms } else { release.median_ms };
                let micros = (median_ms * 1000.0 * (release.spread * self.normal()).exp()) as u64;
                let bucket = (0..BUCKETS).find(|at| upper_micros(*at).is_none_or(|upper| micros < upper)).unwrap();
                counts.latency.buckets[bucket] += 1;
            }
            counts
        }
    }

    /// The verdicts of twenty runs.
    fn runs(old: Release, new: Release) -> Vec<Verdict> {
        (0..20)
            .map(|seed| {
                let mut dice = Dice::new(seed);
                let old = dice.serve(old);
                judge(&old, &dice.serve(new), &BOUNDS)
            })
            .collect()
    }

    #[track_caller]
    fn all(old: Release, new: Release, is_right: impl Fn(&Verdict) -> bool) {
        let verdicts = runs(old, new);
        let wrong: Vec<_> = verdicts.iter().filter(|verdict| !is_right(verdict)).collect();
        assert!(wrong.is_empty(), "{} of {}: {wrong:?}", wrong.len(), verdicts.len());
    }

    #[test]
    fn a_good_release_is_good() {
        all(OLD, OLD, |verdict| *verdict == Verdict::Good);
        // Also where the canary got a fifth of the traffic, and where the old one fails now and then.
        all(OLD, Release { requests: 250, ..OLD }, |verdict| *verdict == Verdict::Good);
        let ill = Release { failing: 0.08, ..OLD };
        all(ill, ill, |verdict| *verdict == Verdict::Good);
        // A fifth slower is within what is allowed.
        all(OLD, Release { median_ms: 14.4, ..OLD }, |verdict| *verdict == Verdict::Good);
    }

    #[test]
    fn a_release_that_fails_one_request_of_twenty_is_worse() {
        let is_right = |verdict: &Verdict| matches!(verdict, Verdict::Worse(why) if why.contains("failed"));
        all(OLD, Release { failing: 0.05, ..OLD }, is_right);
        all(Release { failing: 0.0, ..OLD }, Release { failing: 0.05, ..OLD }, is_right);
    }

    #[test]
    fn a_release_that_takes_three_times_as_long_is_worse() {
        let is_right = |verdict: &Verdict| matches!(verdict, Verdict::Worse(why) if why.contains("took up to"));
        all(OLD, Release { median_ms: 36.0, ..OLD }, is_right);
        all(OLD, Release { median_ms: 36.0, requests: 250, ..OLD }, is_right);
    }

    /// What is alike in both is no verdict, whatever it looks like: two kinds of requests, with the edge between them just
    /// where the comparison lies; a long tail; many failures; a share that is far from half.
    #[test]
    fn what_is_no_worse_is_good_however_it_is_spread() {
        let shares = [(1000, 1000), (100, 900), (900, 100), (100, 10_000), (10_000, 100), (1000, 20_000), (250, 1000)];
        let (mut wrong, mut of) = (0, 0);
        for (new, old) in shares {
            for slow in [0.0, 0.01, 0.1, 0.15, 0.5] {
                for (spread, failing) in [(0.6, 0.0), (0.6, 0.3), (1.5, 0.01), (0.05, 0.9)] {
                    let old = Release { requests: old, slow, spread, failing, ..OLD };
                    let verdicts = runs(old, Release { requests: new, ..old });
                    let found = verdicts.iter().filter(|verdict| **verdict != Verdict::Good).count();
                    // Where so many fail that a point more is nothing, once in a hundred.
                    assert!(found == 0 || failing > 0.1, "{new} beside {}: {verdicts:?}", old.requests);
                    (wrong, of) = (wrong + found, of + verdicts.len());
                }
            }
        }
        assert!(wrong * 100 < of, "{wrong} of {of}");
        // Better than before.
        all(Release { failing: 0.3, median_ms: 36.0, ..OLD }, OLD, |verdict| *verdict == Verdict::Good);
    }

    #[test]
    fn one_page_that_became_slow_or_fails_is_found_among_the_others() {
        let slower = |verdict: &Verdict| matches!(verdict, Verdict::Worse(why) if why.contains("99 of 100 requests"));
        // One request of twenty is for it.
        all(OLD, Release { slow: 0.05, ..OLD }, slower);
        let both = Release { slow: 0.05, ..OLD };
        all(both, Release { slow_ms: 2400.0, ..both }, slower);
        all(Release { requests: 10_000, ..OLD }, Release { slow: 0.05, ..OLD }, slower);
        // One of five, where the canary has few requests.
        let slower = |verdict: &Verdict| matches!(verdict, Verdict::Worse(why) if why.contains("90 of 100 requests"));
        all(OLD, Release { slow: 0.3, requests: 250, ..OLD }, slower);
        let fails = |verdict: &Verdict| matches!(verdict, Verdict::Worse(why) if why.contains("failed"));
        all(Release { requests: 10_000, ..OLD }, Release { failing: 0.05, ..OLD }, fails);
        all(Release { failing: 0.02, ..OLD }, Release { failing: 0.08, ..OLD }, fails);
    }

    #[test]
    fn too_little_traffic_is_said_and_not_guessed() {
        let is_right =
            |verdict: &Verdict| matches!(verdict, Verdict::TooLittle(why) if why.contains("min_requests is 100"));
        all(OLD, Release { requests: 60, failing: 0.05, ..OLD }, is_right);
        all(OLD, Release { requests: 99, median_ms: 36.0, ..OLD }, is_right);
        all(Release { requests: 99, ..OLD }, OLD, is_right);
        assert!(matches!(judge(&Counts::default(), &Counts::default(), &BOUNDS), Verdict::TooLittle(_)));
    }

    #[test]
    fn a_canary_that_hangs_does_not_pass_for_the_little_that_it_answers() {
        let old = Counts { answered: 1000, ..Dice::new(1).serve(OLD) };
        let judge_with = |new: Counts| judge(&old, &new, &BOUNDS);
        let worse = |verdict, words: &str| matches!(verdict, Verdict::Worse(why) if why.contains(words));
        // Two that were cut are enough, one may be chance, and so may two of many.
        let cut = |answered, cut| Counts { answered, cut, ..Counts::default() };
        assert!(worse(judge_with(cut(2, 2)), "100.0 % of its requests were cut, shed or lost, and 0.0 %"));
        assert!(worse(judge_with(cut(20, 3)), "15.0 % of its requests"));
        for few in [cut(1, 1), cut(20, 1), cut(80, 2)] {
            assert!(matches!(judge_with(few), Verdict::TooLittle(_)), "{few:?}");
        }
        // So many leave no doubt, at any time; not where the old one is no better.
        assert!(doubtless(&old, &cut(5, 5), &BOUNDS).is_some());
        assert_eq!(doubtless(&Counts { cut: 900, ..old }, &cut(5, 5), &BOUNDS), None);
        // One that still runs.
        let runs = |running_us| Counts { answered: 3, running_us, ..Counts::default() };
        assert!(worse(judge_with(runs(5_000_000)), "a request of it has run for 5.0 s"));
        assert!(matches!(judge_with(runs(900_000)), Verdict::TooLittle(_)));
        let old = Counts { running_us: 60_000_000, ..old };
        assert!(matches!(judge(&old, &runs(5_000_000), &BOUNDS), Verdict::TooLittle(_)), "the old one has such, too");
        // Where nothing could be compared anyway, nothing is said.
        assert!(matches!(judge(&Counts::default(), &cut(2, 2), &BOUNDS), Verdict::TooLittle(_)));
    }

    #[test]
    fn in_the_middle_only_what_leaves_no_doubt_counts() {
        let counts = |compared, failed| Counts { answered: compared, compared, failed, ..Counts::default() };
        assert!(doubtless(&counts(300, 1), &counts(20, 20), &BOUNDS).is_some());
        assert!(doubtless(&counts(300, 1), &counts(200, 40), &BOUNDS).is_some());
        // At the end this is worse; before, it may be chance.
        let (old, new) = (counts(1000, 2), counts(300, 10));
        assert!(doubtless(&old, &new, &BOUNDS).is_none());
        assert!(matches!(judge(&old, &new, &BOUNDS), Verdict::Worse(_)));
        // Nothing to compare with.
        assert!(doubtless(&counts(0, 0), &counts(20, 20), &BOUNDS).is_none());
        // Looked at each second for two minutes, a good release is never ended.
        for seed in 0..20 {
            let mut dice = Dice::new(seed);
            let (mut old, mut new) = (Counts::default(), Counts::default());
            for second in 0..120 {
                old.add(&dice.serve(Release { requests: 30, ..OLD }));
                new.add(&dice.serve(Release { requests: 8, ..OLD }));
                assert_eq!(doubtless(&old, &new, &BOUNDS), None, "seed {seed}, second {second}");
            }
        }
    }

    #[test]
    fn a_share_is_beyond_another_as_textbooks_have_it() {
        let share = |part: u32, of: u32| Share { part: part.into(), of: of.into() };
        // Without a margin: the pooled test of two shares. 30 of 200 beside 15 of 200, less half a request.
        let pooled: f64 = 45.0 / 400.0;
        let expected = (0.075 - 0.0025) / (pooled * (1.0 - pooled) * 2.0 / 200.0).sqrt();
        assert!((beyond(share(15, 200), share(30, 200), 0.0) - expected).abs() < 1e-6);
        // With one: a known example cannot be above itself and the margin.
        assert!(beyond(share(10, 1000), share(20, 1000), 0.01) < 0.0);
        assert!(beyond(share(0, 1000), share(30, 1000), 0.01) > ONE_OF_100);
        // What is never compared.
        assert_eq!(beyond(share(0, 0), share(5, 5), 0.01), 0.0);
    }

    #[test]
    fn chances_are_those_of_the_binomial_distribution() {
        let chance = |part: u32, of: u32, rate| chance(Share { part: part.into(), of: of.into() }, rate);
        assert!((chance(0, 10, 0.3) - 1.0).abs() < 1e-12);
        assert!((chance(10, 10, 0.5) - 0.5f64.powi(10)).abs() < 1e-12);
        // Two or more sixes with four dice.
        let expected = 1.0 - (5.0f64 / 6.0).powi(4) - 4.0 / 6.0 * (5.0f64 / 6.0).powi(3);
        assert!((chance(2, 4, 1.0 / 6.0) - expected).abs() < 1e-12);
        // Many, and far below what a float holds.
        assert!(chance(100_000, 100_000, 0.01) < 1e-300 && chance(1000, 100_000, 0.01) > 0.4);
    }

    #[test]
    fn quantiles_lie_within_their_buckets() {
        let mut latency = Counted::default();
        assert_eq!(quantile(&latency, 0.9), None);
        latency.buckets[8] = 100;
        let (lower, upper) = bounds_of(8);
        assert_eq!(quantile(&latency, 0.9), Some(lower + 0.9 * (upper - lower)));
        assert_eq!((above(&latency, lower), above(&latency, upper)), (100.0, 0.0));
        latency.buckets[BUCKETS - 1] = 100;
        assert!(quantile(&latency, 0.99).unwrap() > bounds_of(BUCKETS - 1).0);
    }
}
