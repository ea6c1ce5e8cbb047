//! Where guests run: directly on this machine when its KVM runs them, else in the emulated outer machine.

use kvm_bindings::kvm_userspace_memory_region;
use kvm_ioctls::{Kvm, VcpuExit};

/// A place for stock guests.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// This machine's own `/dev/kvm`.
    Direct,
    /// The emulated outer machine; the text says why not directly.
    Nested(String),
}

impl Place {
    /// Finds out by trying.
    #[must_use]
    pub fn find() -> Self {
        match try_kvm(&ORDINARY) {
            Ok(()) => Self::Direct,
            Err(why) => Self::Nested(why),
        }
    }

    /// One line for people.
    #[must_use]
    pub fn describe(&self) -> String {
        match self {
            Self::Direct => "directly on this machine's KVM".to_owned(),
            Self::Nested(why) => format!("in an emulated outer machine with nested SVM ({why})"),
        }
    }
}

/// `xorps xmm0, xmm0; out 0x10, al; hlt`: software emulations of KVM do not get past the first.
const ORDINARY: [u8; 6] = [0x0f, 0x57, 0xc0, 0xe6, 0x10, 0xf4];
/// `out 0x10, al; hlt`: as simple as our own small guests.
const SIMPLE: [u8; 3] = [0xe6, 0x10, 0xf4];

/// Whether this machine's `/dev/kvm` runs the small guests of our own tests.
///
/// # Errors
/// Says what is missing.
pub fn runs_small_guests() -> Result<(), String> {
    try_kvm(&SIMPLE)
}

/// Runs a guest of a few instructions that ends with a write to port 0x10.
///
/// # Errors
/// Says what is missing.
fn try_kvm(code: &[u8]) -> Result<(), String> {
    const PAGE: usize = 4096;
    let fail = |what: &'static str| move |error: kvm_ioctls::Error| format!("{what}: {error}");
    let vm = Kvm::new().map_err(fail("/dev/kvm does not open"))?.create_vm().map_err(fail("no VM can be created"))?;
    // SAFETY: a fresh private mapping of one page, not shared with any Rust object; unmapped never, by intent: the
    // process is short-lived and the VM may outlive this scope in the kernel.
    let page = unsafe {
        libc::mmap(
            std::ptr::null_mut(),
            PAGE,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
            -1,
            0,
        )
    };
    if page == libc::MAP_FAILED {
        return Err("no memory".to_owned());
    }
    // SAFETY: the page is 4096 bytes, the code a few, and they do not overlap.
    unsafe { std::ptr::copy_nonoverlapping(code.as_ptr(), page.cast(), code.len().min(PAGE)) };
    let region = kvm_userspace_memory_region {
        slot: 0,
        flags: 0,
        guest_phys_addr: 0x1000,
        memory_size: PAGE as u64,
        userspace_addr: page as u64,
    };
    // SAFETY: the region is the page mapped above, which stays mapped.
    unsafe { vm.set_user_memory_region(region) }.map_err(fail("no guest memory"))?;
    let mut vcpu = vm.create_vcpu(0).map_err(fail("no vCPU can be created"))?;
    let mut sregs = vcpu.get_sregs().map_err(fail("no registers"))?;
    sregs.cs.base = 0;
    sregs.cs.selector = 0;
    // OSFXSR and OSXMMEXCPT: without them SSE instructions fault anywhere.
    sregs.cr4 |= 0x600;
    vcpu.set_sregs(&sregs).map_err(fail("no registers"))?;
    let mut regs = vcpu.get_regs().map_err(fail("no registers"))?;
    regs.rip = 0x1000;
    regs.rflags = 2;
    vcpu.set_regs(&regs).map_err(fail("no registers"))?;
    match vcpu.run() {
        Ok(VcpuExit::IoOut(0x10, _)) => Ok(()),
        Ok(_) | Err(_) => Err("/dev/kvm opens, but does not run ordinary guest code".to_owned()),
    }
}
