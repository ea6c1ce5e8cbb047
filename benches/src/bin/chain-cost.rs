//! What a chain of three descriptors costs on its way through the queue, in instructions, against the plain
//! `virtio-queue` iterator doing the same work.
//!
//! `cargo run --release -p benches --bin chain-cost` runs itself under callgrind and fails where ours costs more.
//! Both sides: pop, look at each buffer and sort it into readable or writable, check that it lies inside guest memory,
//! return the chain, publish it and ask whether the driver wants an interrupt.

use std::hint::black_box;
use std::process::{Command, ExitCode, Stdio};

use devices::GuestRam;
use devices::virtio::QueueState;
use devices::virtio::queue::{Descriptor, F_EVENT_IDX, F_RING_PACKED, GuestRange, Queue};
use virtio_queue::{Queue as CrateQueue, QueueT};
use vm_memory::{Bytes, GuestAddress, GuestMemory, GuestMemoryMmap, Permissions};

const SIZE: u16 = 256;
const ROUNDS: u64 = 200;
const BATCH: u64 = 64;
const DESC: u64 = 0x1000;
const AVAIL: u64 = 0x3000;
const USED: u64 = 0x4000;

fn memory() -> GuestRam {
    // Two regions, as a machine with memory above 4 GiB has.
    GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 1 << 20), (GuestAddress(1 << 32), 1 << 20)]).unwrap()
}

/// Chains of three in a split ring: header, data, status, 64 of them for ever.
fn set_up(mem: &GuestRam) {
    for chain in 0..BATCH {
        let head = (3 * chain) as u16;
        for (i, (addr, len, flags)) in
            [(0x8000, 16, 1), ((1 << 32) + 0x1000 * chain, 4096, 3), (0x9000, 1, 2)].into_iter().enumerate()
        {
            let desc = Descriptor { addr, len, flags, next: head + i as u16 + 1 };
            mem.write_slice(&desc.to_bytes(), GuestAddress(DESC + 16 * (u64::from(head) + i as u64))).unwrap();
        }
    }
    for slot in 0..u64::from(SIZE) {
        mem.write_obj((3 * (slot % BATCH)) as u16, GuestAddress(AVAIL + 4 + 2 * slot)).unwrap();
    }
}

/// The driver offers the next batch of a split ring.
fn offer(mem: &GuestRam, round: u64) {
    mem.write_obj(((round + 1) * BATCH) as u16, GuestAddress(AVAIL + 2)).unwrap();
}

/// Stands for the device's use of the buffers.
#[inline(never)]
fn consume(ranges: &[GuestRange]) {
    black_box(ranges);
}

#[inline(never)]
#[unsafe(no_mangle)]
fn chain_cost_ours(mem: &GuestRam, queue: &mut Queue) -> u64 {
    let mut done = 0;
    while let Ok(Some(chain)) = queue.pop(mem) {
        consume(chain.readable());
        consume(chain.writable());
        let len = chain.writable_bytes();
        queue.push(mem, chain, len).unwrap();
        black_box(queue.publish(mem).unwrap());
        done += 1;
    }
    done
}

#[inline(never)]
#[unsafe(no_mangle)]
fn chain_cost_crate(
    mem: &GuestRam,
    queue: &mut CrateQueue,
    readable: &mut Vec<GuestRange>,
    writable: &mut Vec<GuestRange>,
) -> u64 {
    let mut done = 0;
    while let Some(chain) = queue.pop_descriptor_chain(mem) {
        readable.clear();
        writable.clear();
        let head = chain.head_index();
        let mut len = 0;
        for desc in chain {
            if !mem.check_range(desc.addr(), desc.len() as usize, Permissions::ReadWrite) {
                break;
            }
            let range = GuestRange { addr: desc.addr().0, len: desc.len() };
            if desc.is_write_only() {
                len += desc.len();
                writable.push(range);
            } else {
                readable.push(range);
            }
        }
        consume(readable);
        consume(writable);
        queue.add_used(mem, head, len).unwrap();
        black_box(queue.needs_notification(mem).unwrap());
        done += 1;
    }
    done
}

/// The same chains through a packed ring.
#[inline(never)]
#[unsafe(no_mangle)]
fn chain_cost_packed(mem: &GuestRam, queue: &mut Queue) -> u64 {
    let mut done = 0;
    while let Ok(Some(chain)) = queue.pop(mem) {
        consume(chain.readable());
        consume(chain.writable());
        let len = chain.writable_bytes();
        queue.push(mem, chain, len).unwrap();
        black_box(queue.publish(mem).unwrap());
        done += 1;
    }
    done
}

fn run_ours() -> u64 {
    let mem = memory();
    set_up(&mem);
    let state =
        QueueState { size: SIZE, desc_table: DESC, avail_ring: AVAIL, used_ring: USED, next_avail: 0, next_used: 0 };
    let mut queue = Queue::new(&mem, &state, F_EVENT_IDX, SIZE).unwrap();
    (0..ROUNDS)
        .map(|round| {
            offer(&mem, round);
            chain_cost_ours(&mem, &mut queue)
        })
        .sum()
}

fn run_crate() -> u64 {
    let mem = memory();
    set_up(&mem);
    let mut queue = CrateQueue::new(SIZE).unwrap();
    queue.set_size(SIZE);
    queue.try_set_desc_table_address(GuestAddress(DESC)).unwrap();
    queue.try_set_avail_ring_address(GuestAddress(AVAIL)).unwrap();
    queue.try_set_used_ring_address(GuestAddress(USED)).unwrap();
    queue.set_event_idx(true);
    queue.set_ready(true);
    let (mut readable, mut writable) = (Vec::with_capacity(8), Vec::with_capacity(8));
    (0..ROUNDS)
        .map(|round| {
            offer(&mem, round);
            chain_cost_crate(&mem, &mut queue, &mut readable, &mut writable)
        })
        .sum()
}

fn run_packed() -> u64 {
    let mem = memory();
    let next = QueueState::PACKED_START;
    let state = QueueState {
        size: 3 * BATCH as u16,
        desc_table: DESC,
        avail_ring: AVAIL,
        used_ring: USED,
        next_avail: next,
        next_used: next,
    };
    let mut queue = Queue::new(&mem, &state, F_RING_PACKED | F_EVENT_IDX, SIZE).unwrap();
    (0..ROUNDS)
        .map(|round| {
            let lap: u16 = if round % 2 == 0 { 1 << 7 } else { 1 << 15 };
            for chain in 0..BATCH {
                for (i, (addr, len, flags)) in
                    [(0x8000, 16, 1), ((1 << 32) + 0x1000 * chain, 4096, 3), (0x9000, 1, 2)].into_iter().enumerate()
                {
                    let desc = Descriptor { addr, len, flags: chain as u16, next: flags | lap };
                    mem.write_slice(&desc.to_bytes(), GuestAddress(DESC + 16 * (3 * chain + i as u64))).unwrap();
                }
            }
            chain_cost_packed(&mem, &mut queue)
        })
        .sum()
}

/// Instructions of one chain inside `function`, by callgrind; `None` where there is no valgrind.
fn instructions(side: &str, function: &str) -> Option<f64> {
    let output = Command::new("valgrind")
        .args(["--tool=callgrind", "--callgrind-out-file=/dev/null", "--collect-atstart=no"])
        .arg(format!("--toggle-collect={function}"))
        .arg(std::env::current_exe().ok()?)
        .arg(side)
        .stdin(Stdio::null())
        .output()
        .ok()?;
    let text = String::from_utf8_lossy(&output.stderr);
    let collected = text.lines().find_map(|line| line.split("Collected :").nth(1))?;
    let total: f64 = collected.trim().parse().ok()?;
    Some(total / (ROUNDS * BATCH) as f64)
}

fn main() -> ExitCode {
    match std::env::args().nth(1).as_deref() {
        Some("ours") => assert_eq!(run_ours(), ROUNDS * BATCH),
        Some("crate") => assert_eq!(run_crate(), ROUNDS * BATCH),
        Some("packed") => assert_eq!(run_packed(), ROUNDS * BATCH),
        _ => {
            let sides = [
                ("virtio-queue", "crate", "chain_cost_crate"),
                ("zvmm, split", "ours", "chain_cost_ours"),
                ("zvmm, packed", "packed", "chain_cost_packed"),
            ];
            let mut costs = Vec::new();
            for (name, side, function) in sides {
                let Some(cost) = instructions(side, function) else {
                    eprintln!("chain-cost: no instruction count: install valgrind");
                    return ExitCode::from(2);
                };
                println!("{name:<14} {cost:>7.1} instructions a chain of three descriptors");
                costs.push(cost);
            }
            if costs[1] > costs[0] || costs[2] > costs[0] {
                eprintln!("chain-cost: a chain costs more than through the plain iterator");
                return ExitCode::FAILURE;
            }
        }
    }
    ExitCode::SUCCESS
}
