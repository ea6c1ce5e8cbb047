//! Everything a guest reaches in the queue and the transport, compiled as the shipped binary is: what
//! `tests/no_panic.rs` looks through for ways into the panic machinery. It does nothing useful when run.

use std::hint::black_box;
use std::sync::Arc;

use devices::GuestRam;
use devices::bus::Bus;
use devices::interrupt::IrqLine;
use devices::park::Parked;
use devices::pci::{BarMapper, InterruptPin, PciAddress, PciFunction, Windows};
use devices::virtio::pci::{Interfaces, NoDoorbells, VirtioPci, VirtioPciParts};
use devices::virtio::queue::{Chain, Queue, QueueError};
use devices::virtio::rng::RngDevice;
use devices::virtio::{Activation, QueueRunner, QueueState};
use vm_memory::{GuestAddress, GuestMemoryMmap};

struct Runner;

impl QueueRunner for Runner {
    fn start(&self, activation: Activation) {
        activation.interrupt.queue_used(black_box(0));
        activation.interrupt.config_changed();
    }
    fn reset(&self, done: Parked) {
        done.complete();
    }
    fn kick(&self, queue: u16) {
        black_box(queue);
    }
    fn ring_features(&self) -> u64 {
        black_box(u64::MAX)
    }
    fn reset_queue(&self, _queue: u16, done: Parked) {
        done.complete();
    }
}

struct Line;

impl IrqLine for Line {
    fn set(&self, asserted: bool) {
        black_box(asserted);
    }
}

// Each of these is a root of the search: what the compiler inlined into it belongs to the module it came from.

#[inline(never)]
fn guest_path_new(mem: &GuestRam, state: &QueueState, features: u64) -> Result<Queue, QueueError> {
    Queue::new(mem, state, features, 256)
}

#[inline(never)]
fn guest_path_pop(mem: &GuestRam, queue: &mut Queue) -> Result<Option<Chain>, QueueError> {
    queue.pop(mem)
}

#[inline(never)]
fn guest_path_read(mem: &GuestRam, chain: &Chain, buf: &mut [u8]) -> bool {
    let split = chain.reader(mem).split_at(buf.len() as u64);
    split.is_ok_and(|(mut head, mut rest)| head.read(buf).is_ok() && rest.skip(1).is_ok())
}

#[inline(never)]
fn guest_path_write(mem: &GuestRam, chain: &Chain, buf: &[u8]) -> bool {
    chain.writer(mem).write(buf).is_ok()
}

#[inline(never)]
fn guest_path_push(mem: &GuestRam, queue: &mut Queue, chain: Chain) -> Result<bool, QueueError> {
    queue.push(mem, chain, black_box(1))?;
    queue.publish(mem)
}

#[inline(never)]
fn guest_path_unpop(queue: &mut Queue, chain: Chain) {
    queue.unpop(chain);
}

#[inline(never)]
fn guest_path_kicks(mem: &GuestRam, queue: &mut Queue) -> Result<bool, QueueError> {
    queue.disable_kicks(mem)?;
    queue.enable_kicks(mem)
}

/// Not of the queue: the search must find that this one can panic, or it finds nothing at all.
#[inline(never)]
fn teeth(values: &[u8], at: usize) -> u8 {
    values[at]
}

fn main() {
    black_box(teeth(black_box(&[1, 2, 3]), black_box(1)));
    let mem: GuestRam = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 1 << 20)]).unwrap();
    let state = black_box(QueueState { size: 8, used_ring: 0x1000, ..QueueState::default() });
    if let Ok(mut queue) = guest_path_new(&mem, &state, black_box(0)) {
        let _ = guest_path_kicks(&mem, &mut queue);
        while let Ok(Some(chain)) = guest_path_pop(&mem, &mut queue) {
            let mut buf = [0; 64];
            guest_path_read(&mem, &chain, black_box(&mut buf));
            guest_path_write(&mem, &chain, black_box(&buf));
            if black_box(false) {
                guest_path_unpop(&mut queue, chain);
            } else if guest_path_push(&mem, &mut queue, chain).is_err() {
                break;
            }
        }
    }
    let windows = Windows { io: 0xc000..0x1_0000, mem32: 0xe000_0000..0xf000_0000, mem64: None, prefer_mem64: false };
    let (ports, memory) = (Arc::new(Bus::new()), Arc::new(Bus::new()));
    let mapper = Arc::new(BarMapper::new(&ports, &memory, windows).unwrap());
    let function = VirtioPci::new(VirtioPciParts {
        name: "guest paths".to_owned(),
        device: Arc::new(RngDevice),
        runner: Arc::new(Runner),
        msix: Vec::new(),
        intx: Arc::new(Line),
        pin: InterruptPin::A,
        interrupt_line: 11,
        doorbells: Arc::new(NoDoorbells),
        slot: PciAddress::new(1, 0).unwrap(),
        mapper,
        interfaces: Interfaces::Both,
    })
    .unwrap();
    let function: Arc<dyn PciFunction> = function;
    let mut word = [0; 4];
    function.read_config(black_box(0), &mut word);
    black_box(function.write_config(black_box(4), &word));
    black_box(function.reset());
    black_box((word, ports, memory));
}
