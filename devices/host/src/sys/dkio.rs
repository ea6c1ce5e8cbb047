//! Volumes (zvols) by their raw device: the disk ioctls of illumos (`sys/dkio.h`, dkio(4I)).
//!
//! Reading and writing are plain calls at an offset.

use std::mem::size_of;

use zerocopy::{FromBytes, Immutable, IntoBytes};

use super::{Errno, IoctlArg, RawHandle, Sys, SysResult};

pub const DKIOCGGEOM: i32 = 0x401;
pub const DKIOCINFO: i32 = 0x403;
pub const DKIOCREMOVABLE: i32 = 0x410;
pub const DKIOCFLUSHWRITECACHE: i32 = 0x422;
pub const DKIOCGETWCE: i32 = 0x424;
pub const DKIOCSETWCE: i32 = 0x425;
pub const DKIOCSOLIDSTATE: i32 = 0x426;
pub const DKIOCGMEDIAINFO: i32 = 0x42a;
pub const DKIOCGMEDIAINFOEXT: i32 = 0x430;
pub const DKIOCREADONLY: i32 = 0x431;
pub const DKIOCFREE: i32 = 0x432;
pub const DKIOC_CANFREE: i32 = 0x43c;

/// Flag of [`dkioc_free_list_s`]: the call returns when the space is given back.
pub const DF_WAIT_SYNC: u64 = 1;
/// The most ranges in one [`DKIOCFREE`].
pub const DFL_COPYIN_MAX_EXTS: u64 = 1 << 20;
/// Command of fcntl(2), with a [`flock64`]: the range of a file becomes a hole. Length 0 would mean all that follows.
pub const F_FREESP: i32 = 11;

/// Size of a disk; its capacity counts logical blocks.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, FromBytes, Immutable, IntoBytes)]
pub struct dk_minfo {
    pub dki_media_type: u32,
    pub dki_lbsize: u32,
    pub dki_capacity: u64,
}

/// The same with the physical block: of a volume, its `volblocksize`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, FromBytes, Immutable, IntoBytes)]
pub struct dk_minfo_ext {
    pub dki_media_type: u32,
    pub dki_lbsize: u32,
    pub dki_capacity: u64,
    pub dki_pbsize: u32,
    pub _pad: u32,
}

/// A range to free, in bytes.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, FromBytes, Immutable, IntoBytes)]
pub struct dkioc_free_list_ext_s {
    pub dfle_start: u64,
    pub dfle_length: u64,
}

/// Ranges to free, each from `dfl_offset`; C's array of one is as long as `dfl_num_exts` says.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, FromBytes, Immutable, IntoBytes)]
pub struct dkioc_free_list_s {
    pub dfl_flags: u64,
    pub dfl_num_exts: u64,
    pub dfl_offset: u64,
    pub dfl_exts: [dkioc_free_list_ext_s; 1],
}

/// A range of a file, for [`F_FREESP`] and locks.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, FromBytes, Immutable, IntoBytes)]
pub struct flock64 {
    pub l_type: i16,
    pub l_whence: i16,
    pub _pad: u32,
    pub l_start: i64,
    pub l_len: i64,
    pub l_sysid: i32,
    pub l_pid: i32,
    pub l_pad: [i64; 4],
}

/// Shape of a volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Media {
    /// Its size in bytes.
    pub size_bytes: u64,
    /// The smallest unit it can be addressed by, in bytes.
    pub logical_block_bytes: u32,
    /// The smallest unit it writes without reading, in bytes: a good unit for requests.
    pub physical_block_bytes: u32,
}

/// Asks for the shape of a volume. A driver without the newer request is asked by the older one.
///
/// # Errors
/// What the driver says; `EOVERFLOW` where the size cannot be a number of bytes.
pub fn media(sys: &dyn Sys, volume: RawHandle) -> SysResult<Media> {
    let mut info = dk_minfo_ext::default();
    match query(sys, volume, DKIOCGMEDIAINFOEXT, &mut info) {
        Ok(_) => {}
        Err(Errno::ENOTTY | Errno::ENOTSUP | Errno::EINVAL) => {
            let mut older = dk_minfo::default();
            query(sys, volume, DKIOCGMEDIAINFO, &mut older)?;
            info.dki_lbsize = older.dki_lbsize;
            info.dki_capacity = older.dki_capacity;
        }
        Err(errno) => return Err(errno),
    }
    let logical = if info.dki_lbsize == 0 { 512 } else { info.dki_lbsize };
    let size_bytes = info.dki_capacity.checked_mul(logical.into()).ok_or(Errno::EOVERFLOW)?;
    Ok(Media { size_bytes, logical_block_bytes: logical, physical_block_bytes: info.dki_pbsize.max(logical) })
}

/// Whether the volume's write cache is on: then a write is durable only after a flush.
///
/// # Errors
/// What the driver says.
pub fn write_cache(sys: &dyn Sys, volume: RawHandle) -> SysResult<bool> {
    let mut enabled = 0i32;
    query(sys, volume, DKIOCGETWCE, &mut enabled)?;
    Ok(enabled != 0)
}

/// Turns the volume's write cache on, or off: then every write is durable when it returns. It belongs to the volume, not
/// to the open, and stays as it is when the volume is closed.
///
/// # Errors
/// What the driver says.
pub fn set_write_cache(sys: &dyn Sys, volume: RawHandle, enabled: bool) -> SysResult<()> {
    query(sys, volume, DKIOCSETWCE, &mut i32::from(enabled)).map(drop)
}

/// Whether the volume can give space back ([`free`]); a driver that does not know the question cannot.
pub fn can_free(sys: &dyn Sys, volume: RawHandle) -> bool {
    let mut can = 0i32;
    query(sys, volume, DKIOC_CANFREE, &mut can).is_ok() && can != 0
}

/// Puts on stable storage what was written to the volume. fsync(2) on its raw device comes to the same, if the kernel
/// believes that something happened through the descriptor since the last time.
///
/// # Errors
/// What the driver says.
pub fn flush(sys: &dyn Sys, volume: RawHandle) -> SysResult<()> {
    // SAFETY: the request takes no argument.
    unsafe { sys.ioctl(volume, DKIOCFLUSHWRITECACHE, IoctlArg::None) }.map(drop)
}

/// Gives the space of a range back, in bytes; `wait`: that is in the intent log when this returns, as it is anyway while
/// the write cache is off. What lies beyond the end is ignored; what the range reads as afterwards is the driver's choice.
///
/// # Errors
/// What the driver says.
pub fn free(sys: &dyn Sys, volume: RawHandle, start: u64, length: u64, wait: bool) -> SysResult<()> {
    if length == 0 {
        return Ok(());
    }
    // One range a call: a volume works a list off one by one anyhow.
    let mut list = dkioc_free_list_s {
        dfl_flags: if wait { DF_WAIT_SYNC } else { 0 },
        dfl_num_exts: 1,
        dfl_exts: [dkioc_free_list_ext_s { dfle_start: start, dfle_length: length }],
        ..dkioc_free_list_s::default()
    };
    query(sys, volume, DKIOCFREE, &mut list).map(drop)
}

fn query<T: IntoBytes + FromBytes>(sys: &dyn Sys, volume: RawHandle, request: i32, arg: &mut T) -> SysResult<i32> {
    debug_assert!(size_of::<T>() > 0);
    // SAFETY: every caller passes the request's own structure, and none has a pointer in it.
    unsafe { sys.ioctl(volume, request, IoctlArg::Buffer(arg.as_mut_bytes())) }
}

#[cfg(test)]
#[path = "dkio_tests.rs"]
mod tests;
