//! Whether the AVX state of a guest outlives its exits: every YMM register is filled, the guest is left for the
//! hypervisor and for the VMM, and the registers are read back.

use std::arch::asm;
use std::sync::Barrier;

use anyhow::{Context as _, ensure};

/// The 16 registers of 32 bytes.
type Registers = [[u8; 32]; 16];

/// Accesses of each kind between filling and reading.
const EXITS: u32 = 8;
/// Data port of the CMOS clock: reading it changes nothing, and is an exit to the VMM's own code.
const CMOS_DATA: u16 = 0x71;

/// Runs `rounds` on each of `cpus` CPUs at the same time.
pub fn run(cpus: usize, rounds: u32) -> anyhow::Result<()> {
    ensure!(std::is_x86_feature_detected!("avx"), "this CPU has no AVX, or the kernel does not use it");
    let start = Barrier::new(cpus);
    std::thread::scope(|scope| {
        let start = &start;
        let spawn = |cpu| scope.spawn(move || (start.wait(), on(cpu, rounds)).1);
        let threads: Vec<_> = (0..cpus).map(|cpu| (cpu, spawn(cpu))).collect();
        threads.into_iter().try_for_each(|(cpu, thread)| match thread.join() {
            Ok(result) => result.with_context(|| format!("CPU {cpu}")),
            Err(_) => anyhow::bail!("CPU {cpu}: the thread panicked"),
        })
    })?;
    println!("{rounds} rounds on {cpus} CPUs left all YMM registers as they were");
    Ok(())
}

fn on(cpu: usize, rounds: u32) -> anyhow::Result<()> {
    // SAFETY: a CPU set is plain bits, all zero is the empty set; the call reads it only.
    let pinned = unsafe {
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        libc::CPU_SET(cpu, &mut set);
        libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), &set)
    };
    ensure!(pinned == 0, "cannot run there: {}", std::io::Error::last_os_error());
    // SAFETY: gives this thread access to one port.
    let permitted = unsafe { libc::ioperm(CMOS_DATA.into(), 1, 1) };
    ensure!(permitted == 0, "cannot use port {CMOS_DATA:#x}: {}", std::io::Error::last_os_error());
    for round in 0..rounds {
        let filled = pattern(cpu as u8, round as u8);
        let found = through_exits(&filled);
        for (n, (filled, found)) in filled.iter().zip(&found).enumerate() {
            ensure!(filled == found, "round {round}: ymm{n} held {filled:02x?}, then {found:02x?}");
        }
    }
    Ok(())
}

/// Different in every register, byte, round and CPU.
fn pattern(cpu: u8, round: u8) -> Registers {
    let byte = |n: usize, at: usize| (n * 32 + at) as u8 ^ cpu.wrapping_mul(0x55) ^ round.wrapping_mul(29) ^ (n as u8);
    std::array::from_fn(|n| std::array::from_fn(|at| byte(n, at)))
}

/// Loads all registers, makes exits, stores all registers.
fn through_exits(filled: &Registers) -> Registers {
    let mut found = [[0; 32]; 16];
    // SAFETY: reads 512 bytes of `filled`, writes 512 bytes of `found`; RBX, which CPUID overwrites, is restored; AVX and
    // the permission for the port were checked by the callers.
    unsafe {
        asm!(
            "mov r9, rbx",
            "vmovdqu ymm0, [rsi]",
            "vmovdqu ymm1, [rsi + 0x20]",
            "vmovdqu ymm2, [rsi + 0x40]",
            "vmovdqu ymm3, [rsi + 0x60]",
            "vmovdqu ymm4, [rsi + 0x80]",
            "vmovdqu ymm5, [rsi + 0xa0]",
            "vmovdqu ymm6, [rsi + 0xc0]",
            "vmovdqu ymm7, [rsi + 0xe0]",
            "vmovdqu ymm8, [rsi + 0x100]",
            "vmovdqu ymm9, [rsi + 0x120]",
            "vmovdqu ymm10, [rsi + 0x140]",
            "vmovdqu ymm11, [rsi + 0x160]",
            "vmovdqu ymm12, [rsi + 0x180]",
            "vmovdqu ymm13, [rsi + 0x1a0]",
            "vmovdqu ymm14, [rsi + 0x1c0]",
            "vmovdqu ymm15, [rsi + 0x1e0]",
            "2:",
            "xor eax, eax",
            "xor ecx, ecx",
            // An exit to the hypervisor ...
            "cpuid",
            // ... and one to the VMM.
            "in al, {port}",
            "dec r8d",
            "jnz 2b",
            "vmovdqu [rdi], ymm0",
            "vmovdqu [rdi + 0x20], ymm1",
            "vmovdqu [rdi + 0x40], ymm2",
            "vmovdqu [rdi + 0x60], ymm3",
            "vmovdqu [rdi + 0x80], ymm4",
            "vmovdqu [rdi + 0xa0], ymm5",
            "vmovdqu [rdi + 0xc0], ymm6",
            "vmovdqu [rdi + 0xe0], ymm7",
            "vmovdqu [rdi + 0x100], ymm8",
            "vmovdqu [rdi + 0x120], ymm9",
            "vmovdqu [rdi + 0x140], ymm10",
            "vmovdqu [rdi + 0x160], ymm11",
            "vmovdqu [rdi + 0x180], ymm12",
            "vmovdqu [rdi + 0x1a0], ymm13",
            "vmovdqu [rdi + 0x1c0], ymm14",
            "vmovdqu [rdi + 0x1e0], ymm15",
            "vzeroupper",
            "mov rbx, r9",
            port = const CMOS_DATA,
            in("rsi") filled.as_ptr(),
            in("rdi") found.as_mut_ptr(),
            inout("r8d") EXITS => _,
            out("r9") _, out("rax") _, out("rcx") _, out("rdx") _,
            out("ymm0") _, out("ymm1") _, out("ymm2") _, out("ymm3") _,
            out("ymm4") _, out("ymm5") _, out("ymm6") _, out("ymm7") _,
            out("ymm8") _, out("ymm9") _, out("ymm10") _, out("ymm11") _,
            out("ymm12") _, out("ymm13") _, out("ymm14") _, out("ymm15") _,
            options(nostack),
        );
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_two_registers_rounds_or_cpus_have_the_same_pattern() {
        let first = pattern(0, 0);
        assert!((1..16).all(|n| first[n] != first[0]));
        assert_ne!(first, pattern(0, 1));
        assert_ne!(first, pattern(1, 0));
    }
}
