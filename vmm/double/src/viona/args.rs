//! What every ioctl of `/dev/viona` takes.

use std::mem::size_of;

use devices_host::sys::{Errno, IoctlArg, SysResult};
use zvmm::hypervisor::bhyve::abi::*;

use super::{Config, rules};
use crate::names;
use crate::node::Call;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Nothing,
    Number,
    Structure(usize),
    /// A structure, or a null pointer.
    Maybe(usize),
}

use Kind::{Maybe, Nothing, Number, Structure};

/// An argument of the right kind and size.
pub enum Arg<'a> {
    Number(usize),
    Structure(&'a mut [u8]),
    /// A null pointer where a structure may be.
    Null,
}

const SPECS: &[(i32, Kind)] = &[
    (VNA_IOC_CREATE, Structure(size_of::<vioc_create>())),
    (VNA_IOC_DELETE, Nothing),
    (VNA_IOC_VERSION, Nothing),
    (VNA_IOC_RING_INIT, Structure(size_of::<vioc_ring_init>())),
    (VNA_IOC_RING_INIT_MODERN, Structure(size_of::<vioc_ring_init_modern>())),
    (VNA_IOC_RING_RESET, Number),
    (VNA_IOC_RING_KICK, Number),
    (VNA_IOC_RING_SET_MSI, Structure(size_of::<vioc_ring_msi>())),
    (VNA_IOC_RING_INTR_CLR, Number),
    (VNA_IOC_RING_SET_STATE, Structure(size_of::<vioc_ring_state>())),
    (VNA_IOC_RING_GET_STATE, Structure(size_of::<vioc_ring_state>())),
    (VNA_IOC_RING_PAUSE, Number),
    (VNA_IOC_INTR_POLL, Structure(size_of::<vioc_intr_poll>())),
    (VNA_IOC_INTR_POLL_MQ, Structure(size_of::<vioc_intr_poll_mq>())),
    (VNA_IOC_SET_FEATURES, Structure(8)),
    (VNA_IOC_GET_FEATURES, Structure(8)),
    (VNA_IOC_SET_NOTIFY_IOP, Number),
    (VNA_IOC_SET_NOTIFY_MMIO, Maybe(size_of::<vioc_notify_mmio>())),
    (VNA_IOC_SET_PROMISC, Number),
    (VNA_IOC_SET_MAC_FILTERS, Structure(size_of::<vioc_mac_filters_v7>())),
    (VNA_IOC_GET_MAC_FILTERS, Structure(size_of::<vioc_mac_filters_v7>())),
    (VNA_IOC_SET_MAC_ADDR, Structure(size_of::<vioc_mac_addr_v7>())),
    (VNA_IOC_GET_MAC_ADDR, Structure(size_of::<vioc_mac_addr_v7>())),
    (VNA_IOC_GET_PARAMS, Structure(size_of::<vioc_get_params>())),
    (VNA_IOC_SET_PARAMS, Structure(size_of::<vioc_set_params>())),
    (VNA_IOC_GET_MTU, Nothing),
    (VNA_IOC_SET_MTU, Number),
    (VNA_IOC_GET_PAIRS, Nothing),
    (VNA_IOC_SET_PAIRS, Number),
    (VNA_IOC_GET_USEPAIRS, Nothing),
    (VNA_IOC_SET_USEPAIRS, Number),
];

/// Whether this kernel has a command: what it lacks may be asked for, to learn that.
fn has(config: &Config, request: i32) -> bool {
    match request {
        VNA_IOC_RING_INIT_MODERN | VNA_IOC_INTR_POLL_MQ => config.modern,
        VNA_IOC_SET_NOTIFY_MMIO => config.notify_mmio,
        VNA_IOC_GET_MTU | VNA_IOC_SET_MTU => config.mtu,
        VNA_IOC_GET_PARAMS | VNA_IOC_SET_PARAMS => config.params,
        VNA_IOC_SET_MAC_FILTERS | VNA_IOC_GET_MAC_FILTERS => config.filters,
        VNA_IOC_SET_MAC_ADDR | VNA_IOC_GET_MAC_ADDR => config.filters,
        VNA_IOC_GET_PAIRS | VNA_IOC_SET_PAIRS | VNA_IOC_GET_USEPAIRS | VNA_IOC_SET_USEPAIRS => config.pairs,
        _ => true,
    }
}

/// Checks a command and its argument.
///
/// # Errors
/// ENOTTY for a command there is not; EFAULT and EINVAL for another argument than it takes.
pub fn check<'a>(call: &Call<'_>, config: &Config, request: i32, arg: IoctlArg<'a>) -> SysResult<Arg<'a>> {
    let Some((_, kind)) = SPECS.iter().find(|(known, _)| *known == request) else {
        let known = names::VIONA.iter().any(|(number, _)| *number == request);
        let rule = if known { &rules::NOT_MODELLED } else { &rules::COMMAND };
        return Err(call.refuse(rule, Errno::ENOTTY, names::ioctl(request)));
    };
    if !has(config, request) {
        return Err(Errno::ENOTTY);
    }
    let wrong = |given: &IoctlArg<'_>, errno| {
        Err(call.refuse(&rules::ARGUMENT, errno, format!("{} got {given:?}", names::ioctl(request))))
    };
    match (*kind, arg) {
        (Nothing | Number, IoctlArg::None) | (Nothing, IoctlArg::Value(0)) => Ok(Arg::Number(0)),
        (Number, IoctlArg::Value(value)) => Ok(Arg::Number(value)),
        (Maybe(_), IoctlArg::None | IoctlArg::Value(0)) => Ok(Arg::Null),
        (Structure(size) | Maybe(size), IoctlArg::Buffer(bytes)) if bytes.len() == size => Ok(Arg::Structure(bytes)),
        (Structure(_) | Maybe(_), given) => wrong(&given, Errno::EFAULT),
        (Nothing | Number, given) => wrong(&given, Errno::EINVAL),
    }
}
