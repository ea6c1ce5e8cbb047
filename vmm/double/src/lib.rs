//! Strict doubles of the illumos kernel's hypervisor interfaces, on Linux KVM.
//!
//! The bhyve and illumos KVM backends of zvmm ask everything of their system through
//! [`Sys`](devices_host::sys::Sys). Here is a `Sys` whose kernel is a model: it runs the guest on this machine's own KVM, and
//! it knows the rules of the interface it stands for. A caller that breaks one gets the error the kernel would give, and
//! the break is kept under the rule's name and with the section of the interface's description it comes from, whether the
//! kernel would have noticed or not.
//!
//! * [`DoubleSys`] is one process in one [`Zone`] of a [`Host`].
//! * A [`Driver`] serves device nodes ([`Node`]): [`bhyve`], [`illumos_kvm`], [`viona`], [`zvol`] and those of
//!   data [`links`].
//! * [`Injecting`] makes chosen calls fail, [`Mutating`] damages chosen calls. Both wrap any `Sys`, so that the backends
//!   need no switch for tests.
//! * [`record::Recording`] wraps any hypervisor, and writes down what guests do to their machine.
#![cfg(target_os = "linux")]

pub mod bhyve;
pub mod bhyvectl;
pub mod illumos_kvm;
mod inject;
pub mod links;
mod mutate;
pub mod names;
mod node;
pub mod privileges;
pub mod record;
pub mod rules;
mod sys;
pub mod viona;
mod zone;
pub mod zvol;

pub use inject::{Injecting, Injection, Moment};
pub use mutate::{Damage, Mutating, Mutation};
pub use node::{Call, Driver, Node};
pub use rules::{Ledger, Rule, Violation};
pub use sys::{DoubleSys, Host, Leak};
pub use zone::{Privilege, Zone};
