mod cache;
mod failures;
mod held;
mod limits;
mod linger;
mod model;
mod rounds;
mod rules;
mod stats;

use std::sync::Arc;

use super::*;
use crate::GuestRam;
use crate::virtio::counters::QueueCounters;
use crate::virtio::queue::{Descriptor, F_EVENT_IDX, F_INDIRECT_DESC};
use crate::virtio::testing::{Buf, DriverQueue, MemoryDisk, Posted, RecordingInterrupt, Used, guest_ram};
use crate::virtio::{QueueState, VirtioDevice, VirtioWorker, WorkerState};

const MODERN: u64 = 1 << 32 | F_INDIRECT_DESC;
const FLUSH: u64 = 1 << 9;
const CONFIG_WCE: u64 = 1 << 11;
const SECTORS: usize = 64;

struct Rig {
    mem: GuestRam,
    device: BlkDevice,
    worker: Box<dyn VirtioWorker<GuestRam>>,
    disk: MemoryDisk,
    driver: DriverQueue,
    interrupt: Arc<RecordingInterrupt>,
    counters: Arc<QueueCounters>,
}

fn rig(config: BlkConfig, features: u64) -> Rig {
    let mem = guest_ram(0x20_0000);
    let disk = MemoryDisk::new(SECTORS * 512);
    let counters = Arc::<QueueCounters>::default();
    let device = BlkDevice::new(BlkConfig { capacity_sectors: SECTORS as u64, queue_size: 8, ..config });
    let worker = Box::new(device.worker(0, disk.clone(), counters.clone()));
    let driver = DriverQueue::new(&mem, 0x10_0000, 8, features);
    let mut rig = Rig { mem, device, worker, disk, driver, interrupt: RecordingInterrupt::new(), counters };
    rig.start(features);
    rig
}

fn header(kind: u32, sector: u64) -> Buf {
    Buf::Read([kind.to_le_bytes().as_slice(), &[0; 4], &sector.to_le_bytes()].concat())
}

fn segment(sector: u64, sectors: u32, flags: u32) -> Buf {
    Buf::Read([sector.to_le_bytes().as_slice(), &sectors.to_le_bytes(), &flags.to_le_bytes()].concat())
}

impl Rig {
    fn start(&mut self, features: u64) {
        self.driver = DriverQueue::new(&self.mem, 0x10_0000, 8, features);
        let activation = self.interrupt.activation(features);
        self.worker.start(&self.mem, 0, self.driver.state(), &activation);
    }

    fn step(&mut self) {
        for _ in 0..100 {
            if !self.worker.step(&self.mem).again {
                return;
            }
        }
        panic!("the worker never came to rest");
    }

    /// Runs one request to its end. The last buffer is the status byte.
    fn request(&mut self, bufs: &[Buf]) -> (Posted, u8, u32) {
        let posted = self.driver.post(bufs);
        self.driver.publish();
        self.step();
        let used = self.driver.used();
        assert_eq!(used.len(), 1, "one request, one answer");
        assert_eq!(used[0].head, u32::from(posted.head));
        let status = self.driver.read(*posted.buffers.last().unwrap())[0];
        (posted, status, used[0].len)
    }

    fn status(&mut self, bufs: &[Buf]) -> u8 {
        self.request(bufs).1
    }

    fn read_config<const N: usize>(&self, offset: u32) -> [u8; N] {
        let mut data = [0xff; N];
        self.device.read_config(offset, &mut data);
        data
    }
}

#[test]
fn what_is_written_is_on_the_disk_and_reads_back() {
    let mut rig = rig(BlkConfig::default(), MODERN | FLUSH);
    let data: Vec<u8> = (0..1024).map(|i| i as u8).collect();
    let (_, status, len) = rig.request(&[header(1, 3), Buf::Read(data.clone()), Buf::Write(1)]);
    assert_eq!((status, len), (0, 1));
    assert_eq!(rig.disk.bytes()[3 * 512..5 * 512], data);

    let (posted, status, len) = rig.request(&[header(0, 3), Buf::Write(1024), Buf::Write(1)]);
    assert_eq!((status, len), (0, 1025));
    assert_eq!(rig.driver.read(posted.buffers[1]), data);
    let counted = rig.counters.snapshot();
    assert_eq!((counted.chains, counted.completions, counted.errors), (2, 2, 0));
    assert_eq!((counted.bytes_from_guest, counted.bytes_to_guest), (1024, 1024));
}

#[test]
fn a_request_may_be_framed_in_any_way() {
    // §2.7.4.1: the device makes no assumptions about how a request is cut into descriptors.
    let mut rig = rig(BlkConfig::default(), MODERN);
    rig.disk.fill(512, &[7; 1024]);
    let Buf::Read(head) = header(0, 1) else { unreachable!() };
    let (a, b) = head.split_at(5);
    let bufs = [Buf::Read(a.into()), Buf::Read(vec![]), Buf::Read(b.into()), Buf::Write(1000), Buf::Write(25)];
    let (posted, _, len) = rig.request(&bufs);
    assert_eq!(len, 1025);
    assert_eq!(rig.driver.read(posted.buffers[3]), [7; 1000]);
    let tail = rig.driver.read(posted.buffers[4]);
    assert_eq!((&tail[..24], tail[24]), ([7; 24].as_slice(), 0));
}

#[test]
fn the_status_is_the_last_writable_byte_even_when_empty_descriptors_follow() {
    let mut rig = rig(BlkConfig::default(), MODERN);
    let posted = rig.driver.post(&[header(4, 0), Buf::Write(1), Buf::Write(0)]);
    rig.driver.publish();
    rig.step();
    assert_eq!(rig.driver.used(), [Used { head: posted.head.into(), len: 1 }]);
    assert_eq!(rig.driver.read(posted.buffers[1]), [0]);
}

#[test]
fn requests_through_an_indirect_table_work() {
    let mut rig = rig(BlkConfig::default(), MODERN);
    let posted = rig.driver.post_indirect(&[header(1, 0), Buf::Read(vec![9; 512]), Buf::Write(1)]);
    rig.driver.publish();
    rig.step();
    assert_eq!(rig.driver.read(posted.buffers[2]), [0]);
    assert_eq!(rig.disk.bytes()[..512], [9; 512]);
}

#[test]
fn bad_requests_get_their_status_and_leave_the_disk_alone() {
    let erase = EraseLimits { max_sectors: 8, max_segments: 1, alignment_sectors: 1 };
    let config = BlkConfig { discard: Some(erase), write_zeroes: Some(erase), ..Default::default() };
    let mut rig = rig(config, MODERN | 1 << 13 | 1 << 14);
    rig.disk.fill(0, &[5; SECTORS * 512]);
    let (ioerr, unsupp) = (1, 2);
    let last = SECTORS as u64;
    let ok = Buf::Write(1);
    for (name, bufs, expected) in [
        ("unknown type", vec![header(99, 0), ok.clone()], unsupp),
        ("zone report", vec![header(16, 0), Buf::Write(512), ok.clone()], unsupp),
        ("legacy flush on a modern device", vec![header(5, 0), ok.clone()], unsupp),
        ("read past the end", vec![header(0, last), Buf::Write(512), ok.clone()], ioerr),
        ("read across the end", vec![header(0, last - 1), Buf::Write(1024), ok.clone()], ioerr),
        ("sector that wraps in bytes", vec![header(0, u64::MAX / 512 + 1), Buf::Write(512), ok.clone()], ioerr),
        ("sector that wraps", vec![header(1, u64::MAX), Buf::Read(vec![0; 512]), ok.clone()], ioerr),
        ("write past the end", vec![header(1, last), Buf::Read(vec![0; 512]), ok.clone()], ioerr),
        ("half a sector to read", vec![header(0, 0), Buf::Write(256), ok.clone()], ioerr),
        ("a sector and a byte to write", vec![header(1, 0), Buf::Read(vec![0; 513]), ok.clone()], ioerr),
        ("short header", vec![Buf::Read(vec![0; 15]), ok.clone()], ioerr),
        ("discard with unmap", vec![header(11, 0), segment(0, 1, 1), ok.clone()], unsupp),
        ("zeroes with unknown flag", vec![header(13, 0), segment(0, 1, 2), ok.clone()], unsupp),
        ("zeroes past the end", vec![header(13, 0), segment(last, 1, 0), ok.clone()], ioerr),
        ("zeroes that wrap", vec![header(13, 0), segment(u64::MAX, 2, 0), ok.clone()], ioerr),
        ("more than the limit", vec![header(13, 0), segment(0, 9, 0), ok.clone()], ioerr),
        ("no segment", vec![header(11, 0), ok.clone()], ioerr),
        ("two segments", vec![header(11, 0), segment(0, 1, 0), segment(1, 1, 0), ok.clone()], ioerr),
        ("half a segment", vec![header(11, 0), Buf::Read(vec![0; 8]), ok.clone()], ioerr),
    ] {
        assert_eq!(rig.status(&bufs), expected, "{name}");
    }
    assert_eq!(rig.disk.bytes(), [5; SECTORS * 512], "no bad request changed the disk");
    assert_eq!(rig.disk.take_log(), [], "no bad request reached the disk");
    assert!(rig.interrupt.take_needs_reset().is_empty(), "a bad request is not a broken ring");
    assert_eq!(rig.counters.errors.get(), 19);
}

#[test]
fn a_failed_read_claims_no_bytes() {
    let mut rig = rig(BlkConfig::default(), MODERN);
    let (_, status, len) = rig.request(&[header(0, SECTORS as u64), Buf::Write(512), Buf::Write(1)]);
    assert_eq!((status, len), (1, 0));
}

#[test]
fn a_chain_without_room_for_a_status_is_returned_and_the_queue_goes_on() {
    // CH#8401: a header-only chain leaked its head until the queue stalled.
    let mut rig = rig(BlkConfig::default(), MODERN);
    for _ in 0..20 {
        let posted = rig.driver.post(&[header(0, 0)]);
        rig.driver.publish();
        rig.step();
        assert_eq!(rig.driver.used(), [Used { head: posted.head.into(), len: 0 }]);
    }
    assert_eq!(rig.counters.malformed.get(), 20);
    assert_eq!(rig.status(&[header(4, 0), Buf::Write(1)]), 0);
}

#[test]
fn a_read_only_disk_refuses_every_way_of_writing() {
    let erase = EraseLimits { max_sectors: 8, max_segments: 1, alignment_sectors: 1 };
    let config = BlkConfig { read_only: true, discard: Some(erase), write_zeroes: Some(erase), ..Default::default() };
    let mut rig = rig(config, MODERN | 1 << 13 | 1 << 14);
    assert_ne!(rig.device.features() & 1 << 5, 0, "RO is offered");
    assert_eq!(rig.status(&[header(1, 0), Buf::Read(vec![1; 512]), Buf::Write(1)]), 1);
    assert_eq!(rig.status(&[header(11, 0), segment(0, 1, 0), Buf::Write(1)]), 1);
    assert_eq!(rig.status(&[header(13, 0), segment(0, 1, 0), Buf::Write(1)]), 1);
    assert_eq!(rig.disk.take_log(), []);
    assert_eq!(rig.status(&[header(0, 0), Buf::Write(512), Buf::Write(1)]), 0);
}

#[test]
fn the_serial_is_padded_with_zeroes_and_cut_at_twenty_bytes() {
    for (serial, expected) in
        [("disk-0", b"disk-0\0\0\0\0\0\0\0\0\0\0\0\0\0\0"), ("abcdefghijklmnopqrstuvwxyz", b"abcdefghijklmnopqrst")]
    {
        let mut rig = rig(BlkConfig { serial: serial.into(), ..Default::default() }, MODERN);
        let (posted, status, len) = rig.request(&[header(8, 0), Buf::Write(20), Buf::Write(1)]);
        assert_eq!((status, len), (0, 21));
        assert_eq!(rig.driver.read(posted.buffers[1]), expected);
    }
}

#[test]
fn the_length_of_an_id_request_is_the_guests_but_the_answer_is_not() {
    let mut rig = rig(BlkConfig { serial: "serial".into(), ..Default::default() }, MODERN);
    let (posted, status, len) = rig.request(&[header(8, 0), Buf::Write(4), Buf::Write(1)]);
    assert_eq!((status, len), (0, 5));
    assert_eq!(rig.driver.read(posted.buffers[1]), b"seri");
    let (posted, status, len) = rig.request(&[header(8, 0), Buf::Write(0x8_0000), Buf::Write(1)]);
    assert_eq!((status, len), (0, 20));
    assert_eq!(rig.driver.read(posted.buffers[1])[20..], [0xee; 0x8_0000 - 20]);
}

#[test]
fn discard_and_write_zeroes_reach_the_disk_when_negotiated_and_only_then() {
    let erase = EraseLimits { max_sectors: 8, max_segments: 1, alignment_sectors: 1 };
    let config = BlkConfig { discard: Some(erase), write_zeroes: Some(erase), ..Default::default() };
    let mut rig = rig(config, MODERN | FLUSH | 1 << 13 | 1 << 14);
    rig.disk.fill(0, &[5; 4096]);
    assert_eq!(rig.status(&[header(13, 0), segment(1, 2, 1), Buf::Write(1)]), 0);
    assert_eq!(rig.status(&[header(11, 0), segment(4, 1, 0), Buf::Write(1)]), 0);
    assert_eq!(rig.disk.take_log(), [BlkOp::WriteZeroes { unmap: true, durable: false }, BlkOp::Discard]);
    assert_eq!(rig.disk.bytes()[512..1536], [0; 1024]);
    rig.start(MODERN | FLUSH);
    assert_eq!(rig.status(&[header(13, 0), segment(1, 2, 1), Buf::Write(1)]), 2);
    assert_eq!(rig.status(&[header(11, 0), segment(4, 1, 0), Buf::Write(1)]), 2);
}

#[test]
fn writes_are_durable_unless_the_driver_can_flush_and_wants_a_cache() {
    let write = [header(1, 0), Buf::Read(vec![1; 512]), Buf::Write(1)];
    let durable = |rig: &mut Rig| {
        assert_eq!(rig.status(&write), 0);
        rig.disk.take_log() == [BlkOp::Write { durable: true }]
    };
    let mut rig = rig(BlkConfig { config_wce: true, ..Default::default() }, MODERN);
    assert!(durable(&mut rig), "without FLUSH the driver cannot ask for stability");
    rig.start(MODERN | FLUSH);
    assert!(!durable(&mut rig));
    rig.start(MODERN | FLUSH | CONFIG_WCE);
    assert!(!durable(&mut rig));
    rig.device.write_config(32, &[0]);
    assert_eq!(rig.read_config(32), [0]);
    assert!(durable(&mut rig), "writeback was switched off");
    rig.device.features_accepted(0);
    assert_eq!(rig.read_config(32), [1], "a reset restores the cache");
    rig.device.features_accepted(CONFIG_WCE);
    assert_eq!(rig.read_config(32), [0], "§5.2.5.2: write-through without FLUSH");
}

#[test]
fn flush_reaches_the_disk() {
    let mut rig = rig(BlkConfig::default(), MODERN | FLUSH);
    assert_eq!(rig.status(&[header(4, 0), Buf::Write(1)]), 0);
    assert_eq!(rig.disk.take_log(), [BlkOp::Flush]);
    rig.start(FLUSH);
    assert_eq!(rig.status(&[header(5, 0), Buf::Write(1)]), 0, "legacy FLUSH_OUT");
    assert_eq!(rig.disk.take_log(), [BlkOp::Flush]);
}

#[test]
fn nothing_is_acknowledged_before_the_disk_has_completed_it() {
    let mut rig = rig(BlkConfig::default(), MODERN | FLUSH);
    rig.disk.hold(true);
    let first = rig.driver.post(&[header(0, 0), Buf::Write(512), Buf::Write(1)]);
    let second = rig.driver.post(&[header(4, 0), Buf::Write(1)]);
    rig.driver.publish();
    rig.step();
    assert_eq!(rig.driver.used(), []);
    assert_eq!(rig.driver.read(second.buffers[1]), [0xee], "no status yet");
    // Out of order.
    assert!(rig.disk.complete(1));
    rig.step();
    assert_eq!(rig.driver.used(), [Used { head: second.head.into(), len: 1 }]);
    assert!(rig.disk.complete(0));
    rig.step();
    assert_eq!(rig.driver.used(), [Used { head: first.head.into(), len: 513 }]);
}

#[test]
fn the_disks_errors_become_the_guests() {
    let mut rig = rig(BlkConfig::default(), MODERN);
    for (error, expected) in [(BlkError::Host(5), 1), (BlkError::Unsupported, 2), (BlkError::Short, 1)] {
        rig.disk.fail_next(error);
        assert_eq!(rig.status(&[header(0, 0), Buf::Write(512), Buf::Write(1)]), expected);
    }
    assert_eq!(rig.status(&[header(0, 0), Buf::Write(512), Buf::Write(1)]), 0);
}

#[test]
fn a_disk_without_room_leaves_chains_in_the_ring_until_it_has_some() {
    let mut rig = rig(BlkConfig::default(), MODERN);
    rig.disk.hold(true);
    rig.disk.limit(1);
    for _ in 0..3 {
        rig.driver.post(&[header(4, 0), Buf::Write(1)]);
    }
    rig.driver.publish();
    rig.step();
    assert_eq!(rig.disk.take_log().len(), 1);
    for done in 1..=3 {
        assert!(rig.disk.complete(0));
        rig.step();
        assert_eq!(rig.driver.used().len(), 1, "answer {done}");
    }
    assert!(rig.driver.publish(), "idle again, the device wants kicks");
}

#[test]
fn one_interrupt_covers_a_batch() {
    let mut rig = rig(BlkConfig::default(), MODERN);
    for _ in 0..4 {
        rig.driver.post(&[header(4, 0), Buf::Write(1)]);
    }
    rig.driver.publish();
    rig.step();
    assert_eq!(rig.driver.used().len(), 4);
    assert_eq!(rig.interrupt.take_used(), [0]);
}

#[test]
fn a_head_made_available_twice_needs_a_reset_and_the_device_works_after_it() {
    // CVE-2026-45782: two chains of one head while asynchronous I/O is in flight.
    let mut rig = rig(BlkConfig::default(), MODERN | F_EVENT_IDX);
    rig.disk.hold(true);
    let posted = rig.driver.post(&[header(4, 0), Buf::Write(1)]);
    rig.driver.offer(posted.head);
    rig.driver.publish();
    rig.step();
    assert_eq!(rig.interrupt.take_needs_reset().len(), 1);
    rig.step();
    assert!(rig.interrupt.take_needs_reset().is_empty(), "told once");
    rig.worker.begin_stop(&rig.mem);
    assert!(rig.worker.poll_stopped(&rig.mem, true));
    assert!(rig.worker.take_state(0).is_some());
    rig.disk.hold(false);
    rig.start(MODERN);
    assert_eq!(rig.status(&[header(4, 0), Buf::Write(1)]), 0);
}

#[test]
fn a_layout_outside_memory_needs_a_reset_and_the_device_works_after_it() {
    let mut rig = rig(BlkConfig::default(), MODERN);
    let state = crate::virtio::QueueState { used_ring: 0xfff_f000, ..rig.driver.state() };
    let activation = rig.interrupt.activation(MODERN);
    rig.worker.take_state(0);
    rig.worker.start(&rig.mem, 0, state, &activation);
    assert_eq!(rig.interrupt.take_needs_reset().len(), 1);
    rig.step();
    rig.worker.begin_stop(&rig.mem);
    assert!(rig.worker.poll_stopped(&rig.mem, true));
    assert_eq!(rig.worker.take_state(0), None);
    rig.start(MODERN);
    assert_eq!(rig.status(&[header(4, 0), Buf::Write(1)]), 0);
}

#[test]
fn a_reset_cancels_what_is_in_flight_and_writes_nothing_more() {
    let mut rig = rig(BlkConfig::default(), MODERN);
    rig.disk.hold(true);
    let posted = rig.driver.post(&[header(4, 0), Buf::Write(1)]);
    rig.driver.publish();
    rig.step();
    rig.worker.begin_stop(&rig.mem);
    assert!(rig.worker.poll_stopped(&rig.mem, true));
    rig.worker.take_state(0);
    assert_eq!(rig.driver.used(), []);
    assert_eq!(rig.driver.read(posted.buffers[1]), [0xee]);
}

#[test]
fn a_pause_waits_for_the_disk_loses_nothing_and_goes_on_where_it_stopped() {
    let mut rig = rig(BlkConfig::default(), MODERN);
    rig.disk.hold(true);
    rig.driver.post(&[header(4, 0), Buf::Write(1)]);
    rig.driver.publish();
    rig.step();
    rig.worker.begin_stop(&rig.mem);
    rig.driver.post(&[header(4, 0), Buf::Write(1)]);
    rig.driver.publish();
    rig.step();
    assert!(!rig.worker.poll_stopped(&rig.mem, false), "one request is with the disk");
    assert!(rig.disk.complete(0));
    assert!(rig.worker.poll_stopped(&rig.mem, false));
    let used = rig.driver.used();
    assert_eq!(used.len(), 1);
    let state = rig.worker.take_state(0).unwrap();
    assert_eq!((state.next_avail, state.next_used), (1, 1));

    let activation = rig.interrupt.activation(MODERN);
    rig.disk.hold(false);
    rig.worker.start(&rig.mem, 0, state, &activation);
    rig.step();
    assert_eq!(rig.driver.used().len(), 1, "the chain posted during the pause");
}

#[test]
fn a_step_takes_at_most_one_ring_of_chains() {
    let mut rig = rig(BlkConfig::default(), MODERN);
    for _ in 0..4 {
        rig.driver.post(&[header(4, 0), Buf::Write(1)]);
    }
    rig.driver.publish();
    assert!(!rig.worker.step(&rig.mem).again);
    assert_eq!(rig.disk.take_log().len(), 4);
    // A driver faster than the worker: eight chains wait, and the step ends with the budget, not with the ring.
    rig.driver.used();
    for _ in 0..4 {
        rig.driver.post_indirect(&[header(4, 0), Buf::Write(1)]);
        rig.driver.post_indirect(&[header(4, 0), Buf::Write(1)]);
    }
    rig.driver.publish();
    assert!(rig.worker.step(&rig.mem).again);
    assert_eq!(rig.disk.take_log().len(), 8);
    assert!(!rig.worker.step(&rig.mem).again);
}

/// So that the driver can take what is done while the worker goes on.
#[test]
fn a_step_ends_after_sixteen_chains_or_128_kib() {
    let mem = guest_ram(0x40_0000);
    let device = BlkDevice::new(BlkConfig { capacity_sectors: 1024, ..BlkConfig::default() });
    let disk = MemoryDisk::new(1024 * 512);
    let mut worker = device.worker(0, disk.clone(), Arc::default());
    let mut driver = DriverQueue::new(&mem, 0x10_0000, 256, MODERN);
    worker.start(&mem, 0, driver.state(), &RecordingInterrupt::new().activation(MODERN));
    let mut steps_for = |bytes: u32, requests: usize| {
        for _ in 0..requests {
            driver.post(&[header(0, 0), Buf::Write(bytes), Buf::Write(1)]);
        }
        driver.publish();
        let mut done = Vec::new();
        while done.iter().sum::<usize>() < requests {
            worker.step(&mem);
            done.push(driver.used().len());
        }
        done
    };
    assert_eq!(steps_for(512, 40), [16, 16, 8]);
    assert_eq!(steps_for(64 << 10, 4), [2, 2]);
    assert_eq!(steps_for(256 << 10, 2), [1, 1]);
}

#[test]
fn configuration_space_shows_the_disk() {
    let erase = EraseLimits { max_sectors: 0x1000, max_segments: 1, alignment_sectors: 8 };
    let device = BlkDevice::new(BlkConfig {
        capacity_sectors: 0x1_0000_0001,
        block_bytes: 512,
        physical_block_bytes: 4096,
        optimal_io_bytes: 1 << 20,
        queue_size: 128,
        queues: 4,
        discard: Some(erase),
        write_zeroes: Some(erase),
        ..Default::default()
    });
    assert_eq!(device.config_len(), 60);
    assert_eq!(device.queue_max_sizes(), [128; 4]);
    let mut space = [0xff; 64];
    device.read_config(0, &mut space);
    let mut expected = [0; 64];
    expected[..8].copy_from_slice(&0x1_0000_0001u64.to_le_bytes());
    expected[12] = 126; // seg_max
    expected[21] = 2; // blk_size 512
    expected[24] = 3; // eight logical blocks a physical one
    expected[26] = 8; // min_io_size: a physical block
    expected[29] = 8; // opt_io_size: 2048 blocks
    expected[32] = 1; // writeback
    expected[34] = 4; // num_queues
    for limits in [36, 48] {
        expected[limits + 1] = 0x10; // max sectors
        expected[limits + 4] = 1; // segments
    }
    expected[44] = 8; // discard alignment
    expected[56] = 1; // write zeroes may unmap
    assert_eq!(space, expected, "bytes beyond the end read zero");
    let mut far = [0xff; 4];
    device.read_config(u32::MAX, &mut far);
    assert_eq!(far, [0; 4]);
}

#[test]
fn writes_to_configuration_space_change_only_the_cache_mode_and_only_if_offered() {
    for (config_wce, expected) in [(false, [1]), (true, [0])] {
        let device = BlkDevice::new(BlkConfig { capacity_sectors: 9, config_wce, ..Default::default() });
        device.write_config(0, &[0; 60]);
        device.write_config(u32::MAX, &[0; 4]);
        let (mut mode, mut capacity) = ([0xff], [0]);
        device.read_config(32, &mut mode);
        device.read_config(0, &mut capacity);
        assert_eq!((mode, capacity), (expected, [9]));
    }
}

#[test]
fn a_resized_disk_serves_its_new_sectors() {
    let mut rig = rig(BlkConfig::default(), MODERN);
    let before = rig.device.config_generation();
    rig.device.set_capacity(8);
    assert_ne!(rig.device.config_generation(), before);
    assert_eq!(rig.status(&[header(0, 8), Buf::Write(512), Buf::Write(1)]), 1);
    assert_eq!(rig.status(&[header(0, 7), Buf::Write(512), Buf::Write(1)]), 0);
}

#[test]
fn buffers_outside_memory_need_a_reset() {
    // CVE-2016-7422, CVE-2019-18960: lengths that wrap, data across the end of a region.
    for (addr, len) in [(u64::MAX - 255, 512), (0x1f_ff00, 512), (0x8000_0000, 1), (0, u32::MAX)] {
        let mut rig = rig(BlkConfig::default(), MODERN);
        rig.driver.write_descriptor(0, Descriptor { addr, len, flags: Descriptor::WRITE, next: 0 });
        rig.driver.offer(0);
        rig.driver.publish();
        rig.step();
        assert_eq!(rig.interrupt.take_needs_reset().len(), 1, "{addr:#x}+{len:#x}");
        assert_eq!(rig.driver.used(), []);
    }
}

#[test]
fn a_queue_reset_gives_up_what_the_disk_has_and_the_queue_starts_again() {
    let mut rig = rig(BlkConfig::default(), MODERN);
    rig.disk.hold(true);
    rig.driver.post(&[header(0, 0), Buf::Write(512), Buf::Write(1)]);
    rig.driver.publish();
    rig.step();
    assert!(rig.worker.reset_queue(&rig.mem, 0), "the disk cancels what it holds at once");
    assert_eq!((rig.driver.used().len(), rig.worker.take_state(0)), (0, None));
    rig.disk.hold(false);
    rig.start(MODERN);
    assert_eq!(rig.status(&[header(0, 0), Buf::Write(512), Buf::Write(1)]), 0);
}
