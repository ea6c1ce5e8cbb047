//! Which pair a received frame goes to: those of one flow to one of the pairs in use.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU16, Ordering};
use std::sync::{Arc, Mutex};

use devices_host::Event;

use super::lock;
use super::pairs::MOST_PAIRS;

/// Frames that wait for one pair at most; a network loses those behind.
const MOST_WAITING: usize = 1024;

/// The pairs of one instance, as far as received frames are concerned.
pub struct Lanes {
    used: AtomicU16,
    lanes: [Mutex<Lane>; MOST_PAIRS],
}

#[derive(Default)]
struct Lane {
    /// Frames that another pair's ring found first, each behind its header.
    waiting: VecDeque<Vec<u8>>,
    /// The pair's receive ring.
    wake: Option<Arc<Event>>,
}

impl Lanes {
    /// One pair in use.
    pub fn new() -> Arc<Self> {
        Arc::new(Self { used: AtomicU16::new(1), lanes: std::array::from_fn(|_| Mutex::default()) })
    }

    /// Pairs in use.
    pub fn used(&self) -> u16 {
        self.used.load(Ordering::Acquire)
    }

    /// Puts so many in use.
    pub fn put_in_use(&self, pairs: u16) {
        self.used.store(pairs, Ordering::Release);
        for (pair, lane) in self.lanes.iter().enumerate() {
            let mut lane = lock(lane);
            if pair >= pairs.into() {
                lane.waiting.clear();
            }
            if let Some(wake) = &lane.wake {
                wake.wake();
            }
        }
    }

    /// A receive ring begins, with this to wake it, or ends.
    pub fn set_ring(&self, pair: u16, wake: Option<Arc<Event>>) {
        let mut lane = lock(&self.lanes[usize::from(pair)]);
        lane.waiting.clear();
        lane.wake = wake;
    }

    /// The next frame that another ring found for this pair.
    pub fn next(&self, pair: u16) -> Option<Vec<u8>> {
        lock(&self.lanes[usize::from(pair)]).waiting.pop_front()
    }

    /// The pair that a frame goes to.
    pub fn of(&self, frame: &[u8]) -> u16 {
        flow(frame) % self.used()
    }

    /// Hands a frame, behind its header, to a pair.
    pub fn hand(&self, pair: u16, frame: Vec<u8>) {
        let mut lane = lock(&self.lanes[usize::from(pair)]);
        if lane.waiting.len() < MOST_WAITING
            && let Some(wake) = lane.wake.clone()
        {
            lane.waiting.push_back(frame);
            wake.wake();
        }
    }
}

/// The same number for all frames of a flow: addresses and ports of IPv4, addresses of Ethernet for everything else.
pub fn flow(frame: &[u8]) -> u16 {
    let ports = matches!(frame.get(23), Some(6 | 17)) && frame.get(14) == Some(&0x45);
    let what = match frame.get(12..14) {
        Some([8, 0]) if ports => frame.get(26..38),
        Some([8, 0]) => frame.get(26..34),
        _ => frame.get(..12),
    };
    what.unwrap_or_default().iter().fold(0, |sum: u16, byte| sum.wrapping_add((*byte).into()))
}
