use std::os::fd::RawFd;

use devices::virtio::testing::guest_ram;
use devices_host::poll::{PollFd, poll};
use vhost::{VhostBackend, VhostUserDirtyLogRegion, VhostUserMemoryRegionBase};

use super::*;

type Calls = Arc<Mutex<Vec<String>>>;

const RAM_BYTES: usize = 0x10_0000;
/// What a kernel offers: 27 means that it makes up headers itself, 26 that it logs, and 24 a legacy driver's wish.
const OFFERED: u64 = OF_THE_RINGS | 1 << 24 | 1 << 26 | 1 << 27 | 1 << 33;
const DRIVER: u64 =
    VERSION_1 | MRG_RXBUF | EVENT_IDX | INDIRECT_DESC | GUEST_CSUM | GUEST_TSO4 | CSUM | 1 << 5 | 1 << 17;
const RING: QueueState =
    QueueState { size: 256, desc_table: 0x1000, avail_ring: 0x2000, used_ring: 0x3000, next_avail: 0, next_used: 0 };
const MESSAGE: MsiMessage = MsiMessage { address: 0xfee0_0000, data: 0x41 };

/// A driver that remembers what it was asked, and a TAP device, messages and doorbells that do.
struct Fake {
    calls: Calls,
    features: u64,
    /// What it says to the next backend.
    answer: Mutex<Option<i32>>,
    /// Descriptors that it was given, by what for and ring.
    given: Mutex<Vec<(&'static str, usize, RawFd)>>,
}

impl Fake {
    fn note(&self, call: impl Into<String>) -> vhost::Result<()> {
        self.calls.lock().unwrap().push(call.into());
        Ok(())
    }

    fn give(&self, what: &'static str, queue: usize, fd: &EventFd) -> vhost::Result<()> {
        let mut given = self.given.lock().unwrap();
        given.retain(|(kind, of, _)| (*kind, *of) != (what, queue));
        given.push((what, queue, fd.as_raw_fd()));
        Ok(())
    }
}

impl VhostBackend for Fake {
    fn get_features(&self) -> vhost::Result<u64> {
        Ok(self.features)
    }

    fn set_features(&self, features: u64) -> vhost::Result<()> {
        self.note(format!("features {features:#x}"))
    }

    fn set_owner(&self) -> vhost::Result<()> {
        self.note("owner")
    }

    fn reset_owner(&self) -> vhost::Result<()> {
        self.note("reset owner")
    }

    fn set_mem_table(
        &self,
        regions: &[VhostUserMemoryRegionInfo],
    ) -> vhost::Result<Option<Vec<VhostUserMemoryRegionBase>>> {
        let regions: Vec<_> = regions.iter().map(|region| (region.guest_phys_addr, region.memory_size)).collect();
        self.note(format!("memory {regions:x?}")).map(|()| None)
    }

    fn set_log_base(&self, _base: u64, _region: Option<VhostUserDirtyLogRegion>) -> vhost::Result<()> {
        self.note("log base")
    }

    fn set_log_fd(&self, _fd: RawFd) -> vhost::Result<()> {
        self.note("log")
    }

    fn set_vring_num(&self, queue: usize, size: u16) -> vhost::Result<()> {
        self.note(format!("size {queue} {size}"))
    }

    fn set_vring_addr(&self, queue: usize, ring: &VringConfigData) -> vhost::Result<()> {
        let VringConfigData { desc_table_addr, avail_ring_addr, used_ring_addr, .. } = ring;
        self.note(format!("place {queue} {desc_table_addr:#x} {avail_ring_addr:#x} {used_ring_addr:#x}"))
    }

    fn set_vring_base(&self, queue: usize, base: u16) -> vhost::Result<()> {
        self.note(format!("base {queue} {base}"))
    }

    fn get_vring_base(&self, queue: usize) -> vhost::Result<u32> {
        self.note(format!("base of {queue}")).map(|()| 0xffff)
    }

    fn set_vring_call(&self, queue: usize, fd: &EventFd) -> vhost::Result<()> {
        self.note(format!("call {queue}"))?;
        self.give("call", queue, fd)
    }

    fn set_vring_kick(&self, queue: usize, fd: &EventFd) -> vhost::Result<()> {
        self.note(format!("kick {queue}"))?;
        self.give("kick", queue, fd)
    }

    fn set_vring_err(&self, queue: usize, fd: &EventFd) -> vhost::Result<()> {
        self.note(format!("err {queue}"))?;
        self.give("err", queue, fd)
    }
}

impl VhostNet for Fake {
    fn set_backend(&self, queue: usize, fd: Option<&File>) -> vhost::Result<()> {
        self.note(format!("backend {queue} {}", if fd.is_some() { "on" } else { "off" }))?;
        match self.answer.lock().unwrap().take() {
            Some(errno) => Err(Error::IoctlError(io::Error::from_raw_os_error(errno))),
            None => Ok(()),
        }
    }
}

/// A queue of a device: which pair's, and whether the next attachment fails.
struct FakeTap(Calls, usize, Arc<Mutex<bool>>);

impl Frames for FakeTap {
    fn set_header_bytes(&self, len_bytes: usize) -> io::Result<()> {
        self.0.lock().unwrap().push(format!("header {len_bytes}"));
        Ok(())
    }

    fn set_offloads(&self, Offloads { csum, tso4, tso6, ecn, uso: _ }: Offloads) -> io::Result<()> {
        let bits = [csum, tso4, tso6, ecn].map(u8::from);
        self.0.lock().unwrap().push(format!("offloads {bits:?}"));
        Ok(())
    }

    fn set_attached(&self, attached: bool) -> io::Result<()> {
        self.0.lock().unwrap().push(format!("{} {}", if attached { "attach" } else { "detach" }, self.1));
        if std::mem::take(&mut *self.2.lock().unwrap()) {
            Err(io::Error::from_raw_os_error(libc::ENOMEM))
        } else {
            Ok(())
        }
    }
}

struct FakeMessage(Calls, EventFd);

impl MessageFd for FakeMessage {
    fn fd(&self) -> &EventFd {
        &self.1
    }

    fn route(&self, message: MsiMessage) -> Result<(), HypervisorError> {
        self.0.lock().unwrap().push(format!("route {:#x}", message.data));
        match message.address {
            0 => Err(HypervisorError::Unavailable("no such address".to_owned())),
            _ => Ok(()),
        }
    }
}

struct FakeDoorbells(Calls);

impl HardwareDoorbells for FakeDoorbells {
    fn bind(&self, at: DoorbellAddress, _event: RawFd) -> Result<(), HypervisorError> {
        self.0.lock().unwrap().push(format!("bind {at:x?}"));
        Ok(())
    }

    fn unbind(&self, at: DoorbellAddress, _event: RawFd) -> Result<(), HypervisorError> {
        self.0.lock().unwrap().push(format!("unbind {at:x?}"));
        Ok(())
    }
}

struct Rig {
    queues: Vhost<Fake>,
    /// The next attachment fails.
    refuses: Arc<Mutex<bool>>,
    calls: Calls,
    ram: GuestRam,
}

fn try_rig(features: u64) -> Result<Rig, HypervisorError> {
    rig_with(&[features])
}

/// A pair for each kernel with these features.
fn rig_with(features: &[u64]) -> Result<Rig, HypervisorError> {
    let (calls, ram) = (Calls::default(), guest_ram(RAM_BYTES));
    let refuses = Arc::<Mutex<bool>>::default();
    let kernel = |features| Fake { calls: calls.clone(), features, answer: Mutex::default(), given: Mutex::default() };
    let event = || EventFd::new(EFD_NONBLOCK).unwrap();
    let message = || -> Box<dyn MessageFd> { Box::new(FakeMessage(calls.clone(), event())) };
    let doorbells = Arc::new(FakeDoorbells(calls.clone()));
    let messages = features.iter().map(|_| [message(), message()]).collect();
    let parts = Parts { ram: &ram, doorbells, messages };
    let instance = |(pair, features): (usize, &u64)| {
        let tap = Box::new(FakeTap(calls.clone(), pair, refuses.clone())) as Box<dyn Frames>;
        (kernel(*features), tap, File::open("/dev/null").unwrap())
    };
    let queues = queues(features.iter().enumerate().map(instance).collect(), parts, "tap0")?;
    Ok(Rig { queues, refuses, calls, ram })
}

fn rig() -> Rig {
    try_rig(OFFERED).unwrap()
}

impl Rig {
    fn take(&self) -> Vec<String> {
        std::mem::take(&mut *self.calls.lock().unwrap())
    }

    /// The kernel signals what it was given.
    fn signal(&self, what: &str, queue: usize) {
        let given = self.queues.pairs[0].kernel.given.lock().unwrap();
        let (_, _, fd) = *given.iter().find(|(kind, of, _)| (*kind, *of) == (what, queue)).unwrap();
        let one = 1u64.to_ne_bytes();
        // SAFETY: the buffer has the length given.
        assert_eq!(unsafe { libc::write(fd, one.as_ptr().cast(), one.len()) }, 8);
    }

    fn is_readable(&self) -> bool {
        let mut fds = [PollFd::new(self.queues.ready.as_raw_fd()).readable(true)];
        poll(&mut fds, Some(0)).unwrap();
        fds[0].is_readable()
    }

    fn polled(&self) -> Vec<u16> {
        let mut queues = Vec::new();
        self.queues.poll(&mut |queue| queues.push(queue));
        queues
    }

    fn broken(&self) -> Vec<u16> {
        let mut queues = Vec::new();
        self.queues.take_broken(&mut |queue| queues.push(queue));
        queues
    }
}

#[test]
fn an_instance_is_owned_first_and_knows_memory_kicks_errors_and_interrupts_before_any_ring() {
    let rig = rig();
    let calls = [
        "owner",
        "memory [(0, 100000), (100000000, 100000)]",
        "kick 0",
        "err 0",
        "call 0",
        "kick 1",
        "err 1",
        "call 1",
    ];
    assert_eq!(rig.take(), calls);
    assert_eq!(rig.queues.features(), OF_THE_RINGS | OF_THE_TAP, "what it means otherwise is not offered");
}

#[test]
fn a_kernel_without_modern_virtio_is_refused_in_one_line() {
    let line = try_rig(OFFERED & !VERSION_1).err().unwrap().to_string();
    assert_eq!(line, "/dev/vhost-net has no modern virtio: use a newer kernel");
}

#[test]
fn the_kernel_takes_what_the_driver_has_of_the_rings_and_the_tap_device_the_rest_with_the_drivers_header() {
    let rig = rig();
    rig.take();
    rig.queues.accept(DRIVER).unwrap();
    let features = format!("features {OF_THE_RINGS:#x}");
    assert_eq!(rig.take(), ["header 12", "offloads [1, 1, 0, 0]", &features]);
    rig.queues.accept(GUEST_CSUM | GUEST_TSO6 | GUEST_ECN).unwrap();
    assert_eq!(rig.take(), ["header 10", "offloads [1, 0, 1, 1]", "features 0x0"]);
    rig.queues.accept(MRG_RXBUF).unwrap();
    assert_eq!(rig.take(), ["header 12", "offloads [0, 0, 0, 0]", "features 0x8000"]);
    // A legacy driver's bit that means something else to the kernel.
    rig.queues.accept(1 << 27).unwrap();
    assert_eq!(rig.take(), ["header 10", "offloads [0, 0, 0, 0]", "features 0x0"]);
}

#[test]
fn a_ring_has_size_base_and_place_before_its_backend_and_loses_that_before_its_base_is_read() {
    let rig = rig();
    rig.take();
    rig.queues.init(1, &QueueState { next_avail: 7, next_used: 5, ..RING }, false).unwrap();
    assert_eq!(rig.take(), ["size 1 256", "base 1 7", "place 1 0x1000 0x2000 0x3000", "backend 1 on"]);
    rig.queues.kick(1);
    assert_eq!(rig.queues.pairs[0].rings[1].kick.read().unwrap(), 1);
    rig.queues.pause(1).unwrap();
    // Where the used ring stands is in the ring.
    rig.ram.write_obj(0x1234u16, GuestAddress(0x3002)).unwrap();
    assert_eq!(rig.queues.state(1).unwrap(), (0xffff, 0x1234));
    rig.queues.reset(1);
    assert_eq!(rig.take(), ["backend 1 off", "base of 1", "backend 1 off"]);
    assert_eq!(rig.queues.init(2, &RING, false), Err(KernelError::Ring("there is no such ring".to_owned())));
}

#[test]
fn what_the_driver_put_there_wrong_is_its_own_and_anything_else_is_the_links() {
    let rig = rig();
    for (errno, is_drivers) in [(libc::EFAULT, true), (libc::EINVAL, true), (libc::ENOMEM, false), (libc::EBUSY, false)]
    {
        *rig.queues.pairs[0].kernel.answer.lock().unwrap() = Some(errno);
        let error = rig.queues.init(0, &RING, false).unwrap_err();
        assert_eq!(matches!(error, KernelError::Ring(_)), is_drivers, "{error}");
    }
    *rig.queues.pairs[0].kernel.answer.lock().unwrap() = Some(libc::ENOMEM);
    let error = rig.queues.init(0, &RING, false).unwrap_err().to_string();
    assert_eq!(error, "tap0: VHOST_NET_SET_BACKEND: Cannot allocate memory");
}

#[test]
fn an_interrupt_without_a_message_waits_for_who_looks_and_one_with_a_message_is_its_signal() {
    let rig = rig();
    rig.queues.init(0, &RING, false).unwrap();
    rig.take();
    rig.signal("call", 0);
    assert!(rig.is_readable());
    assert_eq!(rig.polled(), [0]);
    assert!(!rig.is_readable() && rig.polled().is_empty());

    rig.queues.set_msi(0, Some(MESSAGE));
    rig.queues.set_msi(0, Some(MsiMessage { data: 0x42, ..MESSAGE }));
    assert_eq!(rig.take(), ["route 0x41", "call 0", "route 0x42"], "one message for another is a route alone");
    rig.signal("call", 0);
    assert_eq!(rig.queues.pairs[0].rings[0].message.fd().read().unwrap(), 1);
    assert!(!rig.is_readable());

    rig.queues.set_msi(0, None);
    rig.queues.set_msi(0, None);
    assert_eq!(rig.take(), ["call 0"]);
    rig.signal("call", 0);
    assert!(rig.is_readable());
    assert_eq!(rig.polled(), [0]);

    // A message that the kernel does not take is none.
    rig.queues.set_msi(0, Some(MESSAGE));
    rig.queues.set_msi(0, Some(MsiMessage { address: 0, data: 0 }));
    rig.signal("call", 0);
    assert_eq!(rig.polled(), [0]);
}

#[test]
fn a_ring_begins_without_the_message_the_interrupt_and_the_error_of_the_driver_before() {
    let rig = rig();
    rig.queues.init(0, &RING, false).unwrap();
    rig.signal("call", 0);
    rig.signal("err", 0);
    rig.queues.set_msi(0, Some(MESSAGE));
    rig.queues.reset(0);
    rig.take();
    rig.queues.init(0, &RING, true).unwrap();
    let calls = ["call 0", "size 0 256", "base 0 0", "place 0 0x1000 0x2000 0x3000", "backend 0 on"];
    assert_eq!(rig.take(), calls);
    assert!(!rig.is_readable() && rig.polled().is_empty() && rig.broken().is_empty());
}

#[test]
fn a_ring_that_the_kernel_gives_up_is_told_once() {
    let rig = rig();
    assert!(rig.queues.tells_of_broken());
    rig.queues.init(1, &RING, false).unwrap();
    rig.queues.set_msi(1, Some(MESSAGE));
    rig.signal("err", 1);
    assert!(rig.is_readable());
    assert_eq!(rig.broken(), [1]);
    assert!(!rig.is_readable() && rig.broken().is_empty() && rig.polled().is_empty());
}

#[test]
fn doorbells_are_a_register_or_a_value_at_a_port_for_each_ring_and_move_together() {
    let rig = rig();
    rig.take();
    rig.queues.notify_window(Some(Window::Mmio { address: 0xe000_3000, len_bytes: 8 }));
    assert_eq!(rig.take(), ["bind Mmio(e0003000)", "bind Mmio(e0003004)"]);
    rig.queues.notify_window(Some(Window::Port(0xc010)));
    assert_eq!(
        rig.take(),
        [
            "unbind Mmio(e0003000)",
            "unbind Mmio(e0003004)",
            "bind Pio { port: c010, value: 0 }",
            "bind Pio { port: c010, value: 1 }"
        ]
    );
    rig.queues.notify_window(None);
    rig.queues.notify_window(None);
    assert_eq!(rig.take(), ["unbind Pio { port: c010, value: 0 }", "unbind Pio { port: c010, value: 1 }"]);
}

#[test]
fn pairs_that_are_not_in_use_have_rings_that_stand_and_queues_that_are_detached() {
    let rig = rig_with(&[OFFERED, OFFERED & !EVENT_IDX, OFFERED]).unwrap();
    assert_eq!(rig.queues.features() & OF_THE_RINGS, OF_THE_RINGS & !EVENT_IDX, "what all of them have");
    rig.take();
    rig.queues.accept(DRIVER).unwrap();
    let features = format!("features {:#x}", OF_THE_RINGS & !EVENT_IDX);
    assert_eq!(rig.take(), ["header 12", "offloads [1, 1, 0, 0]", &features, &features, &features]);
    for queue in 0..6 {
        rig.queues.init(queue, &RING, false).unwrap();
    }
    let backends = |calls: Vec<String>| calls.into_iter().filter(|call| !call.contains("place")).collect::<Vec<_>>();
    let of_one = |at| [format!("size {at} 256"), format!("base {at} 0")];
    let one_runs =
        [of_one(0).to_vec(), vec!["backend 0 on".to_owned()], of_one(1).to_vec(), vec!["backend 1 on".to_owned()]];
    let others = [of_one(0), of_one(1), of_one(0), of_one(1)].concat();
    assert_eq!(backends(rig.take()), [one_runs.concat(), others].concat());
    let kicks = |pair: usize| [0, 1].map(|at| rig.queues.pairs[pair].rings[at].kick.read().unwrap_or(0));
    rig.queues.use_pairs(2).unwrap();
    assert_eq!(rig.take(), ["attach 1", "backend 0 on", "backend 1 on"]);
    assert_eq!((kicks(1), kicks(2)), ([1, 1], [0, 0]), "what was rung for meanwhile is looked for");
    rig.queues.use_pairs(3).unwrap();
    rig.queues.use_pairs(3).unwrap();
    assert_eq!(rig.take(), ["attach 2", "backend 0 on", "backend 1 on"]);
    rig.queues.use_pairs(1).unwrap();
    let out = |pair| ["backend 0 off".to_owned(), "backend 1 off".to_owned(), format!("detach {pair}")];
    assert_eq!(rig.take(), [out(2), out(1)].concat());
    // A ring that ends while it stands does not go on with its pair.
    rig.queues.reset(2);
    rig.queues.pause(3).unwrap();
    rig.take();
    rig.queues.use_pairs(2).unwrap();
    assert_eq!(rig.take(), ["attach 1"]);
    rig.queues.init(3, &RING, false).unwrap();
    assert_eq!(rig.take().last().unwrap(), "backend 1 on");
    // The next driver begins with one.
    rig.queues.reset(3);
    rig.take();
    rig.queues.accept(DRIVER).unwrap();
    assert_eq!(rig.take()[..2], ["detach 1", "header 12"]);
}

#[test]
fn a_pair_that_cannot_come_into_use_is_as_it_was() {
    let rig = rig_with(&[OFFERED; 2]).unwrap();
    for queue in 0..4 {
        rig.queues.init(queue, &RING, false).unwrap();
    }
    rig.take();
    *rig.refuses.lock().unwrap() = true;
    let error = rig.queues.use_pairs(2).unwrap_err().to_string();
    assert_eq!(error, "tap0: TUNSETQUEUE: Cannot allocate memory");
    rig.take();
    *rig.queues.pairs[1].kernel.answer.lock().unwrap() = Some(libc::EINVAL);
    assert_eq!(rig.queues.use_pairs(2).unwrap_err().to_string(), "tap0: VHOST_NET_SET_BACKEND: Invalid argument");
    assert_eq!(rig.take(), ["attach 1", "backend 0 on", "backend 0 off", "backend 1 off", "detach 1"]);
    rig.queues.use_pairs(2).unwrap();
    assert_eq!(rig.take(), ["attach 1", "backend 0 on", "backend 1 on"]);
}

#[test]
fn rings_of_every_pair_have_doorbells_messages_and_errors_of_their_own() {
    let rig = rig_with(&[OFFERED; 2]).unwrap();
    rig.take();
    rig.queues.notify_window(Some(Window::Mmio { address: 0xe000_3000, len_bytes: 16 }));
    let bound = [0, 4, 8, 12].map(|at| format!("bind Mmio({:x})", 0xe000_3000u64 + at));
    assert_eq!(rig.take(), bound);
    rig.queues.set_msi(3, Some(MESSAGE));
    assert_eq!(rig.take(), ["route 0x41", "call 1"]);
    rig.queues.pairs[1].rings[0].waiting.write(1).unwrap();
    rig.queues.pairs[1].rings[1].broken.write(1).unwrap();
    assert!(rig.is_readable());
    assert_eq!((rig.polled(), rig.broken()), (vec![2], vec![3]));
    assert!(!rig.is_readable());
    assert!(matches!(rig.queues.init(4, &RING, false), Err(KernelError::Ring(_))));
}

#[test]
fn a_device_that_is_not_there_or_not_for_this_user_is_one_line_that_says_what_to_do() {
    let line = |errno| open_hint(&io::Error::from_raw_os_error(errno));
    assert_eq!(
        line(libc::ENOENT),
        "/dev/vhost-net: No such file or directory: load the module vhost_net, or make the device visible in this container"
    );
    assert_eq!(
        line(libc::EACCES),
        "/dev/vhost-net: Permission denied: add the user to the group that owns it (usually kvm)"
    );
    assert_eq!(
        line(libc::EBUSY),
        "/dev/vhost-net: Device or resource busy: without vhost=on the process carries the frames itself"
    );
}

#[test]
fn a_ring_may_end_where_memory_does_and_no_part_of_it_goes_on_in_another_piece() {
    const HALF: u64 = 0x8_0000;
    let ranges = [(GuestAddress(0), HALF as usize), (GuestAddress(HALF), HALF as usize)];
    let ram = GuestRam::from_ranges(&ranges).unwrap();
    let ring = |desc_table_addr, avail_ring_addr, used_ring_addr| VringConfigData {
        queue_max_size: 256,
        queue_size: 256,
        flags: 0,
        desc_table_addr,
        used_ring_addr,
        avail_ring_addr,
        log_addr: None,
    };
    let [desc, avail, used] = [256 * 16, 256 * 2 + 6, 256 * 8 + 6];
    let end = 2 * HALF;
    for (at, lies) in [
        ([end - desc, 0x2000, 0x3000], true),
        ([0x1000, end - avail, 0x3000], true),
        ([0x1000, 0x2000, end - used], true),
        ([HALF - desc, HALF, 0x3000], true),
        ([end - desc + 1, 0x2000, 0x3000], false),
        ([0x1000, HALF - 2, 0x3000], false),
        ([0x1000, 0x2000, HALF - 4], false),
        ([u64::MAX, 0x2000, 0x3000], false),
    ] {
        assert_eq!(is_in_one_piece(&ram, &ring(at[0], at[1], at[2])), lies, "{at:x?}");
    }
}
