//! SMBIOS.
