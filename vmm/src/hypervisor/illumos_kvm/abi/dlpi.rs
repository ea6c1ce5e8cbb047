//! The Data Link Provider Interface (`sys/dlpi.h`), as far as a stream of whole Ethernet frames takes.
//!
//! A request and its answer are the control parts of messages (`putmsg`, `getmsg`); a frame is a data part without one.

/// ioctl: frames are whole from now on, with their Ethernet header (`usr/src/lib/libdlpi/common/libdlpi.c`).
pub const DLIOCRAW: i32 = 0x4401;

pub const DL_INFO_REQ: u32 = 0x00;
pub const DL_BIND_REQ: u32 = 0x01;
pub const DL_INFO_ACK: u32 = 0x03;
pub const DL_BIND_ACK: u32 = 0x04;
pub const DL_ERROR_ACK: u32 = 0x05;
pub const DL_OK_ACK: u32 = 0x06;
pub const DL_PROMISCON_REQ: u32 = 0x1f;
pub const DL_NOTIFY_REQ: u32 = 0x100;
pub const DL_NOTIFY_ACK: u32 = 0x101;
pub const DL_NOTIFY_IND: u32 = 0x102;

/// `dl_errno`: `dl_unix_errno` says more.
pub const DL_SYSERR: u32 = 0x04;
pub const DL_OUTSTATE: u32 = 0x03;
pub const DL_UNSUPPORTED: u32 = 0x07;
pub const DL_BADPRIM: u32 = 0x09;
pub const DL_NOTSUPPORTED: u32 = 0x12;

pub const DL_ETHER: u32 = 0x4;
pub const DL_CLDLS: u32 = 0x02;
/// Opening the node attaches it to its link; no DL_ATTACH_REQ is needed.
pub const DL_STYLE1: u32 = 0x0500;
pub const DL_VERSION_2: u32 = 0x02;
/// `dl_current_state`.
pub const DL_UNBOUND: u32 = 0x00;
pub const DL_IDLE: u32 = 0x03;

/// Every protocol's frames.
pub const DL_PROMISC_SAP: u32 = 0x02;
/// Every group's frames.
pub const DL_PROMISC_MULTI: u32 = 0x03;
/// Not those that the stream sends itself.
pub const DL_PROMISC_RX_ONLY: u32 = 0x04;
/// Those of other links of the host with their checksums and in segments, too, which senders leave to a card (`sys/dlpi.h` and
/// `io/dls/dls.c` since 2018; to older kernels it is `DL_NOTSUPPORTED`).
pub const DL_PROMISC_FIXUPS: u32 = 0x05;

pub const DL_NOTE_LINK_DOWN: u32 = 0x0008;
pub const DL_NOTE_LINK_UP: u32 = 0x0010;

#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct dl_info_req_t {
    pub dl_primitive: u32,
}

/// The quality of service lies behind what is of use here, and the addresses behind that.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct dl_info_ack_t {
    pub dl_primitive: u32,
    pub dl_max_sdu: u32,
    pub dl_min_sdu: u32,
    pub dl_addr_length: u32,
    pub dl_mac_type: u32,
    pub dl_reserved: u32,
    pub dl_current_state: u32,
    pub dl_sap_length: i32,
    pub dl_service_mode: u32,
    pub dl_qos_length: u32,
    pub dl_qos_offset: u32,
    pub dl_qos_range_length: u32,
    pub dl_qos_range_offset: u32,
    pub dl_provider_style: u32,
    pub dl_addr_offset: u32,
    pub dl_version: u32,
    pub dl_brdcst_addr_length: u32,
    pub dl_brdcst_addr_offset: u32,
    pub dl_growth: u32,
}

#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct dl_bind_req_t {
    pub dl_primitive: u32,
    pub dl_sap: u32,
    pub dl_max_conind: u32,
    pub dl_service_mode: u16,
    pub dl_conn_mgmt: u16,
    pub dl_xidtest_flg: u32,
}

#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct dl_bind_ack_t {
    pub dl_primitive: u32,
    pub dl_sap: u32,
    pub dl_addr_length: u32,
    pub dl_addr_offset: u32,
    pub dl_max_conind: u32,
    pub dl_xidtest_flg: u32,
}

#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct dl_promiscon_req_t {
    pub dl_primitive: u32,
    pub dl_level: u32,
}

#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct dl_ok_ack_t {
    pub dl_primitive: u32,
    pub dl_correct_primitive: u32,
}

#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct dl_error_ack_t {
    pub dl_primitive: u32,
    pub dl_error_primitive: u32,
    pub dl_errno: u32,
    pub dl_unix_errno: u32,
}

#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct dl_notify_req_t {
    pub dl_primitive: u32,
    pub dl_notifications: u32,
    pub dl_timelimit: u32,
}

#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct dl_notify_ack_t {
    pub dl_primitive: u32,
    pub dl_notifications: u32,
}

#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct dl_notify_ind_t {
    pub dl_primitive: u32,
    pub dl_notification: u32,
    pub dl_data: u32,
    pub dl_addr_length: u32,
    pub dl_addr_offset: u32,
}
