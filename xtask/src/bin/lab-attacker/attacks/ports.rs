//! What a PC has at its ports, at every width, short of what turns it off or resets it.

use anyhow::Context as _;

use crate::attacks_list::MachineAttack;
use crate::check;
use crate::device::{Trouble, Verdict, kind_of};
use crate::machine::{read_port, write_port};
use crate::pci::Function;

const WIDTHS: [usize; 3] = [1, 2, 4];

/// Makes one attack.
///
/// # Errors
/// When something reacts in a way it must not. That the machine is alive is for the caller to find out.
pub fn run(functions: &[Function], attack: MachineAttack) -> Verdict {
    match attack {
        MachineAttack::Keyboard => keyboard(),
        MachineAttack::Rtc => rtc(),
        MachineAttack::Port92 => port_92(),
        MachineAttack::Com => com(),
        MachineAttack::Pci => pci_ports(),
        MachineAttack::Pm => pm(),
        MachineAttack::Smi => smi_post_debug(),
        MachineAttack::Absent => absent(functions),
        MachineAttack::Chipset => chipset(functions),
    }
}

/// Commands that pulse or write the output port reset the processor: those are use, not abuse.
fn keyboard_command_resets(command: u8) -> bool {
    command == 0xd1 || command >= 0xf0
}

/// A port range at every width, reads only.
fn look(ports: impl Iterator<Item = u16> + Clone) {
    for width in WIDTHS {
        for port in ports.clone() {
            read_port(port, width);
        }
    }
}

fn keyboard() -> Verdict {
    look([0x60, 0x61, 0x64].into_iter());
    for command in (0..=u8::MAX).filter(|command| !keyboard_command_resets(*command)) {
        write_port(0x64, 1, command.into());
        read_port(0x64, 1);
        read_port(0x60, 1);
    }
    // A wide write reaches 0x64 with its last byte at the most: that one is a harmless command.
    for value in [0x00, 0x5a, 0xa7, 0xae] {
        write_port(0x60, 1, value);
        write_port(0x60, 2, value << 8 | value);
        write_port(0x60, 4, value);
        write_port(0x64, 2, value << 8 | 0xae);
        write_port(0x64, 4, value << 16 | 0xae);
    }
    // As firmware leaves it.
    write_port(0x64, 1, 0x60);
    write_port(0x60, 1, 0x47);
    for _ in 0..64 {
        read_port(0x60, 1);
    }
    Ok(())
}

fn rtc() -> Verdict {
    look(0x70..0x74);
    for index in 0..=u8::MAX {
        write_port(0x70, 1, index.into());
        let before = read_port(0x71, 1);
        // The clock and its control registers are put back; the rest of the memory is any program's.
        for value in [0xff, 0x00, 0x5a] {
            write_port(0x70, 1, index.into());
            write_port(0x71, 1, value);
            read_port(0x71, 1);
        }
        write_port(0x70, 2, before << 8 | u32::from(index));
        write_port(0x70, 1, index.into());
        write_port(0x71, 1, before);
    }
    for value in [0, u32::MAX, 0x5a5a_5a5a] {
        write_port(0x70, 4, value);
        write_port(0x71, 2, value);
        write_port(0x71, 4, value);
    }
    // No periodic interrupt, and the usual format.
    for (index, value) in [(0x0a, 0x26), (0x0b, 0x02)] {
        write_port(0x70, 1, index);
        write_port(0x71, 1, value);
    }
    write_port(0x70, 1, 0x0c);
    read_port(0x71, 1);
    Ok(())
}

fn port_92() -> Verdict {
    look(0x92..0x93);
    // Bit 0 resets. A20 off (bit 1) would take this program's memory from under it on a machine that obeys.
    for value in [0x02, 0xfe, 0x5a] {
        write_port(0x92, 1, value);
        write_port(0x92, 2, value);
        write_port(0x92, 4, value);
    }
    write_port(0x92, 1, 0x02);
    Ok(())
}

/// COM1 carries the verdicts: it is put back, and gets no byte to send.
fn com() -> Verdict {
    // What the kernel still has to send would go to the divisor, sent from the other CPU.
    // SAFETY: waits, and touches no memory.
    let drained = unsafe { libc::tcdrain(libc::STDOUT_FILENO) };
    check!(drained == 0, "the console does not drain: {}", std::io::Error::last_os_error());
    for base in [0x3f8_u16, 0x2f8, 0x3e8, 0x2e8] {
        let line = read_port(base + 3, 1);
        let (enabled, modem) = (read_port(base + 1, 1), read_port(base + 4, 1));
        if line == 0xff && enabled == 0xff {
            // Nobody is there, whatever is written.
            for width in WIDTHS {
                for port in base..base + 8 {
                    write_port(port, width, u32::MAX);
                }
            }
            continue;
        }
        // With the divisor in front of the data register nothing is sent. The kernel must not get a word in.
        write_port(base + 1, 1, 0);
        write_port(base + 3, 1, 0x80 | line);
        let divisor = read_port(base, 2);
        for width in WIDTHS {
            for value in [0xffff_ffff, 0x9090_9090] {
                write_port(base, width, value & 0xffff);
                write_port(base + 1, width, value & if width == 4 { 0xffff } else { 0xff });
                write_port(base + 2, width.min(2), value & 0xff | 0x8000);
                write_port(base + 4, width, value);
                write_port(base + 5, width, value);
                write_port(base + 6, width, value);
                write_port(base + 7, width, value);
            }
            for port in base..base + 8 {
                read_port(port, width);
            }
        }
        write_port(base + 3, 1, 0x80 | line);
        write_port(base, 2, divisor);
        write_port(base + 3, 1, line);
        write_port(base + 2, 1, 0x07);
        write_port(base + 2, 1, 0x01);
        write_port(base + 4, 1, modem);
        write_port(base + 1, 1, enabled);
    }
    Ok(())
}

/// The address and the data port at every width. A byte to 0xCF9 is the reset register: bit 2 resets.
fn pci_ports() -> Verdict {
    look(0xcf8..0xd00);
    for value in [0x8000_0000_u32, 0xffff_ffff, 0x80ff_fffc, 0, 0x8000_f8ff] {
        write_port(0xcf8, 4, value);
        let read = read_port(0xcf8, 4);
        check!(read & !value == 0, "{value:#x} was written to 0xcf8, and {read:#x} reads back");
        look(0xcfc..0xd00);
        for port in [0xcf8, 0xcfa, 0xcfb] {
            write_port(port, 1, value);
        }
        write_port(0xcfa, 2, value);
        write_port(0xcf9, 1, value & !0x04 & 0xf0);
        write_port(0xcf8, 2, value & !0xff00);
    }
    // Data of a function that does not exist.
    write_port(0xcf8, 4, 0x80ff_ff00);
    for width in WIDTHS {
        for port in 0xcfc..0xd00 {
            write_port(port, width, u32::MAX);
        }
    }
    Ok(())
}

/// Power management as the FADT shows it (ACPI 6.5 §5.2.9): all but the bit that puts the machine to sleep.
fn pm() -> Verdict {
    let fadt = std::fs::read("/sys/firmware/acpi/tables/FACP").context("no FADT");
    let fadt = fadt.map_err(|error| Trouble::Fail(format!("{error:#}")))?;
    let dword = |at: usize| fadt.get(at..at + 4).map_or(0, |b| u32::from_le_bytes([b[0], b[1], b[2], b[3]]));
    let [event, control, timer, gpe] = [56, 64, 76, 80].map(|at| dword(at) as u16);
    if event == 0 {
        return Ok(());
    }
    look(event..event + 16);
    let enabled = read_port(event + 2, 2);
    let before = read_port(control, 2);
    for value in [0xffff, 0, 0x5a5a] {
        write_port(event, 2, value);
        write_port(event, 1, value);
        write_port(event + 1, 1, value);
        write_port(event + 2, 2, value & !0x101);
        write_port(event, 4, value & 0xffff);
        // SLP_EN is bit 13; SCI_EN, bit 0, stays: without it the kernel hears no power button.
        write_port(control, 2, value & !0x2000 | 1);
        write_port(control, 1, value | 1);
        write_port(control + 1, 1, value & 0x1f);
        write_port(control, 4, value & !0x2000 | 1);
    }
    write_port(control, 2, before);
    write_port(event, 2, 0xffff);
    write_port(event + 2, 2, enabled);
    if timer != 0 {
        for width in WIDTHS {
            write_port(timer, width, u32::MAX);
        }
        look(timer..timer + 4);
    }
    if gpe != 0 {
        look(gpe..gpe + 4);
        for width in WIDTHS {
            write_port(gpe, width, u32::MAX >> 16);
            write_port(gpe, width, 0);
        }
    }
    Ok(())
}

/// The POST port, the debug ports of Bochs and of firmware, and ports where nobody is.
fn smi_post_debug() -> Verdict {
    for port in [0x80_u16, 0xe9, 0x402, 0x510, 0x511, 0x1234, 0xfffc] {
        for width in WIDTHS {
            read_port(port, width);
            write_port(port, width, 0x5a5a_5a5a);
        }
    }
    Ok(())
}

/// Functions that do not exist read as all ones, on every bus, and take every write.
fn absent(functions: &[Function]) -> Verdict {
    let taken = |selector: u32| functions.iter().any(|function| function.selector == selector);
    for bus in [0, 1, 0x7f, 0xff] {
        for devfn in (0..=0xff_u32).step_by(if bus == 0 { 1 } else { 17 }) {
            let selector = 1 << 31 | bus << 16 | devfn << 8;
            if taken(selector) {
                continue;
            }
            write_port(0xcf8, 4, selector);
            let id = read_port(0xcfc, 4);
            check!(id == u32::MAX, "function {selector:#x} reads {id:#x}");
            write_port(0xcfc, 4, 0);
        }
    }
    Ok(())
}

/// Configuration space of what is not virtio, at every width: each register gets its own value again.
fn chipset(functions: &[Function]) -> Verdict {
    for function in functions.iter().filter(|function| kind_of(function).is_none()) {
        let id = function.id();
        for offset in 0..0x100 {
            for width in WIDTHS {
                let value = function.read_by_port(offset, width);
                function.write_by_port(offset, width, value);
            }
        }
        // Read-only and reserved registers.
        for offset in [0x00, 0x08, 0x0c, 0x2c, 0x30, 0x34, 0xf8, 0xfc] {
            for width in WIDTHS {
                function.write_by_port(offset, width, u32::MAX);
            }
        }
        check!(function.id() == id, "the id {id:x?} of {} could be written", function.name);
    }
    Ok(())
}
