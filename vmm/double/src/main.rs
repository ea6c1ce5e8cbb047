//! `zvmm-double [--hypervisor bhyve|illumos-kvm] ARGUMENTS OF zvmm…`: the whole VMM on a double of an illumos kernel.

fn main() {}
