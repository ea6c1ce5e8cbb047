//! Kernels, initrds and command lines that cannot be booted. `check-config` refuses them on any machine, `run` on those
//! with a hypervisor, both before there is guest memory.

use std::fs;

use crate::process::{Outcome, Place, zvmm};

/// Where the code of the good kernels is, in the file and in memory.
const OFFSET: u64 = 0x1000;
const ADDRESS: u64 = 0x10_0000;

/// `file_offset, address, file_bytes, memory_bytes` of a segment to load.
type Segment = (u64, u64, u64, u64);

const GOOD: Segment = (OFFSET, ADDRESS, 0x1000, 0x2000);

/// An ELF kernel (System V ABI, ELF-64 object file format).
pub fn elf(entry: u64, segments: &[Segment]) -> Vec<u8> {
    let mut file = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0".to_vec();
    let count = u16::try_from(segments.len()).expect("few segments");
    file.extend([2_u16, 62].iter().flat_map(|half| half.to_le_bytes()));
    file.extend(1_u32.to_le_bytes());
    file.extend([entry, 64, 0].iter().flat_map(|word| word.to_le_bytes()));
    file.extend(0_u32.to_le_bytes());
    file.extend([64_u16, 56, count, 64, 0, 0].iter().flat_map(|half| half.to_le_bytes()));
    for (offset, address, file_bytes, memory_bytes) in segments {
        file.extend([1_u32, 5].iter().flat_map(|half| half.to_le_bytes()));
        let words = [*offset, *address, *address, *file_bytes, *memory_bytes, 0x1000];
        file.extend(words.iter().flat_map(|word| word.to_le_bytes()));
    }
    file.resize(0x2000, 0xf4);
    file
}

/// A kernel that nothing is wrong with.
pub fn good_elf() -> Vec<u8> {
    elf(ADDRESS, &[GOOD])
}

fn put(file: &mut [u8], at: usize, bytes: &[u8]) {
    file[at..at + bytes.len()].copy_from_slice(bytes);
}

/// A bzImage (Linux `Documentation/arch/x86/boot.rst`) with one change: where, and the bytes.
fn bzimage(at: usize, bytes: &[u8]) -> Vec<u8> {
    let mut file = vec![0; 0x400 + 0x1000];
    put(&mut file, 0x1f1, &[1]);
    put(&mut file, 0x1f4, &0x100_u32.to_le_bytes());
    put(&mut file, 0x1fe, &[0x55, 0xaa, 0xeb, 0x66]);
    put(&mut file, 0x202, b"HdrS\x0f\x02");
    put(&mut file, 0x211, &[1]);
    put(&mut file, 0x22c, &0x7fff_ffff_u32.to_le_bytes());
    put(&mut file, 0x230, &0x20_0000_u32.to_le_bytes());
    put(&mut file, 0x234, &[1]);
    put(&mut file, 0x236, &3_u16.to_le_bytes());
    put(&mut file, 0x238, &2047_u32.to_le_bytes());
    put(&mut file, 0x258, &0x100_0000_u64.to_le_bytes());
    put(&mut file, 0x260, &0x10_0000_u32.to_le_bytes());
    put(&mut file, at, bytes);
    file
}

fn good_bzimage() -> Vec<u8> {
    bzimage(0, &[])
}

/// Whether a hypervisor is there; its absence is printed.
///
/// # Panics
/// When it was meant to be: a test that cannot run must not look like one that passed.
pub fn has_kvm() -> bool {
    let Err(error) = fs::File::options().read(true).write(true).open("/dev/kvm") else { return true };
    assert!(std::env::var_os("ZVMM_GUESTS").is_none(), "/dev/kvm does not open: {error}");
    println!("SKIP: /dev/kvm does not open: {error}");
    false
}

fn both_ways(place: &Place, more: &[&str]) -> Vec<(&'static str, Outcome)> {
    let options = place.options(more);
    let mut options: Vec<&str> = options.iter().map(String::as_str).collect();
    let mut outcomes = Vec::new();
    for (command, before) in [("check-config", "zvmm: configuration: "), ("run", "zvmm: ")] {
        if command == "check-config" || has_kvm() {
            options[0] = command;
            outcomes.push((before, zvmm(&options)));
        }
    }
    outcomes
}

/// Both commands refuse the place's `vmlinuz` with these options, in one line that ends like this.
#[track_caller]
fn refused(place: &Place, more: &[&str], line: &str) {
    for (before, outcome) in both_ways(place, more) {
        let line = format!("{before}kernel {}: {line}\n", place.text("vmlinuz"));
        assert_eq!((outcome.status, outcome.errors), (Some(2), line));
    }
}

#[test]
fn good_kernels_are_called_good_and_run_as_far_as_guest_memory() {
    let place = Place::new();
    for kernel in [good_elf(), good_bzimage()] {
        fs::write(place.path("vmlinuz"), kernel).expect("a file");
        for (before, outcome) in
            both_ways(&place, &["--initrd=@initrd.img", "--cmdline=console=ttyS0", "--disk=@root.img"])
        {
            if before == "zvmm: " {
                // What every refusal of these tests would look like if it came too late.
                assert_eq!(outcome.status, Some(4), "{outcome:?}");
                assert!(
                    outcome.errors.starts_with("zvmm: memory: cannot map 512 MiB of guest memory: "),
                    "{outcome:?}"
                );
            } else {
                assert_eq!((outcome.status, outcome.errors.as_str()), (Some(0), ""));
            }
        }
    }
}

#[test]
fn files_that_are_no_kernel_or_end_too_early_are_refused() {
    let place = Place::new();
    let good = good_elf();
    for (kernel, line) in [
        (vec![0; 4096], "the kernel is neither a bzImage nor an ELF file"),
        (b"k".to_vec(), "the kernel is neither a bzImage nor an ELF file: it is too short to be a kernel"),
        (good[..40].to_vec(), "the kernel file is truncated: the ELF header ends at byte 64, the file has 40"),
        (
            good[..100].to_vec(),
            "the kernel file is truncated: the program header table ends at byte 120, the file has 100",
        ),
        (good[..0x1800].to_vec(), "the kernel file is truncated: an ELF segment ends at byte 8192, the file has 6144"),
        (
            good_bzimage()[..0x800].to_vec(),
            "the kernel file is truncated: the protected-mode code ends at byte 5120, the file has 2048",
        ),
    ] {
        fs::write(place.path("vmlinuz"), kernel).expect("a file");
        refused(&place, &[], line);
    }
}

#[test]
fn hostile_elf_files_are_refused() {
    let place = Place::new();
    let (offset, address, file_bytes, memory_bytes) = GOOD;
    let max = u64::MAX;
    for (entry, segments, line) in [
        (0x4000, &[GOOD][..], "the kernel's entry point 0x4000 lies outside its loaded segments"),
        (address + file_bytes, &[GOOD], "the kernel's entry point 0x101000 lies outside its loaded segments"),
        (
            address,
            &[GOOD, (offset, address + 0x1000, 0x1000, 0x1000)],
            "the kernel's segments overlap at physical address 0x101000",
        ),
        (address, &[GOOD, GOOD], "the kernel's segments overlap at physical address 0x100000"),
        (
            address,
            &[(offset, max - 0xfff, 0x1000, 0x2000)],
            "the kernel file is corrupt: offset and size of an ELF segment in memory wrap around",
        ),
        (
            address,
            &[(max - 0xfff, address, 0x1001, 0x2000)],
            "the kernel file is corrupt: offset and size of an ELF segment in the file wrap around",
        ),
        (
            address,
            &[(offset, address, 0x1000, 0xfff)],
            "the kernel file is corrupt: an ELF segment is larger in the file than in memory",
        ),
        (
            address,
            &[(offset, address, file_bytes, max - address)],
            "the kernel needs memory up to 0xffffffffffffffff, but kernels have to fit below 3 GiB",
        ),
        (
            address,
            &[(offset, address, file_bytes, 1 << 30)],
            "the kernel needs memory up to 0x40100000, but low memory ends at 0x20000000: give the guest at least 1025M",
        ),
        (
            0,
            &[(offset, 0, file_bytes, memory_bytes)],
            "the kernel wants to be loaded at 0x0: nothing can be loaded below 1 MiB",
        ),
        (address, &[], "the kernel file is corrupt: the ELF has no segment to load"),
    ] {
        fs::write(place.path("vmlinuz"), elf(entry, segments)).expect("a file");
        refused(&place, &[], line);
    }
}

#[test]
fn hostile_bzimages_are_refused() {
    let place = Place::new();
    for (at, bytes, line) in [
        (
            0x206,
            &[0x0b, 2][..],
            "the kernel cannot run on this machine: its boot protocol is older than 2.12 (Linux 3.8)",
        ),
        (0x236, &[0, 0], "the kernel cannot run on this machine: it is a 32-bit kernel without a 64-bit entry point"),
        (0x1f4, &[0; 4], "the kernel file is corrupt: the bzImage has no protected-mode code"),
        (
            0x1f4,
            &[0xff; 4],
            "the kernel file is truncated: the protected-mode code ends at byte 68719477744, the file has 5120",
        ),
        (
            0x248,
            &[0xff; 8],
            "the kernel file is truncated: the compressed payload ends at byte 8589935614, the file has 5120",
        ),
        (0x260, &[0; 4], "the kernel file is corrupt: init_size is smaller than the kernel itself"),
        (0x230, &[3, 0, 0, 0], "the kernel file is corrupt: kernel_alignment is not a power of two"),
        (0x258, &[0xff; 8], "the kernel file is corrupt: offset and size of the load address wrap around"),
        (0x258, &[0; 8], "the kernel wants to be loaded at 0x0: nothing can be loaded below 1 MiB"),
        (
            0x260,
            &[0, 0, 0, 0x30],
            "the kernel needs memory up to 0x31000000, but low memory ends at 0x20000000: give the guest at least 784M",
        ),
        (0x260, &[0xff; 4], "the kernel needs memory up to 0x100ffffff, but kernels have to fit below 3 GiB"),
    ] {
        fs::write(place.path("vmlinuz"), bzimage(at, bytes)).expect("a file");
        refused(&place, &[], line);
    }
}

#[test]
fn an_initrd_that_does_not_fit_beside_the_kernel_is_refused() {
    let place = Place::new();
    // Less than all of the memory, more than what the kernel leaves.
    let big = fs::File::create(place.path("initrd.img")).expect("a file");
    big.set_len((512 << 20) - 4096).expect("a size");
    refused(
        &place,
        &["--initrd=@initrd.img"],
        "the initrd of 536866816 bytes does not fit: 535814144 bytes are free between the kernel and 0x20000000, the end \
         of memory the kernel can take it from",
    );
}

#[test]
fn a_command_line_beyond_the_kernels_limit_is_refused() {
    let place = Place::new();
    for kernel in [good_elf(), good_bzimage()] {
        fs::write(place.path("vmlinuz"), kernel).expect("a file");
        refused(
            &place,
            &["--cmdline", &"a".repeat(2048)],
            "the kernel command line has 2048 bytes, this kernel takes at most 2047",
        );
    }
}
