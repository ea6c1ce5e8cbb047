//! The control queue: what the driver asks of the card itself (virtio 1.3 §5.1.6.5).

use vm_memory::GuestMemory;

use super::backend::NetBackend;
use super::device::feature;
use super::filter::{Mode, Tables, is_a_vlan, is_an_address};
use super::link::Link;
use super::rx::Rx;
use super::settings::Settings;
use crate::planted::{Defect, panic_if_planted};
use crate::virtio::queue::{Chain, ChainError, Reader};
use crate::virtio::worker::WorkerQueue;

/// `VIRTIO_NET_OK`.
const OK: u8 = 0;
/// `VIRTIO_NET_ERR`.
const ERR: u8 = 1;

/// The command is not carried out, and nothing has changed.
#[derive(Debug)]
struct Refused;

impl From<ChainError> for Refused {
    fn from(_: ChainError) -> Self {
        Self
    }
}

pub(super) struct Control {
    pub queue: WorkerQueue,
    features: u64,
    /// A command that was carried out and is answered when all receivers go by it.
    unanswered: Option<Chain>,
    /// A table on its way from the driver: only a whole one takes the place of the old one.
    tables: Tables,
}

impl Control {
    pub fn new(queue: WorkerQueue) -> Self {
        Self { queue, features: 0, unanswered: None, tables: Tables::EMPTY }
    }

    /// The queue has started.
    pub fn started(&mut self, features: u64) {
        self.features = features;
    }

    /// One round: up to a ring of commands. Returns whether to come back at once.
    pub fn step<M: GuestMemory, B: NetBackend<M>>(
        &mut self,
        mem: &M,
        backend: &mut B,
        link: &Link,
        settings: &Settings,
        rx: &mut Rx,
    ) -> bool {
        if !self.queue.is_live() {
            return false;
        }
        if let Some(chain) = self.unanswered.take() {
            if !settings.is_settled() {
                self.unanswered = Some(chain);
                return false;
            }
            self.answer(mem, chain, OK);
        }
        self.queue.disable_kicks(mem);
        let (mut drained, mut held_up) = (false, false);
        for _ in 0..self.queue.size() {
            let Some(chain) = self.queue.pop(mem) else {
                drained = true;
                break;
            };
            // Without room for an answer the driver could not know what became of its command.
            if chain.writable_bytes() == 0 {
                self.queue.counters().malformed.count();
                self.queue.push(mem, chain, 0);
                continue;
            }
            self.queue.counters().bytes_from_guest.add(chain.readable_bytes());
            let obeyed = self.obey(chain.reader(mem), backend, link, settings, rx);
            rx.renew(settings);
            match obeyed {
                Err(Refused) => {
                    self.queue.counters().errors.count();
                    self.answer(mem, chain, ERR);
                }
                Ok(()) if settings.is_settled() => self.answer(mem, chain, OK),
                Ok(()) => {
                    self.unanswered = Some(chain);
                    held_up = true;
                    break;
                }
            }
        }
        self.queue.publish(mem);
        // Whoever settles the command wakes this worker; a kick meanwhile would be in vain.
        if drained { self.queue.enable_kicks(mem) } else { !held_up }
    }

    fn answer<M: GuestMemory>(&mut self, mem: &M, chain: Chain, answer: u8) {
        let answered = chain.writer(mem).write(&[answer]);
        debug_assert!(answered.is_ok(), "a chain's memory was checked when it was popped");
        self.queue.push(mem, chain, 1);
    }

    /// Puts the command that is not answered yet back into the ring: who goes on carries it out again, to the same effect.
    pub fn release(&mut self) {
        if let Some(chain) = self.unanswered.take() {
            self.queue.unpop(chain);
        }
    }

    /// Forgets everything of the driver that is going away.
    pub fn abandon(&mut self) {
        if let Some(chain) = self.unanswered.take() {
            chain.abandon();
        }
    }

    /// Carries out one command: `class` and `command`, then what the two say follows, and nothing behind that.
    fn obey<M: GuestMemory, B: NetBackend<M>>(
        &mut self,
        mut command: Reader<'_, M>,
        backend: &mut B,
        link: &Link,
        settings: &Settings,
        rx: &mut Rx,
    ) -> Result<(), Refused> {
        match command.read_array()? {
            [0, number] => {
                let (mode, needs) = match number {
                    0 => (Mode::Promiscuous, feature::CTRL_RX),
                    1 => (Mode::AllMulticast, feature::CTRL_RX),
                    2 => (Mode::AllUnicast, feature::CTRL_RX_EXTRA),
                    3 => (Mode::NoMulticast, feature::CTRL_RX_EXTRA),
                    4 => (Mode::NoUnicast, feature::CTRL_RX_EXTRA),
                    5 => (Mode::NoBroadcast, feature::CTRL_RX_EXTRA),
                    _ => return Err(Refused),
                };
                self.needs(needs)?;
                let on = match last(command)? {
                    [0] => false,
                    [1] => true,
                    _ => return Err(Refused),
                };
                settings.change(|now| now.filter.set_mode(mode, on));
            }
            [1, 0] => {
                self.needs(feature::CTRL_RX)?;
                let Tables { unicast, multicast } = &mut self.tables;
                for table in [unicast, multicast] {
                    table.clear();
                    let mut left = u32::from_le_bytes(command.read_array()?);
                    if u64::from(left).saturating_mul(6) > command.remaining() {
                        panic_if_planted(Defect::AddressTableTrusted);
                        return Err(Refused);
                    }
                    while left > 0 && !table.is_full() {
                        table.add(command.read_array()?);
                        left = left.saturating_sub(1);
                    }
                    if left > 0 {
                        table.add(command.read_array()?);
                        command.skip(u64::from(left).saturating_sub(1).saturating_mul(6))?;
                    }
                }
                if command.remaining() > 0 {
                    return Err(Refused);
                }
                settings.change(|now| now.filter.set_tables(&self.tables));
            }
            [1, 1] => {
                self.needs(feature::CTRL_MAC_ADDR)?;
                let mac = last(command)?;
                if !is_an_address(mac) {
                    return Err(Refused);
                }
                backend.set_address(mac).map_err(|_| Refused)?;
                settings.change(|now| now.filter.set_mac(mac));
                link.set_mac(mac);
            }
            [2, number @ (0 | 1)] => {
                self.needs(feature::CTRL_VLAN)?;
                let vlan = u16::from_le_bytes(last(command)?);
                if !is_a_vlan(vlan) {
                    return Err(Refused);
                }
                settings.change(|now| {
                    now.filter.set_vlan(vlan, number == 0);
                });
            }
            [3, 0] => {
                self.needs(feature::GUEST_ANNOUNCE)?;
                let [] = last(command)?;
                link.announced();
            }
            [4, 0] => {
                self.needs(feature::MQ)?;
                let pairs = u16::from_le_bytes(last(command)?);
                if !(1..=settings.pairs()).contains(&pairs) {
                    return Err(Refused);
                }
                backend.set_pairs(pairs).map_err(|_| Refused)?;
                settings.change(|now| now.pairs = pairs);
            }
            [5, 0] => {
                self.needs(feature::CTRL_GUEST_OFFLOADS)?;
                let bits = u64::from_le_bytes(last(command)?);
                if !rx.offer_offloads(backend, self.features, bits) {
                    return Err(Refused);
                }
                settings.change(|now| now.offloads = Some(bits));
            }
            _ => return Err(Refused),
        }
        Ok(())
    }

    /// A command is there for drivers that have accepted its feature (and so the queue's).
    fn needs(&self, feature: u64) -> Result<(), Refused> {
        let needed = feature | feature::CTRL_VQ;
        if self.features & needed == needed { Ok(()) } else { Err(Refused) }
    }
}

/// The rest of a command, which has exactly this length.
fn last<const N: usize, M: GuestMemory>(mut command: Reader<'_, M>) -> Result<[u8; N], Refused> {
    let rest = command.read_array()?;
    if command.remaining() == 0 { Ok(rest) } else { Err(Refused) }
}
