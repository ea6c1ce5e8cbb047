//! What is x86, and nothing else: where things lie in guest physical memory, what CPUID answers, which MSRs and
//! registers a vCPU starts with, and how a kernel gets into memory.
//!
//! Everything here is a pure function over bytes and [`vm_memory::GuestMemory`]: no hypervisor, no operating system, no
//! `unsafe`. The types are neutral on purpose: Linux KVM, illumos KVM and bhyve each translate them into their own ABI
//! in `vmm/src/hypervisor`, so all three start a guest in exactly the same state.

#![forbid(unsafe_code)]

pub mod apic;
pub mod boot;
pub mod cpu;

pub mod layout;
pub mod msr;
pub mod regs;
