//! Frame devices of illumos (`/dev/vnd/*`, `sys/vnd.h`, `sys/frameio.h`), which carry the network beside this hypervisor.

pub const VND_IOC_ATTACH: i32 = 0x766e_6401_u32 as i32;
pub const VND_IOC_LINK: i32 = 0x766e_6402_u32 as i32;
pub const VND_IOC_UNLINK: i32 = 0x766e_6403_u32 as i32;
pub const VND_IOC_GETRXBUF: i32 = 0x766e_6404_u32 as i32;
pub const VND_IOC_SETRXBUF: i32 = 0x766e_6405_u32 as i32;
pub const VND_IOC_GETMAXBUF: i32 = 0x766e_6406_u32 as i32;
pub const VND_IOC_GETTXBUF: i32 = 0x766e_6407_u32 as i32;
pub const VND_IOC_SETTXBUF: i32 = 0x766e_6408_u32 as i32;
pub const VND_IOC_GETMINTU: i32 = 0x766e_6409_u32 as i32;
pub const VND_IOC_GETMAXTU: i32 = 0x766e_640a_u32 as i32;
pub const VND_IOC_LIST: i32 = 0x766e_6420_u32 as i32;
pub const VND_IOC_FRAMEIO_READ: i32 = 0x766e_6430_u32 as i32;
pub const VND_IOC_FRAMEIO_WRITE: i32 = 0x766e_6431_u32 as i32;

/// `FRAMEIO_CURRENT_VERSION`, `FRAMEIO_NVECS_MAX`.
pub const FRAMEIO_VERSION: u32 = 1;
pub const FRAMEIO_NVECS_MAX: usize = 32;

/// `VND_NAMELEN`, with the NUL.
pub const VND_NAMELEN: usize = 32;

/// What the `*_errno` members say (`sys/vnd_errno.h`), as far as somebody acts on it.
pub mod errno {
    pub const VND_E_NODATALINK: u32 = 2;
    pub const VND_E_NOTETHER: u32 = 3;
    pub const VND_E_ATTACHED: u32 = 16;
    pub const VND_E_BADNAME: u32 = 18;
    pub const VND_E_PERM: u32 = 19;
    pub const VND_E_NOTATTACHED: u32 = 22;
    pub const VND_E_BUFTOOBIG: u32 = 26;
    pub const VND_E_BUFTOOSMALL: u32 = 27;
    pub const VND_E_DLEXCL: u32 = 28;
}

#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct vnd_ioc_attach {
    pub via_name: [u8; 32],
    pub via_zoneid: i32,
    pub via_errno: u32,
}

#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct vnd_ioc_link {
    pub vil_name: [u8; 32],
    pub vil_errno: u32,
}

#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct vnd_ioc_unlink {
    pub viu_errno: u32,
}

#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct vnd_ioc_buf {
    pub vib_size: u64,
    pub vib_filler: u32,
    pub vib_errno: u32,
}

#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct vnd_ioc_info {
    pub vii_version: u32,
    pub vii_zone: i32,
    pub vii_name: [u8; 32],
    pub vii_datalink: [u8; 32],
}

#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct vnd_ioc_list {
    pub vl_nents: u32,
    pub vl_actents: u32,
    pub vl_ents: u64,
}

#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct framevec {
    pub fv_buf: u64,
    pub fv_buflen: u64,
    pub fv_actlen: u64,
}

/// `fio_vecs` is a flexible array.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct frameio {
    pub fio_version: u32,
    pub fio_nvpf: u32,
    pub fio_nvecs: u32,
    pub fio_vecs: [framevec; 0],
}
