//! Where a queue is said to stand: from a hostile state it starts or is refused, and what it then takes is bounded.

use devices::virtio::QueueState;
use devices::virtio::queue::{F_EVENT_IDX, F_INDIRECT_DESC, F_RING_PACKED, Queue};
use devices::virtio::testing::guest_ram;
use vm_memory::{Bytes as _, GuestAddress};

use super::mutation::Mutation;
use crate::stats;

const RAM_BYTES: usize = 64 << 10;
const MAX_SIZE: u16 = 64;

fn read(mutations: &[Mutation], life: &[u8]) -> (QueueState, u64) {
    let packed = life.first().is_some_and(|byte| byte & 1 != 0);
    let next = if packed { QueueState::PACKED_START } else { 0 };
    let state =
        QueueState { size: 16, desc_table: 0, avail_ring: 0x400, used_ring: 0x800, next_avail: next, next_used: next };
    let mut value = serde_json::to_value(state).expect("a state can be written");
    mutations.iter().for_each(|mutation| mutation.apply(&mut value));
    let features = F_INDIRECT_DESC | F_EVENT_IDX | if packed { F_RING_PACKED } else { 0 };
    (serde_json::from_value(value).unwrap_or(state), features)
}

/// Starts a queue from the state, over memory that holds the rest of the input, and drains it.
pub fn run(mutations: &[Mutation], life: &[u8]) {
    let (state, features) = read(mutations, life);
    stats::operations(mutations.len());
    let ram = guest_ram(RAM_BYTES);
    ram.write_slice(&life[..life.len().min(0x1000)], GuestAddress(0)).expect("it fits");
    let Ok(mut queue) = Queue::new(&ram, &state, features, MAX_SIZE) else { return };
    assert!(queue.size() <= MAX_SIZE);
    // A ring cannot hold more than its size, and nobody refills it.
    for _ in 0..=u32::from(MAX_SIZE) {
        let Ok(Some(chain)) = queue.pop(&ram) else { break };
        if queue.push(&ram, chain, 0).is_err() {
            break;
        }
    }
    let _ = queue.publish(&ram);
    let _ = queue.enable_kicks(&ram);
    // Where it stands now is where it may start again.
    let stands = queue.state();
    drop(queue);
    assert!(Queue::new(&ram, &stands, features, MAX_SIZE).is_ok(), "{stands:x?}");
}

/// The state, and what is in memory.
pub fn explain(mutations: &[Mutation], life: &[u8]) -> String {
    let (state, features) = read(mutations, life);
    format!("{state:x?} with features {features:#x}, over memory that begins with {:x?}", &life[..life.len().min(64)])
}
