//! Streams of the data link provider interface: `/dev/net/LINK` (dlpi(4P); `usr/src/lib/libdlpi/common/libdlpi.c` and
//! `usr/src/uts/common/io/dld/dld_proto.c` for what libdlpi asks and the driver answers). libdlpi itself is not used: a zone
//! may lack it, and there is little in it.

use std::sync::Arc;

use devices_host::clock::monotonic_ns;
use devices_host::sys::{Errno, Handle, IoctlArg, OpenFlags, RawHandle, Ready, StreamMessage, Sys, SysResult};

use super::super::abi::dlpi::*;
use super::super::plain::{Plain, bytes_of, from_bytes};
use super::{FRAME_HEADER_BYTES, LONGEST_HEADER_BYTES, Verdict, uninterrupted};
use crate::hypervisor::frames::LinkError;

/// As libdlpi waits for an answer (`DLPI_DEF_TIMEOUT`).
const ANSWER_NS: u64 = 5_000_000_000;

/// Room for any control message: addresses and quality of service follow an answer's structure.
const CONTROL_BYTES: usize = 512;

/// Messages without a frame that are passed over in one go.
const MOST_SKIPPED: usize = 64;

/// Why a request failed.
#[derive(Debug)]
enum Refusal {
    /// A call did.
    Call(Errno),
    /// The driver said so: its error, and illumos' where that is one.
    Driver(u32, Errno),
    /// There is no answer, or none that makes sense.
    NoAnswer,
}

impl std::fmt::Display for Refusal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Call(error) => write!(f, "{error}"),
            Self::Driver(DL_SYSERR, error) => write!(f, "{error}"),
            Self::Driver(number, _) => write!(f, "DLPI error {number:#x}"),
            Self::NoAnswer => f.write_str("the driver does not answer"),
        }
    }
}

fn path(name: &str) -> String {
    format!("/dev/net/{name}")
}

/// A request without an answer yet, and what the answer to it is.
fn request<R: Plain>(handle: &Handle, message: &R, urgent: bool, answer: u32) -> Result<[u8; CONTROL_BYTES], Refusal> {
    let sys = handle.sys();
    let bytes = bytes_of(message);
    let primitive: u32 = from_bytes_of(bytes);
    sys.putmsg(handle.raw(), Some(bytes), None, urgent).map_err(Refusal::Call)?;
    let until_ns = monotonic_ns().saturating_add(ANSWER_NS);
    let (mut control, mut data) = ([0; CONTROL_BYTES], [0; 64]);
    loop {
        let left_ns = until_ns.saturating_sub(monotonic_ns());
        let readable = Ready { readable: true, ..Ready::default() };
        match sys.poll(handle.raw(), readable, Some(left_ns)) {
            Ok(ready) if ready.failed => return Err(Refusal::Call(Errno::ENXIO)),
            Ok(ready) if ready.readable => {}
            Ok(_) if left_ns == 0 => return Err(Refusal::NoAnswer),
            Ok(_) | Err(Errno::EINTR) => continue,
            Err(error) => return Err(Refusal::Call(error)),
        }
        // What is too long for its buffer is a frame, that nobody wants yet: the rest of it comes next.
        let got = uninterrupted(|| sys.getmsg(handle.raw(), &mut control, &mut data)).map_err(Refusal::Call)?;
        if is_hung_up(&got) {
            return Err(Refusal::Call(Errno::ENXIO));
        }
        let len = got.control_bytes.unwrap_or(0).min(CONTROL_BYTES);
        control[len..].fill(0);
        let bytes = &control[..len];
        match from_bytes::<dl_ok_ack_t>(bytes) {
            Some(ack) if ack.dl_primitive == DL_ERROR_ACK && ack.dl_correct_primitive == primitive => {
                let error = from_bytes::<dl_error_ack_t>(bytes).ok_or(Refusal::NoAnswer)?;
                return Err(Refusal::Driver(error.dl_errno, Errno(error.dl_unix_errno.cast_signed())));
            }
            Some(ack)
                if ack.dl_primitive == answer && (answer != DL_OK_ACK || ack.dl_correct_primitive == primitive) =>
            {
                return Ok(control);
            }
            _ => {}
        }
    }
}

/// Which request the bytes are.
fn from_bytes_of(bytes: &[u8]) -> u32 {
    bytes.first_chunk().copied().map_or(0, u32::from_ne_bytes)
}

/// After a hang-up a stream gives messages of nothing (getmsg(2)).
fn is_hung_up(got: &StreamMessage) -> bool {
    got.control_bytes == Some(0) && got.data_bytes == Some(0)
}

/// Opens the node and asks what it is.
fn open(sys: &Arc<dyn Sys>, name: &str) -> Result<(Handle, dl_info_ack_t), Refusal> {
    let handle = Handle::open(sys, &path(name), OpenFlags::READ_WRITE).map_err(Refusal::Call)?;
    let answer = request(&handle, &dl_info_req_t { dl_primitive: DL_INFO_REQ }, true, DL_INFO_ACK)?;
    let info = from_bytes(&answer).ok_or(Refusal::NoAnswer)?;
    Ok((handle, info))
}

/// A stream of frames.
pub(super) struct Stream {
    handle: Handle,
    longest_frame_bytes: usize,
}

impl Stream {
    /// Opens a stream of whole frames of the link `name`: of every protocol and every group, those for its own address and no
    /// others', and none of those that go out by it.
    pub(super) fn open(sys: &Arc<dyn Sys>, name: &str) -> Result<Self, LinkError> {
        let path = path(name);
        let (handle, info) = open(sys, name).map_err(|refusal| match refusal {
            Refusal::Call(Errno::ENOENT) => {
                LinkError::Config(format!("the zone has no {path}: it has no link {name}, or its brand no data links"))
            }
            Refusal::Call(error @ (Errno::EPERM | Errno::EACCES)) => {
                LinkError::Config(format!("{path}: {error}: it takes the privilege net_rawaccess"))
            }
            refusal => LinkError::Host(format!("{path}: {refusal}")),
        })?;
        if info.dl_mac_type != DL_ETHER || info.dl_provider_style != DL_STYLE1 {
            return Err(LinkError::Config(format!("link {name} is no Ethernet")));
        }
        let failed = |call: &'static str, refusal: Refusal| match refusal {
            // Whoever has it may have it alone: a frame device does.
            Refusal::Driver(DL_SYSERR, Errno::EBUSY) => {
                LinkError::Config(format!("link {name} is in use by somebody else"))
            }
            refusal => LinkError::Host(format!("{path}: {call}: {refusal}")),
        };
        // SAFETY: the command takes no argument.
        unsafe { handle.ioctl(DLIOCRAW, IoctlArg::Value(0)) }
            .map_err(|error| failed("DLIOCRAW", Refusal::Call(error)))?;
        let bind = dl_bind_req_t {
            dl_primitive: DL_BIND_REQ,
            dl_sap: 0,
            dl_max_conind: 0,
            dl_service_mode: DL_CLDLS as u16,
            dl_conn_mgmt: 0,
            dl_xidtest_flg: 0,
        };
        request(&handle, &bind, false, DL_BIND_ACK).map_err(|refusal| failed("DL_BIND_REQ", refusal))?;
        // First that nothing comes back and nothing comes unfinished, then what shall come.
        for dl_level in [DL_PROMISC_RX_ONLY, DL_PROMISC_FIXUPS, DL_PROMISC_SAP, DL_PROMISC_MULTI] {
            let more = dl_promiscon_req_t { dl_primitive: DL_PROMISCON_REQ, dl_level };
            match request(&handle, &more, false, DL_OK_ACK) {
                // A kernel that does not know it leaves nothing unfinished.
                Err(Refusal::Driver(DL_NOTSUPPORTED, _)) if dl_level == DL_PROMISC_FIXUPS => {}
                answer => drop(answer.map_err(|refusal| failed("DL_PROMISCON_REQ", refusal))?),
            }
        }
        sys.set_nonblocking(handle.raw()).map_err(|error| failed("fcntl", Refusal::Call(error)))?;
        let longest_frame_bytes = (info.dl_max_sdu as usize).saturating_add(LONGEST_HEADER_BYTES);
        Ok(Self { handle, longest_frame_bytes })
    }

    pub(super) fn handle(&self) -> RawHandle {
        self.handle.raw()
    }

    /// Bytes of the largest frame.
    pub(super) fn longest_frame_bytes(&self) -> usize {
        self.longest_frame_bytes
    }

    /// Sends a frame.
    pub(super) fn send(&self, frame: &[u8]) -> Result<(), Verdict> {
        // The driver throws what is too long away without a word, and what is too short may be taken for anything.
        if frame.len() < FRAME_HEADER_BYTES || frame.len() > self.longest_frame_bytes {
            return Err(Verdict::Lost(Errno::ERANGE));
        }
        let sys = self.handle.sys();
        uninterrupted(|| sys.putmsg(self.handle.raw(), None, Some(frame), false)).map_err(|error| match error {
            Errno::EAGAIN => Verdict::Wait,
            Errno::ENXIO | Errno::EBADF | Errno::ENODEV | Errno::EIO => Verdict::Gone(error),
            error => Verdict::Lost(error),
        })
    }

    /// Receives a frame; its length in bytes, which is more than the buffer's where it was cut.
    pub(super) fn receive(&self, frame: &mut [u8]) -> Result<usize, Verdict> {
        let sys = self.handle.sys();
        let mut control = [0; CONTROL_BYTES];
        for _ in 0..MOST_SKIPPED {
            let got = match uninterrupted(|| sys.getmsg(self.handle.raw(), &mut control, frame)) {
                Ok(got) if is_hung_up(&got) => return Err(Verdict::Gone(Errno::ENXIO)),
                Ok(got) => got,
                Err(Errno::EAGAIN) => return Err(Verdict::Wait),
                Err(error) => return Err(Verdict::Gone(error)),
            };
            // What has a control part is about the link, and no frame.
            let len_bytes = got.data_bytes.filter(|len| *len > 0 && got.control_bytes.is_none());
            let rest_bytes = if got.more { self.drop_rest()? } else { 0 };
            if let Some(len_bytes) = len_bytes {
                return Ok(len_bytes.saturating_add(rest_bytes));
            }
        }
        Err(Verdict::Wait)
    }

    /// Takes what is left of a message; how many bytes of data that was.
    fn drop_rest(&self) -> Result<usize, Verdict> {
        let (sys, mut rest_bytes) = (self.handle.sys(), 0);
        let (mut control, mut data) = ([0; CONTROL_BYTES], [0; 2048]);
        loop {
            match uninterrupted(|| sys.getmsg(self.handle.raw(), &mut control, &mut data)) {
                Ok(got) => {
                    rest_bytes += got.data_bytes.unwrap_or(0);
                    if !got.more {
                        return Ok(rest_bytes);
                    }
                }
                Err(error) => return Err(Verdict::Gone(error)),
            }
        }
    }
}

/// A stream that hears whether the link is up. It is bound to nothing, so that who uses the link alone is not disturbed.
pub(super) struct Watch {
    handle: Handle,
}

impl Watch {
    /// Begins to listen. The driver tells at once how the link is.
    pub(super) fn open(sys: &Arc<dyn Sys>, name: &str) -> Result<Self, impl std::fmt::Display> {
        let (handle, _) = open(sys, name)?;
        let notify = dl_notify_req_t {
            dl_primitive: DL_NOTIFY_REQ,
            dl_notifications: DL_NOTE_LINK_DOWN | DL_NOTE_LINK_UP,
            dl_timelimit: 0,
        };
        request(&handle, &notify, false, DL_NOTIFY_ACK)?;
        sys.set_nonblocking(handle.raw()).map_err(Refusal::Call)?;
        Ok::<_, Refusal>(Self { handle })
    }

    pub(super) fn handle(&self) -> RawHandle {
        self.handle.raw()
    }

    /// Takes what there is: whether the link is up, if it said something about that.
    ///
    /// # Errors
    /// The link is gone.
    pub(super) fn take(&self) -> SysResult<Option<bool>> {
        let sys = self.handle.sys();
        let (mut up, mut control) = (None, [0; CONTROL_BYTES]);
        for _ in 0..MOST_SKIPPED {
            let got = match uninterrupted(|| sys.getmsg(self.handle.raw(), &mut control, &mut [0; 64])) {
                Ok(got) if is_hung_up(&got) => return Err(Errno::ENXIO),
                Ok(got) => got,
                Err(Errno::EAGAIN) => break,
                Err(error) => return Err(error),
            };
            let bytes = got.control_bytes.and_then(|len| control.get(..len)).unwrap_or_default();
            let Some(note) = from_bytes::<dl_notify_ind_t>(bytes) else { continue };
            match (note.dl_primitive, note.dl_notification) {
                (DL_NOTIFY_IND, DL_NOTE_LINK_UP) => up = Some(true),
                (DL_NOTIFY_IND, DL_NOTE_LINK_DOWN) => up = Some(false),
                _ => {}
            }
        }
        Ok(up)
    }
}
