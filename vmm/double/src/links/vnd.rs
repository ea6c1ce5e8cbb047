//! A frame device: what it answers, and what of the conversation is wrong.

use std::mem::size_of;
use std::os::fd::RawFd;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Instant;

use devices_host::sys::{DeviceNumber, Errno, IoctlArg, Ready, SysResult};
use zvmm::hypervisor::illumos_kvm::abi::vnd::{self as abi, *};
use zvmm::hypervisor::illumos_kvm::plain::{bytes_of, from_bytes};

use super::rules::vnd as rules;
use super::wire::{Owner, Wire};
use super::{Links, lock, memory};
use crate::names;
use crate::node::{Call, Node};
use crate::rules::Rule;

/// `vnd_vdq_hard_max`.
const MOST_BUFFER_BYTES: u64 = 4 << 20;
/// `vnd_vdq_default_size`.
const DEFAULT_BUFFER_BYTES: u64 = 64 << 10;
/// `dl_min_sdu` of Ethernet.
const MIN_TU: u64 = 0;
/// Who hears as often within a tenth of a second that there is nothing to do does not wait.
const MOST_IN_VAIN: u32 = 20_000;

const BUFFER_REQUESTS: [i32; 7] = [
    VND_IOC_GETRXBUF,
    VND_IOC_SETRXBUF,
    VND_IOC_GETMAXBUF,
    VND_IOC_GETTXBUF,
    VND_IOC_SETTXBUF,
    VND_IOC_GETMINTU,
    VND_IOC_GETMAXTU,
];

pub(super) struct VndNode {
    links: Arc<Links>,
    state: Mutex<State>,
}

struct State {
    wire: Option<Arc<Wire>>,
    receive_bytes: u64,
    send_bytes: u64,
    receive_set: bool,
    send_set: bool,
    min_asked: bool,
    max_asked: bool,
    in_vain: (Instant, u32),
}

impl VndNode {
    /// A clone of the control node.
    pub(super) fn control(links: Arc<Links>) -> Self {
        Self::new(links, None)
    }

    /// The device of a link, as the global zone made it.
    pub(super) fn linked(links: Arc<Links>, wire: Arc<Wire>) -> SysResult<Self> {
        if !wire.take(Owner::Vnd) {
            // Whoever has the link kept the device from being made.
            return Err(Errno::ENOENT);
        }
        Ok(Self::new(links, Some(wire)))
    }

    fn new(links: Arc<Links>, wire: Option<Arc<Wire>>) -> Self {
        let state = State {
            wire,
            receive_bytes: DEFAULT_BUFFER_BYTES,
            send_bytes: DEFAULT_BUFFER_BYTES,
            receive_set: false,
            send_set: false,
            min_asked: false,
            max_asked: false,
            in_vain: (Instant::now(), 0),
        };
        Self { links, state: Mutex::new(state) }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    fn attach(&self, call: &Call<'_>, bytes: &mut [u8]) -> SysResult<i32> {
        let mut request: vnd_ioc_attach = from_bytes(bytes).ok_or(Errno::EFAULT)?;
        if !call.process.zone().is_global() {
            return Err(Errno::EPERM);
        }
        if request.via_errno != 0 {
            call.note(&rules::ERRNO_CLEAR, "VND_IOC_ATTACH");
        }
        let name = request.via_name.iter().position(|byte| *byte == 0).filter(|len| *len > 0);
        let name = name.and_then(|len| std::str::from_utf8(&request.via_name[..len]).ok()).map(str::to_owned);
        let mut state = self.state();
        let refused = match &name {
            None => {
                call.note(&rules::NAME, format!("{:?}", request.via_name));
                abi::errno::VND_E_BADNAME
            }
            Some(_) if state.wire.is_some() => {
                call.note(&rules::ATTACH_ONCE, "attached already");
                abi::errno::VND_E_ATTACHED
            }
            Some(name) => match self.links.wire(name)? {
                None => abi::errno::VND_E_NODATALINK,
                Some(wire) if !wire.take(Owner::Vnd) => abi::errno::VND_E_DLEXCL,
                Some(wire) => {
                    state.wire = Some(wire);
                    return Ok(0);
                }
            },
        };
        request.via_errno = refused;
        bytes.copy_from_slice(bytes_of(&request));
        Err(Errno::EIO)
    }

    fn property(&self, call: &Call<'_>, request: i32, bytes: &mut [u8]) -> SysResult<i32> {
        let name = names::ioctl(request);
        let mut buffer: vnd_ioc_buf = from_bytes(bytes).ok_or(Errno::EFAULT)?;
        if buffer.vib_errno != 0 || buffer.vib_filler != 0 {
            call.note(&rules::ERRNO_CLEAR, name.clone());
        }
        if request == VND_IOC_GETMAXBUF && !call.process.zone().is_global() {
            return Err(call.refuse(&rules::MAXBUF_ZONE, Errno::EPERM, name));
        }
        let state = &mut *self.state();
        let Some(wire) = state.wire.clone() else {
            call.note(&rules::ATTACHED, name);
            buffer.vib_errno = abi::errno::VND_E_NOTATTACHED;
            bytes.copy_from_slice(bytes_of(&buffer));
            // The ones that ask for limits never fail.
            return if matches!(request, VND_IOC_GETMINTU | VND_IOC_GETMAXTU) { Ok(0) } else { Err(Errno::EIO) };
        };
        let longest = wire.longest_frame_bytes() as u64;
        let mut result = Ok(0);
        match request {
            VND_IOC_SETRXBUF | VND_IOC_SETTXBUF => {
                if buffer.vib_size > MOST_BUFFER_BYTES {
                    buffer.vib_errno = abi::errno::VND_E_BUFTOOBIG;
                    result = Err(Errno::EIO);
                } else {
                    if buffer.vib_size < longest {
                        call.note(&rules::BUFFER_ROOM, format!("{name} {} for frames of {longest}", buffer.vib_size));
                    }
                    let (place, set) = match request {
                        VND_IOC_SETRXBUF => (&mut state.receive_bytes, &mut state.receive_set),
                        _ => (&mut state.send_bytes, &mut state.send_set),
                    };
                    (*place, *set) = (buffer.vib_size, true);
                }
            }
            VND_IOC_GETMINTU => (buffer.vib_size, state.min_asked) = (MIN_TU, true),
            VND_IOC_GETMAXTU => (buffer.vib_size, state.max_asked) = (longest, true),
            other => {
                buffer.vib_size = match other {
                    VND_IOC_GETRXBUF => state.receive_bytes,
                    VND_IOC_GETTXBUF => state.send_bytes,
                    _ => MOST_BUFFER_BYTES,
                };
                // What lay on the kernel's stack.
                buffer.vib_errno = 0xdead_beef;
            }
        }
        bytes.copy_from_slice(bytes_of(&buffer));
        result
    }

    /// Whether frames may go, and by what.
    fn carry(&self, call: &Call<'_>, what: &str) -> SysResult<Arc<Wire>> {
        let state = self.state();
        let Some(wire) = state.wire.clone() else {
            return Err(call.refuse(&rules::ATTACHED, Errno::ENXIO, what));
        };
        if !call.flags.nonblocking {
            call.note(&rules::NONBLOCKING, what);
        }
        if !(state.receive_set && state.send_set) {
            call.note(&rules::BUFFERS_SET, what);
        }
        if !(state.min_asked && state.max_asked) {
            call.note(&rules::LIMITS_ASKED, what);
        }
        Ok(wire)
    }

    /// Takes note of a caller who comes again at once.
    fn in_vain(&self, call: &Call<'_>, error: Errno) -> Errno {
        if error == Errno::EAGAIN {
            let (since, count) = &mut self.state().in_vain;
            if since.elapsed().as_millis() >= 100 {
                (*since, *count) = (Instant::now(), 0);
            }
            *count += 1;
            if *count == MOST_IN_VAIN {
                call.note(&rules::SPIN, format!("{count} times in {} ms", since.elapsed().as_millis()));
            }
        }
        error
    }

    fn send(&self, call: &Call<'_>, frame: &[u8], what: &str) -> SysResult<()> {
        let wire = self.carry(call, what)?;
        if frame.len() < 14 {
            // With nothing to reserve the driver has no room, now and ever.
            let errno = if frame.is_empty() { Errno::EAGAIN } else { Errno::EINVAL };
            return Err(call.refuse(&rules::ETHERNET, errno, format!("{what} of {} bytes", frame.len())));
        }
        if frame.len() > wire.longest_frame_bytes() {
            let detail = format!("{what} of {} bytes", frame.len());
            return Err(call.refuse(&rules::LIMITS_KEPT, Errno::ERANGE, detail));
        }
        if frame.len() as u64 > self.state().send_bytes {
            return Err(Errno::EAGAIN);
        }
        wire.send(frame).map_err(|error| self.in_vain(call, error))
    }

    /// The header and vectors of a frameio call, judged.
    fn frameio(&self, call: &Call<'_>, request: i32, bytes: &[u8]) -> SysResult<Vec<framevec>> {
        let name = names::ioctl(request);
        let refuse =
            |rule: &'static Rule, detail: String| Err(call.refuse(rule, Errno::EINVAL, format!("{name}: {detail}")));
        let [version, per_frame, count, _] = std::array::from_fn(|nth| word(bytes, 4 * nth));
        if version != FRAMEIO_VERSION {
            return refuse(&rules::VERSION, format!("version {version}"));
        }
        let count = count as usize;
        if count == 0
            || count > FRAMEIO_NVECS_MAX
            || bytes.len() != size_of::<frameio>() + count * size_of::<framevec>()
        {
            return refuse(&rules::VECTORS, format!("{count} vectors in {} bytes", bytes.len()));
        }
        if per_frame as usize != count {
            return refuse(&rules::ONE_FRAME, format!("{per_frame} vectors a frame of {count}"));
        }
        let vectors: Vec<framevec> = bytes[size_of::<frameio>()..]
            .chunks_exact(size_of::<framevec>())
            .filter_map(from_bytes::<framevec>)
            .collect();
        if let Some(nth) = vectors.iter().position(|vector| vector.fv_buf == 0 || vector.fv_buflen == 0) {
            return refuse(&rules::VECTOR, format!("vector {nth}"));
        }
        if vectors.iter().any(|vector| vector.fv_actlen != 0) {
            call.note(&rules::LENGTH_CLEAR, name);
        }
        Ok(vectors)
    }

    fn write_frame(&self, call: &Call<'_>, bytes: &mut [u8]) -> SysResult<i32> {
        let vectors = self.frameio(call, VND_IOC_FRAMEIO_WRITE, bytes)?;
        let mut frame = Vec::new();
        for vector in &vectors {
            let start = frame.len();
            frame.resize(start + (vector.fv_buflen as usize).min(1 << 20), 0);
            memory::read(vector.fv_buf as usize, &mut frame[start..])
                .map_err(|error| call.refuse(&rules::MEMORY, error, "VND_IOC_FRAMEIO_WRITE"))?;
        }
        self.send(call, &frame, "VND_IOC_FRAMEIO_WRITE")?;
        put_lengths(bytes, vectors.iter().map(|vector| vector.fv_buflen));
        Ok(0)
    }

    fn read_frame(&self, call: &Call<'_>, bytes: &mut [u8]) -> SysResult<i32> {
        let what = "VND_IOC_FRAMEIO_READ";
        let vectors = self.frameio(call, VND_IOC_FRAMEIO_READ, bytes)?;
        let wire = self.carry(call, what)?;
        let room: u64 = vectors.iter().map(|vector| vector.fv_buflen).fold(0, u64::saturating_add);
        if room < wire.longest_frame_bytes() as u64 {
            call.note(&rules::READ_ROOM, format!("{what}: {room} bytes"));
        }
        let lengths = wire.receive(|frame| {
            if frame.len() as u64 > room {
                return Err(Errno::EOVERFLOW);
            }
            let (mut rest, mut lengths) = (frame, Vec::new());
            for vector in &vectors {
                let (here, after) = rest.split_at(rest.len().min(vector.fv_buflen as usize));
                if !here.is_empty() {
                    // SAFETY: the caller of the ioctl vouches for the pointers of its structure.
                    unsafe { memory::write(vector.fv_buf as usize, here) }
                        .map_err(|error| call.refuse(&rules::MEMORY, error, what))?;
                }
                // A vector that the frame does not reach keeps what it had.
                lengths.push(if here.is_empty() { vector.fv_actlen } else { here.len() as u64 });
                rest = after;
            }
            Ok(lengths)
        });
        put_lengths(bytes, lengths.map_err(|error| self.in_vain(call, error))?.into_iter());
        Ok(0)
    }
}

fn word(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..).and_then(|bytes| bytes.first_chunk()).copied().map_or(0, u32::from_ne_bytes)
}

/// Writes the lengths into the vectors of a frameio structure.
fn put_lengths(bytes: &mut [u8], lengths: impl Iterator<Item = u64>) {
    let vectors = bytes[size_of::<frameio>()..].chunks_exact_mut(size_of::<framevec>());
    for (vector, length) in vectors.zip(lengths) {
        vector[16..].copy_from_slice(&length.to_ne_bytes());
    }
}

/// The bytes of an argument of this size.
fn sized<'a>(call: &Call<'_>, request: i32, arg: IoctlArg<'a>, size: usize) -> SysResult<&'a mut [u8]> {
    match arg {
        IoctlArg::Buffer(bytes) if bytes.len() == size => Ok(bytes),
        given => {
            let detail = format!("{} got {given:?} in place of {size} bytes", names::ioctl(request));
            Err(call.refuse(&rules::ARGUMENT, Errno::EFAULT, detail))
        }
    }
}

impl Node for VndNode {
    unsafe fn ioctl(&self, call: &Call<'_>, request: i32, arg: IoctlArg<'_>) -> SysResult<i32> {
        match request {
            VND_IOC_ATTACH => self.attach(call, sized(call, request, arg, size_of::<vnd_ioc_attach>())?),
            request if BUFFER_REQUESTS.contains(&request) => {
                self.property(call, request, sized(call, request, arg, size_of::<vnd_ioc_buf>())?)
            }
            VND_IOC_FRAMEIO_READ | VND_IOC_FRAMEIO_WRITE => {
                let IoctlArg::Buffer(bytes) = arg else {
                    let detail = format!("{} got {arg:?}", names::ioctl(request));
                    return Err(call.refuse(&rules::ARGUMENT, Errno::EFAULT, detail));
                };
                if bytes.len() < size_of::<frameio>() {
                    return sized(call, request, IoctlArg::Buffer(bytes), size_of::<frameio>()).map(|_| 0);
                }
                match request {
                    VND_IOC_FRAMEIO_READ => self.read_frame(call, bytes),
                    _ => self.write_frame(call, bytes),
                }
            }
            VND_IOC_LINK | VND_IOC_UNLINK | VND_IOC_LIST => {
                Err(call.refuse(&rules::NOT_MODELLED, Errno::ENOTTY, names::ioctl(request)))
            }
            _ => Err(call.refuse(&rules::COMMAND, Errno::ENOTTY, names::ioctl(request))),
        }
    }

    fn read(&self, call: &Call<'_>, buffer: &mut [u8]) -> SysResult<usize> {
        let wire = self.carry(call, "read")?;
        if buffer.len() < wire.longest_frame_bytes() {
            call.note(&rules::READ_ROOM, format!("read: {} bytes", buffer.len()));
        }
        let result = wire.receive(|frame| {
            buffer.get_mut(..frame.len()).ok_or(Errno::EOVERFLOW)?.copy_from_slice(frame);
            Ok(frame.len())
        });
        result.map_err(|error| self.in_vain(call, error))
    }

    fn write(&self, call: &Call<'_>, buffer: &[u8]) -> SysResult<usize> {
        self.send(call, buffer, "write").map(|()| buffer.len())
    }

    fn poll(&self, _call: &Call<'_>, interest: Ready, timeout_ns: Option<u64>) -> SysResult<Ready> {
        let fd = self.poll_fd()?;
        super::dlpi::poll_one(fd, interest, timeout_ns)
    }

    fn poll_fd(&self) -> SysResult<RawFd> {
        self.state().wire.as_ref().map(|wire| wire.fd()).ok_or(Errno::ENXIO)
    }

    fn close(&self) {
        if let Some(wire) = self.state().wire.take() {
            wire.leave();
        }
    }

    fn device_number(&self) -> DeviceNumber {
        DeviceNumber(0x0000_0113_0000_0001)
    }
}
