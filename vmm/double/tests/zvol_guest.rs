//! A guest's disk on a volume, from the ring to the driver: device, queue workers, engine, back end, and the strict
//! double. What the guest was promised is what a crash leaves.

#![cfg(target_os = "linux")]

use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use devices::GuestRam;
use devices::virtio::blk::{BlkConfig, BlkDevice, EraseLimits};
use devices::virtio::counters::QueueCounters;
use devices::virtio::testing::{Buf, DriverQueue, Posted, RecordingInterrupt, guest_ram};
use devices::virtio::{VirtioDevice, VirtioWorker};
use devices_host::Event;
use devices_host::disk::{Disk, DiskOptions};
use devices_host::engine::{Engine, EngineOptions};
use devices_host::sys::Sys;
use vm_memory::{GuestMemoryBackend, GuestMemoryRegion};
use zvmm::machine::EngineDisk;
use zvmm_double::zvol::{VolumeSpec, Zvol, Zvols};
use zvmm_double::{DoubleSys, Host, Zone};

const PATH: &str = "/dev/zvol/rdsk/zones/guest/disk0";
const SECTORS: u64 = 2048;

const MODERN: u64 = 1 << 32;
const FLUSH: u64 = 1 << 9;
const CONFIG_WCE: u64 = 1 << 11;
const DISCARD: u64 = 1 << 13;
const WRITE_ZEROES: u64 = 1 << 14;
/// `writeback` of the configuration space (virtio 1.3 §5.2.4).
const WRITEBACK: u32 = 32;

const OK: u8 = 0;
const IN: u32 = 0;
const OUT: u32 = 1;
const FLUSH_REQUEST: u32 = 4;
const DISCARD_REQUEST: u32 = 11;
const WRITE_ZEROES_REQUEST: u32 = 13;

struct Rig {
    process: Arc<DoubleSys>,
    zvol: Arc<Zvol>,
    stable: tempfile::NamedTempFile,
}

struct Guest {
    mem: GuestRam,
    device: BlkDevice,
    queues: Vec<(Box<dyn VirtioWorker<GuestRam>>, DriverQueue)>,
    interrupt: Arc<RecordingInterrupt>,
}

fn rig(spec: VolumeSpec) -> Rig {
    let stable = tempfile::NamedTempFile::new().unwrap();
    stable.as_file().set_len(SECTORS * 512).unwrap();
    let zvols = Zvols::new();
    let zvol = zvols.add(PATH, stable.reopen().unwrap(), spec);
    Rig { process: DoubleSys::new(&Host::new(vec![zvols]), Zone::bhyve(1)), zvol, stable }
}

fn volume() -> VolumeSpec {
    VolumeSpec::new(SECTORS * 512)
}

impl Rig {
    fn guest(&self, queues: u16, inline_single: bool) -> Guest {
        let mem = guest_ram(0x40_0000);
        for region in mem.iter() {
            let start = region.get_host_address(vm_memory::MemoryRegionAddress(0)).unwrap().addr();
            self.zvol.guest_memory(start..start + region.len() as usize);
        }
        let sys: Arc<dyn Sys> = self.process.clone();
        let disk = Arc::new(Disk::open_through(Some(&sys), "d0", Path::new(PATH), DiskOptions::default()).unwrap());
        let erase = Some(EraseLimits { max_sectors: 1 << 12, max_segments: 1, alignment_sectors: 1 });
        let device = BlkDevice::new(BlkConfig {
            capacity_sectors: disk.size_bytes() / 512,
            queue_size: 64,
            queues,
            discard: erase,
            write_zeroes: erase,
            config_wce: true,
            ..BlkConfig::default()
        });
        let ram = Arc::new(mem.clone());
        let options = EngineOptions { threads: 2, depth: 64, inline_single, ..EngineOptions::default() };
        let queues = (0..queues)
            .map(|queue| {
                let wake = Arc::new(Event::new().unwrap());
                let engine = Engine::start("d0", disk.clone(), ram.clone(), wake, &options).unwrap();
                let backend = EngineDisk(engine);
                let worker: Box<dyn VirtioWorker<GuestRam>> =
                    Box::new(device.worker(queue, backend, Arc::<QueueCounters>::default()));
                (worker, DriverQueue::new(&mem, 0x10_0000 * (1 + u64::from(queue)), 64, MODERN))
            })
            .collect();
        Guest { mem, device, queues, interrupt: RecordingInterrupt::new() }
    }

    fn stable(&self, sector: u64) -> u8 {
        let mut block = [0; 512];
        self.stable.as_file().read_exact_at(&mut block, sector * 512).unwrap();
        assert!(block.iter().all(|byte| *byte == block[0]), "sector {sector} is torn");
        block[0]
    }

    fn crash(&self) {
        self.zvol.crash(|_| false).unwrap();
    }

    fn count(&self, call: &str) -> usize {
        self.zvol.calls().iter().filter(|made| *made == call).count()
    }

    #[track_caller]
    fn is_clean(&self) {
        let broken = self.process.violations();
        assert!(broken.is_empty(), "{broken:?}");
        assert_eq!(self.process.leaks(), []);
    }
}

impl Guest {
    /// The driver takes the device over (virtio 1.3 §3.1.1).
    fn start(&mut self, features: u64) {
        self.device.features_accepted(MODERN | features);
        let activation = self.interrupt.activation(MODERN | features);
        for (index, (worker, driver)) in self.queues.iter_mut().enumerate() {
            *driver = DriverQueue::new(&self.mem, 0x10_0000 * (1 + index as u64), 64, MODERN | features);
            worker.start(&self.mem, index as u16, driver.state(), &activation);
        }
    }

    fn reset(&mut self) {
        let end = Instant::now() + Duration::from_secs(30);
        for (index, (worker, _)) in self.queues.iter_mut().enumerate() {
            worker.begin_stop(&self.mem);
            while !worker.poll_stopped(&self.mem, true) {
                assert!(Instant::now() < end, "the queue does not come to rest");
                std::thread::sleep(Duration::from_micros(50));
            }
            worker.take_state(index as u16);
        }
    }

    fn post(&mut self, queue: usize, kind: u32, sector: u64, data: impl IntoIterator<Item = Buf>) -> Posted {
        let header = Buf::Read([kind.to_le_bytes().as_slice(), &[0; 4], &sector.to_le_bytes()].concat());
        let driver = &mut self.queues[queue].1;
        let bufs: Vec<_> = [header].into_iter().chain(data).chain([Buf::Write(1)]).collect();
        let posted = driver.post(&bufs);
        driver.publish();
        posted
    }

    /// Waits for as many answers; all must be good ones.
    fn wait(&mut self, queue: usize, posted: &[Posted]) {
        let end = Instant::now() + Duration::from_secs(30);
        let (worker, driver) = &mut self.queues[queue];
        let mut used = 0;
        while used < posted.len() {
            assert!(Instant::now() < end, "{used} of {} answers", posted.len());
            if !worker.step(&self.mem).again {
                std::thread::sleep(Duration::from_micros(50));
            }
            used += driver.used().len();
        }
        for posted in posted {
            assert_eq!(driver.read(*posted.buffers.last().unwrap()), [OK]);
        }
    }

    fn request(&mut self, queue: usize, kind: u32, sector: u64, data: impl IntoIterator<Item = Buf>) -> Posted {
        let posted = self.post(queue, kind, sector, data);
        self.wait(queue, std::slice::from_ref(&posted));
        posted
    }

    fn write(&mut self, sector: u64, value: u8) {
        self.request(0, OUT, sector, [Buf::Read(vec![value; 512])]);
    }

    fn flush(&mut self) {
        self.request(0, FLUSH_REQUEST, 0, []);
    }

    fn read(&mut self, queue: usize, sector: u64, sectors: u32) -> Vec<u8> {
        let posted = self.request(queue, IN, sector, [Buf::Write(sectors * 512)]);
        self.queues[queue].1.read(posted.buffers[1])
    }

    fn erase(&mut self, kind: u32, sector: u64, sectors: u32) {
        let segment = [sector.to_le_bytes().as_slice(), &sectors.to_le_bytes(), &[0; 4]].concat();
        self.request(0, kind, 0, [Buf::Read(segment)]);
    }
}

#[test]
fn what_was_flushed_survives_a_crash_and_what_was_not_may_be_lost() {
    for inline_single in [false, true] {
        let rig = rig(volume());
        let mut guest = rig.guest(1, inline_single);
        guest.start(FLUSH);
        guest.write(1, 1);
        assert!(rig.zvol.write_cache());
        guest.flush();
        guest.write(2, 2);
        assert_eq!(guest.read(0, 2, 1), [2; 512]);
        rig.crash();
        assert_eq!((rig.stable(1), rig.stable(2)), (1, 0));
        drop(guest);
        rig.is_clean();
        assert!(!rig.zvol.write_cache());
    }
}

#[test]
fn a_guest_that_cannot_flush_loses_nothing_that_was_acknowledged_and_costs_no_flush() {
    for features in [0, CONFIG_WCE] {
        let rig = rig(VolumeSpec { write_cache: true, ..volume() });
        let mut guest = rig.guest(1, false);
        guest.start(features | WRITE_ZEROES | DISCARD);
        for sector in 0..20 {
            guest.write(sector, 9);
            assert_eq!(rig.stable(sector), 9);
        }
        guest.erase(WRITE_ZEROES_REQUEST, 0, 2);
        guest.erase(DISCARD_REQUEST, 2, 1);
        assert_eq!([0, 1, 2, 3].map(|sector| rig.stable(sector)), [0, 0, 0, 9]);
        assert_eq!(rig.count("DKIOCFLUSHWRITECACHE"), 0);
        drop(guest);
        assert!(rig.zvol.write_cache(), "put back");
        rig.is_clean();
    }
}

#[test]
fn a_guest_may_turn_the_cache_off_and_on() {
    let rig = rig(volume());
    let mut guest = rig.guest(1, false);
    guest.start(FLUSH | CONFIG_WCE);
    guest.write(1, 1);
    guest.device.write_config(WRITEBACK, &[0]);
    guest.write(2, 2);
    rig.crash();
    assert_eq!((rig.stable(1), rig.stable(2)), (1, 2), "turning it off commits, and then nothing waits");
    guest.device.write_config(WRITEBACK, &[1]);
    guest.write(3, 3);
    guest.flush();
    guest.write(4, 4);
    rig.crash();
    assert_eq!((rig.stable(3), rig.stable(4)), (3, 0));
    drop(guest);
    rig.is_clean();
}

#[test]
fn a_reset_turns_the_cache_off_and_the_next_driver_starts_afresh() {
    let rig = rig(volume());
    let mut guest = rig.guest(2, false);
    guest.start(FLUSH);
    guest.write(1, 1);
    let other = guest.post(1, OUT, 2, [Buf::Read(vec![2; 512])]);
    guest.wait(1, &[other]);
    guest.reset();
    assert!(!rig.zvol.write_cache());
    rig.crash();
    assert_eq!((rig.stable(1), rig.stable(2)), (1, 2));
    guest.start(0);
    guest.write(3, 3);
    assert_eq!(rig.stable(3), 3);
    guest.reset();
    guest.start(FLUSH);
    guest.write(4, 4);
    assert_eq!(rig.stable(4), 0);
    guest.reset();
    drop(guest);
    let switches: Vec<_> = rig.zvol.calls().into_iter().filter(|call| call.starts_with("DKIOCSETWCE")).collect();
    assert_eq!(switches, ["DKIOCSETWCE 0", "DKIOCSETWCE 1", "DKIOCSETWCE 0", "DKIOCSETWCE 1", "DKIOCSETWCE 0"]);
    rig.is_clean();
}

#[test]
fn requests_of_any_frame_and_size_go_through_memory_of_the_process() {
    let rig = rig(volume());
    let mut guest = rig.guest(2, false);
    guest.start(FLUSH | DISCARD | WRITE_ZEROES);
    let data: Vec<u8> = (0..300 * 512).map(|at: u32| (at / 512) as u8 ^ at as u8).collect();
    let pieces = [1, 511, 4096, 100_000, usize::MAX];
    let mut rest = &data[..];
    let bufs = pieces.map(|len| {
        let (piece, after) = rest.split_at(len.min(rest.len()));
        rest = after;
        Buf::Read(piece.to_vec())
    });
    guest.request(0, OUT, 100, bufs);
    assert_eq!(guest.read(1, 100, 300), data);
    guest.erase(WRITE_ZEROES_REQUEST, 150, 100);
    guest.erase(DISCARD_REQUEST, 390, 10);
    let mut expected = data;
    expected[50 * 512..150 * 512].fill(0);
    expected[290 * 512..].fill(0);
    assert_eq!(guest.read(0, 100, 300), expected);
    guest.flush();
    rig.crash();
    assert_eq!(guest.read(0, 100, 300), expected);
    drop(guest);
    rig.is_clean();
    assert_eq!(rig.zvol.calls().iter().filter(|call| call.starts_with("DKIOCFREE")).count(), 1);
}

/// Writes of random sectors over two queues, flushes, cache switches and resets, then a crash: of each sector the last
/// value that was promised, or one that was written after it.
#[test]
fn whatever_a_guest_does_a_crash_leaves_what_it_was_promised() {
    let mut random = 0x9e37_79b9_7f4a_7c15_u64;
    let mut next = move |below: u64| {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (random >> 33) % below
    };
    let mut lost = 0;
    for life in 0..40 {
        let rig = rig(VolumeSpec { write_cache: next(2) == 1, ..volume() });
        let mut guest = rig.guest(2, next(2) == 1);
        let mut features = FLUSH | CONFIG_WCE;
        guest.start(features);
        let mut promised = [0u8; 16];
        let mut possible: Vec<Vec<u8>> = (0..16).map(|_| vec![0]).collect();
        let mut write_back = true;
        for round in 0..60u8 {
            let value = round + 1;
            match next(12) {
                0 => {
                    guest.flush();
                    for (sector, values) in possible.iter_mut().enumerate() {
                        promised[sector] = *values.last().unwrap();
                        *values = vec![promised[sector]];
                    }
                }
                1 => {
                    write_back = next(2) == 1;
                    guest.device.write_config(WRITEBACK, &[u8::from(write_back)]);
                }
                2 => {
                    guest.reset();
                    features = if next(2) == 1 { FLUSH | CONFIG_WCE } else { 0 };
                    guest.start(features);
                    write_back = features != 0;
                }
                _ => {
                    let (sector, queue) = (next(16), next(2) as usize);
                    guest.request(queue, OUT, sector, [Buf::Read(vec![value; 512])]);
                    let values = &mut possible[sector as usize];
                    values.push(value);
                    if features == 0 || !write_back {
                        promised[sector as usize] = value;
                        *values = vec![value];
                    }
                }
            }
        }
        lost += rig.zvol.crash(|_| next(2) == 1).unwrap();
        for (sector, values) in possible.iter().enumerate() {
            let left = rig.stable(sector as u64);
            assert!(values.contains(&left), "life {life}, sector {sector}: {left} is none of {values:?}");
        }
        drop(guest);
        rig.is_clean();
    }
    assert!(lost > 0, "the cache was never used");
}
