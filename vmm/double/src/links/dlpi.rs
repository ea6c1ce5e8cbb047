//! A stream of the data link provider interface: what it answers, and what of the conversation is wrong.

use std::collections::VecDeque;
use std::mem::size_of;
use std::os::fd::RawFd;
use std::sync::{Arc, Mutex, MutexGuard};

use devices_host::poll::{PollFd, poll};
use devices_host::sys::{DeviceNumber, Errno, IoctlArg, Ready, StreamMessage, SysResult};
use zvmm::hypervisor::illumos_kvm::abi::dlpi::*;
use zvmm::hypervisor::illumos_kvm::plain::{Plain, bytes_of, from_bytes, zeroed};

use super::lock;
use super::rules::dlpi as rules;
use super::wire::{Ears, Owner, Wire};
use crate::names;
use crate::node::{Call, Node};
use crate::rules::Rule;
use crate::sys::translate;

/// What a reader must have room for: libdlpi's own answers with addresses and quality of service.
const LEAST_CONTROL_BYTES: usize = 256;

/// poll(2) of one descriptor of this machine.
pub(super) fn poll_one(fd: RawFd, interest: Ready, timeout_ns: Option<u64>) -> SysResult<Ready> {
    let mut fds = [PollFd::new(fd).readable(interest.readable).writable(interest.writable)];
    poll(&mut fds, timeout_ns).map_err(|error| translate(&error))?;
    let [fd] = fds;
    Ok(Ready {
        readable: interest.readable && fd.is_readable(),
        writable: interest.writable && fd.is_writable(),
        failed: fd.is_hung_up(),
    })
}

pub(super) struct DlpiNode {
    wire: Arc<Wire>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    knows: bool,
    raw: bool,
    bound: bool,
    levels: Vec<u32>,
    wants_fixups: bool,
    answers: VecDeque<Vec<u8>>,
    /// What is left of a frame that did not fit.
    rest: Vec<u8>,
    watch: Option<Ears>,
    /// What was told of the link last.
    told: Option<bool>,
}

impl State {
    fn answer<T: Plain>(&mut self, message: &T) {
        self.answers.push_back(bytes_of(message).to_vec());
    }

    fn agree(&mut self, primitive: u32) {
        self.answer(&dl_ok_ack_t { dl_primitive: DL_OK_ACK, dl_correct_primitive: primitive });
    }

    fn refuse(&mut self, primitive: u32, dl_errno: u32, errno: Errno) {
        self.answer(&dl_error_ack_t {
            dl_primitive: DL_ERROR_ACK,
            dl_error_primitive: primitive,
            dl_errno,
            dl_unix_errno: errno.0.cast_unsigned(),
        });
    }

    fn is_ready(&self) -> bool {
        let hears = |level| self.levels.contains(&level);
        self.raw && self.bound && hears(DL_PROMISC_RX_ONLY) && hears(DL_PROMISC_SAP) && hears(DL_PROMISC_MULTI)
    }
}

impl DlpiNode {
    pub(super) fn new(wire: Arc<Wire>) -> Self {
        Self { wire, state: Mutex::default() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    /// The request as its structure; a wrong size is answered as the driver does.
    fn structure<T: Plain>(call: &Call<'_>, state: &mut State, bytes: &[u8]) -> Option<T> {
        let primitive = primitive_of(bytes);
        if bytes.len() != size_of::<T>() {
            let detail = format!("primitive {primitive:#x} in {} bytes in place of {}", bytes.len(), size_of::<T>());
            call.note(&rules::SIZE, detail);
            state.refuse(primitive, DL_BADPRIM, Errno(0));
            return None;
        }
        from_bytes(bytes)
    }

    fn request(&self, call: &Call<'_>, bytes: &[u8], urgent: bool) {
        let state = &mut *self.state();
        let primitive = primitive_of(bytes);
        let note = |rule: &'static Rule| call.note(rule, format!("primitive {primitive:#x}"));
        if urgent != (primitive == DL_INFO_REQ) {
            note(&rules::URGENT);
        }
        if !state.answers.is_empty() {
            note(&rules::ANSWER_TAKEN);
        }
        if !state.knows && primitive != DL_INFO_REQ {
            note(&rules::INFO_FIRST);
        }
        match primitive {
            DL_INFO_REQ => {
                if Self::structure::<dl_info_req_t>(call, state, bytes).is_some() {
                    state.knows = true;
                    let info = dl_info_ack_t {
                        dl_primitive: DL_INFO_ACK,
                        dl_max_sdu: self.wire.facts.mtu,
                        dl_addr_length: 8,
                        dl_mac_type: DL_ETHER,
                        dl_current_state: if state.bound { DL_IDLE } else { DL_UNBOUND },
                        dl_sap_length: -2,
                        dl_service_mode: DL_CLDLS,
                        dl_provider_style: DL_STYLE1,
                        dl_version: DL_VERSION_2,
                        ..zeroed()
                    };
                    state.answer(&info);
                }
            }
            DL_BIND_REQ => {
                let Some(bind) = Self::structure::<dl_bind_req_t>(call, state, bytes) else { return };
                if !state.raw {
                    note(&rules::RAW_FIRST);
                }
                if bind.dl_sap != 0 || u32::from(bind.dl_service_mode) != DL_CLDLS || bind.dl_max_conind != 0 {
                    note(&rules::BIND_MODE);
                    return state.refuse(primitive, DL_UNSUPPORTED, Errno(0));
                }
                if state.bound {
                    note(&rules::BIND_ONCE);
                    return state.refuse(primitive, DL_OUTSTATE, Errno(0));
                }
                if !self.wire.take(Owner::Dlpi) {
                    return state.refuse(primitive, DL_SYSERR, Errno::EBUSY);
                }
                state.bound = true;
                state.answer(&dl_bind_ack_t { dl_primitive: DL_BIND_ACK, dl_addr_length: 8, ..zeroed() });
            }
            DL_PROMISCON_REQ => {
                let Some(more) = Self::structure::<dl_promiscon_req_t>(call, state, bytes) else { return };
                match more.dl_level {
                    DL_PROMISC_RX_ONLY => {}
                    DL_PROMISC_FIXUPS => {
                        state.wants_fixups = true;
                        if self.wire.is_old() {
                            return state.refuse(primitive, DL_NOTSUPPORTED, Errno(0));
                        }
                    }
                    DL_PROMISC_SAP | DL_PROMISC_MULTI => {
                        if !state.levels.contains(&DL_PROMISC_RX_ONLY) {
                            note(&rules::RX_ONLY_FIRST);
                        }
                        if !state.wants_fixups {
                            note(&rules::FIXUPS_FIRST);
                        }
                    }
                    level => {
                        call.note(&rules::LEVEL, format!("level {level}"));
                        return state.refuse(primitive, DL_NOTSUPPORTED, Errno(0));
                    }
                }
                state.levels.push(more.dl_level);
                state.agree(primitive);
            }
            DL_NOTIFY_REQ => {
                let Some(notify) = Self::structure::<dl_notify_req_t>(call, state, bytes) else { return };
                let wanted = DL_NOTE_LINK_DOWN | DL_NOTE_LINK_UP;
                if notify.dl_notifications != wanted || notify.dl_timelimit != 0 {
                    call.note(&rules::NOTES, format!("notes {:#x}", notify.dl_notifications));
                }
                match self.wire.watch() {
                    Ok(ears) => {
                        state.watch = Some(ears);
                        state.answer(&dl_notify_ack_t { dl_primitive: DL_NOTIFY_ACK, dl_notifications: wanted });
                    }
                    Err(error) => state.refuse(primitive, DL_SYSERR, translate(&error)),
                }
            }
            _ => {
                note(&rules::PRIMITIVE);
                state.refuse(primitive, DL_BADPRIM, Errno(0));
            }
        }
    }

    fn check_nonblocking(&self, call: &Call<'_>, what: &str) {
        if !call.flags.nonblocking {
            call.note(&rules::NONBLOCKING, what);
        }
    }

    fn frame(&self, call: &Call<'_>, frame: &[u8]) -> SysResult<()> {
        if !self.state().is_ready() {
            // The driver frees it.
            call.note(&rules::READY, "putmsg");
            return Ok(());
        }
        self.check_nonblocking(call, "putmsg");
        if frame.len() < 14 || frame.len() > self.wire.longest_frame_bytes() {
            call.note(&rules::ETHERNET, format!("{} bytes", frame.len()));
            return Ok(());
        }
        self.wire.send(frame)
    }
}

fn primitive_of(bytes: &[u8]) -> u32 {
    bytes.first_chunk().copied().map_or(u32::MAX, u32::from_ne_bytes)
}

/// What a stream gives whose other end is gone.
const HUNG_UP: StreamMessage = StreamMessage { control_bytes: Some(0), data_bytes: Some(0), more: false };

/// Puts as much as there is room for.
fn put(from: &[u8], into: &mut [u8]) -> usize {
    let len = from.len().min(into.len());
    into[..len].copy_from_slice(&from[..len]);
    len
}

impl Node for DlpiNode {
    unsafe fn ioctl(&self, call: &Call<'_>, request: i32, arg: IoctlArg<'_>) -> SysResult<i32> {
        let state = &mut *self.state();
        if request != DLIOCRAW || !matches!(arg, IoctlArg::None | IoctlArg::Value(0)) {
            return Err(call.refuse(&rules::COMMAND, Errno::EINVAL, format!("{} {arg:?}", names::ioctl(request))));
        }
        if !state.knows {
            call.note(&rules::INFO_FIRST, "DLIOCRAW");
        }
        state.raw = true;
        Ok(0)
    }

    fn putmsg(&self, call: &Call<'_>, control: Option<&[u8]>, data: Option<&[u8]>, urgent: bool) -> SysResult<()> {
        if self.wire.is_gone() {
            return Err(Errno::ENXIO);
        }
        match (control, data) {
            (Some(control), None) => {
                self.request(call, control, urgent);
                Ok(())
            }
            (None, Some(frame)) => {
                if urgent {
                    return Err(call.refuse(&rules::URGENT, Errno::EINVAL, "a frame"));
                }
                self.frame(call, frame)
            }
            (Some(_), Some(_)) => Err(call.refuse(&rules::WHOLE, Errno::EINVAL, "putmsg of both parts")),
            (None, None) => Err(call.refuse(&rules::WHOLE, Errno::EINVAL, "putmsg of nothing")),
        }
    }

    fn getmsg(&self, call: &Call<'_>, control: &mut [u8], data: &mut [u8]) -> SysResult<StreamMessage> {
        if control.len() < LEAST_CONTROL_BYTES {
            call.note(&rules::CONTROL_ROOM, format!("{} bytes", control.len()));
        }
        let state = &mut *self.state();
        if let Some(answer) = state.answers.pop_front() {
            let len = put(&answer, control);
            return Ok(StreamMessage { control_bytes: Some(len), data_bytes: None, more: len < answer.len() });
        }
        self.check_nonblocking(call, "getmsg");
        if let Some(ears) = &state.watch {
            let up = match ears.hear(&self.wire) {
                Ok(up) => up,
                Err(_) => return Ok(HUNG_UP),
            };
            if state.told == Some(up) {
                return Err(Errno::EAGAIN);
            }
            state.told = Some(up);
            let dl_notification = if up { DL_NOTE_LINK_UP } else { DL_NOTE_LINK_DOWN };
            let note = dl_notify_ind_t { dl_primitive: DL_NOTIFY_IND, dl_notification, ..zeroed() };
            return Ok(StreamMessage {
                control_bytes: Some(put(bytes_of(&note), control)),
                ..StreamMessage::default()
            });
        }
        if !state.is_ready() {
            call.note(&rules::READY, "getmsg");
            return Err(Errno::EAGAIN);
        }
        if state.rest.is_empty() {
            if data.len() < self.wire.longest_frame_bytes() {
                call.note(&rules::READ_ROOM, format!("{} bytes", data.len()));
            }
            match self.wire.receive(|frame| Ok(frame.to_vec())) {
                Ok(frame) => state.rest = frame,
                Err(Errno::ENXIO) => return Ok(HUNG_UP),
                Err(error) => return Err(error),
            }
        }
        let len = put(&state.rest, data);
        state.rest.drain(..len);
        Ok(StreamMessage { control_bytes: None, data_bytes: Some(len), more: !state.rest.is_empty() })
    }

    fn poll(&self, _call: &Call<'_>, interest: Ready, timeout_ns: Option<u64>) -> SysResult<Ready> {
        if interest.readable && !self.state().answers.is_empty() {
            return Ok(Ready { readable: true, ..Ready::default() });
        }
        poll_one(self.poll_fd()?, interest, timeout_ns)
    }

    fn poll_fd(&self) -> SysResult<RawFd> {
        Ok(self.state().watch.as_ref().map_or_else(|| self.wire.fd(), Ears::fd))
    }

    fn close(&self) {
        if std::mem::take(&mut self.state().bound) {
            self.wire.leave();
        }
    }

    fn device_number(&self) -> DeviceNumber {
        DeviceNumber(0x0000_0114_0000_0001)
    }
}
