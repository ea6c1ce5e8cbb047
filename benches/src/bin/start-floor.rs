//! The floor of process start to first guest instruction: the KVM calls a one-vCPU machine cannot do without, in the
//! cheapest order (memory before irqchip), and a guest whose first instruction writes a byte to COM1.
//!
//! Prints that byte and exits. `start-floor [memory in MiB]`.

#[cfg(target_os = "linux")]
fn main() -> Result<(), Box<dyn std::error::Error>> {
    use std::io::Write;

    use kvm_bindings::{kvm_pit_config, kvm_regs, kvm_userspace_memory_region};
    use kvm_ioctls::{Kvm, VcpuExit};

    let mib: usize = std::env::args().nth(1).map_or(Ok(128), |text| text.parse())?;
    let kvm = Kvm::new()?;
    let vm = kvm.create_vm()?;
    let bytes = mib << 20;
    // SAFETY: a fresh anonymous mapping at an address of the kernel's choice; it lives until the process ends.
    let ram = unsafe {
        libc::mmap(
            std::ptr::null_mut(),
            bytes,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
            -1,
            0,
        )
    };
    if ram == libc::MAP_FAILED {
        return Err(std::io::Error::last_os_error().into());
    }
    // mov dx, 0x3f8; mov al, '!'; out dx, al
    let code = [0xba, 0xf8, 0x03, 0xb0, b'!', 0xee];
    // SAFETY: the mapping is larger than 0x1000 plus the code.
    unsafe { std::ptr::copy_nonoverlapping(code.as_ptr(), ram.cast::<u8>().add(0x1000), code.len()) };
    let region = kvm_userspace_memory_region {
        slot: 0,
        flags: 0,
        guest_phys_addr: 0,
        memory_size: bytes as u64,
        userspace_addr: ram as u64,
    };
    // SAFETY: the mapping outlives the VM.
    unsafe { vm.set_user_memory_region(region)? };
    vm.create_irq_chip()?;
    vm.create_pit2(kvm_pit_config::default())?;
    let mut vcpu = vm.create_vcpu(0)?;
    vcpu.set_cpuid2(&kvm.get_supported_cpuid(256)?)?;
    let mut sregs = vcpu.get_sregs()?;
    (sregs.cs.base, sregs.cs.selector) = (0, 0);
    vcpu.set_sregs(&sregs)?;
    vcpu.set_regs(&kvm_regs { rip: 0x1000, rflags: 2, ..Default::default() })?;
    match vcpu.run()? {
        VcpuExit::IoOut(0x3f8, data) => {
            let mut stdout = std::io::stdout();
            stdout.write_all(data)?;
            // Now, not at exit: taking the VM down costs several times what putting it up does.
            stdout.flush()?;
        }
        other => return Err(format!("unexpected exit {other:?}").into()),
    }
    Ok(())
}

#[cfg(not(target_os = "linux"))]
fn main() {
    eprintln!("start-floor measures Linux KVM");
}
