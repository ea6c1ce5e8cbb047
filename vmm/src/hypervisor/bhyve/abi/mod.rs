//! The kernel's interface, bit for bit: `/dev/vmmctl`, `/dev/vmm/*` and `/dev/viona` of illumos on x86-64.
//!
//! Names and fields are those of the kernel's headers; a name with a suffix (`_gate`, `_pre_v16`, `_v7`, ...) exists in
//! some of its versions only. Numbers of ioctls are C ints without size or direction. A C enum is an integer here, since
//! a newer kernel may say more than this list; a pointer is its address, and padding is explicit, so that every structure
//! is made of initialised bytes and crosses [`Sys::ioctl`](devices_host::sys::Sys::ioctl) without a cast.
//!
//! Every size, offset and number is asserted at compile time against a table measured with a C compiler.
#![allow(
    missing_docs,
    non_camel_case_types,
    non_upper_case_globals,
    clippy::pub_underscore_fields,
    reason = "the names are the kernel's, and so is what they mean"
)]

mod data;
mod exit;
mod vcpu;
mod viona;
mod vm;

pub use data::*;
pub use exit::*;
pub use vcpu::*;
pub use viona::*;
pub use vm::*;
