use std::sync::atomic::AtomicU64;

use proptest::prelude::*;

use super::*;
use crate::legacy::clock::ManualClock;

fn rate(per_second: u64, burst: u64) -> Rate {
    Rate { per_second, burst: Some(burst) }
}

fn share(meter: &Arc<Meter>) -> Share {
    Share::new(meter.clone())
}

/// A bucket as a textbook has it, counted in units of 10⁻⁹, so that nothing is rounded: it fills with time up to its
/// brim, and what is taken from it may leave it below empty.
struct Bucket {
    per_second: i128,
    brim: i128,
    level: i128,
    now_ns: u64,
}

const NANO: i128 = 1_000_000_000;

impl Bucket {
    fn new(rate: Rate) -> Self {
        let brim = i128::from(rate.burst.unwrap()) * NANO;
        Self { per_second: rate.per_second.into(), brim, level: brim, now_ns: 0 }
    }

    fn at(&mut self, now_ns: u64) {
        self.level = self.brim.min(self.level + self.per_second * i128::from(now_ns - self.now_ns));
        self.now_ns = now_ns;
    }

    /// Takes units, and says when the bucket is not below empty any more.
    fn take(&mut self, units: u64) -> u64 {
        self.level -= i128::from(units) * NANO;
        let short = (-self.level).max(0);
        self.now_ns + u64::try_from((short + self.per_second - 1) / self.per_second).unwrap()
    }
}

fn any_rate() -> impl Strategy<Value = Rate> {
    let per_second = prop_oneof![1u64..2000, 1_000_000u64..20_000_000_000];
    // A burst of a microsecond to 100 seconds.
    (per_second, 0u32..9, 1u64..10).prop_map(|(per_second, decade, digit)| {
        rate(per_second, (u128::from(per_second) * u128::from(digit) * 10u128.pow(decade) / 1_000_000).max(1) as u64)
    })
}

proptest! {
    #[test]
    fn a_meter_books_what_a_bucket_has_at_the_time_at_which_the_bucket_has_it(
        rate in any_rate(),
        takes in prop::collection::vec((0u64..30_000_000, 1u64..1000), 1..100),
    ) {
        let (meter, mut bucket) = (Meter::new(rate), Bucket::new(rate));
        let mut now_ns = 0;
        // Each booking is rounded up to a nanosecond, and so is the burst.
        let mut rounding_ns = 1;
        for (wait_ns, turns) in takes {
            now_ns += wait_ns;
            bucket.at(now_ns);
            let wanted = turns * meter.turn;
            let (units, there_at_ns) = meter.take(wanted, now_ns);
            prop_assert!(units >= 1 && units <= wanted);
            let expected_ns = bucket.take(units);
            rounding_ns += 1;
            prop_assert!(there_at_ns.max(now_ns) <= expected_ns + rounding_ns, "{there_at_ns} {expected_ns}");
            prop_assert!(there_at_ns.max(now_ns) + rounding_ns >= expected_ns, "{there_at_ns} {expected_ns}");
            prop_assert!(there_at_ns <= now_ns || units == meter.turn, "no more than a turn is booked");
        }
    }

    #[test]
    fn in_no_span_of_time_is_more_had_than_burst_and_rate_allow(
        rate in any_rate(),
        shares in 1usize..4,
        steps in prop::collection::vec((0usize..4, 0u64..8_000_000, 1u64..50, any::<bool>()), 1..120),
    ) {
        let meter = Arc::new(Meter::new(rate));
        let mut shares: Vec<Share> = (0..shares).map(|_| share(&meter)).collect();
        let (mut now_ns, mut had, mut largest) = (0, Vec::new(), 0);
        for (who, wait_ns, size, rest) in steps {
            now_ns += wait_ns;
            let count = shares.len();
            let share = &mut shares[who % count];
            for _ in 0..20 {
                if share.allowed(now_ns).is_err() {
                    break;
                }
                let units = size * meter.turn.div_ceil(10);
                share.charge(units);
                largest = largest.max(units);
                had.push((now_ns, units));
            }
            if rest {
                share.rest();
            }
        }
        // From each moment to each later one, in one pass: how far the sum is above the line of the rate, over how far it
        // ever was below it before.
        let slack = (i128::from(largest) + i128::from(meter.turn)) * shares.len() as i128;
        let most = (i128::from(rate.burst.unwrap()) + slack + 1) * NANO;
        let (mut sum, mut lowest) = (0, 0);
        for (at_ns, units) in had {
            let line = i128::from(rate.per_second) * i128::from(at_ns);
            lowest = lowest.min(sum - line);
            sum += i128::from(units) * NANO;
            prop_assert!(sum - line - lowest <= most, "{units} at {at_ns} ns");
        }
    }
}

/// What a share gets in ten seconds that asks again when it was told to, or `late_ns` after that.
fn ten_seconds(meter: &Arc<Meter>, size: u64, late_ns: u64) -> u64 {
    let mut share = share(meter);
    let (mut now_ns, mut had) = (0, 0);
    while now_ns < 10 * NS_PER_S {
        match share.allowed(now_ns) {
            Ok(()) => {
                share.charge(size);
                had += size;
            }
            Err(at_ns) => now_ns = at_ns + late_ns,
        }
    }
    had
}

#[test]
fn a_share_that_always_asks_gets_the_rate_and_one_burst() {
    for (per_second, burst, size) in [
        (1, 1, 1),
        (7, 3, 1),
        (1000, 1, 1),
        (1000, 500, 1),
        (123_457, 10_000, 1),
        (30_000, 1, 1),
        (10 << 20, 1 << 20, 4096),
        (10 << 20, 4096, 1 << 20),
        (10 << 30, 1 << 20, 512 << 10),
    ] {
        let meter = Arc::new(Meter::new(rate(per_second, burst)));
        let had = ten_seconds(&meter, size, 0);
        let exact = 10 * per_second + burst;
        let off = had.abs_diff(exact);
        assert!(
            off <= meter.turn + 2 * size + per_second / 10_000,
            "{per_second}/s, burst {burst}: {had}, not {exact}"
        );
    }
}

#[test]
fn a_share_that_wakes_up_late_within_a_burst_gets_the_rate_all_the_same() {
    let meter = Arc::new(Meter::new(Rate { per_second: 20_000, burst: None }));
    let had = ten_seconds(&meter, 1, 90_000_000);
    assert!((200_000..=204_040).contains(&had), "{had}");
}

#[test]
fn a_burst_is_had_at_once_and_again_only_after_its_time() {
    let meter = Arc::new(Meter::new(rate(100, 50)));
    let mut share = share(&meter);
    let burst = |share: &mut Share, now_ns| {
        let mut had = 0;
        while share.allowed(now_ns).is_ok() {
            share.charge(1);
            had += 1;
        }
        had
    };
    assert_eq!(burst(&mut share, 5), 50);
    assert_eq!(burst(&mut share, 5), 0);
    assert_eq!(burst(&mut share, 5 + NS_PER_S / 10), 10);
    assert_eq!(burst(&mut share, 5 + 100 * NS_PER_S), 50 + 1, "and the one that was booked");
}

#[test]
fn a_debt_is_paid_before_the_next_request() {
    let meter = Arc::new(Meter::new(rate(1000, 10)));
    let mut share = share(&meter);
    assert_eq!(share.allowed(0), Ok(()));
    share.charge(5010);
    let mut now_ns = 0;
    while let Err(at_ns) = share.allowed(now_ns) {
        now_ns = at_ns;
    }
    assert!(now_ns.abs_diff(5 * NS_PER_S) <= 2 * TURN_NS, "{now_ns}");
    // Whoever rests keeps its debt.
    share.charge(1000);
    share.rest();
    assert!(share.allowed(now_ns).is_err());
}

#[test]
fn what_is_given_back_is_there_for_others() {
    let meter = Arc::new(Meter::new(rate(10, 10)));
    let mut others: Vec<Share> = (0..10).map(|_| share(&meter)).collect();
    for share in &mut others {
        assert_eq!(share.allowed(0), Ok(()));
    }
    let mut late = share(&meter);
    assert_eq!(late.allowed(0), Err(NS_PER_S / 10));
    late.rest();
    others.iter_mut().for_each(Share::rest);
    for _ in 0..10 {
        assert_eq!(late.allowed(0), Ok(()));
        late.charge(1);
    }
    assert!(late.allowed(0).is_err());
}

/// Runs workers that always have requests of their `sizes` for ten seconds; the first of them always wakes first.
fn contest(meter: &Arc<Meter>, sizes: &[u64]) -> Vec<u64> {
    let mut workers: Vec<(Share, u64)> = sizes.iter().map(|_| (share(meter), 0)).collect();
    let mut had = vec![0; sizes.len()];
    let mut now_ns = 0;
    while now_ns < 10 * NS_PER_S {
        for ((worker, wake_at_ns), (had, size)) in workers.iter_mut().zip(had.iter_mut().zip(sizes)) {
            // A step takes no more than a ring.
            for _ in 0..256 {
                if *wake_at_ns > now_ns {
                    break;
                }
                match worker.allowed(now_ns) {
                    Ok(()) => {
                        worker.charge(*size);
                        *had += size;
                    }
                    Err(at_ns) => *wake_at_ns = at_ns,
                }
            }
        }
        now_ns = workers.iter().map(|(_, wake_at_ns)| *wake_at_ns).min().unwrap().max(now_ns + 1);
    }
    had
}

#[test]
fn shares_of_one_meter_take_turns_whoever_wakes_first() {
    let even = |had: &[u64], total: u64| {
        let fair = total / had.len() as u64;
        assert!(had.iter().all(|had| had.abs_diff(fair) < fair / 10), "{had:?}");
        assert!(had.iter().sum::<u64>().abs_diff(total) < total / 50, "{had:?}");
    };
    even(&contest(&Arc::new(Meter::new(rate(1000, 10))), &[1, 1]), 10_010);
    even(&contest(&Arc::new(Meter::new(rate(200, 1))), &[1; 4]), 2_000);
    even(&contest(&Arc::new(Meter::new(rate(100_000, 1000))), &[1; 8]), 1_001_000);
    // Large requests next to small ones: shares are of bytes.
    even(&contest(&Arc::new(Meter::new(rate(50 << 20, 1 << 20))), &[4096, 256 << 10]), 501 << 20);
}

#[test]
fn numbers_at_the_ends_of_their_types_neither_panic_nor_spin() {
    for (per_second, burst) in [
        (0, None),
        (0, Some(0)),
        (1, Some(u64::MAX)),
        (u64::MAX, None),
        (u64::MAX, Some(1)),
        (u64::MAX, Some(u64::MAX)),
    ] {
        let mut share = share(&Arc::new(Meter::new(Rate { per_second, burst })));
        for now_ns in [0, 1, NS_PER_S, 1 << 62] {
            for units in [0, 1, u64::MAX] {
                let _ = share.allowed(now_ns);
                share.charge(units);
            }
            share.rest();
        }
    }
}

/// Counts how often it is read.
#[derive(Default)]
struct CountingClock(AtomicU64);

impl Clock for CountingClock {
    fn realtime(&self) -> (i64, u32) {
        (0, 0)
    }

    fn monotonic_ns(&self) -> u64 {
        self.0.fetch_add(1, Ordering::Relaxed)
    }
}

#[test]
fn the_clock_is_read_once_a_step_and_never_where_nothing_is_limited() {
    let clock = Arc::new(CountingClock::default());
    let mut unlimited = Throttle::new(&[Meters::default(), Meters::default()], clock.clone());
    unlimited.begin_step();
    assert_eq!(unlimited.wait_until(), None);
    unlimited.charge(u64::MAX);
    assert_eq!(unlimited.wait_until(), None);
    assert_eq!(clock.0.load(Ordering::Relaxed), 0);

    let limits = || Meters::new(Some(rate(1000, 3)), Some(rate(1 << 20, 1 << 20)));
    let mut throttle = Throttle::new(&[limits(), limits()], clock.clone());
    throttle.begin_step();
    for _ in 0..3 {
        assert_eq!(throttle.wait_until(), None);
        throttle.charge(512);
    }
    assert!(throttle.wait_until().is_some());
    assert_eq!(clock.0.load(Ordering::Relaxed), 1);
    throttle.begin_step();
    assert!(throttle.wait_until().is_some());
    assert_eq!(clock.0.load(Ordering::Relaxed), 2);
}

#[test]
fn the_slowest_of_several_meters_holds_a_worker_back() {
    let clock = Arc::new(ManualClock::new(0));
    let disk = Meters::new(Some(rate(1000, 1)), None);
    let group = Meters::new(None, Some(rate(512, 512)));
    let mut throttle = Throttle::new(&[disk, group], clock.clone());
    throttle.begin_step();
    assert_eq!(throttle.wait_until(), None);
    throttle.charge(1024);
    // A thousandth of a second for the next request, a second for the debt of bytes, and the first byte beyond it.
    let until_ns = throttle.wait_until().unwrap();
    clock.advance_ns(until_ns - 1);
    throttle.begin_step();
    assert!(throttle.wait_until().is_some());
    clock.advance_ns(1);
    throttle.begin_step();
    let mut now_ns = until_ns;
    while let Some(at_ns) = throttle.wait_until() {
        clock.advance_ns(at_ns - now_ns);
        now_ns = at_ns;
        throttle.begin_step();
    }
    assert!(now_ns.abs_diff(NS_PER_S) <= 2 * TURN_NS, "{now_ns}");
}
