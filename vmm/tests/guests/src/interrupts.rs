//! Interrupts: the IDT, the local APIC with its timer as a clock, and the IOAPIC (Intel SDM vol. 3 §6.14, §11; 82093AA
//! datasheet).

use core::arch::asm;
use core::sync::atomic::{AtomicU32, AtomicUsize, Ordering};

use crate::machine::{in8, interrupts_off, interrupts_on, interrupts_on_and_halt, load, out8, store};
use crate::{acpi, fail};

/// Vectors below 32 are exceptions; the IDT and the stubs end here.
pub const VECTORS: usize = 64;
/// The vector of non-maskable interrupts, which a guest may take as it takes those of devices.
pub const NMI: u8 = 2;
/// The vector of the clock.
pub const CLOCK: u8 = 0x30;
/// The first vector a guest may use for devices, up to [`SPURIOUS`].
pub const DEVICE: u8 = 0x31;
const SPURIOUS: u8 = 0x3f;

/// Milliseconds between two interrupts of the clock.
const TICK_MS: u32 = 2;
/// The local APIC's timer in KVM counts nanoseconds (divided by 1). On another hypervisor the limits below last longer
/// or shorter, which is all the clock is for.
const TICK_COUNT: u32 = TICK_MS * 1_000_000;

const APIC: u64 = 0xfee0_0000;
const APIC_ID: u64 = APIC + 0x20;
const APIC_TASK_PRIORITY: u64 = APIC + 0x80;
const APIC_END: u64 = APIC + 0xb0;
const APIC_SPURIOUS: u64 = APIC + 0xf0;
const APIC_TIMER: u64 = APIC + 0x320;
const APIC_TIMER_COUNT: u64 = APIC + 0x380;
const APIC_TIMER_DIVIDE: u64 = APIC + 0x3e0;
const TIMER_PERIODIC: u32 = 1 << 17;

static COUNTS: [AtomicU32; VECTORS] = [const { AtomicU32::new(0) }; VECTORS];
static HOOKS: [AtomicUsize; VECTORS] = [const { AtomicUsize::new(0) }; VECTORS];
static IDT: [[AtomicU32; 4]; VECTORS] = [const { [const { AtomicU32::new(0) }; 4] }; VECTORS];
/// The tick at which the guest fails, or 0.
static WATCHDOG: AtomicU32 = AtomicU32::new(0);

unsafe extern "C" {
    /// The first of the stubs in `boot.rs`, 16 bytes each.
    static interrupt_stubs: [[u8; 16]; VECTORS];
}

/// Called by the stubs.
#[unsafe(no_mangle)]
extern "C" fn interrupt_entry(vector: usize, error: u64, rip: u64) {
    let hook = HOOKS[vector].load(Ordering::Relaxed);
    if vector < 32 && hook == 0 {
        let address: u64;
        // SAFETY: reads a register.
        unsafe { asm!("mov {}, cr2", out(reg) address, options(nomem, nostack, preserves_flags)) }
        fail!("exception {vector}, error {error:#x}, at {rip:#x}, cr2 {address:#x}");
    }
    let count = COUNTS[vector].fetch_add(1, Ordering::Relaxed) + 1;
    if vector == usize::from(SPURIOUS) {
        return;
    }
    if hook != 0 {
        // SAFETY: only `on` stores here, and it stores a `fn()`.
        let hook: fn() = unsafe { core::mem::transmute(hook) };
        hook();
    }
    if vector < 32 {
        return;
    }
    store(APIC_END, 0_u32);
    let limit = WATCHDOG.load(Ordering::Relaxed);
    if vector == usize::from(CLOCK) && limit != 0 && count >= limit {
        fail!("time-out at {rip:#x}");
    }
}

/// Builds the IDT for the exceptions, masks the old interrupt controllers, and enables the local APIC.
pub fn init() {
    for vector in 0..32 {
        set_gate(vector);
    }
    set_gate(SPURIOUS.into());
    let mut pointer = [0_u8; 10];
    pointer[..2].copy_from_slice(&(size_of_val(&IDT) as u16 - 1).to_le_bytes());
    pointer[2..].copy_from_slice(&(&raw const IDT as u64).to_le_bytes());
    // SAFETY: the table is a static, and its gates lead to the stubs.
    unsafe { asm!("lidt [{}]", in(reg) &pointer, options(readonly, nostack, preserves_flags)) }

    out8(0x21, 0xff);
    out8(0xa1, 0xff);
    store(APIC_TASK_PRIORITY, 0_u32);
    store(APIC_SPURIOUS, 0x100 | u32::from(SPURIOUS));
}

fn set_gate(vector: usize) {
    const CODE_SELECTOR: u32 = 0x18;
    const PRESENT_INTERRUPT_GATE: u32 = 0x8e00;
    // SAFETY: an address is taken, nothing is read.
    let stub = unsafe { &raw const interrupt_stubs[vector] } as u64;
    let [low, high, top, _] = &IDT[vector];
    low.store(CODE_SELECTOR << 16 | stub as u32 & 0xffff, Ordering::Relaxed);
    high.store(stub as u32 & 0xffff_0000 | PRESENT_INTERRUPT_GATE, Ordering::Relaxed);
    top.store((stub >> 32) as u32, Ordering::Relaxed);
}

/// Opens a vector; `hook` runs in the interrupt, before its end is signalled.
pub fn on(vector: u8, hook: Option<fn()>) {
    HOOKS[usize::from(vector)].store(hook.map_or(0, |hook| hook as usize), Ordering::Relaxed);
    set_gate(vector.into());
}

/// How often a vector has fired.
#[must_use]
pub fn count(vector: u8) -> u32 {
    COUNTS[usize::from(vector)].load(Ordering::Relaxed)
}

/// This CPU's APIC id.
#[must_use]
pub fn apic_id() -> u8 {
    (load::<u32>(APIC_ID) >> 24) as u8
}

/// Starts the clock and lets interrupts in. The guest fails if it still runs after `limit_ms`.
pub fn start_clock(limit_ms: u32) {
    on(CLOCK, None);
    WATCHDOG.store(count(CLOCK) + limit_ms / TICK_MS, Ordering::Relaxed);
    store(APIC_TIMER_DIVIDE, 0b1011_u32);
    store(APIC_TIMER, TIMER_PERIODIC | u32::from(CLOCK));
    store(APIC_TIMER_COUNT, TICK_COUNT);
    interrupts_on();
}

/// Fires `vector` once, `ns` nanoseconds from now, from the local APIC's timer. Not while the clock runs.
pub fn one_shot(vector: u8, ns: u32) {
    store(APIC_TIMER_DIVIDE, 0b1011_u32);
    store(APIC_TIMER, u32::from(vector));
    store(APIC_TIMER_COUNT, ns);
}

/// Milliseconds since the clock started, in steps of a tick.
#[must_use]
pub fn now_ms() -> u32 {
    count(CLOCK) * TICK_MS
}

/// Sleeps until `done` or `limit_ms` have passed; says whether it is done. The clock must run.
#[must_use]
pub fn wait(limit_ms: u32, mut done: impl FnMut() -> bool) -> bool {
    let end = now_ms() + limit_ms;
    loop {
        interrupts_off();
        let is_done = done();
        if is_done || now_ms() > end {
            interrupts_on();
            return is_done;
        }
        interrupts_on_and_halt();
    }
}

/// Sleeps.
pub fn sleep(ms: u32) {
    let _ = wait(ms, || false);
}

/// How many inputs the IOAPIC has.
#[must_use]
pub fn ioapic_pins() -> u32 {
    (ioapic_read(1) >> 16 & 0xff) + 1
}

/// Routes an IOAPIC input to a vector of this CPU; level-triggered and active low (PCI), or an edge (ISA).
pub fn route(pin: u32, vector: u8, level: bool) {
    ioapic_write(0x11 + 2 * pin, u32::from(apic_id()) << 24);
    ioapic_write(0x10 + 2 * pin, u32::from(vector) | if level { 1 << 15 | 1 << 13 } else { 0 });
}

/// Masks an IOAPIC input.
pub fn mask(pin: u32) {
    ioapic_write(0x10 + 2 * pin, 1 << 16);
}

fn ioapic_read(register: u32) -> u32 {
    let base = acpi_ioapic();
    store(base, register);
    load(base + 0x10)
}

fn ioapic_write(register: u32, value: u32) {
    let base = acpi_ioapic();
    store(base, register);
    store(base + 0x10, value);
}

/// The IOAPIC's address, looked up once: a look-up walks the tables.
fn acpi_ioapic() -> u64 {
    static BASE: AtomicUsize = AtomicUsize::new(0);
    if BASE.load(Ordering::Relaxed) == 0 {
        BASE.store(acpi::ioapic() as usize, Ordering::Relaxed);
    }
    BASE.load(Ordering::Relaxed) as u64
}

/// Starts the PIT's counter 0 once (mode 0): its output rises after `ticks` of 838 ns (8254 datasheet).
pub fn pit_one_shot(ticks: u16) {
    out8(0x43, 0x30);
    out8(0x40, ticks as u8);
    out8(0x40, (ticks >> 8) as u8);
}

/// The PIT's counter 0, latched.
#[must_use]
pub fn pit_count() -> u16 {
    out8(0x43, 0);
    u16::from_le_bytes([in8(0x40), in8(0x40)])
}
