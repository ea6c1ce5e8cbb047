//! Pairs of rings: how many there are, and how many are in use.

use devices_host::sys::{Errno, SysResult};
use zvmm::hypervisor::bhyve::abi::{VIONA_MAX_QPAIR, VIONA_MIN_QPAIR};

use super::node::Attached;
use super::ring::Phase;
use super::rules;
use crate::node::Call;

/// The most pairs there can be.
pub const MOST_PAIRS: usize = VIONA_MAX_QPAIR as usize;

/// Their rings.
pub const MOST_RINGS: usize = 2 * MOST_PAIRS;

impl Attached {
    /// Has rings for so many pairs.
    pub(super) fn set_pairs(&mut self, call: &Call<'_>, pairs: usize) -> SysResult<i32> {
        let used = self.lanes.used();
        let pairs = match u16::try_from(pairs) {
            Ok(pairs) if (VIONA_MIN_QPAIR.max(used)..=VIONA_MAX_QPAIR).contains(&pairs) => pairs,
            _ => {
                let detail = format!("{}: {pairs} pairs, {used} of them in use", self.taken.link);
                return Err(call.refuse(&rules::PAIRS_RANGE, Errno::EINVAL, detail));
            }
        };
        if let Some(index) = self.indices().find(|index| self.ring(*index).phase != Phase::Reset) {
            let detail = format!("{}: {pairs} pairs while ring {index} is initialised", self.taken.link);
            return Err(call.refuse(&rules::PAIRS_STILL, Errno::EBUSY, detail));
        }
        self.pairs = pairs;
        Ok(0)
    }

    /// Has the first so many receive.
    pub(super) fn use_pairs(&mut self, call: &Call<'_>, pairs: usize) -> SysResult<i32> {
        match u16::try_from(pairs) {
            Ok(pairs) if (VIONA_MIN_QPAIR..=self.pairs).contains(&pairs) => {
                self.lanes.put_in_use(pairs);
                self.signals.update();
                Ok(0)
            }
            _ => {
                let detail = format!("{}: {pairs} of {} pairs", self.taken.link, self.pairs);
                Err(call.refuse(&rules::PAIRS_USED, Errno::EINVAL, detail))
            }
        }
    }

    /// The rings there are.
    pub(super) fn indices(&self) -> std::ops::Range<usize> {
        0..2 * usize::from(self.pairs)
    }
}
