//! What a guest would find from its firmware: ACPI and SMBIOS tables, as bytes for given guest addresses.
//!
//! Pure functions of a description: the same description gives the same bytes on every host and hypervisor. What a table
//! says exists is what the machine was given; what a machine lacks is declared absent, so that no guest polls for it.

#![forbid(unsafe_code)]

pub mod acpi;
pub mod smbios;
