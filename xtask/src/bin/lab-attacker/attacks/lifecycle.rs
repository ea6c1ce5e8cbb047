//! Resets of the device and of one queue, at the worst times.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::arena::{DATA, QUEUE};
use crate::check;
use crate::device::{Device, LIMIT, QUEUE_SIZE, Trouble, Verdict, feature};
use crate::machine::{sleep_ms, spin, wait};
use crate::registers::{common, status};

/// Requests in flight, then a reset: once the status reads 0 the memory is the driver's. Asleep this CPU leaves its time to
/// the device; it wakes in the middle of the device's work.
pub fn reset_under_load(device: &mut Device) -> Verdict {
    const ROUNDS: u64 = 14;
    for round in 0..ROUNDS {
        device.start(device.features())?;
        device.load_heavily();
        device.notify(device.target());
        match round {
            0 => {}
            1 => spin(Duration::from_micros(50)),
            _ => std::thread::sleep(Duration::from_micros(150 * round)),
        }
        device.reset()?;
        device.check_is_quiet(3)?;
    }
    Ok(())
}

/// A reset while one is under way, and a status write into it.
pub fn reset_twice(device: &mut Device) -> Verdict {
    for _ in 0..4 {
        device.start(device.features())?;
        device.load();
        device.notify(device.target());
        device.registers.set_status(0);
        device.registers.set_status(0);
        device.registers.set_status(status::ACKNOWLEDGE);
        device.registers.set_status(0);
        device.reset()?;
        device.check_is_quiet(3)?;
    }
    Ok(())
}

/// Started and stopped as fast as it goes.
pub fn start_stop(device: &mut Device) -> Verdict {
    for round in 0..25 {
        device.start(device.features())?;
        if round % 2 == 0 {
            device.load();
            device.notify(device.target());
        }
        device.reset()?;
    }
    Ok(())
}

/// One CPU takes the device through its life while the other one writes to the same registers, resets among them. What
/// either sees is nobody's promise; that both come back from every access is, and that the device works afterwards.
pub fn two_cpus(device: &mut Device) -> Verdict {
    const ROUNDS: u32 = 12;
    /// Where both CPUs share one of the host's, the other one may come to it late.
    const PATIENCE: Duration = Duration::from_secs(10);
    let queues = device.maximum.len() as u16;
    let (over, accesses) = (AtomicBool::new(false), AtomicU64::new(0));
    let registers = Arc::clone(&device.registers);
    let started = std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut round = 0_u64;
            while !over.load(Ordering::Relaxed) {
                for queue in 0..queues {
                    registers.set_queue_size(queue, 8);
                    registers.notify(queue);
                }
                registers.offered();
                registers.accepted();
                if round.is_multiple_of(3) {
                    registers.set_status(0);
                }
                registers.status();
                round += 1;
                accesses.store(round, Ordering::Relaxed);
            }
        });
        let begin = Instant::now();
        let goes_on = |n: &u32| *n < ROUNDS || accesses.load(Ordering::Relaxed) == 0 && begin.elapsed() < PATIENCE;
        // What fails here was reset by the other CPU.
        let started = (0..).take_while(goes_on).filter(|_| storm(device).is_ok()).count();
        over.store(true, Ordering::Relaxed);
        started
    });
    check!(
        accesses.into_inner() > 0,
        "the other CPU never came to it, and this one started the device {started} times"
    );
    Ok(())
}

fn storm(device: &mut Device) -> Verdict {
    let begun = device.start(device.features());
    if device.queues.len() == device.maximum.len() {
        device.load();
        device.notify(device.target());
    }
    spin(Duration::from_micros(300));
    device.registers.set_status(0);
    begun
}

/// A queue's own reset (virtio 1.3 §2.6.1) under load, where it is offered; where it is not negotiated the register does
/// nothing.
pub fn queue_reset(device: &mut Device) -> Verdict {
    let target = device.target();
    device.start(device.features() & !feature::RING_RESET)?;
    reset_queue(device, target)?;
    check!(device.registers.is_enabled(target), "a queue was reset that nobody had negotiated to reset");
    device.request()?;
    if device.offered & feature::RING_RESET == 0 {
        return Ok(());
    }
    for delay_us in [0, 50, 500] {
        device.start(device.features())?;
        device.load();
        device.notify(target);
        spin(Duration::from_micros(delay_us));
        reset_queue(device, target)?;
        check!(!device.registers.is_enabled(target), "a queue that was reset is enabled");
        // Its memory is the driver's again: what it was may not be looked at or written to any more.
        let base = device.queues[usize::from(target)].base;
        device.arena.put(base, &[0x5a; QUEUE]);
        device.arena.put(DATA, &[0x5a; 0x3_0000]);
        device.arena.watch();
        sleep_ms(3);
        device.notify(target);
        sleep_ms(3);
        let others: Vec<_> = device
            .queues
            .iter()
            .filter(|queue| queue.index != target)
            .map(|queue| queue.base..queue.base + QUEUE)
            .collect();
        let changed = device.arena.first_change(&others);
        check!(changed.is_none(), "memory at {changed:x?} changed after its queue was reset");
        device.set_up_queue(target, QUEUE_SIZE);
        device.request()?;
    }
    // Of queues that do not exist.
    for queue in [device.maximum.len() as u64, 0xffff] {
        device.modern().write(common::QUEUE_SELECT, 2, queue);
        device.modern().write(common::QUEUE_RESET, 2, 1);
    }
    device.request()
}

fn reset_queue(device: &Device, queue: u16) -> Verdict {
    let modern = device.modern();
    modern.write(common::QUEUE_SELECT, 2, queue.into());
    modern.write(common::QUEUE_RESET, 2, 1);
    match wait(LIMIT, || modern.read(common::QUEUE_RESET, 2) == 0) {
        true => Ok(()),
        false => Err(Trouble::Wedged("the reset of a queue never ends".to_owned())),
    }
}
