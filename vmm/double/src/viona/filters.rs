//! Which frames an instance receives: its level of promiscuity, groups, and the link's own address.

use std::sync::atomic::{AtomicI32, Ordering};
use std::sync::{Arc, Mutex};

use devices_host::sys::{Errno, SysResult};
use zvmm::hypervisor::bhyve::abi::*;

use super::node::Attached;
use super::{lock, rules};
use crate::bhyve::user::{array_in, array_out, get, put};
use crate::node::Call;

/// What is received, as the rings see it.
#[derive(Debug)]
pub struct Receives {
    level: AtomicI32,
    told: Mutex<Told>,
}

#[derive(Debug)]
struct Told {
    mac: [u8; 6],
    groups: Vec<[u8; 6]>,
    /// Groups were named since the level let more pass.
    named: bool,
}

impl Receives {
    /// As the kernel begins: what is for the link, and for groups.
    pub fn new(mac: [u8; 6]) -> Arc<Self> {
        let told = Told { mac, groups: Vec::new(), named: false };
        Arc::new(Self { level: AtomicI32::new(VIONA_PROMISC_MULTI), told: Mutex::new(told) })
    }

    fn level(&self) -> i32 {
        self.level.load(Ordering::Relaxed)
    }

    /// The link's own address now.
    pub fn mac(&self) -> [u8; 6] {
        lock(&self.told).mac
    }

    /// Whether a frame with this destination is for the guest.
    pub fn has(&self, to: [u8; 6]) -> bool {
        let level = self.level();
        let told = lock(&self.told);
        match to {
            _ if level == VIONA_PROMISC_ALL || to == [0xff; 6] => true,
            [first, ..] if first & 1 != 0 => level == VIONA_PROMISC_MULTI || told.groups.contains(&to),
            _ => to == told.mac,
        }
    }
}

impl Attached {
    pub(super) fn set_promisc(&self, call: &Call<'_>, level: usize) -> SysResult<i32> {
        let known = i32::try_from(level).ok().filter(|level| (VIONA_PROMISC_NONE..=VIONA_PROMISC_ALL).contains(level));
        let Some(level) = known else {
            return Err(call.refuse(&rules::PROMISC_LEVEL, Errno::EINVAL, format!("{}: {level}", self.taken.link)));
        };
        let mut told = lock(&self.receives.told);
        if level == VIONA_PROMISC_NONE && !told.named {
            call.note(&rules::FILTERS_FIRST, format!("{}: no groups were named", self.taken.link));
        }
        told.named &= level == VIONA_PROMISC_NONE;
        self.receives.level.store(level, Ordering::Relaxed);
        Ok(0)
    }

    pub(super) fn set_filters(&self, call: &Call<'_>, bytes: &mut [u8]) -> SysResult<i32> {
        let mut filters: vioc_mac_filters_v7 = get(bytes);
        let count = filters.vmf_nmcast as usize;
        if count > VIONA_MAX_MCAST_FILTERS_v7 {
            call.note(&rules::FILTERS_COUNT, format!("{}: {count} groups", self.taken.link));
            (filters.vmf_err, filters.vmf_nmcast) = (VMF_ERR_COUNT, VIONA_MAX_MCAST_FILTERS_v7 as u32);
            put(bytes, &filters);
            return Ok(0);
        }
        let mut groups: Vec<[u8; 6]> = array_in(call, filters.vmf_addrs as usize, count)?;
        if let Some(wrong) = groups.iter().find(|[first, ..]| first & 1 == 0) {
            call.note(&rules::FILTERS_GROUPS, format!("{}: {wrong:02x?}", self.taken.link));
            (filters.vmf_err, filters.vmf_erraddr) = (VMF_ERR_NOT_MCAST, *wrong);
            put(bytes, &filters);
            return Ok(0);
        }
        groups.retain(|group| *group != [0xff; 6]);
        groups.sort_unstable();
        groups.dedup();
        let mut told = lock(&self.receives.told);
        (told.groups, told.named) = (groups, true);
        filters.vmf_err = VMF_OK;
        put(bytes, &filters);
        Ok(0)
    }

    pub(super) fn filters(&self, call: &Call<'_>, bytes: &mut [u8]) -> SysResult<i32> {
        let mut filters: vioc_mac_filters_v7 = get(bytes);
        let groups = lock(&self.receives.told).groups.clone();
        let room = groups.len().min(filters.vmf_nmcast as usize);
        array_out(call, &groups[..room], filters.vmf_addrs as usize)?;
        filters.vmf_nmcast = groups.len() as u32;
        put(bytes, &filters);
        Ok(0)
    }

    pub(super) fn set_address(&self, call: &Call<'_>, bytes: &mut [u8]) -> SysResult<i32> {
        let mut address: vioc_mac_addr_v7 = get(bytes);
        let detail = format!("{}: {:02x?}", self.taken.link, address.vma_addr);
        (address.vma_err, address.vma_present) = (VMA_OK, 1);
        if address.vma_addr[0] & 1 != 0 {
            call.note(&rules::ADDRESS_STATION, detail);
            address.vma_err = VMA_ERR_NOT_UNICAST;
        } else {
            if self.receives.level() != VIONA_PROMISC_ALL {
                call.note(&rules::ADDRESS_OPEN, detail);
            }
            lock(&self.receives.told).mac = address.vma_addr;
        }
        put(bytes, &address);
        Ok(0)
    }

    pub(super) fn address(&self, bytes: &mut [u8]) -> i32 {
        let vma_addr = self.receives.mac();
        put(bytes, &vioc_mac_addr_v7 { vma_addr, vma_present: 1, vma_pad: 0, vma_err: VMA_OK });
        0
    }
}
