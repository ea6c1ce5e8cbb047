//! Serial lines: bytes between the guest's ports and the terminal, files, sockets and pseudo terminals.
//!
//! A reader gets every byte while it reads. A reader that stops reading first fills [`PENDING`] bytes here, then holds
//! the guest's port back, and after [`PATIENCE_NS`] without taking a byte counts as absent until it reads again: what
//! the guest writes is then thrown away, so that nobody outside can stop a guest by not reading. Where nobody is
//! connected, output is thrown away at once.
//!
//! A socket has one client. One that closes its sending side or breaks is gone, so that the next one can come; what it sent
//! before is still the guest's. Whoever comes meanwhile waits, as with qemu, or is shut out at once, as with bhyve.

use std::fs::File;
use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::sync::Arc;

use devices_host::poll::{PollFd, poll};
use devices_host::socket::may_send;

use super::SerialPort;
use super::console::{Escape, HELP, Typed};
use super::device::RawTty;
use super::metadata::Responder;
use super::socket::{Listener, MAX_SEND};

/// The most output kept for a reader, in bytes.
const PENDING: usize = 64 * 1024;

/// How long a reader may leave everything unread before it counts as absent.
const PATIENCE_NS: u64 = 1_000_000_000;

/// Rounds of taking and writing in one turn: other lines and the control socket wait no longer than that.
const ROUNDS: usize = 16;

/// The descriptors that one line may wait for.
const FDS: usize = 3;

/// Who is at the outer end of a line at the moment.
#[derive(Debug, Default)]
struct Peer {
    /// Where bytes for the guest come from, until its end.
    input: Option<File>,
    /// Where the guest's bytes go, until it breaks.
    output: Option<File>,
    /// The output blocks: it is written to only when poll says that there is room, and `piece` bytes at a time.
    blocks: bool,
    /// The most bytes handed to one write.
    piece: usize,
}

impl Peer {
    fn is_there(&self) -> bool {
        self.input.is_some() || self.output.is_some()
    }
}

/// One serial line.
pub(super) struct Line {
    name: &'static str,
    port: Arc<dyn SerialPort>,
    listener: Option<Listener>,
    turns_away: bool,
    peer: Peer,
    escape: Option<Escape>,
    /// Answers the guest in a peer's place.
    responder: Option<Responder>,
    /// Kept open so that a pseudo terminal exists while nobody uses it.
    _slave: Option<OwnedFd>,
    /// Restores the terminal device.
    _raw: Option<RawTty>,
    to_peer: Vec<u8>,
    to_guest: Vec<u8>,
    progress_ns: u64,
    stalled: bool,
    dropped_bytes: u64,
    failing: bool,
}

/// The outer end of a line before it is joined to the guest's port.
#[derive(Debug, Default)]
pub(super) struct End {
    listener: Option<Listener>,
    turns_away: bool,
    peer: Peer,
    escape: Option<Escape>,
    responder: Option<Responder>,
    slave: Option<OwnedFd>,
    raw: Option<RawTty>,
}

impl End {
    /// Nobody, ever.
    pub(super) fn null() -> Self {
        Self::default()
    }

    /// Whoever connects to a socket, one at a time; others wait in its backlog.
    pub(super) fn socket(listener: Listener) -> Self {
        Self { listener: Some(listener), ..Self::default() }
    }

    /// A client that comes while another one is there is let go at once, and does not wait.
    pub(super) fn turns_second_clients_away(&mut self) {
        self.turns_away = true;
    }

    /// A file that output is written to.
    pub(super) fn file(file: File) -> Self {
        Self { peer: Peer { output: Some(file), piece: MAX_SEND, ..Peer::default() }, ..Self::default() }
    }

    /// A terminal or pipe. `blocks`: writing to it can block, because others share it and its mode is not ours.
    /// `escapes`: Ctrl-A begins a word to zvmm.
    pub(super) fn terminal(input: File, output: File, blocks: bool, escapes: bool) -> Self {
        // A terminal that polls writable may have room for few bytes only.
        let piece = if blocks { 256 } else { MAX_SEND };
        let peer = Peer { input: Some(input), output: Some(output), blocks, piece };
        Self { peer, escape: escapes.then(Escape::default), ..Self::default() }
    }

    /// The master side of a pseudo terminal that does not block.
    pub(super) fn pty(master: File, slave: OwnedFd) -> io::Result<Self> {
        let peer = Peer { input: Some(master.try_clone()?), output: Some(master), blocks: false, piece: MAX_SEND };
        Ok(Self { peer, slave: Some(slave), ..Self::default() })
    }

    /// A terminal or serial line of the host in raw mode.
    pub(super) fn device(raw: RawTty) -> io::Result<Self> {
        let (input, output) = (raw.terminal().try_clone()?, raw.terminal().try_clone()?);
        let peer = Peer { input: Some(input), output: Some(output), blocks: false, piece: MAX_SEND };
        Ok(Self { peer, raw: Some(raw), ..Self::default() })
    }

    /// The metadata responder.
    pub(super) fn metadata(responder: Responder) -> Self {
        Self { responder: Some(responder), ..Self::default() }
    }

    /// Joins the end to the guest's port.
    pub(super) fn join(self, name: &'static str, port: Arc<dyn SerialPort>) -> Line {
        Line {
            name,
            port,
            listener: self.listener,
            turns_away: self.turns_away,
            peer: self.peer,
            escape: self.escape,
            responder: self.responder,
            _slave: self.slave,
            _raw: self.raw,
            to_peer: Vec::new(),
            to_guest: Vec::new(),
            progress_ns: 0,
            stalled: false,
            dropped_bytes: 0,
            failing: false,
        }
    }
}

/// What a turn of a line led to.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(super) struct Turn {
    /// There is more to do at once.
    pub(super) again: bool,
    /// The user wants to leave.
    pub(super) leave: bool,
}

fn raw(file: Option<&File>) -> RawFd {
    file.map_or(-1, AsRawFd::as_raw_fd)
}

impl Line {
    /// Adds what this line waits for: always [`FDS`] entries.
    fn interest(&self, fds: &mut Vec<PollFd>) {
        let accepts = self.listener.as_ref().filter(|_| self.turns_away || !self.peer.is_there());
        fds.push(PollFd::new(accepts.map_or(-1, AsRawFd::as_raw_fd)).readable(true));
        // A terminal is always read: Ctrl-A x must work while the guest reads nothing.
        let reads = self.peer.input.as_ref().filter(|_| self.to_guest.is_empty() || self.escape.is_some());
        fds.push(PollFd::new(raw(reads)).readable(true));
        fds.push(PollFd::new(raw(self.peer.output.as_ref())).writable(!self.to_peer.is_empty()));
    }

    /// When the line has to be looked at although nothing happens.
    fn deadline_ns(&self) -> Option<u64> {
        (self.to_peer.len() >= PENDING && !self.stalled).then(|| self.progress_ns.saturating_add(PATIENCE_NS))
    }

    /// Moves what can be moved. `fds` are the entries of [`Line::interest`] after the poll.
    fn turn(&mut self, fds: &[PollFd], now_ns: u64) -> Turn {
        let [listening, input, output] = fds else { return Turn::default() };
        if self.responder.is_some() {
            return Turn { again: self.converse(), leave: false };
        }
        let mut turn = Turn::default();
        if input.is_readable() {
            turn.leave = self.read();
        }
        self.push_input();
        let sends_no_more = self.listener.is_some() && self.peer.input.is_none();
        if sends_no_more || (output.is_hung_up() && (self.to_peer.is_empty() || !output.is_writable())) {
            self.drop_output();
        }
        // After the client that may have gone.
        if listening.is_readable() {
            self.accept(now_ns);
        }
        turn.again = self.move_output(output.is_writable(), now_ns);
        turn
    }

    /// Lets the responder answer the guest; whether there may be more. What the responder does not take stays here, and
    /// then the guest's port is left alone: [`Line::to_peer`] has no more than one piece.
    fn converse(&mut self) -> bool {
        let Some(responder) = &mut self.responder else { return false };
        let mut bytes = [0; 256];
        for _ in 0..ROUNDS {
            let taken = responder.take(&self.to_peer);
            self.to_peer.drain(..taken);
            let sent = match responder.answers() {
                [] => 0,
                answers => self.port.push_input(answers).min(answers.len()),
            };
            responder.sent(sent);
            let mut asked = 0;
            if self.to_peer.is_empty() {
                asked = self.port.take_output(&mut bytes).min(bytes.len());
                self.to_peer.extend_from_slice(&bytes[..asked]);
            }
            // The guest says no more, or has to read first: the port tells when.
            if (taken, sent, asked) == (0, 0, 0) {
                return false;
            }
        }
        true
    }

    /// The guest begins anew.
    fn guest_was_reset(&mut self) {
        if let Some(responder) = &mut self.responder {
            responder.restart();
            self.to_peer.clear();
        }
    }

    fn accept(&mut self, now_ns: u64) {
        let Some(client) = self.listener.as_ref().and_then(Listener::accept) else { return };
        // It may have gone since the poll, to come again: an agent that reconnects must not find itself in its own way.
        if self.has_left() {
            self.drop_output();
        }
        if self.peer.is_there() {
            log::info!("{}: a second client is turned away", self.name);
            return;
        }
        let output = OwnedFd::from(client);
        let Ok(input) = output.try_clone() else { return };
        log::info!("{}: a client has connected", self.name);
        self.peer = Peer { input: Some(input.into()), output: Some(output.into()), blocks: false, piece: MAX_SEND };
        self.to_peer.clear();
        self.stalled = false;
        self.progress_ns = now_ns;
    }

    /// Whether both ways to the client are closed, as of now.
    fn has_left(&self) -> bool {
        let mut fds = [PollFd::new(raw(self.peer.output.as_ref()))];
        poll(&mut fds, Some(0)).is_ok() && fds[0].is_hung_up()
    }

    fn drop_output(&mut self) {
        if self.peer.output.take().is_some() {
            log::info!("{}: the reader is gone", self.name);
        }
        self.to_peer.clear();
        self.stalled = false;
        if self.listener.is_some() {
            // What the client has sent is still the guest's; but a guest that reads nothing must not keep the next
            // client out, so it is kept here and not in the socket.
            while self.peer.input.is_some() && self.to_guest.len() < PENDING {
                let before = self.to_guest.len();
                self.read();
                if self.to_guest.len() == before {
                    break;
                }
            }
            self.peer = Peer::default();
        }
    }

    /// Reads once; whether the user wants to leave.
    fn read(&mut self) -> bool {
        let Some(input) = &mut self.peer.input else { return false };
        let mut bytes = [0; 1024];
        match input.read(&mut bytes) {
            Ok(0) => self.peer.input = None,
            Ok(count) => return self.typed(&bytes[..count]),
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {}
            // EIO: a terminal that went away, or that another job owns.
            Err(_) => self.peer.input = None,
        }
        false
    }

    fn typed(&mut self, bytes: &[u8]) -> bool {
        let Some(escape) = &mut self.escape else {
            self.to_guest.extend_from_slice(bytes);
            return false;
        };
        let mut leave = false;
        for byte in bytes {
            match escape.typed(*byte) {
                Some(Typed::Byte(byte)) if self.to_guest.len() < PENDING => self.to_guest.push(byte),
                Some(Typed::Byte(_)) | None => {}
                Some(Typed::Break) => self.port.push_break(),
                Some(Typed::Help) => self.to_peer.extend_from_slice(HELP.as_bytes()),
                Some(Typed::Leave) => leave = true,
            }
        }
        leave
    }

    fn push_input(&mut self) {
        if !self.to_guest.is_empty() {
            let pushed = self.port.push_input(&self.to_guest).min(self.to_guest.len());
            self.to_guest.drain(..pushed);
        }
    }

    /// Takes what the guest has written and writes it out; whether there may be more.
    fn move_output(&mut self, may_write: bool, now_ns: u64) -> bool {
        let mut bytes = [0; 4096];
        if self.to_peer.is_empty() {
            self.progress_ns = now_ns;
        }
        // What is left from the last turn first, so that there is room.
        self.write(may_write, now_ns);
        for _ in 0..ROUNDS {
            let room = PENDING.saturating_sub(self.to_peer.len());
            let absent = self.peer.output.is_none();
            if room == 0 && !absent && !self.is_stalled(now_ns) {
                return false;
            }
            let keep = !absent && room > 0 && !self.stalled;
            let limit = if keep { room.min(bytes.len()) } else { bytes.len() };
            let taken = self.port.take_output(&mut bytes[..limit]).min(limit);
            if taken == 0 {
                return false;
            }
            if keep {
                self.to_peer.extend_from_slice(&bytes[..taken]);
                self.write(may_write, now_ns);
            } else if !absent {
                self.dropped_bytes += taken as u64;
            }
        }
        true
    }

    /// Whether the reader has left everything unread for too long.
    fn is_stalled(&mut self, now_ns: u64) -> bool {
        if !self.stalled && now_ns.saturating_sub(self.progress_ns) >= PATIENCE_NS {
            self.stalled = true;
            log::warn!("{}: nobody reads; output is thrown away until somebody does", self.name);
        }
        self.stalled
    }

    fn write(&mut self, may_write: bool, now_ns: u64) {
        if self.peer.blocks && !may_write {
            return;
        }
        while let Some(output) = self.peer.output.as_mut().filter(|_| !self.to_peer.is_empty()) {
            if !may_send(output) {
                return;
            }
            let piece = self.to_peer.len().min(self.peer.piece);
            match output.write(&self.to_peer[..piece]) {
                Ok(written) => {
                    self.to_peer.drain(..written);
                    self.wrote(now_ns);
                    if self.peer.blocks {
                        return;
                    }
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Err(error) if matches!(error.kind(), ErrorKind::StorageFull | ErrorKind::QuotaExceeded) => {
                    if !std::mem::replace(&mut self.failing, true) {
                        log::error!("{}: output is lost: {}", self.name, crate::config::system_text(&error));
                    }
                    self.to_peer.clear();
                    return;
                }
                Err(_) => self.drop_output(),
            }
        }
    }

    fn wrote(&mut self, now_ns: u64) {
        self.progress_ns = now_ns;
        self.failing = false;
        if std::mem::take(&mut self.stalled) {
            log::warn!("{}: {} bytes of output were thrown away", self.name, self.dropped_bytes);
            self.dropped_bytes = 0;
        }
    }

    fn has_output(&self) -> bool {
        self.peer.output.is_some() && !self.to_peer.is_empty()
    }
}

/// All serial lines of a guest.
#[derive(Default)]
pub struct Lines(Vec<Line>);

impl Lines {
    /// Joined lines.
    pub(super) fn new(lines: Vec<Line>) -> Self {
        Self(lines)
    }

    /// Adds what the lines wait for.
    pub fn interest(&self, fds: &mut Vec<PollFd>) {
        self.0.iter().for_each(|line| line.interest(fds));
    }

    /// When a line has to be looked at although nothing happens.
    pub fn deadline_ns(&self) -> Option<u64> {
        self.0.iter().filter_map(Line::deadline_ns).min()
    }

    /// Moves what can be moved; `fds` are the entries of [`Lines::interest`] after the poll.
    pub(super) fn turn(&mut self, fds: &[PollFd], now_ns: u64) -> Turn {
        let mut turn = Turn::default();
        for (line, fds) in self.0.iter_mut().zip(fds.chunks(FDS)) {
            let one = line.turn(fds, now_ns);
            turn = Turn { again: turn.again | one.again, leave: turn.leave | one.leave };
        }
        turn
    }

    /// The guest has been reset, and none of its vCPUs runs yet.
    pub(super) fn guest_was_reset(&mut self) {
        self.0.iter_mut().for_each(Line::guest_was_reset);
    }

    /// Whether a reader is still owed output.
    pub fn has_output(&self) -> bool {
        self.0.iter().any(Line::has_output)
    }
}

#[cfg(test)]
#[path = "line_tests.rs"]
mod tests;
