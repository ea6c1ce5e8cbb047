//! What no damage of zvmm's own calls shows: each rule that is left, broken by hand.

use std::collections::BTreeSet;
use std::os::unix::net::UnixDatagram;
use std::sync::Arc;

use devices_host::sys::{Errno, IoctlArg, Link, OpenAccess, OpenFlags, RawHandle, Sys, SysResult};
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes};
use zvmm::hypervisor::bhyve::abi::*;
use zvmm::hypervisor::bhyve::nvlist::{self, Value};

use super::*;
use crate::{Host, Rule, Zone, bhyve};

const VERSION_1: u64 = 1 << 32;

/// A process with a VM of 1 MiB and an open instance.
struct Rig {
    sys: Arc<DoubleSys>,
    vm: RawHandle,
    viona: RawHandle,
    _far: UnixDatagram,
}

impl Rig {
    fn new() -> Self {
        let queues = Viona::with(Config::of_2026());
        let host = Host::new(vec![bhyve::Vmm::new(), queues.clone()]);
        let (near, far) = UnixDatagram::pair().unwrap();
        near.set_nonblocking(true).unwrap();
        queues.connect("net0", Wire::Socket(near.into()));
        host.add_link("net0", Link { id: 7, mac: [2; 6], mtu: 1500 });
        let sys = DoubleSys::new(&host, Zone::bhyve(1));
        let control = OpenFlags { access: OpenAccess::Write, exclusive: true, nonblocking: false };
        let control = sys.open("/dev/vmmctl", control).unwrap();
        let mut name = [0; 128];
        name[0] = b'g';
        let mut rig = Self { vm: control, viona: control, sys, _far: far };
        rig.call_at(control, VMM_CREATE_VM, &mut vm_create_req { name, flags: 0 }).unwrap();
        rig.vm = rig.sys.open("/dev/vmm/g", OpenFlags::READ_WRITE).unwrap();
        let mut segment = vm_memseg::new_zeroed();
        segment.len = 1 << 20;
        rig.call_at(rig.vm, VM_ALLOC_MEMSEG, &mut segment).unwrap();
        let mut map = vm_memmap::new_zeroed();
        (map.len, map.prot) = (1 << 20, 7);
        rig.call_at(rig.vm, VM_MMAP_MEMSEG, &mut map).unwrap();
        rig.viona = rig.sys.open("/dev/viona", OpenFlags::READ_WRITE).unwrap();
        rig
    }

    /// The same, attached to the link, with the features of a modern driver.
    fn attached() -> Self {
        let rig = Self::new();
        rig.create(7).unwrap();
        rig.features(VERSION_1).unwrap();
        rig
    }

    fn call_at<T: IntoBytes + FromBytes + Immutable>(
        &self,
        at: RawHandle,
        request: i32,
        arg: &mut T,
    ) -> SysResult<i32> {
        // SAFETY: the double checks kind, size and pointers; what those lead to is only read, or the test's own.
        unsafe { self.sys.ioctl(at, request, IoctlArg::Buffer(arg.as_mut_bytes())) }
    }

    fn call<T: IntoBytes + FromBytes + Immutable>(&self, request: i32, arg: &mut T) -> SysResult<i32> {
        self.call_at(self.viona, request, arg)
    }

    fn number(&self, request: i32, value: usize) -> SysResult<i32> {
        // SAFETY: a number reaches nothing.
        unsafe { self.sys.ioctl(self.viona, request, IoctlArg::Value(value)) }
    }

    fn create(&self, link: u32) -> SysResult<i32> {
        self.call(VNA_IOC_CREATE, &mut vioc_create { c_linkid: link, c_vmfd: self.vm.0 })
    }

    fn features(&self, features: u64) -> SysResult<i32> {
        self.call(VNA_IOC_SET_FEATURES, &mut { features })
    }

    fn init(&self, index: u16, size: u16, place: [u64; 3]) -> SysResult<i32> {
        let mut ring = vioc_ring_init_modern::new_zeroed();
        (ring.rim_index, ring.rim_qsize) = (index, size);
        (ring.rim_qaddr_desc, ring.rim_qaddr_avail, ring.rim_qaddr_used) = place.into();
        self.call(VNA_IOC_RING_INIT_MODERN, &mut ring)
    }

    fn message(&self, index: u16, address: u64) -> SysResult<i32> {
        let mut message = vioc_ring_msi::new_zeroed();
        (message.rm_index, message.rm_addr, message.rm_msg) = (index, address, 0x41);
        self.call(VNA_IOC_RING_SET_MSI, &mut message)
    }

    fn params(&self, packed: &[u8]) -> SysResult<i32> {
        let mut packed = packed.to_vec();
        let mut request = vioc_set_params::new_zeroed();
        (request.vsp_param, request.vsp_param_sz) = (packed.as_mut_ptr().expose_provenance(), packed.len());
        let mut errors = [0; 512];
        (request.vsp_error, request.vsp_error_sz) = (errors.as_mut_ptr().expose_provenance(), errors.len());
        self.call(VNA_IOC_SET_PARAMS, &mut request)
    }

    /// What it says, of which group, and its number.
    fn filters(&self, count: u32, groups: &[[u8; 6]]) -> (u32, [u8; 6], u32) {
        let mut groups = groups.to_vec();
        let mut request = vioc_mac_filters_v7::new_zeroed();
        (request.vmf_nmcast, request.vmf_addrs) = (count, groups.as_mut_ptr().expose_provenance() as u64);
        self.call(VNA_IOC_SET_MAC_FILTERS, &mut request).unwrap();
        (request.vmf_err, request.vmf_erraddr, request.vmf_nmcast)
    }

    /// What it says, and the address after that.
    fn address(&self, address: [u8; 6]) -> (u32, [u8; 6]) {
        let (mut request, mut now) = (vioc_mac_addr_v7::new_zeroed(), vioc_mac_addr_v7::new_zeroed());
        request.vma_addr = address;
        self.call(VNA_IOC_SET_MAC_ADDR, &mut request).unwrap();
        self.call(VNA_IOC_GET_MAC_ADDR, &mut now).unwrap();
        (request.vma_err, now.vma_addr)
    }

    fn memory(&self, address: u64, size: u32) -> SysResult<i32> {
        let mut window = vioc_notify_mmio::new_zeroed();
        (window.vim_address, window.vim_size) = (address, size);
        self.call(VNA_IOC_SET_NOTIFY_MMIO, &mut window)
    }
}

const PLACE: [u64; 3] = [0x1000, 0x2000, 0x3000];
const DOORBELLS: u64 = 0xe000_3000;

#[track_caller]
fn refused(result: SysResult<i32>, errno: Errno) {
    assert_eq!(result, Err(errno));
}

type Breaker = (&'static Rule, fn(&Rig));

/// On an instance that is attached.
const BREAKERS: &[Breaker] = &[
    (&rules::ARGUMENT, |rig| {
        refused(rig.call(VNA_IOC_SET_FEATURES, &mut 0_u32), Errno::EFAULT);
        refused(rig.number(VNA_IOC_GET_FEATURES, 8), Errno::EFAULT);
        refused(rig.number(VNA_IOC_DELETE, 8), Errno::EINVAL);
        refused(rig.call(VNA_IOC_RING_KICK, &mut 0_u64), Errno::EINVAL);
    }),
    (&rules::COMMAND, |rig| refused(rig.number(0x56_43ee, 0), Errno::ENOTTY)),
    (&rules::NOT_MODELLED, |rig| refused(rig.number(VNA_IOC_DEFAULT_PARAMS, 2), Errno::ENOTTY)),
    (&rules::CREATE_ONCE, |rig| refused(rig.create(7), Errno::EEXIST)),
    (&rules::RING_INDEX, |rig| {
        refused(rig.init(2, 256, PLACE), Errno::EINVAL);
        refused(rig.number(VNA_IOC_RING_RESET, 2), Errno::EINVAL);
        refused(rig.number(VNA_IOC_RING_PAUSE, 2), Errno::EINVAL);
        refused(rig.number(VNA_IOC_RING_INTR_CLR, 2), Errno::EINVAL);
        refused(rig.message(2, 0), Errno::EINVAL);
    }),
    (&rules::RING_SIZE, |rig| {
        refused(rig.init(0, 0, PLACE), Errno::EINVAL);
        refused(rig.init(0, 3, PLACE), Errno::EINVAL);
    }),
    (&rules::RING_ALIGNED, |rig| {
        refused(rig.init(0, 256, [0x1008, 0x2000, 0x3000]), Errno::EINVAL);
        refused(rig.init(0, 256, [0x1000, 0x2001, 0x3000]), Errno::EINVAL);
        refused(rig.init(0, 256, [0x1000, 0x2000, 0x3002]), Errno::EINVAL);
    }),
    (&rules::RING_MEMORY, |rig| {
        refused(rig.init(0, 256, [0x10_0000, 0x2000, 0x3000]), Errno::EINVAL);
        refused(rig.init(0, 256, [0x1000, 0xf_fffe, 0x3000]), Errno::EINVAL);
        refused(rig.init(0, 256, [0x1000, 0x2000, !3]), Errno::EINVAL);
    }),
    (&rules::RING_FRESH, |rig| {
        rig.init(0, 256, PLACE).unwrap();
        rig.number(VNA_IOC_RING_KICK, 0).unwrap();
        refused(rig.init(0, 256, PLACE), Errno::EBUSY);
        rig.number(VNA_IOC_RING_RESET, 0).unwrap();
    }),
    (&rules::RING_KIND, |rig| {
        let mut ring = vioc_ring_init::new_zeroed();
        (ring.ri_qsize, ring.ri_qaddr) = (256, 0x1000);
        refused(rig.call(VNA_IOC_RING_INIT, &mut ring), Errno::EINVAL);
        rig.features(0).unwrap();
        refused(rig.init(0, 256, PLACE), Errno::EINVAL);
    }),
    (&rules::RING_UNBOUND, |rig| {
        let bound = std::thread::scope(|scope| {
            let thread = scope.spawn(|| {
                devices_host::thread::bind_current(&[0]).unwrap();
                rig.init(0, 256, PLACE).unwrap();
            });
            thread.join()
        });
        bound.unwrap();
        rig.number(VNA_IOC_RING_KICK, 0).unwrap();
        rig.number(VNA_IOC_RING_RESET, 0).unwrap();
    }),
    (&rules::FEATURES_STILL, |rig| {
        rig.init(0, 256, PLACE).unwrap();
        rig.features(VERSION_1).unwrap();
        rig.number(VNA_IOC_RING_KICK, 0).unwrap();
        rig.number(VNA_IOC_RING_RESET, 0).unwrap();
    }),
    (&rules::FEATURES_CARRIED, |rig| assert!(rig.features(VERSION_1 | 1 << 29).is_ok())),
    (&rules::KICK_READY, |rig| {
        refused(rig.number(VNA_IOC_RING_KICK, 0), Errno::EBUSY);
        rig.init(0, 256, PLACE).unwrap();
        rig.number(VNA_IOC_RING_KICK, 0).unwrap();
        rig.number(VNA_IOC_RING_PAUSE, 0).unwrap();
        refused(rig.number(VNA_IOC_RING_KICK, 0), Errno::EBUSY);
        rig.number(VNA_IOC_RING_RESET, 0).unwrap();
    }),
    (&rules::KICK_ONCE, |rig| {
        rig.init(0, 256, PLACE).unwrap();
        rig.number(VNA_IOC_RING_RESET, 0).unwrap();
    }),
    (&rules::MSI_AFTER_INIT, |rig| assert!(rig.message(0, 0xfee0_0000).is_ok())),
    (&rules::MSI_ADDRESS, |rig| {
        rig.init(0, 256, PLACE).unwrap();
        rig.number(VNA_IOC_RING_KICK, 0).unwrap();
        rig.message(0, 0x41).unwrap();
        rig.message(0, 0).unwrap();
        rig.number(VNA_IOC_RING_RESET, 0).unwrap();
    }),
    (&rules::PAUSE_RUNNING, |rig| assert!(rig.number(VNA_IOC_RING_PAUSE, 0).is_ok())),
    (&rules::STATE_PAUSED, |rig| assert!(rig.call(VNA_IOC_RING_GET_STATE, &mut vioc_ring_state::new_zeroed()).is_ok())),
    (&rules::PAIRS_RANGE, |rig| {
        refused(rig.number(VNA_IOC_SET_PAIRS, 0), Errno::EINVAL);
        refused(rig.number(VNA_IOC_SET_PAIRS, 257), Errno::EINVAL);
        refused(rig.number(VNA_IOC_SET_PAIRS, 0x1_0001), Errno::EINVAL);
        rig.number(VNA_IOC_SET_PAIRS, 256).unwrap();
        rig.number(VNA_IOC_SET_USEPAIRS, 3).unwrap();
        refused(rig.number(VNA_IOC_SET_PAIRS, 2), Errno::EINVAL);
        assert_eq!(rig.number(VNA_IOC_GET_PAIRS, 0), Ok(256));
        assert_eq!(rig.number(VNA_IOC_GET_USEPAIRS, 0), Ok(3));
    }),
    (&rules::PAIRS_STILL, |rig| {
        rig.init(0, 256, PLACE).unwrap();
        refused(rig.number(VNA_IOC_SET_PAIRS, 2), Errno::EBUSY);
        rig.number(VNA_IOC_RING_KICK, 0).unwrap();
        rig.number(VNA_IOC_RING_RESET, 0).unwrap();
        rig.number(VNA_IOC_SET_PAIRS, 2).unwrap();
    }),
    (&rules::PAIRS_USED, |rig| {
        refused(rig.number(VNA_IOC_SET_USEPAIRS, 0), Errno::EINVAL);
        refused(rig.number(VNA_IOC_SET_USEPAIRS, 2), Errno::EINVAL);
    }),
    (&rules::PAIRS_START, |rig| {
        rig.number(VNA_IOC_SET_PAIRS, 2).unwrap();
        rig.number(VNA_IOC_SET_USEPAIRS, 2).unwrap();
        rig.features(VERSION_1).unwrap();
    }),
    (&rules::POLL_RINGS, |rig| {
        let mut poll = vioc_intr_poll_mq::new_zeroed();
        refused(rig.call(VNA_IOC_INTR_POLL_MQ, &mut poll), Errno::EINVAL);
        poll.vipm_nrings = 3;
        refused(rig.call(VNA_IOC_INTR_POLL_MQ, &mut poll), Errno::EINVAL);
    }),
    (&rules::HOOK_PORT, |rig| refused(rig.number(VNA_IOC_SET_NOTIFY_IOP, 0x1_0000), Errno::EINVAL)),
    (&rules::HOOK_PLACE, |rig| {
        refused(rig.memory(DOORBELLS, 0), Errno::EINVAL);
        refused(rig.memory(0xf_fffc, 8), Errno::EINVAL);
        refused(rig.memory(!3, 8), Errno::EINVAL);
    }),
    (&rules::HOOK_FOLLOWS, |rig| {
        rig.memory(DOORBELLS, 8).unwrap();
        // SAFETY: no pointer.
        unsafe { rig.sys.ioctl(rig.viona, VNA_IOC_SET_NOTIFY_MMIO, IoctlArg::None) }.unwrap();
        rig.init(0, 256, PLACE).unwrap();
        rig.number(VNA_IOC_RING_KICK, 0).unwrap();
        rig.number(VNA_IOC_SET_NOTIFY_IOP, 0xc010).unwrap();
        rig.number(VNA_IOC_RING_RESET, 0).unwrap();
    }),
    (&rules::PARAMS_LIST, |rig| {
        refused(rig.params(&[]), Errno::EINVAL);
        refused(rig.params(&[0; 4097]), Errno::E2BIG);
        refused(rig.params(&[1; 20]), Errno::EINVAL);
        rig.params(&nvlist::pack(&[("tx_header_pad", Value::Uint16(256))])).unwrap();
        let wrong = [("tx_copy_data", Value::Uint16(1)), ("tx_header_pad", Value::Uint16(257)), ("x", Value::Other(1))];
        refused(rig.params(&nvlist::pack(&wrong)), Errno::EINVAL);
    }),
    (&rules::PARAMS_STILL, |rig| {
        rig.init(0, 256, PLACE).unwrap();
        rig.params(&nvlist::pack(&[("tx_copy_data", Value::Boolean(true))])).unwrap();
        rig.number(VNA_IOC_RING_KICK, 0).unwrap();
        rig.number(VNA_IOC_RING_RESET, 0).unwrap();
    }),
    (&rules::FILTERS_COUNT, |rig| {
        assert_eq!(rig.filters(65, &[[1; 6]; 65]), (VMF_ERR_COUNT, [0; 6], 64));
        assert_eq!(rig.filters(64, &[[1; 6]; 64]), (VMF_OK, [0; 6], 64));
    }),
    (&rules::FILTERS_GROUPS, |rig| {
        assert_eq!(rig.filters(2, &[[1; 6], [4; 6]]), (VMF_ERR_NOT_MCAST, [4; 6], 2));
        let mut asked = vioc_mac_filters_v7::new_zeroed();
        rig.call(VNA_IOC_GET_MAC_FILTERS, &mut asked).unwrap();
        assert_eq!(asked.vmf_nmcast, 0, "all of them or none");
        rig.filters(4, &[[3; 6], [1; 6], [0xff; 6], [3; 6]]);
        let mut two = [[0u8; 6]; 2];
        (asked.vmf_nmcast, asked.vmf_addrs) = (2, two.as_mut_ptr().expose_provenance() as u64);
        rig.call(VNA_IOC_GET_MAC_FILTERS, &mut asked).unwrap();
        assert_eq!((asked.vmf_nmcast, two), (2, [[1; 6], [3; 6]]));
    }),
    (&rules::FILTERS_FIRST, |rig| {
        rig.filters(0, &[]);
        rig.number(VNA_IOC_SET_PROMISC, 0).unwrap();
        rig.number(VNA_IOC_SET_PROMISC, 1).unwrap();
        rig.number(VNA_IOC_SET_PROMISC, 0).unwrap();
    }),
    (&rules::ADDRESS_STATION, |rig| {
        rig.number(VNA_IOC_SET_PROMISC, 2).unwrap();
        assert_eq!(rig.address([3; 6]), (VMA_ERR_NOT_UNICAST, [2; 6]));
    }),
    (&rules::ADDRESS_OPEN, |rig| {
        assert_eq!(rig.address([4; 6]), (VMA_OK, [4; 6]));
        rig.address([2; 6]);
    }),
    (&rules::ADDRESS_BACK, |rig| {
        rig.number(VNA_IOC_SET_PROMISC, 2).unwrap();
        rig.address([4; 6]);
        rig.number(VNA_IOC_DELETE, 0).unwrap();
    }),
    (&rules::PROMISC_LEVEL, |rig| refused(rig.number(VNA_IOC_SET_PROMISC, 3), Errno::EINVAL)),
    (&rules::MTU_RANGE, |rig| {
        refused(rig.number(VNA_IOC_SET_MTU, 67), Errno::EINVAL);
        refused(rig.number(VNA_IOC_SET_MTU, 1501), Errno::EINVAL);
    }),
    (&rules::RINGS_RESET, |rig| {
        rig.init(1, 256, PLACE).unwrap();
        rig.number(VNA_IOC_RING_KICK, 1).unwrap();
        rig.number(VNA_IOC_DELETE, 0).unwrap();
    }),
];

/// On one that is not.
const BREAKERS_BEFORE: &[Breaker] = &[
    (&rules::ATTACHED, |rig| {
        refused(rig.features(0), Errno::ENXIO);
        refused(rig.number(VNA_IOC_DELETE, 0), Errno::ENXIO);
    }),
    (&rules::LINK_KNOWN, |rig| refused(rig.create(8), Errno::ENOENT)),
    (&rules::LINK_FREE, |rig| {
        rig.create(7).unwrap();
        let second = rig.sys.open("/dev/viona", OpenFlags::READ_WRITE).unwrap();
        let mut again = vioc_create { c_linkid: 7, c_vmfd: rig.vm.0 };
        refused(rig.call_at(second, VNA_IOC_CREATE, &mut again), Errno::EBUSY);
    }),
    (&rules::VM_HANDLE, |rig| {
        let mut wrong = vioc_create { c_linkid: 7, c_vmfd: rig.viona.0 };
        refused(rig.call(VNA_IOC_CREATE, &mut wrong), Errno::EBADF);
        wrong.c_vmfd = 9999;
        refused(rig.call(VNA_IOC_CREATE, &mut wrong), Errno::EBADF);
    }),
    (&rules::FEATURES_FIRST, |rig| {
        rig.create(7).unwrap();
        refused(rig.init(0, 256, PLACE), Errno::EINVAL);
    }),
];

/// Those that need a guest's driver, or more time: `vmm/double/tests/viona_suite` breaks them.
const ELSEWHERE: [&Rule; 3] = [&rules::KICK_HOOKED, &rules::INTERRUPT_TAKEN, &rules::STATE_SAME];

#[test]
fn each_rule_is_noticed_when_it_is_broken_and_no_other_is() {
    let cases = BREAKERS.iter().map(|case| (Rig::attached as fn() -> Rig, case));
    for (rig, (rule, act)) in cases.chain(BREAKERS_BEFORE.iter().map(|case| (Rig::new as fn() -> Rig, case))) {
        // A machine with one CPU binds nobody.
        if **rule == rules::RING_UNBOUND && std::thread::available_parallelism().map_or(1, usize::from) == 1 {
            continue;
        }
        let rig = rig();
        act(&rig);
        let broken: BTreeSet<_> = rig.sys.violations().iter().map(|violation| violation.rule.name).collect();
        assert_eq!(broken, BTreeSet::from([rule.name]));
    }
}

#[test]
fn every_rule_has_somebody_who_breaks_it() {
    let broken = BREAKERS.iter().chain(BREAKERS_BEFORE).map(|(rule, _)| *rule).chain(ELSEWHERE);
    let broken: BTreeSet<_> = broken.map(|rule| rule.name).collect();
    let all: BTreeSet<_> = rules::ALL.iter().map(|rule| rule.name).collect();
    assert_eq!(broken, all);
}

#[test]
fn a_vm_that_is_to_end_waits_for_its_link() {
    let rig = Rig::attached();
    // SAFETY: a number reaches nothing.
    unsafe { rig.sys.ioctl(rig.vm, VM_DESTROY_SELF, IoctlArg::Value(0)) }.unwrap();
    refused(rig.features(VERSION_1), Errno::ENXIO);
    rig.sys.close(rig.vm);
    let leaks = |rig: &Rig| rig.sys.leaks().iter().any(|leak| format!("{leak:?}").contains("VM g"));
    assert!(leaks(&rig));
    rig.sys.close(rig.viona);
    assert!(!leaks(&rig));
}
