//! Values that no driver writes to the registers, and writes at the wrong time.

use crate::arena::{DRIVER, QUEUE};
use crate::check;
use crate::device::{Device, QUEUE_SIZE, SILENCE_MS, Verdict, feature};
use crate::machine::{sleep_ms, write_port};
use crate::registers::{Registers, common, legacy, places, status};

/// A place for rings that the device is told of too late.
const DECOY: usize = 3 * QUEUE;

/// The fields of a queue that are frozen, and those that are.
const QUEUE_FIELDS: [(usize, usize); 5] = [
    (common::QUEUE_SIZE, 2),
    (common::QUEUE_ENABLE, 2),
    (common::QUEUE_DESC, 8),
    (common::QUEUE_DRIVER, 8),
    (common::QUEUE_DEVICE, 8),
];

/// What is frozen of a running modern device: its features, and five fields of each queue.
fn frozen(device: &Device) -> Vec<u64> {
    let modern = device.modern();
    let mut values = vec![modern.features(common::DRIVER_FEATURE_SELECT, common::DRIVER_FEATURE)];
    for queue in 0..device.maximum.len() as u16 {
        values.extend(QUEUE_FIELDS.map(|(field, width)| modern.read_queue(queue, field, width)));
    }
    values
}

/// Every field is written again once the device runs (Firecracker's CVE-2026-5747): rings, sizes and features stay, and
/// so does what the device does.
pub fn fields_after_driver_ok(device: &mut Device) -> Verdict {
    device.arena.fill();
    // With a queue's own reset negotiated, `queue_reset` would rightly stop it.
    device.start(device.features() & !feature::RING_RESET)?;
    let decoy = device.arena.physical(DECOY);
    let untouched = device.arena.get(DECOY..DECOY + QUEUE);
    match &*device.registers {
        Registers::Modern(modern) => {
            let before = frozen(device);
            for queue in 0..device.maximum.len() as u64 {
                for value in [0, 1, 8, 0xffff] {
                    modern.write(common::QUEUE_SELECT, 2, queue);
                    for field in
                        [common::QUEUE_SIZE, common::QUEUE_ENABLE, common::QUEUE_RESET, common::QUEUE_NOTIFY_OFF]
                    {
                        modern.write(field, 2, value);
                    }
                }
                for (field, part) in
                    [(common::QUEUE_DESC, 0), (common::QUEUE_DRIVER, DRIVER), (common::QUEUE_DEVICE, 0x2000)]
                {
                    modern.write(field, 8, decoy + part as u64);
                    modern.write(field, 4, (decoy + part as u64) & 0xffff_ffff);
                    modern.write(field + 4, 4, 1);
                }
            }
            for select in 0..2 {
                modern.write(common::DRIVER_FEATURE_SELECT, 4, select);
                modern.write(common::DRIVER_FEATURE, 4, 0xffff_ffff);
                modern.write(common::DRIVER_FEATURE, 4, 0);
                modern.write(common::DEVICE_FEATURE, 4, 0);
            }
            modern.write(common::NUM_QUEUES, 2, 0xffff);
            let after = frozen(device);
            check!(before == after, "frozen fields changed from {before:x?} to {after:x?}");
        }
        Registers::Legacy { ports, .. } => {
            let before = device.registers.accepted();
            write_port(ports + legacy::DRIVER_FEATURES, 4, u32::MAX);
            write_port(ports + legacy::DEVICE_FEATURES, 4, 0);
            for queue in 0..device.maximum.len() as u32 {
                write_port(ports + legacy::QUEUE_SELECT, 2, queue);
                write_port(ports + legacy::QUEUE_SIZE, 2, 2);
                write_port(ports + legacy::QUEUE_PFN, 4, (decoy >> 12) as u32);
                write_port(ports + legacy::QUEUE_PFN, 4, 0);
            }
            check!(device.registers.accepted() == before, "features changed while the device runs");
        }
    }
    // Status bits are only ever added.
    let before = device.registers.status();
    for value in [1, 2, 3, 4, 8, 0x40] {
        device.registers.set_status(value);
    }
    let after = device.registers.status();
    check!(before == after, "the status went from {before:#x} to {after:#x}");
    device.request()?;
    check!(device.arena.get(DECOY..DECOY + QUEUE) == untouched, "rings named after DRIVER_OK were used");
    Ok(())
}

/// Sizes that no ring has are ignored.
pub fn queue_sizes(device: &mut Device) -> Verdict {
    device.begin(device.features())?;
    let maximum = device.maximum[0];
    // A packed ring may have any size up to the maximum (§2.8.10.1).
    let odd = if device.packed() { 0 } else { 3 };
    for size in [0, odd, 65535, maximum + 1, maximum.wrapping_mul(2)] {
        device.registers.set_queue_size(0, size);
        let now = device.registers.queue_size(0);
        check!(now == maximum, "size {size} was written, and {now} reads back for {maximum}");
    }
    device.set_up_queues(if device.packed() { 3 } else { QUEUE_SIZE });
    if device.packed() && device.target() != 0 {
        // Receiving needs more buffers than three.
        device.set_up_queue(0, QUEUE_SIZE);
    }
    device.go();
    device.request()
}

/// All queues' rings are at an address that is no memory.
pub fn rings_at(device: &mut Device, address: u64) -> Verdict {
    device.begin(device.features())?;
    device.set_up_queues(QUEUE_SIZE);
    device.begin_again()?;
    for queue in 0..device.maximum.len() as u16 {
        device.registers.place_queue(queue, [address; 3]);
    }
    device.arena.watch();
    device.go();
    device.notify(device.target());
    device.expect_refused()
}

/// Each part of a ring in turn is not where §2.7 and §2.8 allow it.
pub fn rings_misaligned(device: &mut Device) -> Verdict {
    for part in 0..3 {
        device.begin(device.features())?;
        device.set_up_queues(QUEUE_SIZE);
        device.begin_again()?;
        for queue in 0..device.maximum.len() as u16 {
            let mut at = places(device.arena, &device.queues[usize::from(queue)]);
            at[part] += 1;
            device.registers.set_queue_size(queue, QUEUE_SIZE);
            device.registers.place_queue(queue, at);
        }
        device.arena.watch();
        device.go();
        device.notify(device.target());
        device.expect_refused()?;
    }
    Ok(())
}

impl Device<'_> {
    /// Starts over, with the driver's end of the queues kept: to look at what the device does to rings that it was not
    /// told of.
    fn begin_again(&mut self) -> Verdict {
        let queues = std::mem::take(&mut self.queues);
        self.begin(self.features())?;
        self.queues = queues;
        Ok(())
    }
}

/// DRIVER_OK without a single queue: nothing happens, however often the doorbells are rung.
pub fn no_queue(device: &mut Device) -> Verdict {
    device.begin(device.features())?;
    device.set_up_queues(QUEUE_SIZE);
    device.begin_again()?;
    device.post_valid();
    device.arena.watch();
    device.go();
    for queue in 0..device.maximum.len() as u16 {
        device.notify(queue);
    }
    sleep_ms(SILENCE_MS);
    let changed = device.arena.first_change(&[]);
    check!(changed.is_none(), "memory at {changed:x?} changed, and no queue was set up");
    let now = device.registers.status();
    check!(now & (status::NEEDS_RESET | status::FAILED) == 0, "the status is {now:#x}");
    Ok(())
}

/// A doorbell before DRIVER_OK does nothing.
pub fn early_kick(device: &mut Device) -> Verdict {
    if device.is_legacy() {
        // Drivers before DRIVER_OK are served, as old ones need it; before DRIVER they are not.
        device.reset()?;
    } else {
        device.begin(device.features())?;
    }
    device.set_up_queues(QUEUE_SIZE);
    device.post_valid();
    device.arena.watch();
    for _ in 0..3 {
        device.notify(device.target());
    }
    sleep_ms(SILENCE_MS);
    let changed = device.arena.first_change(&[]);
    check!(changed.is_none(), "memory at {changed:x?} changed before DRIVER_OK");
    device.go();
    device.notify(device.target());
    let used = device.wait_used(device.target());
    check!(used.is_some(), "what was available before DRIVER_OK is not served after it");
    Ok(())
}

/// Doorbells of queues that do not exist.
pub fn notify_nothing(device: &mut Device) -> Verdict {
    device.start(device.features())?;
    match &*device.registers {
        Registers::Modern(modern) => {
            for value in [0xffff_u64, 0x7fff, 0x100, 255, 3, 0xffff_ffff, 0x8000_0000] {
                for offset in
                    [0, 4, 8, 0x10, 0x40, 0xff0].into_iter().filter(|at| modern.notify + at + 8 <= modern.bar.len())
                {
                    modern.bar.write(modern.notify + offset, 2, value);
                    modern.bar.write(modern.notify + offset, 4, value);
                }
            }
        }
        Registers::Legacy { ports, .. } => {
            for value in [0xffff, 0x7fff, 0x8000, 0x100, 255, 3] {
                write_port(ports + legacy::QUEUE_NOTIFY, 2, value);
            }
        }
    }
    device.request()
}

/// Every pair of status writes: no step is skipped, and none is taken back (virtio 1.3 §2.1, §3.1.1).
pub fn status_order(device: &mut Device) -> Verdict {
    const VALUES: [u8; 12] = [1, 2, 3, 4, 5, 7, 8, 9, 11, 12, 15, 0x40];
    for first in VALUES {
        for second in VALUES {
            device.reset()?;
            device.registers.accept(device.features());
            let mut before = 0;
            for value in [first, second] {
                device.registers.set_status(value);
                let now = device.registers.status();
                let has = |bit| now & bit != 0;
                check!(now & before == before, "{first:#x} {second:#x}: the status went from {before:#x} to {now:#x}");
                check!(!has(status::NEEDS_RESET), "{first:#x} {second:#x}: the driver has set DEVICE_NEEDS_RESET");
                check!(
                    !has(status::DRIVER) || has(status::ACKNOWLEDGE),
                    "{first:#x} {second:#x}: {now:#x} skips ACKNOWLEDGE"
                );
                check!(
                    !has(status::FEATURES_OK) || has(status::DRIVER),
                    "{first:#x} {second:#x}: {now:#x} skips DRIVER"
                );
                check!(
                    !has(status::DRIVER_OK) || has(status::FEATURES_OK),
                    "{first:#x} {second:#x}: {now:#x} skips FEATURES_OK"
                );
                before = now;
            }
        }
    }
    Ok(())
}

/// FEATURES_OK is refused for every bit that is not offered, and to a modern driver that is none.
pub fn features(device: &mut Device) -> Verdict {
    let offered = device.offered;
    let not_offered = (0..64).map(|bit| 1 << bit).filter(|bit| offered & bit == 0).map(|bit| device.features() | bit);
    let wrong: Vec<u64> = not_offered.chain([0, device.features() & !feature::VERSION_1]).collect();
    let refused = |device: &mut Device, what: &dyn Fn(&Device)| -> Verdict<bool> {
        device.reset()?;
        device.registers.set_status(status::ACKNOWLEDGE | status::DRIVER);
        what(device);
        device.registers.set_status(status::ACKNOWLEDGE | status::DRIVER | status::FEATURES_OK);
        Ok(device.registers.status() & status::FEATURES_OK == 0)
    };
    for accepted in wrong {
        let refused = refused(device, &|device| device.registers.accept(accepted))?;
        check!(refused, "FEATURES_OK with features {accepted:#x} of {offered:#x}");
    }
    for select in [2, 3, u64::from(u32::MAX)] {
        let refused = refused(device, &|device| {
            device.registers.accept(device.features());
            device.modern().write(common::DRIVER_FEATURE_SELECT, 4, select);
            device.modern().write(common::DRIVER_FEATURE, 4, 1);
        })?;
        check!(refused, "FEATURES_OK with a feature in word {select}");
    }
    Ok(())
}

/// A vector that the MSI-X table does not have cannot be mapped: "none" reads back (§4.1.5.1.2.1).
pub fn vector_outside(device: &mut Device) -> Verdict {
    device.start(device.features())?;
    let entries =
        device.function.capabilities(0x11).first().map_or(0, |at| (device.function.read(*at) >> 16 & 0x7ff) + 1);
    for vector in [u64::from(entries), 0x7ff, 0x7fff, 0x8000, 0xfffe] {
        let modern = device.modern();
        modern.write(common::CONFIG_VECTOR, 2, vector);
        let read = modern.read(common::CONFIG_VECTOR, 2);
        check!(read == 0xffff, "the configuration's vector {vector:#x} of {entries} reads back as {read:#x}");
        for queue in [0, 1, 2, 0xff, 0xffff] {
            modern.write(common::QUEUE_SELECT, 2, queue);
            modern.write(common::QUEUE_VECTOR, 2, vector);
            let read = modern.read(common::QUEUE_VECTOR, 2);
            check!(read == 0xffff, "vector {vector:#x} of queue {queue} reads back as {read:#x}");
        }
    }
    device.request()
}
