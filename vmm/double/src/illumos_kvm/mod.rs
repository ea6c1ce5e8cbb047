//! illumos `/dev/kvm`.

/// Every ioctl of illumos KVM: number and name.
pub static NAMES: &[(i32, &str)] = &[];
