//! Where a queue is said to stand: from a hostile state it starts or is refused, and what it then takes is bounded.

use devices::GuestRam;
use devices::virtio::QueueState;
use devices::virtio::queue::{F_EVENT_IDX, F_INDIRECT_DESC, F_RING_PACKED, Queue};
use devices::virtio::testing::guest_ram;
use vm_memory::{Bytes as _, GuestAddress};

use super::mutation::Mutation;
use super::tree;
use crate::stats;

const RAM_BYTES: usize = 64 << 10;
/// Where the other half of it begins.
const RAM_ABOVE: u64 = 1 << 32;
const MAX_SIZE: u16 = 64;
static ZEROES: [u8; RAM_BYTES] = [0; RAM_BYTES];

thread_local! {
    /// Written anew for each program: mapping it takes longer than that.
    static RAM: GuestRam = guest_ram(RAM_BYTES);
}

fn read(mutations: &[Mutation], life: &[u8]) -> (QueueState, u64) {
    let packed = life.first().is_some_and(|byte| byte & 1 != 0);
    let next = if packed { QueueState::PACKED_START } else { 0 };
    let state =
        QueueState { size: 16, desc_table: 0, avail_ring: 0x400, used_ring: 0x800, next_avail: next, next_used: next };
    let mut value = tree::of(&state);
    mutations.iter().for_each(|mutation| mutation.apply(&mut value));
    let features = F_INDIRECT_DESC | F_EVENT_IDX | if packed { F_RING_PACKED } else { 0 };
    (tree::read(value).unwrap_or(state), features)
}

/// Starts a queue from the state, over memory that holds the rest of the input, and drains it.
pub fn run(mutations: &[Mutation], life: &[u8]) {
    let (state, features) = read(mutations, life);
    RAM.with(|ram| {
        let (content, rest) = (&life[..life.len().min(0x1000)], &ZEROES[life.len().min(0x1000)..]);
        for (bytes, address) in [(content, 0), (rest, content.len() as u64), (&ZEROES, RAM_ABOVE)] {
            ram.write_slice(bytes, GuestAddress(address)).expect("it fits");
        }
        let chains = drain(ram, &state, features);
        stats::operations(mutations.len() + chains);
    });
}

/// Takes and gives back what there is; how many chains that were.
fn drain(ram: &GuestRam, state: &QueueState, features: u64) -> usize {
    let Ok(mut queue) = Queue::new(ram, state, features, MAX_SIZE) else { return 0 };
    assert!(queue.size() <= MAX_SIZE);
    // A ring cannot hold more than its size, and nobody refills it.
    let mut chains = 0;
    for _ in 0..=MAX_SIZE {
        let Ok(Some(chain)) = queue.pop(ram) else { break };
        chains += 1;
        if queue.push(ram, chain, 0).is_err() {
            break;
        }
    }
    let _ = queue.publish(ram);
    let _ = queue.enable_kicks(ram);
    // Where it stands now is where it may start again.
    let stands = queue.state();
    drop(queue);
    assert!(Queue::new(ram, &stands, features, MAX_SIZE).is_ok(), "{stands:x?}");
    chains
}

/// The state, and what is in memory.
pub fn explain(mutations: &[Mutation], life: &[u8]) -> String {
    let (state, features) = read(mutations, life);
    format!("{state:x?} with features {features:#x}, over memory that begins with {:x?}", &life[..life.len().min(64)])
}
