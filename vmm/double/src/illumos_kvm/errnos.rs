//! What each call can fail with, for injection (`smartos-zone` 7 and the driver's code). EFAULT, which takes a pointer
//! that is not good, is left out.

use devices_host::sys::Errno;

/// Name of a call, as [`Injection`](crate::Injection) takes it, and its errors.
pub static ERRNOS: &[(&str, &[Errno])] = &[
    ("open", &[Errno::ENOENT, Errno::ENXIO, Errno::EACCES, Errno::EMFILE]),
    ("mlock", &[Errno::EAGAIN, Errno::EPERM, Errno::ENOMEM]),
    ("mmap", &[Errno::EINVAL, Errno::ENXIO, Errno::ENOMEM]),
    ("fstat", &[Errno::EBADF]),
    ("KVM_GET_API_VERSION", &[Errno::EINVAL, Errno::ENXIO]),
    ("KVM_CHECK_EXTENSION", &[Errno::EINVAL]),
    ("KVM_GET_VCPU_MMAP_SIZE", &[Errno::EINVAL]),
    ("KVM_GET_SUPPORTED_CPUID", &[Errno::E2BIG]),
    ("KVM_CREATE_VM", &[Errno::EINVAL, Errno::ENOMEM]),
    ("KVM_CLONE", &[Errno::EBUSY, Errno::ESRCH, Errno::ENODEV, Errno::EINVAL]),
    ("KVM_SET_USER_MEMORY_REGION", &[Errno::EINVAL, Errno::EEXIST, Errno::ENOMEM]),
    ("KVM_SET_TSS_ADDR", &[Errno::EINVAL, Errno::EEXIST, Errno::EAGAIN, Errno::ENOMEM]),
    ("KVM_SET_IDENTITY_MAP_ADDR", &[Errno::EINVAL]),
    ("KVM_CREATE_IRQCHIP", &[Errno::EINVAL, Errno::EEXIST, Errno::ENOMEM]),
    ("KVM_CREATE_PIT2", &[Errno::EINVAL, Errno::EEXIST, Errno::ENOMEM]),
    ("KVM_SET_GSI_ROUTING", &[Errno::EINVAL]),
    ("KVM_IRQ_LINE", &[Errno::EINVAL, Errno::ENXIO]),
    ("KVM_SET_IRQCHIP", &[Errno::EINVAL, Errno::ENXIO]),
    ("KVM_SET_PIT2", &[Errno::EINVAL]),
    ("KVM_CREATE_VCPU", &[Errno::EINVAL, Errno::EEXIST, Errno::ENOMEM]),
    ("KVM_SET_CPUID2", &[Errno::E2BIG, Errno::EINVAL]),
    ("KVM_SET_SREGS", &[Errno::EINVAL]),
    ("KVM_SET_REGS", &[Errno::EINVAL]),
    ("KVM_SET_MSRS", &[Errno::E2BIG, Errno::EINVAL]),
    ("KVM_SET_LAPIC", &[Errno::EINVAL]),
    ("KVM_SET_VCPU_EVENTS", &[Errno::EINVAL]),
    ("KVM_SET_FPU", &[Errno::EINVAL]),
    ("KVM_SET_MP_STATE", &[Errno::EINVAL]),
    ("KVM_SET_SIGNAL_MASK", &[Errno::EINVAL]),
    ("KVM_RUN", &[Errno::EINTR, Errno::EAGAIN, Errno::EINVAL, Errno::ENXIO, Errno::ENOMEM]),
    ("KVM_NMI", &[Errno::EINVAL]),
];
