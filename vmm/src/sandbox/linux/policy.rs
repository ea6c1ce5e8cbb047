//! The one table of what each kind of thread may ask of Linux once it works: everything else ends the process.
//!
//! A line has a system call, a condition on one of its arguments, the threads that may make it, and why they do. `rare`
//! marks what no run of the tests can be expected to show (another C library, an error path), and `vhost` what only hosts
//! with that device do; all lines but the rare ones are shown to be used there (`vmm/tests/p0/sandbox.rs`), so that none
//! outlives its reason. Each line is shown to be in force and not covered by
//! another (`line_tests.rs`). A call that several lines name passes where one of them lets it.
//!
//! What a thread has open already is all that it can use: no line opens, connects or executes anything. File names are
//! known to one line, the removal of sockets and of the process's own id file at the end, which Landlock holds to their
//! directories.

use libc::*;

use super::ThreadKind;
use crate::hypervisor::kvm::requests::*;

/// When a call passes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum When {
    /// Always.
    Always,
    /// The low 32 bits of argument `arg` are `value`.
    Is {
        /// Number of the argument, from 0.
        arg: u8,
        /// What it must be.
        value: u32,
    },
    /// Argument `arg` has none of the bits.
    Without {
        /// Number of the argument, from 0.
        arg: u8,
        /// Bits that it must not have.
        bits: u32,
    },
    /// The first argument is this process's id.
    ThisProcess,
}

/// The request of an ioctl(2), the command of an fcntl(2) or of io_uring_register(2): their second argument.
const fn request(value: u32) -> When {
    When::Is { arg: 1, value }
}

/// As [`request`], for numbers of the C library: their type depends on which one it is.
const fn ioctl(value: Ioctl) -> When {
    request(value as u32)
}

/// The signal of rt_sigaction(2).
const fn signal(value: c_int) -> When {
    When::Is { arg: 0, value: value as u32 }
}

/// The signal of tkill(2).
const fn sends(value: c_int) -> When {
    When::Is { arg: 1, value: value as u32 }
}

/// The protection of mmap(2) has no PROT_EXEC.
const NO_CODE: When = When::Without { arg: 2, bits: PROT_EXEC as u32 };

/// The level of getsockopt(2).
const OF_SOCKETS: When = When::Is { arg: 1, value: SOL_SOCKET as u32 };

const ALWAYS: When = When::Always;
const OWN: When = When::ThisProcess;

// Numbers that the C library's bindings lack.
const FIONBIO: u32 = 0x5421;
const SIOCGIFFLAGS: u32 = 0x8913;
const BLKDISCARD: u32 = 0x1277;
const BLKZEROOUT: u32 = 0x127f;
const BLKSSZGET: u32 = 0x1268;
const BLKGETSIZE64: u32 = 0x8008_1272;
const IORING_UNREGISTER_FILES: u32 = 3;

/// Sets of kinds of threads.
const fn one(kind: ThreadKind) -> u8 {
    1 << kind as u8
}
const MAIN: u8 = one(ThreadKind::Main);
const SIGNALS: u8 = one(ThreadKind::Signals);
const VCPU: u8 = one(ThreadKind::Vcpu);
const DISK: u8 = one(ThreadKind::DiskQueue);
const ENGINE: u8 = one(ThreadKind::DiskEngine);
const NET: u8 = one(ThreadKind::NetQueue);
const RNG: u8 = one(ThreadKind::RngQueue);
const CONSOLE: u8 = one(ThreadKind::ConsoleQueue);
const QUEUES: u8 = DISK | NET | RNG | CONSOLE;
const ALL: u8 = MAIN | SIGNALS | VCPU | ENGINE | QUEUES;

/// One line of the table. Numbers only: a table with texts would have to be relocated, and so written to, at every start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Line {
    call: u16,
    threads: u8,
    when: When,
    shown: Shown,
}

/// Where a line is shown to be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shown {
    /// By the tests.
    Always,
    /// By the tests, where `/dev/vhost-net` opens.
    WithVhost,
    /// Nowhere: what leads to it is rare.
    Never,
}

impl Line {
    /// Number of the system call.
    pub fn call(&self) -> i64 {
        self.call.into()
    }

    /// On what condition it passes.
    pub fn when(&self) -> When {
        self.when
    }

    /// Whether threads of this kind may make it.
    pub fn is_for(&self, kind: ThreadKind) -> bool {
        self.threads & one(kind) != 0
    }

    /// Where the tests see it.
    pub fn shown(&self) -> Shown {
        self.shown
    }
}

macro_rules! policy {
    ($($call:ident $when:expr, $threads:expr, $use:ident $why:literal;)*) => {
        /// The table.
        pub const LINES: &[Line] = &[
            $(Line { call: $call as u16, threads: $threads, when: $when, shown: policy!(@$use) },)*
        ];

        /// The table's texts in the same order: call, condition, threads, why.
        pub fn texts() -> Vec<[&'static str; 4]> {
            vec![$([stringify!($call), stringify!($when), stringify!($threads), $why],)*]
        }
    };
    (@seen) => { Shown::Always };
    (@vhost) => { Shown::WithVhost };
    (@rare) => { Shown::Never };
}

policy! {
    // What every thread does.
    SYS_futex ALWAYS, MAIN | VCPU | DISK | ENGINE, seen "waiting for each other";
    SYS_futex ALWAYS, SIGNALS | NET | RNG | CONSOLE, rare "a lock that another thread has";
    SYS_write ALWAYS, ALL & !NET, seen "wake-ups, interrupts by message, the log, consoles";
    SYS_write ALWAYS, NET, rare "interrupts by message: the driver of the tests has none on a network card";
    SYS_close ALWAYS, MAIN | VCPU | DISK | NET, seen "what a thread had of its own";
    SYS_close ALWAYS, SIGNALS | ENGINE | RNG | CONSOLE, rare "what a thread has last";
    SYS_exit ALWAYS, ALL & !MAIN, seen "the end of a thread";
    SYS_munmap ALWAYS, ALL, seen "heap and stacks";
    SYS_rt_sigprocmask ALWAYS, ALL, seen "signals are kept away from a thread that ends";
    SYS_sigaltstack ALWAYS, ALL, seen "the end of a thread: its stack for signals goes";
    SYS_madvise ALWAYS, ALL & !MAIN, seen "the end of a thread: its stack's memory goes";
    SYS_madvise ALWAYS, MAIN, seen "the program's own pages are given back once the guest runs";
    SYS_mmap NO_CODE, ALL, rare "heap: grows only with what is asked of the process";
    SYS_mremap ALWAYS, ALL, rare "heap: large pieces grow";
    SYS_brk ALWAYS, ALL, rare "heap: grows and shrinks";
    SYS_clock_gettime ALWAYS, ALL, rare "hosts whose clock cannot be read without a call";
    SYS_restart_syscall ALWAYS, ALL, rare "a call with a time limit that a stop of the whole process interrupted";
    SYS_exit_group ALWAYS, ALL, rare "the end of the process, by the thread that decides it";
    SYS_tgkill OWN, ALL, rare "waking a vCPU; a bug ends the process with SIGABRT";
    SYS_tkill sends(SIGUSR1), MAIN | VCPU | QUEUES | ENGINE, rare "the same wake-up where the C library is musl";
    SYS_tkill sends(SIGABRT), ALL, rare "the same end where the C library is musl";
    SYS_rt_sigaction signal(SIGABRT), ALL, rare "a bug ends the process with SIGABRT";
    SYS_rt_sigaction signal(SIGSEGV), ALL, rare "a fault that is none of the stack's is left to the system";
    SYS_rt_sigaction signal(SIGBUS), ALL, rare "the same";
    SYS_rt_sigreturn ALWAYS, ALL & !VCPU, rare "the same";
    SYS_getpid ALWAYS, ALL, rare "a bug ends the process with SIGABRT; waking a vCPU";
    SYS_gettid ALWAYS, ALL, rare "a bug ends the process with SIGABRT; a vCPU tells its thread's number";
    SYS_fcntl request(F_GETFD as u32), ALL, rare "debug builds look at a descriptor before they close it";
    SYS_fcntl request(F_SETFD as u32), MAIN | VCPU, rare "musl says of each descriptor that it makes a second time that it is not inherited";
    SYS_ioctl ioctl(TCSETS), ALL, rare "the terminal is put back before the process ends";
    SYS_ioctl ioctl(TCSETS2), MAIN, seen "the terminal of a serial line is given back";
    SYS_ioctl ioctl(TCSETS2), ALL & !MAIN, rare "the same before the process ends";
    SYS_ioctl ioctl(TCGETS), ALL, rare "the C library looks whether it was";

    // Waiting.
    SYS_ppoll ALWAYS, MAIN | NET, seen "waiting for several things, or for some time";
    SYS_ppoll ALWAYS, DISK | RNG | CONSOLE, rare "waiting for some time: rate limits, a second try; whether the log has a reader";
    SYS_ppoll ALWAYS, SIGNALS | VCPU | ENGINE, rare "whether the log has a reader";
    SYS_read ALWAYS, MAIN | VCPU | QUEUES, seen "wake-ups, consoles; a vCPU: kernel and initrd, at a reset";
    SYS_preadv2 ALWAYS, MAIN | NET, seen "taking a wake-up without waiting for it";
    SYS_preadv2 ALWAYS, DISK | RNG | CONSOLE, rare "the same, after a wait for some time";
    SYS_rt_sigtimedwait ALWAYS, SIGNALS, seen "waiting for signals";
    SYS_rt_sigreturn ALWAYS, VCPU, seen "the end of the handler that wakes a vCPU";
    SYS_clock_nanosleep ALWAYS, MAIN, rare "a client waits and the process has no descriptor for it";
    SYS_sched_yield ALWAYS, MAIN | VCPU, rare "a short wait for another thread";

    // The control socket, consoles, the end.
    SYS_accept4 ALWAYS, MAIN, seen "a client of a socket that is listened on";
    SYS_getsockopt OF_SOCKETS, MAIN, seen "who a client is";
    SYS_geteuid ALWAYS, MAIN, rare "who a client must be that is not the superuser";
    SYS_ioctl request(FIONBIO), MAIN, seen "a client's socket does not block";
    SYS_fcntl request(F_DUPFD_CLOEXEC as u32), MAIN, seen "a console's client is read and written";
    SYS_recvfrom ALWAYS, MAIN, seen "what clients and the kernel's messages about interfaces say";
    SYS_sendto ALWAYS, MAIN, seen "what clients are told";
    SYS_statx ALWAYS, MAIN | DISK, seen "whether a socket is still its own, before it goes; a disk's size now";
    SYS_newfstatat ALWAYS, MAIN | DISK, rare "the same with other C libraries";
    SYS_lstat ALWAYS, MAIN, rare "the same with other C libraries";
    SYS_fstat ALWAYS, DISK, rare "the same with other C libraries";
    SYS_unlink ALWAYS, MAIN, seen "sockets and the file with the process's id go away with it";

    // Network interfaces.
    SYS_readv ALWAYS, NET, seen "a frame from the TAP device";
    SYS_writev ALWAYS, NET, seen "a frame to the TAP device";
    SYS_ioctl ioctl(TUNSETOFFLOAD), NET, seen "what the driver takes";
    SYS_ioctl ioctl(TUNSETQUEUE), NET, rare "how many queue pairs the driver uses";
    SYS_ioctl ioctl(TUNGETIFF), MAIN, rare "which interface a TAP device has, when one has changed";
    SYS_ioctl request(SIOCGIFFLAGS), MAIN, rare "whether it is up";

    // Network interfaces whose queues the kernel carries (vhost=on).
    SYS_ioctl request(VHOST_SET_FEATURES), NET, vhost "vhost=on: what the driver takes";
    SYS_ioctl ioctl(TUNSETVNETHDRSZ), NET, vhost "vhost=on: the header that goes with it";
    SYS_ioctl request(VHOST_SET_VRING_NUM), NET, vhost "vhost=on: a ring begins";
    SYS_ioctl request(VHOST_SET_VRING_BASE), NET, vhost "vhost=on: a ring begins";
    SYS_ioctl request(VHOST_SET_VRING_ADDR), NET, vhost "vhost=on: a ring begins";
    SYS_ioctl request(VHOST_NET_SET_BACKEND), NET, vhost "vhost=on: a ring runs, and stops";
    SYS_ioctl request(KVM_IOEVENTFD), NET, vhost "vhost=on: doorbells are the kernel's while a ring runs";
    SYS_ioctl request(VHOST_GET_VRING_BASE), NET, rare "vhost=on: where a ring stands, at a pause or with the link down";
    SYS_ioctl request(VHOST_SET_VRING_CALL), VCPU | NET, rare "vhost=on: interrupts by message, and no more: the driver of the tests has none on a network card";
    SYS_ioctl request(KVM_SET_GSI_ROUTING), NET, rare "vhost=on: where messages go, as a ring begins: the same";

    // Disks.
    SYS_preadv ALWAYS, DISK | ENGINE, seen "reads";
    SYS_pwritev ALWAYS, DISK, seen "writes";
    SYS_pwritev ALWAYS, ENGINE, rare "several writes at a time";
    SYS_pwritev2 ALWAYS, DISK | ENGINE, rare "writes that are durable at once: a guest that switched the write cache off";
    SYS_fdatasync ALWAYS, DISK, seen "flushes";
    SYS_fdatasync ALWAYS, ENGINE, rare "a flush beside other requests";
    SYS_fallocate ALWAYS, DISK | ENGINE, rare "discards, and zeroes";
    SYS_ioctl request(BLKDISCARD), DISK | ENGINE, rare "discards on a block device";
    SYS_ioctl request(BLKZEROOUT), DISK | ENGINE, rare "zeroes on a block device";
    SYS_ioctl request(BLKGETSIZE64), DISK, rare "the size of a block device now";
    SYS_ioctl request(BLKSSZGET), DISK, rare "the size of a block device now";
    SYS_ftruncate ALWAYS, DISK, seen "another size of a disk's file, as the operator orders";
    SYS_io_uring_enter ALWAYS, DISK, seen "engine=io_uring: gives the kernel work";
    SYS_io_uring_register request(IORING_UNREGISTER_FILES), DISK, seen "engine=io_uring: its end";

    // The entropy source.
    SYS_getrandom ALWAYS, RNG, seen "what it is for";

    // vCPUs.
    SYS_ioctl request(KVM_RUN), VCPU, seen "runs the guest";
    SYS_ioctl request(KVM_SET_REGS), VCPU, seen "a reset";
    SYS_ioctl request(KVM_SET_SREGS), VCPU, seen "a reset";
    SYS_ioctl request(KVM_SET_MSRS), VCPU, seen "a reset";
    SYS_ioctl request(KVM_SET_FPU), VCPU, seen "a reset";
    SYS_ioctl request(KVM_SET_LAPIC), VCPU, seen "a reset";
    SYS_ioctl request(KVM_SET_MP_STATE), VCPU, seen "a reset";
    SYS_ioctl request(KVM_SET_VCPU_EVENTS), VCPU, seen "a reset";
    SYS_ioctl request(KVM_SET_DEBUGREGS), VCPU, seen "a reset";
    SYS_ioctl request(KVM_SET_XCRS), VCPU, seen "a reset";
    SYS_ioctl request(KVM_SET_IRQCHIP), VCPU, seen "a reset";
    SYS_ioctl request(KVM_SET_PIT2), VCPU, seen "a reset";
    SYS_ioctl request(KVM_NMI), VCPU, seen "a non-maskable interrupt, as the operator orders";
    SYS_ioctl request(KVM_KVMCLOCK_CTRL), VCPU, seen "the guest was paused";
    SYS_ioctl request(KVM_GET_REGS), VCPU, rare "where a guest was that cannot go on";
    SYS_ioctl request(KVM_IOEVENTFD), VCPU, seen "doorbells follow the guest's moves of device registers";
    SYS_ioctl request(KVM_REGISTER_COALESCED_MMIO), VCPU, seen "index registers whose writes KVM collects, as the guest has them";
    SYS_ioctl request(KVM_UNREGISTER_COALESCED_MMIO), VCPU, seen "the same";
    SYS_ioctl request(KVM_UNREGISTER_COALESCED_MMIO), MAIN, seen "the guest has found its devices";
    SYS_ioctl request(KVM_IRQFD), VCPU, seen "an interrupt by message, at the first use of a vector";
    SYS_eventfd2 ALWAYS, VCPU, seen "the same";
    SYS_ioctl request(KVM_SET_GSI_ROUTING), VCPU, seen "where messages go";
    SYS_ioctl request(KVM_IRQ_LINE), VCPU | QUEUES, seen "an interrupt by line";
    SYS_ioctl request(KVM_IRQ_LINE), MAIN, rare "an interrupt by line, for what comes from outside";
    SYS_lseek ALWAYS, VCPU, seen "kernel and initrd are read again at a reset";
    SYS_pread64 ALWAYS, VCPU, rare "the same, for a kernel of several parts";
}
