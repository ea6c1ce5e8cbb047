//! Every command of the driver: what it takes, where it goes, and what Linux calls it.

use zvmm::hypervisor::illumos_kvm::abi::{self, *};

/// The argument of a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Arg {
    /// None: the driver wants 0.
    None,
    /// A number.
    Value,
    /// A pointer to this many bytes.
    Bytes(usize),
    /// A pointer to 8 bytes that begin with a count, and as many entries of this size.
    Table(usize),
    /// A length, and as many bytes as it says.
    SignalMask,
}

/// The descriptors that take a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum On {
    /// Any.
    Any,
    /// One that has a VM: the VM's own, and its clones.
    Vm,
    /// One that is a vCPU.
    Vcpu,
}

/// What is wrong with sending a command at all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Nothing.
    Good,
    /// It has a number and no code.
    Unhandled,
    /// It harms the kernel.
    Forbidden(&'static str),
    /// It works, and this double does not model it.
    NotModelled,
}

/// One command.
#[derive(Debug)]
pub struct Command {
    /// Number.
    pub request: i32,
    /// Name.
    pub name: &'static str,
    /// Argument.
    pub arg: Arg,
    /// Descriptor.
    pub on: On,
    /// Whether to send it.
    pub verdict: Verdict,
    /// Linux' number; 0 where there is none.
    pub linux: u32,
}

macro_rules! commands {
    ($($name:ident $arg:expr, $on:ident, $verdict:expr, $linux:literal;)*) => {
        /// All of them.
        pub static COMMANDS: &[Command] = &[$(Command {
            request: abi::$name,
            name: stringify!($name),
            arg: $arg,
            on: On::$on,
            verdict: $verdict,
            linux: $linux,
        }),*];

        /// Number and name of each.
        pub static NAMES: &[(i32, &str)] = &[$((abi::$name, stringify!($name))),*];
    };
}

const fn bytes<T>() -> Arg {
    Arg::Bytes(size_of::<T>())
}

use Arg::{None as Nothing, SignalMask, Table, Value};
use Verdict::{Forbidden, Good, NotModelled, Unhandled};

const CPUID: Arg = Table(size_of::<kvm_cpuid_entry2>());
const ROUTES: Arg = Table(size_of::<kvm_irq_routing_entry>());

commands! {
    KVM_GET_API_VERSION Nothing, Any, Good, 0xae00;
    KVM_CREATE_VM Nothing, Any, Good, 0xae01;
    KVM_GET_MSR_INDEX_LIST Table(4), Any, NotModelled, 0xc004_ae02;
    KVM_CLONE Value, Any, Good, 0;
    KVM_CHECK_EXTENSION Value, Any, Good, 0xae03;
    KVM_GET_VCPU_MMAP_SIZE Nothing, Any, Good, 0xae04;
    KVM_GET_SUPPORTED_CPUID CPUID, Any, Good, 0xc008_ae05;
    KVM_CREATE_VCPU Value, Vm, Good, 0xae41;
    KVM_GET_DIRTY_LOG bytes::<kvm_dirty_log>(), Vm, NotModelled, 0x4010_ae42;
    KVM_SET_NR_MMU_PAGES Value, Vm, Unhandled, 0xae44;
    KVM_GET_NR_MMU_PAGES Nothing, Vm, Unhandled, 0xae45;
    KVM_SET_USER_MEMORY_REGION bytes::<kvm_userspace_memory_region>(), Vm, Good, 0x4020_ae46;
    KVM_SET_TSS_ADDR Value, Vm, Good, 0xae47;
    KVM_SET_IDENTITY_MAP_ADDR Arg::Bytes(8), Vm, Good, 0x4008_ae48;
    KVM_CREATE_IRQCHIP Nothing, Vm, Good, 0xae60;
    KVM_IRQ_LINE bytes::<kvm_irq_level>(), Vm, Good, 0x4008_ae61;
    KVM_GET_IRQCHIP bytes::<kvm_irqchip>(), Vm, Forbidden("the chip's number is not copied in"), 0xc208_ae62;
    KVM_SET_IRQCHIP bytes::<kvm_irqchip>(), Vm, Good, 0x8208_ae63;
    KVM_CREATE_PIT Nothing, Vm, NotModelled, 0xae64;
    KVM_GET_PIT bytes::<kvm_pit_state>(), Vm, Unhandled, 0xc048_ae65;
    KVM_SET_PIT bytes::<kvm_pit_state>(), Vm, Unhandled, 0x8048_ae66;
    KVM_IRQ_LINE_STATUS bytes::<kvm_irq_level>(), Vm, Good, 0xc008_ae67;
    KVM_REGISTER_COALESCED_MMIO bytes::<kvm_coalesced_mmio_zone>(), Vm, NotModelled, 0x4010_ae67;
    KVM_UNREGISTER_COALESCED_MMIO bytes::<kvm_coalesced_mmio_zone>(), Vm, NotModelled, 0x4010_ae68;
    KVM_SET_GSI_ROUTING ROUTES, Vm, Good, 0x4008_ae6a;
    KVM_REINJECT_CONTROL bytes::<kvm_reinject_control>(), Vm, Unhandled, 0xae71;
    KVM_CREATE_PIT2 bytes::<kvm_pit_config>(), Vm, Good, 0x4040_ae77;
    KVM_SET_BOOT_CPU_ID Value, Vm, Good, 0xae78;
    KVM_SET_CLOCK bytes::<kvm_clock_data>(), Vm, Unhandled, 0x4030_ae7b;
    KVM_GET_CLOCK bytes::<kvm_clock_data>(), Vm, Unhandled, 0x8030_ae7c;
    KVM_GET_PIT2 bytes::<kvm_pit_state2>(), Vm, Good, 0x8070_ae9f;
    KVM_SET_PIT2 bytes::<kvm_pit_state2>(), Vm, Good, 0x4070_aea0;
    KVM_RUN Nothing, Vcpu, Good, 0xae80;
    KVM_GET_REGS bytes::<kvm_regs>(), Vcpu, Good, 0x8090_ae81;
    KVM_SET_REGS bytes::<kvm_regs>(), Vcpu, Good, 0x4090_ae82;
    KVM_GET_SREGS bytes::<kvm_sregs>(), Vcpu, Good, 0x8138_ae83;
    KVM_SET_SREGS bytes::<kvm_sregs>(), Vcpu, Good, 0x4138_ae84;
    KVM_INTERRUPT bytes::<kvm_interrupt>(), Vcpu, Forbidden("with interrupt controllers in the kernel it is refused"), 0x4004_ae86;
    KVM_GET_MSRS bytes::<kvm_msrs>(), Vcpu, Good, 0xc008_ae88;
    KVM_SET_MSRS bytes::<kvm_msrs>(), Vcpu, Good, 0x4008_ae89;
    KVM_SET_CPUID bytes::<kvm_cpuid>(), Vcpu, Unhandled, 0x4008_ae8a;
    KVM_SET_SIGNAL_MASK SignalMask, Vcpu, Good, 0x4004_ae8b;
    KVM_GET_FPU bytes::<kvm_fpu>(), Vcpu, Good, 0x81a0_ae8c;
    KVM_SET_FPU bytes::<kvm_fpu>(), Vcpu, Good, 0x41a0_ae8d;
    KVM_GET_LAPIC bytes::<kvm_lapic_state>(), Vcpu, Good, 0x8400_ae8e;
    KVM_SET_LAPIC bytes::<kvm_lapic_state>(), Vcpu, Good, 0x4400_ae8f;
    KVM_SET_CPUID2 CPUID, Vcpu, Good, 0x4008_ae90;
    KVM_GET_CPUID2 CPUID, Vcpu, Forbidden("the kernel copies the table through 8 bytes"), 0xc008_ae91;
    KVM_TPR_ACCESS_REPORTING bytes::<kvm_tpr_access_ctl>(), Vcpu, Unhandled, 0xc028_ae92;
    KVM_SET_VAPIC_ADDR bytes::<kvm_vapic_addr>(), Vcpu, NotModelled, 0x4008_ae93;
    KVM_GET_MP_STATE bytes::<kvm_mp_state>(), Vcpu, Good, 0x8004_ae98;
    KVM_SET_MP_STATE bytes::<kvm_mp_state>(), Vcpu, Good, 0x4004_ae99;
    KVM_NMI Nothing, Vcpu, Good, 0xae9a;
    KVM_X86_SETUP_MCE Arg::Bytes(8), Vcpu, NotModelled, 0x4008_ae9c;
    KVM_X86_GET_MCE_CAP_SUPPORTED Arg::Bytes(8), Any, NotModelled, 0x8008_ae9d;
    KVM_X86_SET_MCE bytes::<kvm_x86_mce>(), Vcpu, Unhandled, 0x4040_ae9e;
    KVM_GET_VCPU_EVENTS bytes::<kvm_vcpu_events>(), Vcpu, Good, 0x8040_ae9f;
    KVM_SET_VCPU_EVENTS bytes::<kvm_vcpu_events>(), Vcpu, Good, 0x4040_aea0;
}

/// The command with this number.
pub fn find(request: i32) -> Option<&'static Command> {
    COMMANDS.iter().find(|command| command.request == request)
}

/// The command that has this number on Linux and another one here.
pub fn find_linux(request: i32) -> Option<&'static Command> {
    COMMANDS.iter().find(|command| command.linux != 0 && command.linux == request as u32)
}
