//! What is asked of libdladm about a data link: its id, MAC address and MTU (`libdladm.h`, `libdlvnic.h`,
//! `libdllink.h`). The library is private to illumos; its names and these structures have stood for long.

use super::Errno;

/// Room for a link's name, with the NUL.
pub const MAXLINKNAMELEN: usize = 32;
/// Room for a link-layer address.
pub const MAXMACADDRLEN: usize = 20;
/// The state in the kernel, not the configuration.
pub const DLADM_OPT_ACTIVE: u32 = 1;

/// The beginning of `dladm_vnic_attr_t`; resource properties follow, longer in every release.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct dladm_vnic_attr_prefix {
    pub va_vnic_id: u32,
    pub va_link_id: u32,
    pub va_mac_addr_type: i32,
    pub va_mac_len: u32,
    pub va_mac_addr: [u8; MAXMACADDRLEN],
    pub va_mac_slot: i32,
    pub va_mac_prefix_len: u32,
    pub va_vid: u16,
}

/// What [`dladm_info`](https://github.com/illumos/illumos-gate/blob/master/usr/src/lib/libdladm/common/libdladm.c) tells.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct dladm_attr {
    pub da_max_sdu: u32,
}

/// A status of libdladm (`dladm_status_t`) as an error number.
///
/// # Errors
/// Every status but 0.
pub fn check(status: i32) -> Result<(), Errno> {
    Err(match status {
        0 => return Ok(()),
        1 | 6 => Errno::EINVAL,      // BADARG, BADVAL
        4 => Errno::ENOTSUP,         // NOTSUP
        5 | 9 | 12 => Errno::ENOENT, // NOTFOUND, LINKINVAL, DBNOTFOUND
        7 => Errno::ENOMEM,          // NOMEM
        13 => Errno::EPERM,          // DENIED
        _ => Errno::EIO,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_link_that_is_not_there_is_told_from_a_library_that_fails() {
        assert_eq!(check(0), Ok(()));
        assert_eq!(check(5), Err(Errno::ENOENT));
        assert_eq!(check(9), Err(Errno::ENOENT));
        assert_eq!(check(13), Err(Errno::EPERM));
        assert_eq!(check(2), Err(Errno::EIO));
        assert_eq!(check(-1), Err(Errno::EIO));
    }
}
