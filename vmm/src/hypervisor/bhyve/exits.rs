//! Exits as the run loop sees them: what has to be answered, what is nothing, and what ends the guest, by its name.

use super::abi::{self, vm_exit, vm_inout, vm_mmio};

/// What an exit asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Exit {
    /// A port access, to be fulfilled.
    Port(vm_inout),
    /// A memory access, to be fulfilled.
    Memory(vm_mmio),
    /// RDMSR of a register the kernel does not know.
    ReadMsr(u32),
    /// WRMSR of a register the kernel does not know.
    WriteMsr {
        /// The register.
        code: u32,
        /// The value.
        value: u64,
    },
    /// Nothing: a kick, a signal, or the kernel's own reasons.
    Nothing,
    /// A halted vCPU that came back all the same.
    Halt,
    /// A debugger holds the vCPU.
    Held,
    /// The VM is suspended, and stays so until a reset.
    Suspended {
        /// `VM_SUSPEND_*`.
        how: i32,
        /// The vCPU that did it, or -1.
        source: i32,
    },
    /// The guest cannot go on.
    Fatal(String),
}

impl From<&vm_exit> for Exit {
    fn from(exit: &vm_exit) -> Self {
        let at = exit.rip;
        let fatal = |what: String| Self::Fatal(format!("{what} at rip {at:#x}"));
        let unexpected = |name: &str| fatal(format!("unexpected exit {name}"));
        macro_rules! payload {
            ($member:ident) => {
                // SAFETY: every member of the union is made of integers, for which any bytes are good; the union was
                // zeroed before the kernel wrote the member that the code names.
                unsafe { exit.u.$member }
            };
        }
        match exit.exitcode {
            abi::VM_EXITCODE_INOUT => Self::Port(payload!(inout)),
            abi::VM_EXITCODE_MMIO => Self::Memory(payload!(mmio)),
            abi::VM_EXITCODE_RDMSR => Self::ReadMsr(payload!(msr).code),
            abi::VM_EXITCODE_WRMSR => {
                let msr = payload!(msr);
                Self::WriteMsr { code: msr.code, value: msr.wval }
            }
            abi::VM_EXITCODE_BOGUS | abi::VM_EXITCODE_PAUSE | abi::VM_EXITCODE_DEPRECATED2 => Self::Nothing,
            abi::VM_EXITCODE_HLT => Self::Halt,
            abi::VM_EXITCODE_DEBUG => Self::Held,
            abi::VM_EXITCODE_SUSPENDED => {
                let suspended = payload!(suspended);
                Self::Suspended { how: suspended.how, source: suspended.source }
            }
            abi::VM_EXITCODE_INST_EMUL => {
                let instruction = payload!(inst_emul);
                let known = usize::from(instruction.num_valid).min(instruction.inst.len());
                let bytes: String = instruction.inst[..known].iter().map(|byte| format!(" {byte:02x}")).collect();
                fatal(format!("the kernel cannot emulate the instruction{bytes}"))
            }
            abi::VM_EXITCODE_PAGING => {
                let paging = payload!(paging);
                let what = match paging.fault_type {
                    abi::VM_PROT_READ => "read",
                    abi::VM_PROT_WRITE => "write to",
                    abi::VM_PROT_EXECUTE => "run",
                    _ => "touch",
                };
                fatal(format!("the guest may not {what} the memory at {:#x}", paging.gpa))
            }
            abi::VM_EXITCODE_TASK_SWITCH => fatal("hardware task switches are not supported".to_owned()),
            abi::VM_EXITCODE_VMX => {
                let vmx = payload!(vmx);
                fatal(format!(
                    "the processor refused the guest: status {}, exit reason {:#x}, qualification {:#x}, instruction {} error {}",
                    vmx.status, vmx.exit_reason, vmx.exit_qualification, vmx.inst_type, vmx.inst_error
                ))
            }
            abi::VM_EXITCODE_SVM => {
                let svm = payload!(svm);
                fatal(format!(
                    "the processor refused the guest: exit code {:#x}, information {:#x} {:#x}",
                    svm.exitcode, svm.exitinfo1, svm.exitinfo2
                ))
            }
            // Only for who asked for it.
            abi::VM_EXITCODE_MTRAP => unexpected("MTRAP"),
            abi::VM_EXITCODE_BPT => unexpected("BPT"),
            // The kernel's own.
            abi::VM_EXITCODE_RUN_STATE => unexpected("RUN_STATE"),
            abi::VM_EXITCODE_MMIO_EMUL => unexpected("MMIO_EMUL"),
            abi::VM_EXITCODE_DEPRECATED => unexpected("DEPRECATED"),
            abi::VM_EXITCODE_IOAPIC_EOI => unexpected("IOAPIC_EOI"),
            abi::VM_EXITCODE_MONITOR => unexpected("MONITOR"),
            abi::VM_EXITCODE_MWAIT => unexpected("MWAIT"),
            abi::VM_EXITCODE_VMINSN => unexpected("VMINSN"),
            abi::VM_EXITCODE_HT => unexpected("HT"),
            code => fatal(format!("unknown exit {code}")),
        }
    }
}

#[cfg(test)]
mod tests {
    use zerocopy::FromZeros;

    use super::*;

    fn exit(code: i32) -> vm_exit {
        let mut exit = vm_exit::new_zeroed();
        (exit.exitcode, exit.rip) = (code, 0x1234);
        exit
    }

    #[test]
    fn every_exit_code_is_answered_or_refused_by_its_name() {
        for code in 0..abi::VM_EXITCODE_MAX {
            if let Exit::Fatal(line) = Exit::from(&exit(code)) {
                assert!(line.ends_with("at rip 0x1234"), "{line}");
                assert!(!line.starts_with("unknown"), "{code}: {line}");
            }
        }
        let unknown = Exit::from(&exit(abi::VM_EXITCODE_MAX));
        assert_eq!(unknown, Exit::Fatal("unknown exit 25 at rip 0x1234".to_owned()));
    }

    #[test]
    fn an_instruction_the_kernel_does_not_know_is_shown_byte_by_byte() {
        let mut raw = exit(abi::VM_EXITCODE_INST_EMUL);
        let mut inst = [0; 15];
        inst[..3].copy_from_slice(&[0x87, 0x03, 0x90]);
        raw.u.inst_emul = abi::vm_exit_inst_emul { inst, num_valid: 2 };
        let line = "the kernel cannot emulate the instruction 87 03 at rip 0x1234".to_owned();
        assert_eq!(Exit::from(&raw), Exit::Fatal(line));
        raw.u.inst_emul = abi::vm_exit_inst_emul { inst, num_valid: 200 };
        assert!(
            matches!(Exit::from(&raw), Exit::Fatal(_)),
            "a count beyond the bytes is no reason to read beyond them"
        );
    }

    #[test]
    fn a_write_to_a_rom_says_where_it_went() {
        let mut raw = exit(abi::VM_EXITCODE_PAGING);
        raw.u.paging = abi::vm_exit_paging { gpa: 0xfff0_0000, fault_type: abi::VM_PROT_WRITE, _pad0: [0; 4] };
        let line = "the guest may not write to the memory at 0xfff00000 at rip 0x1234".to_owned();
        assert_eq!(Exit::from(&raw), Exit::Fatal(line));
    }
}
