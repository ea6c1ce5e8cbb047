//! In-kernel virtio-net queues (`usr/src/uts/intel/sys/viona_io.h` of illumos-gate).

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

pub const VIONA_CURRENT_INTERFACE_VERSION_gate: i32 = 6;

// On `/dev/viona`.
pub const VNA_IOC_CREATE: i32 = 0x564301;
pub const VNA_IOC_DELETE: i32 = 0x564302;
pub const VNA_IOC_VERSION: i32 = 0x564303;
pub const VNA_IOC_DEFAULT_PARAMS: i32 = 0x564304;
pub const VNA_IOC_RING_INIT: i32 = 0x564310;
pub const VNA_IOC_RING_RESET: i32 = 0x564311;
pub const VNA_IOC_RING_KICK: i32 = 0x564312;
pub const VNA_IOC_RING_SET_MSI: i32 = 0x564313;
pub const VNA_IOC_RING_INTR_CLR: i32 = 0x564314;
pub const VNA_IOC_RING_SET_STATE: i32 = 0x564315;
pub const VNA_IOC_RING_GET_STATE: i32 = 0x564316;
pub const VNA_IOC_RING_PAUSE: i32 = 0x564317;
pub const VNA_IOC_RING_INIT_MODERN: i32 = 0x564318;
pub const VNA_IOC_INTR_POLL: i32 = 0x564320;
pub const VNA_IOC_SET_FEATURES: i32 = 0x564321;
pub const VNA_IOC_GET_FEATURES: i32 = 0x564322;
pub const VNA_IOC_SET_NOTIFY_IOP: i32 = 0x564323;
pub const VNA_IOC_SET_PROMISC: i32 = 0x564324;
pub const VNA_IOC_GET_PARAMS: i32 = 0x564325;
pub const VNA_IOC_SET_PARAMS: i32 = 0x564326;
pub const VNA_IOC_GET_MTU: i32 = 0x564327;
pub const VNA_IOC_SET_MTU: i32 = 0x564328;
pub const VNA_IOC_SET_NOTIFY_MMIO: i32 = 0x564329;
pub const VNA_IOC_INTR_POLL_MQ: i32 = 0x56432a;
pub const VNA_IOC_SET_MAC_FILTERS: i32 = 0x56432b;
pub const VNA_IOC_GET_MAC_FILTERS: i32 = 0x56432c;
pub const VNA_IOC_SET_MAC_ADDR: i32 = 0x56432d;
pub const VNA_IOC_GET_MAC_ADDR: i32 = 0x56432e;
pub const VNA_IOC_GET_PAIRS: i32 = 0x564330;
pub const VNA_IOC_SET_PAIRS: i32 = 0x564331;
pub const VNA_IOC_GET_USEPAIRS: i32 = 0x564332;
pub const VNA_IOC_SET_USEPAIRS: i32 = 0x564333;

// Sizes.
pub const VIONA_MIN_QPAIR: u16 = 1;
pub const VIONA_MAX_QPAIR: u16 = 0x100;
pub const VIONA_INTR_WORDS: usize = 16;
pub const VIONA_MAX_PARAM_NVLIST_SZ: usize = 0x1000;
pub const VIONA_MAX_MCAST_FILTERS_v7: usize = 64;

// What the link receives (`viona_promisc`).
pub const VIONA_PROMISC_NONE: i32 = 0;
pub const VIONA_PROMISC_MULTI: i32 = 1;
pub const VIONA_PROMISC_ALL: i32 = 2;
pub const VIONA_PROMISC_ALL_VLAN_falcon_fork_only: i32 = 3;

// Why filters were refused (`vioc_mac_filter_err_v7`).
pub const VMF_OK: u32 = 0;
pub const VMF_ERR_COUNT: u32 = 1;
pub const VMF_ERR_NOT_MCAST: u32 = 2;
pub const VMF_ERR_INSTALL: u32 = 3;
pub const VMF_ERR_NO_UNICAST: u32 = 4;

// Why an address was refused (`vioc_mac_addr_err_v7`).
pub const VMA_OK: u32 = 0;
pub const VMA_ERR_NOT_UNICAST: u32 = 1;
pub const VMA_ERR_INSTALL: u32 = 2;
pub const VMA_ERR_MCAST_RESTORE: u32 = 3;

/// Argument of `VNA_IOC_CREATE`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, Immutable, IntoBytes, KnownLayout)]
#[repr(C)]
pub struct vioc_create {
    pub c_linkid: u32,
    pub c_vmfd: i32,
}

/// Argument of `VNA_IOC_RING_INIT`: a legacy ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, Immutable, IntoBytes, KnownLayout)]
#[repr(C)]
pub struct vioc_ring_init {
    pub ri_index: u16,
    pub ri_qsize: u16,
    pub _pad0: [u8; 4],
    pub ri_qaddr: u64,
}

/// Argument of `VNA_IOC_RING_INIT_MODERN`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, Immutable, IntoBytes, KnownLayout)]
#[repr(C)]
pub struct vioc_ring_init_modern {
    pub rim_index: u16,
    pub rim_qsize: u16,
    pub _pad0: [u8; 4],
    pub rim_qaddr_desc: u64,
    pub rim_qaddr_avail: u64,
    pub rim_qaddr_used: u64,
}

/// Argument of `VNA_IOC_RING_SET_STATE` and `VNA_IOC_RING_GET_STATE`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, Immutable, IntoBytes, KnownLayout)]
#[repr(C)]
pub struct vioc_ring_state {
    pub vrs_index: u16,
    pub vrs_avail_idx: u16,
    pub vrs_used_idx: u16,
    pub vrs_qsize: u16,
    pub vrs_qaddr_desc: u64,
    pub vrs_qaddr_avail: u64,
    pub vrs_qaddr_used: u64,
}

/// Argument of `VNA_IOC_RING_INIT` in an interim tree of 2025.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, Immutable, IntoBytes, KnownLayout)]
#[repr(C)]
pub struct vioc_ring_init_v6_oxide_interim {
    pub ri_index: u16,
    pub ri_qsize: u16,
    pub _pad0: [u8; 4],
    pub ri_qaddr_desc: u64,
    pub ri_qaddr_avail: u64,
    pub ri_qaddr_used: u64,
}

/// Answer of `VNA_IOC_INTR_POLL` in an interim tree of 2025.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, Immutable, IntoBytes, KnownLayout)]
#[repr(C)]
pub struct vioc_intr_poll_v6_oxide_interim {
    pub vip_nrings: u16,
    pub _pad0: [u8; 2],
    pub vip_status: [u32; 16],
}

/// Argument of `VNA_IOC_RING_SET_MSI`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, Immutable, IntoBytes, KnownLayout)]
#[repr(C)]
pub struct vioc_ring_msi {
    pub rm_index: u16,
    pub _pad0: [u8; 6],
    pub rm_addr: u64,
    pub rm_msg: u64,
}

/// Answer of `VNA_IOC_INTR_POLL`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, Immutable, IntoBytes, KnownLayout)]
#[repr(C)]
pub struct vioc_intr_poll {
    pub vip_status: [u32; 2],
}

/// Argument and answer of `VNA_IOC_INTR_POLL_MQ`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, Immutable, IntoBytes, KnownLayout)]
#[repr(C)]
pub struct vioc_intr_poll_mq {
    pub vipm_nrings: u16,
    pub _pad0: [u8; 2],
    pub vipm_status: [u32; 16],
}

/// Argument of `VNA_IOC_SET_NOTIFY_MMIO`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, Immutable, IntoBytes, KnownLayout)]
#[repr(C)]
pub struct vioc_notify_mmio {
    pub vim_address: u64,
    pub vim_size: u32,
    pub _pad0: [u8; 4],
}

/// Argument of `VNA_IOC_GET_PARAMS`: a packed nvlist.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, Immutable, IntoBytes, KnownLayout)]
#[repr(C)]
pub struct vioc_get_params {
    pub vgp_param: usize,
    pub vgp_param_sz: usize,
}

/// Argument of `VNA_IOC_SET_PARAMS`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, Immutable, IntoBytes, KnownLayout)]
#[repr(C)]
pub struct vioc_set_params {
    pub vsp_param: usize,
    pub vsp_param_sz: usize,
    pub vsp_error: usize,
    pub vsp_error_sz: usize,
}

/// Argument of `VNA_IOC_SET_MAC_FILTERS`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, Immutable, IntoBytes, KnownLayout)]
#[repr(C)]
pub struct vioc_mac_filters_v7 {
    pub vmf_nmcast: u32,
    pub vmf_err: u32,
    pub vmf_erraddr: [u8; 6],
    pub vmf_pad: [u8; 2],
    pub vmf_addrs: u64,
}

/// Argument of `VNA_IOC_SET_MAC_ADDR`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, Immutable, IntoBytes, KnownLayout)]
#[repr(C)]
pub struct vioc_mac_addr_v7 {
    pub vma_addr: [u8; 6],
    pub vma_present: u8,
    pub vma_pad: u8,
    pub vma_err: u32,
}
