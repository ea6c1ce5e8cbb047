//! illumos KVM (`/dev/kvm` of SmartOS' kvm brand).

pub mod abi;
