//! What a guest's kernel warns about, and what of it our machine must answer for: everything that qemu's q35 machine does
//! not make the same kernel say, and that no emulated host is to blame for.

use std::collections::BTreeSet;

/// A warning about the host being slow, whatever machine the guest sees.
pub struct Slow {
    /// How the normalised line begins.
    pub line: &'static str,
    /// Why it says nothing about our machine.
    pub why: &'static str,
    /// A machine of ours that is wrong makes every guest say it; a slow host, one in a lane.
    pub rare: bool,
}

/// The emulated host runs a guest's vCPUs in turn on one thread, fifty times slower than a real one.
const SLOW_HOST: [Slow; 13] = [
    Slow {
        line: "hrtimer: interrupt took # ns",
        why: "the vCPU was off the host's CPU while its timer was handled",
        rare: false,
    },
    Slow {
        line: "clocksource: timekeeping watchdog on CPU#: ",
        why: "two clocks could not be read together, because the vCPU left the host's CPU between the two readings",
        rare: false,
    },
    Slow { line: "clocksource: '", why: "the readings that belong to the line of the watchdog", rare: false },
    Slow { line: "clocksource: Clocksource '", why: "the difference that belongs to that line", rare: false },
    Slow {
        line: "clocksource: Long readout interval, skipping watchdog check",
        why: "the watchdog's timer ran late by more than it tolerates",
        rare: false,
    },
    Slow {
        line: "APIC calibration not consistent with PM-Timer: # instead of #",
        why: "timer interrupts came late while two clocks were compared",
        rare: false,
    },
    Slow {
        line: "tsc: Unable to calibrate against PIT",
        why: "the vCPU lost the host's CPU in each of three measurements; without KVM's clock only",
        rare: false,
    },
    Slow {
        line: "tsc: HPET/PMTIMER calibration failed",
        why: "the same for the other clocks it measures against",
        rare: false,
    },
    Slow {
        line: "Unstable clock detected, switching default tracing clock to \"global\"",
        why: "follows from a watchdog that marked the TSC",
        rare: false,
    },
    Slow {
        line: "If you want to keep using the local clock, then add:",
        why: "second line of the message about the tracing clock",
        rare: false,
    },
    Slow { line: "\"trace_clock=local\"", why: "third line of that message", rare: false },
    Slow { line: "on the kernel command line", why: "fourth line of that message", rare: false },
    Slow {
        line: "..MP-BIOS bug: # timer not connected to IO-APIC",
        why: "the vCPU was off the host's CPU for the time in which four ticks were to come",
        rare: true,
    },
];

/// The lines of `dmesg -r` without level, time, numbers and addresses, each once.
#[must_use]
pub fn normalised(text: &str) -> BTreeSet<String> {
    text.lines().filter_map(normalise).collect()
}

/// The warnings in `said` (as a guest printed them) that are neither in the control's nor the slow host's fault, as they
/// were printed.
#[must_use]
pub fn unexplained<'a>(said: &'a str, control: &BTreeSet<String>) -> Vec<&'a str> {
    let explained = |line: &str| normalise(line).is_none_or(|line| control.contains(&line) || slow(&line).is_some());
    said.lines().filter(|line| !explained(line)).collect()
}

/// The warnings in `said` that are the slow host's fault, each with the reason.
#[must_use]
pub fn excused(said: &str) -> Vec<(&str, &'static Slow)> {
    said.lines().filter_map(|line| Some((line, slow(&normalise(line)?)?))).collect()
}

/// Whether of `guests` guests so many were excused for something rare that the host is no excuse any more.
#[must_use]
pub const fn too_often(excused: usize, guests: usize) -> bool {
    excused > 1 + guests / 32
}

fn slow(normal: &str) -> Option<&'static Slow> {
    SLOW_HOST.iter().find(|slow| normal.starts_with(slow.line))
}

/// One line without what differs from boot to boot; `None` when it is no message.
fn normalise(line: &str) -> Option<String> {
    let (_, rest) = line.trim().strip_prefix('<')?.split_once('>')?;
    let text = match rest.trim_start().strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((_time, text)) => text,
        None => rest,
    };
    let mut normal = String::new();
    let mut word = String::new();
    for letter in text.trim().chars() {
        if letter.is_ascii_alphanumeric() {
            word.push(letter);
        } else {
            push_word(&mut normal, &word);
            word.clear();
            // Columns are as wide as their numbers.
            if letter != ' ' || !normal.ends_with(' ') {
                normal.push(letter);
            }
        }
    }
    push_word(&mut normal, &word);
    (!normal.is_empty()).then_some(normal)
}

/// A number becomes `#`, decimal or hexadecimal; in a name (`eth0`) only its digits do.
fn push_word(normal: &mut String, word: &str) {
    let address = word.len() >= 8 && word.bytes().all(|byte| byte.is_ascii_hexdigit());
    if address || word.starts_with(|first: char| first.is_ascii_digit()) {
        normal.push('#');
        return;
    }
    let mut in_number = false;
    for letter in word.chars() {
        let digit = letter.is_ascii_digit();
        match (digit, in_number) {
            (true, true) => {}
            (true, false) => normal.push('#'),
            (false, _) => normal.push(letter),
        }
        in_number = digit;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SAID: &str = "<4>[    1.298985] amd_pstate: the _CPC object is not present in SBIOS or ACPI disabled\n\
        <3>[    0.803291] pci 0000:00:1f.0: BAR 13: no space for [io  size 0x1000]\n\n\
        <4>[    2.290414] hrtimer: interrupt took 19732593 ns\n";

    #[test]
    fn numbers_addresses_levels_and_times_make_no_difference() {
        let one = normalised("<4>[    0.1] pci   0000:00:01.0: BAR at 0xfe000000, ffffffff81000000+0x10, eth0 irq 11");
        let other = normalised("<3>[12345.678901] pci 0000:00:1f.3: BAR at 0xe8, ffffffffb8a73744+0x2c0, eth17 irq 9");
        assert_eq!(one, other);
        assert_eq!(one.first().unwrap(), "pci #:#:#.#: BAR at #, #+#, eth# irq #");
    }

    #[test]
    fn words_make_a_difference() {
        assert_ne!(normalised("<4>[ 0.1] vda: read error 5"), normalised("<4>[ 0.1] vda: write error 5"));
        assert_ne!(normalised("<4>[ 0.1] face to face"), normalised("<4>[ 0.1] cafe to face"));
    }

    #[test]
    fn what_q35_says_too_and_what_a_slow_host_causes_is_explained_and_nothing_else() {
        let control = normalised("<4>[ 9.9] amd_pstate: the _CPC object is not present in SBIOS or ACPI disabled");
        let unexplained = unexplained(SAID, &control);
        assert_eq!(unexplained, ["<3>[    0.803291] pci 0000:00:1f.0: BAR 13: no space for [io  size 0x1000]"]);
        assert_eq!(super::unexplained(SAID, &BTreeSet::new()).len(), 2);
        assert!(super::unexplained(SAID, &normalised(SAID)).is_empty());
        assert_eq!(excused(SAID).len(), 1);
    }

    #[test]
    fn more_than_the_level_is_needed_to_be_a_message() {
        assert!(normalised("\n  \nsomething else\n<4>[ 0.1] \n").is_empty());
        assert_eq!(normalised("<4>no time").len(), 1);
    }

    #[test]
    fn what_is_rare_is_excused_in_one_guest_of_a_lane_and_in_a_second_one_of_many() {
        assert!(!too_often(0, 1) && !too_often(1, 1) && !too_often(1, 24));
        assert!(too_often(2, 24) && !too_often(2, 48) && too_often(3, 48));
    }

    /// As kernels print them.
    const EXCUSED: &str = "<4>[    2.290414] hrtimer: interrupt took 19732593 ns\n\
        <4>[    0.894211] APIC calibration not consistent with PM-Timer: 98ms instead of 100ms\n\
        <4>[    0.144000] tsc: Unable to calibrate against PIT\n\
        <4>[    0.144000] tsc: HPET/PMTIMER calibration failed\n\
        <4>[    1.1] clocksource: timekeeping watchdog on CPU0: Marking clocksource 'tsc' as unstable because the skew \
            is too large:\n\
        <4>[    1.1] clocksource:                       'acpi_pm' wd_nsec: 507 wd_now: 2b wd_last: 8a mask: ffffff\n\
        <4>[    1.1] clocksource:                       Clocksource 'tsc' skewed 95 ns (0 ms) over watchdog\n\
        <4>[    1.2] clocksource: Long readout interval, skipping watchdog check: cs_nsec: 12 wd_nsec: 17\n\
        <4>[    4.804457] Unstable clock detected, switching default tracing clock to \"global\"\n\
        <4>[    4.804457] If you want to keep using the local clock, then add:\n\
        <4>[    4.804457]   \"trace_clock=local\"\n\
        <4>[    4.804457] on the kernel command line\n\
        <3>[    0.000000] ..MP-BIOS bug: 8254 timer not connected to IO-APIC\n";

    #[test]
    fn every_exception_is_of_a_line_that_kernels_print_and_those_lines_are_all_excused() {
        assert!(unexplained(EXCUSED, &BTreeSet::new()).is_empty());
        let lines = normalised(EXCUSED);
        for slow in &SLOW_HOST {
            assert!(lines.iter().any(|line| line.starts_with(slow.line)), "{}", slow.line);
        }
        assert_eq!(lines.len(), SLOW_HOST.len());
    }

    /// An entry with a digit in it would never match; one that begins like a kernel's complaint about us would hide it.
    #[test]
    fn every_exception_is_written_as_lines_are_compared_and_says_why() {
        for slow in &SLOW_HOST {
            assert_eq!(normalise(&format!("<4>[ 1.0] {}", slow.line)).as_deref(), Some(slow.line.trim_end()));
            assert!(slow.line.len() > 12 && slow.why.len() > 20, "{}", slow.line);
        }
    }
}
