//! A virtqueue of either format.

use super::chain::{Body, Chain, Returned};
use super::error::QueueError;
use super::mem::RingMem;
use super::order::Order;
use super::packed::Packed;
use super::saved::{SavedChain, SavedFlight, SavedReturn};
use super::split::Split;
use super::walk::InFlight;
use crate::virtio::QueueState;

/// `VIRTIO_F_INDIRECT_DESC` (virtio 1.3 §6).
pub const F_INDIRECT_DESC: u64 = 1 << 28;
/// `VIRTIO_F_EVENT_IDX` (virtio 1.3 §6).
pub const F_EVENT_IDX: u64 = 1 << 29;
/// `VIRTIO_F_RING_PACKED` (virtio 1.3 §6).
pub const F_RING_PACKED: u64 = 1 << 34;
/// `VIRTIO_F_IN_ORDER` (virtio 1.3 §6).
pub const F_IN_ORDER: u64 = 1 << 35;

/// A running virtqueue, split or packed: one driver, one worker.
#[derive(Debug)]
pub struct Queue {
    format: Format,
    /// Where the driver was promised its buffers back in the order it gave them (`VIRTIO_F_IN_ORDER`).
    order: Option<Order>,
}

#[derive(Debug)]
enum Format {
    Split(Split),
    Packed(Packed),
}

macro_rules! either {
    ($queue:expr, $ring:ident => $what:expr) => {
        match &$queue.format {
            Format::Split($ring) => $what,
            Format::Packed($ring) => $what,
        }
    };
    (mut $queue:expr, $ring:ident => $what:expr) => {
        match &mut $queue.format {
            Format::Split($ring) => $what,
            Format::Packed($ring) => $what,
        }
    };
}

impl Queue {
    /// Takes over a queue where `state` says the driver put it.
    ///
    /// `features` are the accepted ones: they decide the format; `max_size` is the device's maximum, at most 32768.
    /// Fails without side effects where the size or an alignment breaks virtio 1.3 §2.7 or §2.8, or a ring is not wholly
    /// inside guest memory.
    pub fn new<M: RingMem + ?Sized>(
        mem: &M,
        state: &QueueState,
        features: u64,
        max_size: u16,
    ) -> Result<Self, QueueError> {
        let format = if features & F_RING_PACKED != 0 {
            Format::Packed(Packed::new(mem, state, features, max_size)?)
        } else {
            Format::Split(Split::new(mem, state, features, max_size)?)
        };
        let order = (features & F_IN_ORDER != 0).then(|| Order::new(state.size));
        Ok(Self { format, order })
    }

    /// Entries in the ring.
    pub fn size(&self) -> u16 {
        either!(self, ring => ring.size())
    }

    /// Chains popped and not yet pushed, unpopped or abandoned. With `VIRTIO_F_IN_ORDER` a chain stays in flight until
    /// all that were popped before it are pushed.
    pub fn in_flight(&self) -> u16 {
        self.flight().count()
    }

    /// Whether every descriptor of the ring belongs to a chain in flight: the driver can post nothing more before it
    /// gets one back.
    pub fn is_exhausted(&self) -> bool {
        self.flight().slots() >= u32::from(self.size())
    }

    fn flight(&self) -> &InFlight {
        either!(self, ring => ring.in_flight())
    }

    /// Where the queue stands: what another [`Queue::new`] needs to go on. Complete once nothing is in flight and
    /// everything pushed is published.
    pub fn state(&self) -> QueueState {
        either!(self, ring => ring.state())
    }

    /// Where the queue stands with `chains`, all that it has popped and that were not pushed.
    pub fn save_flight<'c>(&self, chains: impl Iterator<Item = &'c Chain>) -> SavedFlight {
        let order = self.order.as_ref();
        let place = |chain: &Chain| order.map_or(0, |order| order.place(chain.body.turn));
        SavedFlight {
            at: self.state(),
            chains: chains.map(|chain| SavedChain::new(chain, place(chain))).collect(),
            done: order.into_iter().flat_map(Order::done).map(|(at, done)| SavedReturn::new(at, done)).collect(),
        }
    }

    /// Has the chains in flight that another queue [saved](Self::save_flight), which stood where this one does: in the
    /// order of `saved`. They are held to the rules of every chain, and to what the positions of the queue say of them.
    ///
    /// # Errors
    /// Where they cannot be; the queue is of no use then.
    pub fn resume_flight<M: RingMem + ?Sized>(
        &mut self,
        mem: &M,
        saved: &SavedFlight,
    ) -> Result<Vec<Chain>, QueueError> {
        let mut chains = Vec::with_capacity(saved.chains.len().min(usize::from(self.size())));
        let resumed = self.resume(mem, saved, &mut chains);
        if resumed.is_err() {
            chains.drain(..).for_each(Chain::abandon);
        }
        resumed.map(|()| chains)
    }

    fn resume<M: RingMem + ?Sized>(
        &mut self,
        mem: &M,
        SavedFlight { at, chains, done }: &SavedFlight,
        resumed: &mut Vec<Chain>,
    ) -> Result<(), QueueError> {
        let bad = |why| QueueError::BadFlight { why };
        let size = self.size();
        if *at != self.state() {
            return Err(bad("they are another queue's"));
        }
        let room =
            |slots: u16| if slots == 0 || slots > size { Err(QueueError::ChainTooLong { size }) } else { Ok(()) };
        for saved in chains {
            let SavedChain { head, id, turn, slots, .. } = *saved;
            room(slots)?;
            either!(mut self, ring => ring.occupy(Returned { head, id, slots, len: 0 }))?;
            let mut chain = either!(mut self, ring => ring.parser().rebuild(mem, saved))?;
            chain.claim(head, id);
            chain.body.turn = turn;
            resumed.push(chain);
        }
        for returned in done.iter().map(|done| done.returned()) {
            room(returned.slots)?;
            either!(mut self, ring => ring.occupy(returned))?;
        }
        let (outstanding, occupied) = either!(self, ring => (ring.outstanding(), ring.occupied()));
        if occupied > outstanding || outstanding > size.into() {
            return Err(bad("the queue's positions have no room for them"));
        }
        match &mut self.order {
            Some(order) => {
                let done = done.iter().map(|done| (done.turn, done.returned()));
                order.resume(done, chains.iter().map(|chain| chain.turn)).ok_or(bad("their order has gaps"))
            }
            None if done.is_empty() => Ok(()),
            None => Err(bad("nothing waits for its turn here")),
        }
    }

    /// Guest address of the ring.
    pub fn address(&self) -> u64 {
        either!(self, ring => ring.address())
    }

    /// Takes the next chain: `None` where the driver has made none available.
    ///
    /// Every ring word and descriptor is read once. On an error nothing is consumed: the queue stands where it stood
    /// and the caller stops using it until the driver resets the device.
    #[inline(always)]
    pub fn pop<M: RingMem + ?Sized>(&mut self, mem: &M) -> Result<Option<Chain>, QueueError> {
        let mut chain = either!(mut self, ring => ring.pop(mem))?;
        if let (Some(order), Some(chain)) = (&mut self.order, &mut chain) {
            chain.body.turn = order.begin();
        }
        Ok(chain)
    }

    /// Whether the driver has made a chain available: one load, and nothing is taken.
    #[inline]
    pub fn has_available<M: RingMem + ?Sized>(&self, mem: &M) -> Result<bool, QueueError> {
        either!(self, ring => ring.has_available(mem))
    }

    /// Chains that are known to be available, without a look at the ring: there may be more.
    #[inline]
    pub fn seen(&self) -> u16 {
        either!(self, ring => ring.seen())
    }

    /// Looks how many chains are available now, where the ring says so, for [`seen`](Self::seen).
    #[inline]
    pub fn look<M: RingMem + ?Sized>(&mut self, mem: &M) {
        either!(mut self, ring => ring.look(mem));
    }

    /// Undoes the latest [`pop`](Self::pop): the chain will be popped again. Chains go back in the opposite order of
    /// their popping, and none popped after `chain` may have been pushed meanwhile.
    pub fn unpop(&mut self, chain: Chain) {
        if let Some(order) = &mut self.order {
            order.undo();
        }
        either!(mut self, ring => ring.unpop(chain));
    }

    /// Returns a chain to the driver, with the number of bytes written from the start of its writable part
    /// (virtio 1.3 §2.7.8.2, §2.8.4). The driver sees it after the next [`publish`](Self::publish), and with
    /// `VIRTIO_F_IN_ORDER` not before all chains popped earlier have been pushed as well.
    #[inline(always)]
    pub fn push<M: RingMem + ?Sized>(&mut self, mem: &M, chain: Chain, written_bytes: u64) -> Result<(), QueueError> {
        debug_assert!(written_bytes <= chain.writable_bytes(), "more written than the chain has room for");
        let len = u32::try_from(written_bytes.min(chain.writable_bytes())).unwrap_or(u32::MAX);
        let Body { turn, head, id, slots, .. } = *chain.body;
        let back = Returned { head, id, slots, len };
        if self.order.is_some() {
            either!(mut self, ring => ring.settle(chain));
            return self.give_back_in_order(mem, turn, back);
        }
        either!(mut self, ring => {
            ring.settle(chain);
            ring.give_back(mem, back)
        })
    }

    /// Gives back what may go now that the chain of `turn` is done.
    #[inline(never)]
    fn give_back_in_order<M: RingMem + ?Sized>(
        &mut self,
        mem: &M,
        turn: u16,
        back: Returned,
    ) -> Result<(), QueueError> {
        let Some(order) = &mut self.order else { return Ok(()) };
        order.finish(turn, back)?;
        while let Some(next) = order.next() {
            either!(mut self, ring => ring.give_back(mem, next))?;
        }
        Ok(())
    }

    /// Whether something was pushed that the driver has not been shown.
    pub fn has_unpublished(&self) -> bool {
        either!(self, ring => ring.has_unpublished())
    }

    /// Shows everything pushed so far to the driver with one releasing store, and says whether the driver wants an
    /// interrupt for it (virtio 1.3 §2.7.7, §2.8.10). Without news it says no and touches nothing.
    #[inline]
    pub fn publish<M: RingMem + ?Sized>(&mut self, mem: &M) -> Result<bool, QueueError> {
        either!(mut self, ring => ring.publish(mem))
    }

    /// Tells the driver that kicks are not needed while the worker is looking anyway.
    pub fn disable_kicks<M: RingMem + ?Sized>(&mut self, mem: &M) -> Result<(), QueueError> {
        either!(mut self, ring => ring.disable_kicks(mem))
    }

    /// Asks for a kick with the next available chain, then looks once more: `true` means there already is one, which
    /// the driver may not kick for.
    pub fn enable_kicks<M: RingMem + ?Sized>(&mut self, mem: &M) -> Result<bool, QueueError> {
        either!(mut self, ring => ring.enable_kicks(mem))
    }
}
