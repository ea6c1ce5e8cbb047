//! The double itself: that each rule is noticed when it is broken.

use std::mem::size_of_val;

use devices_host::sys::{IoctlArg, RawHandle, Sys};
use zvmm::hypervisor::illumos_kvm::abi::dlpi::*;
use zvmm::hypervisor::illumos_kvm::abi::vnd::*;
use zvmm::hypervisor::illumos_kvm::plain::{Plain, bytes_of, bytes_of_mut, from_bytes, zeroed};

use super::*;
use crate::{Rule, Zone};

const FACTS: Link = Link { id: 3, mac: [2, 0, 0, 0, 0, 1], mtu: 1500 };
const VND_PATH: &str = "/dev/vnd/net0";
const DLPI_PATH: &str = "/dev/net/net0";

struct Rig {
    sys: Arc<DoubleSys>,
    links: Arc<Links>,
    cable: UnixDatagram,
}

fn rig(zone: Zone) -> Rig {
    let links = Links::new();
    let host = Host::new(links.drivers());
    let cable = links.add(&host, "net0", FACTS).unwrap();
    Rig { sys: DoubleSys::new(&host, zone), links, cable }
}

/// A frameio structure of one frame.
#[repr(C)]
#[derive(Clone, Copy)]
struct FrameIo {
    header: [u32; 4],
    vectors: [framevec; 2],
}

// SAFETY: integers without a gap.
unsafe impl Plain for FrameIo {}

impl FrameIo {
    fn new(first: &mut [u8], second: &mut [u8]) -> Self {
        let vector = |bytes: &mut [u8]| framevec {
            fv_buf: bytes.as_mut_ptr().expose_provenance() as u64,
            fv_buflen: bytes.len() as u64,
            fv_actlen: 0,
        };
        Self { header: [FRAMEIO_VERSION, 2, 2, 0], vectors: [vector(first), vector(second)] }
    }
}

impl Rig {
    fn ask<T: Plain>(&self, handle: RawHandle, request: i32, argument: &mut T) -> SysResult<i32> {
        // SAFETY: the double itself looks whether what is pointed to is there, and the tests own it.
        unsafe { self.sys.ioctl(handle, request, IoctlArg::Buffer(bytes_of_mut(argument))) }
    }

    fn property(&self, handle: RawHandle, request: i32, size: u64) -> SysResult<u64> {
        let mut buffer: vnd_ioc_buf = zeroed();
        buffer.vib_size = size;
        self.ask(handle, request, &mut buffer)?;
        Ok(buffer.vib_size)
    }

    /// Somebody who did everything right so far, but for what `skip` names.
    fn vnd(&self, skip: i32) -> RawHandle {
        let handle = self.sys.open(VND_PATH, OpenFlags::READ_WRITE).unwrap();
        for (request, size) in
            [(VND_IOC_GETMINTU, 0), (VND_IOC_GETMAXTU, 0), (VND_IOC_SETRXBUF, 4 << 20), (VND_IOC_SETTXBUF, 4 << 20)]
        {
            if request != skip {
                self.property(handle, request, size).unwrap();
            }
        }
        self.sys.set_nonblocking(handle).unwrap();
        handle
    }

    fn write(&self, handle: RawHandle, edit: impl FnOnce(&mut FrameIo)) -> SysResult<i32> {
        let (mut first, mut second) = ([1; 14], [2; 46]);
        let mut io = FrameIo::new(&mut first, &mut second);
        edit(&mut io);
        self.ask(handle, VND_IOC_FRAMEIO_WRITE, &mut io)
    }

    fn put<T: Plain>(&self, handle: RawHandle, message: &T, urgent: bool) {
        self.sys.putmsg(handle, Some(bytes_of(message)), None, urgent).unwrap();
    }

    /// Takes an answer; which primitive it is.
    fn answer(&self, handle: RawHandle) -> u32 {
        let mut control = [0; 512];
        let got = self.sys.getmsg(handle, &mut control, &mut [0; 2048]).unwrap();
        assert!(got.control_bytes.is_some_and(|len| len >= 4));
        from_bytes::<dl_info_req_t>(&control).unwrap().dl_primitive
    }

    fn request<T: Plain>(&self, handle: RawHandle, message: &T, expected: u32) {
        self.put(handle, message, false);
        assert_eq!(self.answer(handle), expected);
    }

    fn level(&self, handle: RawHandle, dl_level: u32, expected: u32) {
        self.request(handle, &dl_promiscon_req_t { dl_primitive: DL_PROMISCON_REQ, dl_level }, expected);
    }

    /// A node that was asked what it is.
    fn node(&self) -> RawHandle {
        let handle = self.sys.open(DLPI_PATH, OpenFlags::READ_WRITE).unwrap();
        self.put(handle, &dl_info_req_t { dl_primitive: DL_INFO_REQ }, true);
        assert_eq!(self.answer(handle), DL_INFO_ACK);
        handle
    }

    fn raw(&self, handle: RawHandle) {
        // SAFETY: no argument.
        unsafe { self.sys.ioctl(handle, DLIOCRAW, IoctlArg::Value(0)) }.unwrap();
    }

    /// A stream that frames can go by.
    fn stream(&self) -> RawHandle {
        let handle = self.node();
        self.raw(handle);
        self.request(handle, &bind(), DL_BIND_ACK);
        for level in [DL_PROMISC_RX_ONLY, DL_PROMISC_FIXUPS, DL_PROMISC_SAP, DL_PROMISC_MULTI] {
            self.level(handle, level, DL_OK_ACK);
        }
        self.sys.set_nonblocking(handle).unwrap();
        handle
    }

    fn broken(&self) -> Vec<&'static str> {
        self.sys.violations().iter().map(|violation| violation.rule.name).collect()
    }
}

fn bind() -> dl_bind_req_t {
    dl_bind_req_t { dl_primitive: DL_BIND_REQ, dl_service_mode: DL_CLDLS as u16, ..zeroed() }
}

fn notify() -> dl_notify_req_t {
    let dl_notifications = DL_NOTE_LINK_DOWN | DL_NOTE_LINK_UP;
    dl_notify_req_t { dl_primitive: DL_NOTIFY_REQ, dl_notifications, dl_timelimit: 0 }
}

#[test]
fn who_does_everything_right_breaks_no_rule() {
    let rig = rig(Zone::kvm(1));
    let handle = rig.vnd(0);
    rig.write(handle, |_| {}).unwrap();
    assert_eq!(rig.sys.write(handle, &[7; 60]), Ok(60));
    let mut got = [0; 2048];
    assert_eq!((rig.cable.recv(&mut got).unwrap(), got[13], got[14]), (60, 1, 2));
    rig.cable.recv(&mut got).unwrap();
    rig.cable.send(&[9; 100]).unwrap();
    let (mut first, mut second) = ([0; 40], [0; 2000]);
    let mut io = FrameIo::new(&mut first, &mut second);
    rig.ask(handle, VND_IOC_FRAMEIO_READ, &mut io).unwrap();
    assert_eq!((io.vectors[0].fv_actlen, io.vectors[1].fv_actlen, second[59], second[60]), (40, 60, 9, 0));
    assert_eq!(rig.ask(handle, VND_IOC_FRAMEIO_READ, &mut FrameIo::new(&mut first, &mut second)), Err(Errno::EAGAIN));
    rig.cable.send(&[9; 20]).unwrap();
    assert_eq!(rig.sys.read(handle, &mut got), Ok(20));
    rig.sys.close(handle);
    let handle = rig.stream();
    rig.sys.putmsg(handle, None, Some(&[5; 60]), false).unwrap();
    assert_eq!(rig.cable.recv(&mut got).unwrap(), 60);
    rig.cable.send(&[6; 60]).unwrap();
    let message = rig.sys.getmsg(handle, &mut [0; 512], &mut got).unwrap();
    assert_eq!((message.control_bytes, message.data_bytes, message.more), (None, Some(60), false));
    let watch = rig.node();
    rig.request(watch, &notify(), DL_NOTIFY_ACK);
    rig.sys.set_nonblocking(watch).unwrap();
    assert_eq!(rig.answer(watch), DL_NOTIFY_IND, "how it is, at once");
    assert_eq!(rig.sys.getmsg(watch, &mut [0; 512], &mut got), Err(Errno::EAGAIN));
    rig.links.set_carrier("net0", false);
    assert_eq!(rig.answer(watch), DL_NOTIFY_IND);
    rig.links.remove("net0");
    let hung_up = rig.sys.getmsg(watch, &mut [0; 512], &mut got).unwrap();
    assert_eq!((hung_up.control_bytes, hung_up.data_bytes), (Some(0), Some(0)));
    assert_eq!(rig.sys.putmsg(handle, None, Some(&[5; 60]), false), Err(Errno::ENXIO));
    assert_eq!(rig.broken(), [""; 0]);
}

#[test]
fn a_frame_that_does_not_fit_is_the_next_one_again() {
    let rig = rig(Zone::kvm(1));
    let handle = rig.vnd(0);
    rig.cable.send(&[9; 100]).unwrap();
    assert_eq!(rig.sys.read(handle, &mut [0; 99]), Err(Errno::EOVERFLOW));
    assert_eq!(rig.sys.read(handle, &mut [0; 2048]), Ok(100));
    let other = rig.vnd(0);
    assert_eq!(rig.sys.read(other, &mut [0; 2048]), Err(Errno::EAGAIN), "one device may be opened again");
    assert_eq!(rig.broken(), ["vnd-read-room"]);
}

#[test]
fn an_error_in_a_structure_is_what_the_driver_makes_of_it() {
    let rig = rig(Zone::kvm(1));
    let handle = rig.vnd(0);
    let mut buffer: vnd_ioc_buf = zeroed();
    buffer.vib_size = (4 << 20) + 1;
    assert_eq!(rig.ask(handle, VND_IOC_SETRXBUF, &mut buffer), Err(Errno::EIO));
    assert_eq!(buffer.vib_errno, zvmm::hypervisor::illumos_kvm::abi::vnd::errno::VND_E_BUFTOOBIG);
    let mut buffer: vnd_ioc_buf = zeroed();
    rig.ask(handle, VND_IOC_GETRXBUF, &mut buffer).unwrap();
    assert_eq!((buffer.vib_size, buffer.vib_errno), (4 << 20, 0xdead_beef), "nothing was put there");
    assert_eq!(rig.broken(), [""; 0]);
}

#[test]
fn one_kind_of_device_has_the_link_at_a_time() {
    let rig = rig(Zone::kvm(1));
    let stream = rig.stream();
    assert_eq!(rig.sys.open(VND_PATH, OpenFlags::READ_WRITE), Err(Errno::ENOENT));
    rig.sys.close(stream);
    let device = rig.vnd(0);
    let node = rig.node();
    rig.raw(node);
    rig.request(node, &bind(), DL_ERROR_ACK);
    rig.sys.close(device);
    rig.request(node, &bind(), DL_BIND_ACK);
    assert_eq!(rig.broken(), [""; 0]);
}

type Breaks = fn(&Rig);

fn notice(all: &[&Rule], zone: fn() -> Zone, cases: &[(&Rule, Breaks)]) {
    for (rule, breaks) in cases {
        let global = [rules::vnd::ATTACHED.name, rules::vnd::ATTACH_ONCE.name, rules::vnd::NAME.name];
        let rig = rig(if global.contains(&rule.name) { Zone::global() } else { zone() });
        breaks(&rig);
        assert_eq!(rig.broken(), [rule.name]);
    }
    for rule in all {
        assert!(cases.iter().any(|(tried, _)| tried.name == rule.name), "nothing breaks {}", rule.name);
    }
}

fn control(rig: &Rig) -> RawHandle {
    rig.sys.open(VND_CONTROL, OpenFlags::READ_WRITE).unwrap()
}

fn attach(name: &[u8]) -> vnd_ioc_attach {
    let mut request: vnd_ioc_attach = zeroed();
    request.via_name[..name.len()].copy_from_slice(name);
    request
}

#[test]
fn every_rule_of_a_frame_device_is_noticed_when_it_is_broken() {
    use rules::vnd as rules;
    let cases: &[(&Rule, Breaks)] = &[
        (&rules::OPEN, |rig| {
            let flags = OpenFlags { exclusive: true, ..OpenFlags::READ_WRITE };
            assert_eq!(rig.sys.open(VND_PATH, flags), Err(Errno::ENOTSUP));
        }),
        (&rules::COMMAND, |rig| assert_eq!(rig.property(rig.vnd(0), 0x766e_6477, 0), Err(Errno::ENOTTY))),
        (&rules::NOT_MODELLED, |rig| assert_eq!(rig.property(rig.vnd(0), VND_IOC_LIST, 0), Err(Errno::ENOTTY))),
        (&rules::ARGUMENT, |rig| {
            assert_eq!(rig.ask(rig.vnd(0), VND_IOC_SETRXBUF, &mut attach(b"")), Err(Errno::EFAULT));
        }),
        (&rules::NAME, |rig| {
            assert_eq!(rig.ask(control(rig), VND_IOC_ATTACH, &mut attach(&[b'a'; 32])), Err(Errno::EIO))
        }),
        (&rules::ATTACHED, |rig| assert_eq!(rig.property(control(rig), VND_IOC_GETMAXTU, 0), Ok(0))),
        (&rules::ATTACH_ONCE, |rig| {
            let handle = control(rig);
            rig.ask(handle, VND_IOC_ATTACH, &mut attach(b"net0")).unwrap();
            assert_eq!(rig.ask(handle, VND_IOC_ATTACH, &mut attach(b"net0")), Err(Errno::EIO));
        }),
        (&rules::ERRNO_CLEAR, |rig| {
            let mut buffer: vnd_ioc_buf = zeroed();
            buffer.vib_errno = 1;
            rig.ask(rig.vnd(0), VND_IOC_GETMAXTU, &mut buffer).unwrap();
        }),
        (&rules::BUFFER_ROOM, |rig| {
            let _ = rig.property(rig.vnd(0), VND_IOC_SETRXBUF, 1517);
        }),
        (&rules::BUFFERS_SET, |rig| {
            let _ = rig.write(rig.vnd(VND_IOC_SETTXBUF), |_| {});
        }),
        (&rules::LIMITS_ASKED, |rig| {
            let _ = rig.write(rig.vnd(VND_IOC_GETMAXTU), |_| {});
        }),
        (&rules::MAXBUF_ZONE, |rig| assert_eq!(rig.property(rig.vnd(0), VND_IOC_GETMAXBUF, 0), Err(Errno::EPERM))),
        (&rules::NONBLOCKING, |rig| {
            let handle = rig.sys.open(VND_PATH, OpenFlags::READ_WRITE).unwrap();
            for (request, size) in
                [(VND_IOC_GETMINTU, 0), (VND_IOC_GETMAXTU, 0), (VND_IOC_SETRXBUF, 65536), (VND_IOC_SETTXBUF, 65536)]
            {
                rig.property(handle, request, size).unwrap();
            }
            rig.write(handle, |_| {}).unwrap();
        }),
        (&rules::VERSION, |rig| assert_eq!(rig.write(rig.vnd(0), |io| io.header[0] = 2), Err(Errno::EINVAL))),
        (&rules::VECTORS, |rig| assert_eq!(rig.write(rig.vnd(0), |io| io.header[2] = 0), Err(Errno::EINVAL))),
        (&rules::ONE_FRAME, |rig| assert_eq!(rig.write(rig.vnd(0), |io| io.header[1] = 1), Err(Errno::EINVAL))),
        (&rules::VECTOR, |rig| {
            assert_eq!(rig.write(rig.vnd(0), |io| io.vectors[1].fv_buflen = 0), Err(Errno::EINVAL));
        }),
        (&rules::MEMORY, |rig| assert_eq!(rig.write(rig.vnd(0), |io| io.vectors[1].fv_buf = 8), Err(Errno::EFAULT))),
        (&rules::LENGTH_CLEAR, |rig| {
            let _ = rig.write(rig.vnd(0), |io| io.vectors[1].fv_actlen = 1);
        }),
        (&rules::READ_ROOM, |rig| assert_eq!(rig.sys.read(rig.vnd(0), &mut [0; 1517]), Err(Errno::EAGAIN))),
        (&rules::ETHERNET, |rig| assert_eq!(rig.sys.write(rig.vnd(0), &[]), Err(Errno::EAGAIN))),
        (&rules::LIMITS_KEPT, |rig| assert_eq!(rig.sys.write(rig.vnd(0), &[0; 1519]), Err(Errno::ERANGE))),
        (&rules::SPIN, |rig| {
            let handle = rig.vnd(0);
            rig.links.set_full("net0", true);
            let deadline = std::time::Instant::now() + std::time::Duration::from_secs(20);
            while rig.broken().is_empty() && std::time::Instant::now() < deadline {
                for _ in 0..30_000 {
                    assert_eq!(rig.sys.write(handle, &[0; 60]), Err(Errno::EAGAIN));
                }
            }
        }),
    ];
    notice(rules::ALL, || Zone::kvm(1), cases);
}

#[test]
fn every_rule_of_a_stream_is_noticed_when_it_is_broken() {
    use rules::dlpi as rules;
    let cases: &[(&Rule, Breaks)] = &[
        (&rules::OPEN, |rig| {
            let flags = OpenFlags { nonblocking: true, ..OpenFlags::READ_WRITE };
            assert_eq!(rig.sys.open(DLPI_PATH, flags), Err(Errno::EINVAL));
        }),
        (&rules::COMMAND, |rig| {
            // SAFETY: no argument.
            let result = unsafe { rig.sys.ioctl(rig.node(), DLIOCRAW + 1, IoctlArg::Value(0)) };
            assert_eq!(result, Err(Errno::EINVAL));
        }),
        (&rules::PRIMITIVE, |rig| {
            rig.request(rig.node(), &dl_info_req_t { dl_primitive: 0x20 }, DL_ERROR_ACK);
        }),
        (&rules::SIZE, |rig| {
            let handle = rig.node();
            let long = [DL_NOTIFY_REQ, 0x18, 0, 0].map(u32::to_ne_bytes);
            assert_eq!(size_of_val(&long), 16);
            rig.sys.putmsg(handle, Some(long.as_flattened()), None, false).unwrap();
            assert_eq!(rig.answer(handle), DL_ERROR_ACK);
        }),
        (&rules::URGENT, |rig| {
            let handle = rig.node();
            rig.put(handle, &notify(), true);
            assert_eq!(rig.answer(handle), DL_NOTIFY_ACK);
        }),
        (&rules::ANSWER_TAKEN, |rig| {
            let handle = rig.node();
            rig.put(handle, &notify(), false);
            rig.put(handle, &notify(), false);
        }),
        (&rules::INFO_FIRST, |rig| {
            let handle = rig.sys.open(DLPI_PATH, OpenFlags::READ_WRITE).unwrap();
            rig.request(handle, &notify(), DL_NOTIFY_ACK);
        }),
        (&rules::RAW_FIRST, |rig| rig.request(rig.node(), &bind(), DL_BIND_ACK)),
        (&rules::BIND_ONCE, |rig| rig.request(rig.stream(), &bind(), DL_ERROR_ACK)),
        (&rules::BIND_MODE, |rig| {
            let handle = rig.node();
            rig.raw(handle);
            rig.request(handle, &dl_bind_req_t { dl_sap: 0x800, ..bind() }, DL_ERROR_ACK);
        }),
        (&rules::RX_ONLY_FIRST, |rig| {
            let handle = rig.node();
            rig.level(handle, DL_PROMISC_FIXUPS, DL_OK_ACK);
            rig.level(handle, DL_PROMISC_SAP, DL_OK_ACK);
        }),
        (&rules::FIXUPS_FIRST, |rig| {
            let handle = rig.node();
            rig.level(handle, DL_PROMISC_RX_ONLY, DL_OK_ACK);
            rig.level(handle, DL_PROMISC_SAP, DL_OK_ACK);
        }),
        (&rules::LEVEL, |rig| rig.level(rig.node(), 1, DL_ERROR_ACK)),
        (&rules::READY, |rig| {
            let handle = rig.node();
            rig.sys.putmsg(handle, None, Some(&[0; 60]), false).unwrap();
            assert!(rig.cable.recv(&mut [0; 64]).is_err(), "nothing went");
        }),
        (&rules::WHOLE, |rig| {
            let result = rig.sys.putmsg(rig.stream(), Some(bytes_of(&bind())), Some(&[0; 60]), false);
            assert_eq!(result, Err(Errno::EINVAL));
        }),
        (&rules::ETHERNET, |rig| rig.sys.putmsg(rig.stream(), None, Some(&[0; 13]), false).unwrap()),
        (&rules::READ_ROOM, |rig| {
            assert_eq!(rig.sys.getmsg(rig.stream(), &mut [0; 512], &mut [0; 1517]), Err(Errno::EAGAIN));
        }),
        (&rules::CONTROL_ROOM, |rig| {
            assert_eq!(rig.sys.getmsg(rig.stream(), &mut [0; 20], &mut [0; 2048]), Err(Errno::EAGAIN));
        }),
        (&rules::NONBLOCKING, |rig| {
            let handle = rig.node();
            rig.request(handle, &notify(), DL_NOTIFY_ACK);
            rig.sys.getmsg(handle, &mut [0; 512], &mut []).unwrap();
        }),
        (&rules::NOTES, |rig| {
            rig.request(rig.node(), &dl_notify_req_t { dl_notifications: 0xff, ..notify() }, DL_NOTIFY_ACK);
        }),
    ];
    notice(rules::ALL, || Zone::kvm(1), cases);
}
