//! What lies between the device model and a hypervisor: doorbells, message-signalled interrupts and the line, wired as
//! on Linux KVM or as on bhyve.

use std::sync::Arc;

use devices::interrupt::{IrqLine, MsiMessage, MsiSource};
use devices::virtio::pci::{Doorbell, Doorbells};

use crate::finding;
use crate::lone::Lone;

/// How a machine is wired.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Wiring {
    /// Doorbells are bound in hardware and reach the worker without the bus; a message is programmed as a route and an
    /// interrupt is a signal on it.
    #[default]
    Kvm,
    /// Doorbells are bus writes; an interrupt is a call that carries its message; the line counts its assertions.
    Bhyve,
}

/// The wires of one function.
#[derive(Debug, Default)]
pub struct Wires {
    wiring: Wiring,
    /// By vector, what it was told last.
    routes: Vec<Option<MsiMessage>>,
    /// Messages that went out since somebody looked.
    pub sent: Vec<(u16, MsiMessage)>,
    /// Level of the interrupt line.
    pub line: bool,
    /// By queue, what is bound in hardware.
    doorbells: Vec<Option<Doorbell>>,
}

/// A shared handle to them.
#[derive(Clone, Debug)]
pub struct Wired(pub Arc<Lone<Wires>>);

impl Wired {
    /// Wires for `vectors` vectors and `queues` queues.
    #[must_use]
    pub fn new(wiring: Wiring, vectors: usize, queues: usize) -> Self {
        let (routes, doorbells) = (vec![None; vectors], vec![None; queues]);
        Self(Arc::new(Lone::new(Wires { wiring, routes, doorbells, ..Wires::default() })))
    }

    /// The queue whose doorbell a guest's write rings without the device model.
    #[must_use]
    pub fn rings(&self, port: bool, address: u64, data: &[u8]) -> Option<u16> {
        let wires = self.0.open();
        let value = u16::from_le_bytes([data[0], *data.get(1).unwrap_or(&0)]);
        let hit = |bound: &Option<Doorbell>| match *bound {
            Some(Doorbell::Mmio { address: at, len }) => !port && at == address && data.len() == usize::from(len),
            Some(Doorbell::Pio { port: at, datamatch }) => {
                port && u64::from(at) == address && data.len() == 2 && value == datamatch
            }
            None => false,
        };
        wires.doorbells.iter().position(hit).map(|queue| queue as u16)
    }

    /// Fails where a doorbell is watched for that is not the one `due` says, by queue: one that stays behind takes writes
    /// from whatever comes to its place. One that is missing makes each kick an exit to this process, where the queue is
    /// `served`: one whose ring was refused has no worker to be kicked, and is none that a restored machine starts.
    ///
    /// # Panics
    /// With a finding.
    pub fn judge_doorbells(&self, due: impl Fn(u16) -> Option<Doorbell>, served: impl Fn(u16) -> bool) {
        let wires = self.0.open();
        if wires.wiring == Wiring::Bhyve {
            return;
        }
        for (queue, bound) in (0u16..).zip(&wires.doorbells) {
            let due = due(queue);
            if *bound != due && (bound.is_some() || served(queue)) {
                finding!("wires", "the doorbell of queue {queue} is watched for at {bound:x?} where {due:x?} is due");
            }
        }
    }

    /// Messages sent since the last call.
    #[must_use]
    pub fn take_sent(&self) -> Vec<(u16, MsiMessage)> {
        let sent = &mut self.0.open().sent;
        if sent.is_empty() { Vec::new() } else { std::mem::take(sent) }
    }

    /// One source a vector.
    #[must_use]
    pub fn sources(&self) -> Vec<Arc<dyn MsiSource>> {
        let count = self.0.open().routes.len();
        (0..count).map(|index| Arc::new(Vector { wired: self.clone(), index }) as Arc<dyn MsiSource>).collect()
    }
}

struct Vector {
    wired: Wired,
    index: usize,
}

impl MsiSource for Vector {
    fn set_message(&self, message: Option<MsiMessage>) {
        let route = &mut self.wired.0.open().routes[self.index];
        if *route == message {
            finding!("wires", "vector {} is told {message:x?} twice", self.index);
        }
        if message.is_some_and(|message| !message.is_interrupt()) {
            finding!("wires", "vector {} is given {message:x?}, which is no interrupt", self.index);
        }
        *route = message;
    }

    fn trigger(&self) {
        let wires = &mut *self.wired.0.open();
        // Without a route the signal goes nowhere, and there is no message to call with.
        if let Some(message) = wires.routes[self.index] {
            wires.sent.push((self.index as u16, message));
        }
    }
}

impl IrqLine for Wired {
    fn set(&self, asserted: bool) {
        let wires = &mut *self.0.open();
        if wires.wiring == Wiring::Bhyve && wires.line == asserted {
            finding!("wires", "the line is set to {asserted} twice, which bhyve counts");
        }
        wires.line = asserted;
    }
}

impl Doorbells for Wired {
    fn place(&self, queue: u16, at: Option<Doorbell>) {
        let wires = &mut *self.0.open();
        if wires.wiring == Wiring::Bhyve {
            return;
        }
        let bound = &mut wires.doorbells[usize::from(queue)];
        if *bound == at {
            finding!("wires", "the doorbell of queue {queue} is placed at {at:x?} twice");
        }
        *bound = at;
    }
}
