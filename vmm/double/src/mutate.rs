//! Damaging chosen calls, to prove that the double notices.

use std::collections::BTreeMap;
use std::os::fd::RawFd;
use std::ptr::NonNull;
use std::str::FromStr;
use std::sync::{Arc, Mutex, PoisonError};

use devices_host::sys::{
    DeviceNumber, IoctlArg, Link, MapRequest, OpenFlags, RawHandle, Ready, Sys, SysResult, SysThread,
};

use crate::inject::Moment;
use crate::names;

/// What happens to a call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Damage {
    /// It is not made, and its caller hears that it succeeded.
    Drop,
    /// It is made twice.
    Duplicate,
    /// Its buffer is as many bytes longer or, below zero, shorter.
    Resize(isize),
    /// A number arrives as a pointer to it, a pointer as a number.
    OtherKind,
    /// It is made after the next call on its handle. For arguments without pointers in them only.
    Late,
    /// These bytes stand at this offset of its buffer.
    Bytes(usize, Vec<u8>),
    /// This number stands in place of the one passed by value.
    Value(usize),
}

impl FromStr for Damage {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (kind, rest) = text.split_once('=').unwrap_or((text, ""));
        let wrong = || format!("'{text}' is no damage");
        let byte = |at: usize| rest.get(at..at + 2).and_then(|hex| u8::from_str_radix(hex, 16).ok());
        Ok(match kind {
            "drop" => Self::Drop,
            "duplicate" => Self::Duplicate,
            "late" => Self::Late,
            "kind" => Self::OtherKind,
            "resize" => Self::Resize(rest.parse().map_err(|_| wrong())?),
            "value" => Self::Value(rest.parse().map_err(|_| wrong())?),
            "bytes" => {
                let (offset, hex) = rest.split_once('+').ok_or_else(wrong)?;
                let start = offset.len() + 1;
                let bytes = (0..hex.len() / 2).map(|nth| byte(start + 2 * nth)).collect::<Option<Vec<u8>>>();
                Self::Bytes(offset.parse().map_err(|_| wrong())?, bytes.ok_or_else(wrong)?)
            }
            _ => return Err(wrong()),
        })
    }
}

/// One damage to come: written `drop:VM_PAUSE:1`, `resize=-8:VM_RUN:2`, `bytes=4+ffff0000:VM_RUN:1+`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mutation {
    /// Name of the call: an ioctl's, or `close`, `munmap`, `pread`, `pwrite`.
    pub call: String,
    /// Which of them.
    pub moment: Moment,
    /// What happens to them.
    pub damage: Damage,
}

impl FromStr for Mutation {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut parts = text.split(':');
        let (Some(damage), Some(call), Some(moment), None) = (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(format!("'{text}' is not DAMAGE:CALL:MOMENT"));
        };
        Ok(Self { call: call.to_owned(), moment: moment.parse()?, damage: damage.parse()? })
    }
}

/// The argument of a call, kept beyond it.
enum Owned {
    None,
    Value(usize),
    /// Words, for the alignment of any structure, and the length in bytes.
    Buffer(Vec<u64>, usize),
}

impl Owned {
    fn of(arg: &IoctlArg<'_>) -> Self {
        match arg {
            IoctlArg::None => Self::None,
            IoctlArg::Value(value) => Self::Value(*value),
            IoctlArg::Buffer(bytes) => Self::buffer(bytes, bytes.len()),
        }
    }

    /// A copy with room for `len` bytes, and a reserve behind them: who writes as much as it should does no harm.
    fn buffer(bytes: &[u8], len: usize) -> Self {
        let mut words = vec![0_u64; bytes.len().max(len).div_ceil(8) + 512];
        for (word, chunk) in words.iter_mut().zip(bytes.chunks(8)) {
            let mut padded = [0; 8];
            padded[..chunk.len()].copy_from_slice(chunk);
            *word = u64::from_ne_bytes(padded);
        }
        Self::Buffer(words, len)
    }

    fn arg(&mut self) -> IoctlArg<'_> {
        match self {
            Self::None => IoctlArg::None,
            Self::Value(value) => IoctlArg::Value(*value),
            Self::Buffer(words, len) => {
                // SAFETY: the words are initialised, exclusively borrowed, and at least `len` bytes long.
                IoctlArg::Buffer(unsafe { std::slice::from_raw_parts_mut(words.as_mut_ptr().cast::<u8>(), *len) })
            }
        }
    }
}

/// A call that is made later.
struct Late {
    handle: RawHandle,
    call: LateCall,
}

enum LateCall {
    Ioctl(i32, Owned),
    Write(Vec<u8>, u64),
}

/// A [`Sys`] that damages chosen calls on their way to the inner one.
pub struct Mutating {
    inner: Arc<dyn Sys>,
    mutations: Vec<Mutation>,
    counts: Mutex<BTreeMap<String, usize>>,
    late: Mutex<Vec<Late>>,
}

impl Mutating {
    /// Wraps `inner`.
    #[must_use]
    pub fn new(inner: Arc<dyn Sys>, mutations: Vec<Mutation>) -> Arc<Self> {
        Arc::new(Self { inner, mutations, counts: Mutex::default(), late: Mutex::default() })
    }

    fn damage(&self, call: &str) -> Option<Damage> {
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        let nth = counts.entry(call.to_owned()).or_insert(0);
        *nth += 1;
        let hit = self.mutations.iter().find(|mutation| mutation.call == call && mutation.moment.is(*nth));
        hit.map(|mutation| mutation.damage.clone())
    }

    fn later(&self, handle: RawHandle, call: LateCall) {
        self.late.lock().unwrap_or_else(PoisonError::into_inner).push(Late { handle, call });
    }

    fn make_up(&self, handle: RawHandle) {
        let mut late = self.late.lock().unwrap_or_else(PoisonError::into_inner);
        let (due, rest) = std::mem::take(&mut *late).into_iter().partition(|call: &Late| call.handle == handle);
        *late = rest;
        drop(late);
        let due: Vec<Late> = due;
        for Late { handle, call } in due {
            match call {
                LateCall::Ioctl(request, mut arg) => {
                    // SAFETY: the argument is a copy of what the caller gave, and has no pointers in it (see
                    // `Damage::Late`).
                    let _ = unsafe { self.inner.ioctl(handle, request, arg.arg()) };
                }
                LateCall::Write(bytes, offset_bytes) => drop(self.inner.write_at(handle, &bytes, offset_bytes)),
            }
        }
    }
}

impl Sys for Mutating {
    fn is_character_device(&self, path: &str) -> SysResult<bool> {
        self.inner.is_character_device(path)
    }

    fn open(&self, path: &str, flags: OpenFlags) -> SysResult<RawHandle> {
        self.inner.open(path, flags)
    }

    fn close(&self, handle: RawHandle) {
        match self.damage("close") {
            Some(Damage::Drop) => {}
            Some(Damage::Duplicate) => {
                self.inner.close(handle);
                self.inner.close(handle);
            }
            _ => self.inner.close(handle),
        }
    }

    unsafe fn ioctl(&self, handle: RawHandle, request: i32, arg: IoctlArg<'_>) -> SysResult<i32> {
        let damage = self.damage(&names::ioctl(request));
        // SAFETY: the caller's promise, and for copies their own reserve.
        let make = |arg: IoctlArg<'_>| unsafe { self.inner.ioctl(handle, request, arg) };
        let result = match damage {
            None => make(arg),
            Some(Damage::Drop) => return Ok(0),
            Some(Damage::Duplicate) => {
                let mut again = Owned::of(&arg);
                let result = make(arg);
                let _ = make(again.arg());
                result
            }
            Some(Damage::Late) => {
                self.later(handle, LateCall::Ioctl(request, Owned::of(&arg)));
                return Ok(0);
            }
            Some(Damage::Resize(by)) => match arg {
                IoctlArg::Buffer(bytes) => {
                    let len = bytes.len().saturating_add_signed(by);
                    make(Owned::buffer(bytes, len).arg())
                }
                other => make(other),
            },
            Some(Damage::OtherKind) => match arg {
                IoctlArg::Buffer(bytes) => make(IoctlArg::Value(bytes.as_ptr() as usize)),
                IoctlArg::Value(value) => make(Owned::buffer(&value.to_ne_bytes(), 8).arg()),
                IoctlArg::None => make(IoctlArg::Value(1)),
            },
            Some(Damage::Bytes(offset, new)) => match arg {
                IoctlArg::Buffer(bytes) => {
                    if let Some(place) = bytes.get_mut(offset..offset + new.len()) {
                        place.copy_from_slice(&new);
                    }
                    make(IoctlArg::Buffer(bytes))
                }
                other => make(other),
            },
            Some(Damage::Value(value)) => make(IoctlArg::Value(value)),
        };
        self.make_up(handle);
        result
    }

    fn mmap(&self, handle: RawHandle, request: MapRequest) -> SysResult<NonNull<u8>> {
        self.inner.mmap(handle, request)
    }

    unsafe fn munmap(&self, start: NonNull<u8>, len_bytes: usize) {
        // SAFETY: the caller's promise; of a part or a second time the double takes note, and does nothing.
        unsafe {
            match self.damage("munmap") {
                Some(Damage::Drop) => {}
                Some(Damage::Duplicate) => {
                    self.inner.munmap(start, len_bytes);
                    self.inner.munmap(start, len_bytes);
                }
                Some(Damage::Resize(by)) => self.inner.munmap(start, len_bytes.saturating_add_signed(by)),
                _ => self.inner.munmap(start, len_bytes),
            }
        }
    }

    unsafe fn mlock(&self, start: NonNull<u8>, len_bytes: usize) -> SysResult<()> {
        // SAFETY: the caller's promise.
        match self.damage("mlock") {
            Some(Damage::Drop) => Ok(()),
            // SAFETY: the caller's promise.
            _ => unsafe { self.inner.mlock(start, len_bytes) },
        }
    }

    fn device_number(&self, handle: RawHandle) -> SysResult<DeviceNumber> {
        self.inner.device_number(handle)
    }

    fn read(&self, handle: RawHandle, buffer: &mut [u8]) -> SysResult<usize> {
        self.inner.read(handle, buffer)
    }

    fn write(&self, handle: RawHandle, buffer: &[u8]) -> SysResult<usize> {
        self.inner.write(handle, buffer)
    }

    fn read_at(&self, handle: RawHandle, buffer: &mut [u8], offset_bytes: u64) -> SysResult<usize> {
        let damage = self.damage("pread");
        let len = buffer.len();
        let result = match damage {
            Some(Damage::Drop) => return Ok(len),
            Some(Damage::Resize(by)) => {
                let short = len.saturating_add_signed(by).min(len);
                self.inner.read_at(handle, &mut buffer[..short], offset_bytes).map(|_| len)
            }
            _ => self.inner.read_at(handle, buffer, offset_bytes),
        };
        self.make_up(handle);
        result
    }

    fn write_at(&self, handle: RawHandle, buffer: &[u8], offset_bytes: u64) -> SysResult<usize> {
        let damage = self.damage("pwrite");
        let len = buffer.len();
        let make = |bytes: &[u8]| self.inner.write_at(handle, bytes, offset_bytes);
        let result = match damage {
            Some(Damage::Drop) => return Ok(len),
            Some(Damage::Late) => {
                self.later(handle, LateCall::Write(buffer.to_vec(), offset_bytes));
                return Ok(len);
            }
            Some(Damage::Duplicate) => make(buffer).and_then(|_| make(buffer)),
            // The caller hears that all of it went.
            Some(Damage::Resize(by)) => make(&buffer[..len.saturating_add_signed(by).min(len)]).map(|_| len),
            Some(Damage::Bytes(offset, new)) => {
                let mut bytes = buffer.to_vec();
                if let Some(place) = bytes.get_mut(offset..offset + new.len()) {
                    place.copy_from_slice(&new);
                }
                make(&bytes)
            }
            _ => make(buffer),
        };
        self.make_up(handle);
        result
    }

    fn poll(&self, handle: RawHandle, interest: Ready, timeout_ns: Option<u64>) -> SysResult<Ready> {
        self.inner.poll(handle, interest, timeout_ns)
    }

    fn poll_fd(&self, handle: RawHandle) -> SysResult<RawFd> {
        self.inner.poll_fd(handle)
    }

    fn bind_thread(&self, cpu: Option<i32>) -> SysResult<()> {
        self.inner.bind_thread(cpu)
    }

    fn current_thread(&self) -> SysThread {
        self.inner.current_thread()
    }

    fn signal_thread(&self, thread: SysThread) {
        self.inner.signal_thread(thread);
    }

    fn kick_signal(&self) -> i32 {
        self.inner.kick_signal()
    }

    fn block_kick_signal(&self, blocked: bool) -> SysResult<()> {
        self.inner.block_kick_signal(blocked)
    }

    fn take_kick_signal(&self) -> bool {
        self.inner.take_kick_signal()
    }

    fn link(&self, name: &str) -> SysResult<Link> {
        self.inner.link(name)
    }

    fn in_global_zone(&self) -> bool {
        self.inner.in_global_zone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mutation_is_written_as_damage_call_and_moment() {
        let mutation: Mutation = "bytes=4+ff00:VM_RUN:2+".parse().unwrap();
        assert_eq!(mutation.damage, Damage::Bytes(4, vec![0xff, 0]));
        assert_eq!("resize=-8:VM_RUN:1".parse::<Mutation>().unwrap().damage, Damage::Resize(-8));
        assert_eq!("value=5:VM_PAUSE:1".parse::<Mutation>().unwrap().damage, Damage::Value(5));
        for wrong in ["drop", "drop:VM_RUN", "break:VM_RUN:1", "bytes=4:VM_RUN:1", "bytes=x+00:VM_RUN:1", "drop:A:1:2"]
        {
            assert!(wrong.parse::<Mutation>().is_err(), "{wrong}");
        }
    }
}
