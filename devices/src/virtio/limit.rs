//! Rate limits: how many requests and bytes a second, with a burst, alone or shared.
//!
//! A [`Meter`] is a token bucket kept as one number, the theoretical arrival time of the generic cell rate algorithm
//! (GCRA, ITU-T I.371 annex A.1): the moment at which the bucket would be full again if nobody took from it. Workers take
//! from it in turns of a few milliseconds' worth, each through its own share, and pay their requests from what they
//! have taken. A share pays after the request was read and may go into debt by that one request: nothing has to be known
//! of a request before it is taken from the ring, and none that was taken is held back. A debt is paid turn by turn
//! before the share may go on.
//!
//! A turn that cannot be had at once is booked: the meter says when it will be there, and nobody else gets it. So shares
//! of one meter that all want more than there is take turns, whoever's thread wakes first.
//!
//! In any `t` seconds all shares of a meter together get at most `burst + t × rate`, beside a turn and one request a
//! share. A share that always has requests loses nothing, however late it wakes up within a burst's time.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::legacy::clock::Clock;

const NS_PER_S: u64 = 1_000_000_000;

/// What a turn is worth. Shorter ones wake a worker that is held back more often than this; longer ones make others wait
/// for longer.
const TURN_NS: u64 = 2_000_000;

/// What a burst is worth where none is given: longer than any wake-up is late, so that the rate is reached.
const DEFAULT_BURST_NS: u64 = 100_000_000;

/// No burst is worth more than this, a century and a half: sums with the time since the host's start do not overflow.
const MAX_BURST_NS: u64 = 1 << 62;

/// So many units a second, and so many at once after a pause.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    /// Units a second; 0 counts as 1.
    pub per_second: u64,
    /// Units that may be had at once when none were for long enough; a tenth of a second's worth where not given, and
    /// never less than one.
    pub burst: Option<u64>,
}

/// A token bucket that any number of shares take from, without locks.
#[derive(Debug)]
pub struct Meter {
    per_second: u64,
    burst_ns: u64,
    turn: u64,
    /// Theoretical arrival time: when the bucket will be full.
    full_at_ns: AtomicU64,
}

impl Meter {
    /// A full bucket.
    pub fn new(rate: Rate) -> Self {
        let per_second = rate.per_second.max(1);
        let worth = |ns: u64| scale(per_second, ns, NS_PER_S);
        let burst = rate.burst.unwrap_or_else(|| worth(DEFAULT_BURST_NS)).max(1);
        let empty =
            Self { per_second, burst_ns: 0, turn: worth(TURN_NS).clamp(1, burst), full_at_ns: AtomicU64::new(0) };
        Self { burst_ns: empty.cost_ns(burst).min(MAX_BURST_NS), ..empty }
    }

    /// Takes what is there of `wanted` units, or books a turn where nothing is: how many, and when they are there.
    fn take(&self, wanted: u64, now_ns: u64) -> (u64, u64) {
        let mut full_at_ns = self.full_at_ns.load(Ordering::Relaxed);
        loop {
            let from_ns = full_at_ns.max(now_ns);
            let there_ns = self.burst_ns.saturating_sub(from_ns.saturating_sub(now_ns));
            let units = match scale(there_ns, self.per_second, NS_PER_S).min(wanted) {
                0 => self.turn,
                there => there,
            };
            let next_ns = from_ns.saturating_add(self.cost_ns(units));
            let order = Ordering::Relaxed;
            match self.full_at_ns.compare_exchange_weak(full_at_ns, next_ns, order, order) {
                Ok(_) => return (units, next_ns.saturating_sub(self.burst_ns)),
                Err(changed) => full_at_ns = changed,
            }
        }
    }

    /// Puts units back that were taken and not used.
    fn give_back(&self, units: u64) {
        let cost_ns = scale(units, NS_PER_S, self.per_second);
        let earlier = |full_at_ns: u64| Some(full_at_ns.saturating_sub(cost_ns));
        // The closure always gives a value, so there is no failure.
        let _ = self.full_at_ns.fetch_update(Ordering::Relaxed, Ordering::Relaxed, earlier);
    }

    /// How long the bucket needs to fill up by `units`, rounded up: a rate is never exceeded by rounding, and missed by
    /// less than a nanosecond a turn.
    fn cost_ns(&self, units: u64) -> u64 {
        if let Some(product) = units.checked_mul(NS_PER_S) {
            return product.div_ceil(self.per_second.max(1));
        }
        let product = u128::from(units).saturating_mul(NS_PER_S.into());
        u64::try_from(product.div_ceil(u128::from(self.per_second).max(1))).unwrap_or(u64::MAX)
    }
}

/// `value × by ÷ over`, rounded down; the largest number where that is larger still.
fn scale(value: u64, by: u64, over: u64) -> u64 {
    // What limits of real disks come to; a wide division costs ten times as much.
    if let Some(product) = value.checked_mul(by) {
        return product.checked_div(over).unwrap_or(u64::MAX);
    }
    let product = u128::from(value).saturating_mul(by.into());
    u64::try_from(product.checked_div(over.into()).unwrap_or(u128::MAX)).unwrap_or(u64::MAX)
}

/// One worker's account at a [`Meter`].
#[derive(Debug)]
struct Share {
    meter: Arc<Meter>,
    /// Units taken and not used; below zero a debt.
    credit: i64,
    /// Units booked, and when they are there.
    booked: Option<(u64, u64)>,
}

impl Share {
    fn new(meter: Arc<Meter>) -> Self {
        Self { meter, credit: 0, booked: None }
    }

    /// Whether a request may be taken from the ring: `Err` with the moment to ask again.
    fn allowed(&mut self, now_ns: u64) -> Result<(), u64> {
        loop {
            if let Some((units, there_at_ns)) = self.booked {
                if there_at_ns > now_ns {
                    return Err(there_at_ns);
                }
                self.booked = None;
                self.credit = self.credit.saturating_add_unsigned(units);
            }
            if self.credit > 0 {
                return Ok(());
            }
            let debt = self.credit.unsigned_abs();
            self.booked = Some(self.meter.take(debt.saturating_add(self.meter.turn), now_ns));
        }
    }

    fn charge(&mut self, units: u64) {
        self.credit = self.credit.saturating_sub_unsigned(units);
    }

    /// Puts back what is left and what is booked. A debt stays.
    fn rest(&mut self) {
        let booked = self.booked.take().map_or(0, |(units, _)| units);
        let left = u64::try_from(self.credit).unwrap_or(0);
        self.credit = self.credit.min(0);
        if booked > 0 || left > 0 {
            self.meter.give_back(left.saturating_add(booked));
        }
    }
}

/// What holds one worker back: its shares of the meters of its disk and of its disk's group.
///
/// Without meters it costs nothing: no clock is read. With meters the clock is read at most once between two
/// [`begin_step`](Self::begin_step)s, and only when a turn is used up.
#[derive(Default)]
pub struct Throttle {
    clock: Option<Arc<dyn Clock>>,
    now_ns: Option<u64>,
    requests: Vec<Share>,
    bytes: Vec<Share>,
}

impl fmt::Debug for Throttle {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { now_ns, requests, bytes, .. } = self;
        formatter
            .debug_struct("Throttle")
            .field("now_ns", now_ns)
            .field("requests", requests)
            .field("bytes", bytes)
            .finish()
    }
}

/// The meters of a disk or of a group of disks; what is `None` is not limited.
#[derive(Clone, Debug, Default)]
pub struct Meters {
    /// Requests.
    pub requests: Option<Arc<Meter>>,
    /// Bytes of data.
    pub bytes: Option<Arc<Meter>>,
}

impl Meters {
    /// Meters for these rates, to be shared by cloning.
    pub fn new(requests: Option<Rate>, bytes: Option<Rate>) -> Self {
        let meter = |rate| Arc::new(Meter::new(rate));
        Self { requests: requests.map(meter), bytes: bytes.map(meter) }
    }
}

impl Throttle {
    /// A worker's throttle over all of `meters`, told the time by `clock`.
    pub fn new(meters: &[Meters], clock: Arc<dyn Clock>) -> Self {
        let shares = |pick: fn(&Meters) -> &Option<Arc<Meter>>| -> Vec<Share> {
            meters.iter().filter_map(|meters| pick(meters).clone()).map(Share::new).collect()
        };
        let (requests, bytes) = (shares(|meters| &meters.requests), shares(|meters| &meters.bytes));
        let clock = (!(requests.is_empty() && bytes.is_empty())).then_some(clock);
        Self { clock, now_ns: None, requests, bytes }
    }

    /// A step begins: the time is not what it was.
    pub fn begin_step(&mut self) {
        self.now_ns = None;
    }

    /// Whether the next request has to stay in the ring, and until when (by the clock, in nanoseconds). To be asked
    /// before each request.
    #[inline]
    pub fn wait_until(&mut self) -> Option<u64> {
        // Nothing is limited without one.
        if self.clock.is_some() { self.wait_for_shares() } else { None }
    }

    fn wait_for_shares(&mut self) -> Option<u64> {
        let Self { clock, now_ns, requests, bytes } = self;
        let mut until_ns = None;
        for share in requests.iter_mut().chain(bytes) {
            if share.credit > 0 && share.booked.is_none() {
                continue;
            }
            let Some(clock) = clock else { continue };
            let now_ns = *now_ns.get_or_insert_with(|| clock.monotonic_ns());
            if let Err(at_ns) = share.allowed(now_ns) {
                until_ns = until_ns.max(Some(at_ns));
            }
        }
        until_ns
    }

    /// Pays for one request that moves `data_bytes`.
    #[inline]
    pub fn charge(&mut self, data_bytes: u64) {
        if self.clock.is_some() {
            self.charge_shares(data_bytes);
        }
    }

    fn charge_shares(&mut self, data_bytes: u64) {
        self.requests.iter_mut().for_each(|share| share.charge(1));
        self.bytes.iter_mut().for_each(|share| share.charge(data_bytes));
    }

    /// The worker has nothing to do: what it has taken and not used is there for others.
    pub fn rest(&mut self) {
        self.requests.iter_mut().chain(&mut self.bytes).for_each(Share::rest);
    }
}

#[cfg(test)]
#[path = "limit_tests.rs"]
mod tests;
