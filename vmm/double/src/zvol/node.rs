//! An open volume: what it answers, and what of the conversation is wrong.

use std::mem::size_of;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use devices_host::sys::dkio::*;
use devices_host::sys::{DeviceNumber, Errno, IoctlArg, SysResult};
use zerocopy::{FromBytes, Immutable, IntoBytes};

use super::{State, Unmap, Zvol, rules};
use crate::names;
use crate::node::{Call, Node};
use crate::rules::Rule;
use crate::sys::{Host, translate};

/// A fixed disk (sys/dkio.h).
const DK_FIXED_DISK: u32 = 0x1_0001;

/// Requests and the size of what they take; none for one that takes nothing.
const REQUESTS: &[(i32, Option<usize>)] = &[
    (DKIOCGMEDIAINFOEXT, Some(size_of::<dk_minfo_ext>())),
    (DKIOCGMEDIAINFO, Some(size_of::<dk_minfo>())),
    (DKIOCGETWCE, Some(size_of::<i32>())),
    (DKIOCSETWCE, Some(size_of::<i32>())),
    (DKIOCFLUSHWRITECACHE, None),
    (DKIOC_CANFREE, Some(size_of::<i32>())),
    (DKIOCFREE, Some(size_of::<dkioc_free_list_s>())),
];

pub(super) struct OpenVolume {
    host: Arc<Host>,
    path: String,
    volume: Arc<Zvol>,
    writes: bool,
    said: Mutex<Said>,
}

/// What was said through this descriptor.
#[derive(Default)]
struct Said {
    knows_size: bool,
    /// The write cache as it was found.
    found: Option<bool>,
    cache_was_set: bool,
    /// The driver's answer to DKIOC_CANFREE.
    can_free: Option<bool>,
    has_written: bool,
}

impl OpenVolume {
    pub(super) fn new(host: &Arc<Host>, path: &str, volume: Arc<Zvol>, writes: bool) -> Self {
        Self { host: host.clone(), path: path.to_owned(), volume, writes, said: Mutex::default() }
    }

    fn said(&self) -> MutexGuard<'_, Said> {
        self.said.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn break_rule(&self, rule: &'static Rule, detail: impl Into<String>) {
        self.host.ledger().note(rule, format!("{}: {}", self.path, detail.into()));
    }

    fn refuse(&self, rule: &'static Rule, errno: Errno, detail: impl Into<String>) -> Errno {
        self.break_rule(rule, detail);
        errno
    }

    fn must_be_writable(&self, call: &str) -> SysResult<()> {
        if self.writes { Ok(()) } else { Err(self.refuse(&rules::WRITABLE, Errno::EBADF, call)) }
    }

    /// The bytes of an argument that has the right kind and size.
    fn argument<'a>(&self, request: i32, arg: IoctlArg<'a>) -> SysResult<&'a mut [u8]> {
        let Some((_, size)) = REQUESTS.iter().find(|(known, _)| *known == request) else {
            let known = names::DISKS.iter().any(|(number, _)| *number == request);
            let rule = if known { &rules::NOT_MODELLED } else { &rules::COMMAND };
            return Err(self.refuse(rule, Errno::ENOTTY, names::ioctl(request)));
        };
        match (size, arg) {
            (None, IoctlArg::None | IoctlArg::Value(0)) => Ok(&mut []),
            (Some(size), IoctlArg::Buffer(bytes)) if bytes.len() == *size => Ok(bytes),
            (_, given) => {
                let detail = format!("{} got {given:?} in place of {} bytes", names::ioctl(request), size.unwrap_or(0));
                Err(self.refuse(&rules::ARGUMENT, Errno::EFAULT, detail))
            }
        }
    }

    fn media(&self, state: &State, bytes: &mut [u8], ext: bool) -> SysResult<i32> {
        let spec = &self.volume.spec;
        self.said().knows_size = true;
        let dki_capacity = state.size_bytes / 512;
        if !ext {
            return put(bytes, &dk_minfo { dki_media_type: DK_FIXED_DISK, dki_lbsize: 512, dki_capacity });
        }
        let dki_pbsize = spec.block_bytes;
        let info = dk_minfo_ext { dki_media_type: DK_FIXED_DISK, dki_lbsize: 512, dki_capacity, dki_pbsize, _pad: 0 };
        put(bytes, &info)
    }

    fn set_cache(&self, state: &mut State, bytes: &[u8]) -> SysResult<i32> {
        let value = i32::read_from_bytes(bytes).map_err(|_| Errno::EFAULT)?;
        let mut said = self.said();
        if !matches!(value, 0 | 1) {
            self.break_rule(&rules::CACHE_VALUE, format!("{value}"));
        }
        let on = value != 0;
        if said.found.is_none() {
            self.break_rule(&rules::CACHE_FOUND, format!("set to {value}"));
        }
        match said.cache_was_set {
            false if on => self.break_rule(&rules::CACHE_OFF_FIRST, "turned on first"),
            true if on == state.write_cache => self.break_rule(&rules::CACHE_CHANGE, format!("set to {value} again")),
            _ => {}
        }
        said.cache_was_set = true;
        state.write_cache = on;
        if on {
            return Ok(0);
        }
        state.content.commit().map(|()| 0).map_err(|error| translate(&error))
    }

    fn flush(&self, state: &mut State) -> SysResult<i32> {
        if self.writes && !self.said().has_written && state.content.is_dirty() {
            self.break_rule(&rules::FLUSH_WRITER, "somebody else wrote what is flushed");
        }
        state.content.commit().map(|()| 0).map_err(|error| translate(&error))
    }

    fn free(&self, state: &mut State, bytes: &[u8]) -> SysResult<i32> {
        self.must_be_writable("DKIOCFREE")?;
        let list = dkioc_free_list_s::read_from_bytes(bytes).map_err(|_| Errno::EFAULT)?;
        if self.said().can_free != Some(true) {
            self.break_rule(&rules::FREE_PROBED, "not asked, or told that it cannot");
        }
        if list.dfl_num_exts != 1 {
            let detail = format!("{} extents", list.dfl_num_exts);
            return Err(self.refuse(&rules::FREE_COUNT, Errno::EINVAL, detail));
        }
        if list.dfl_flags & !DF_WAIT_SYNC != 0 {
            return Err(self.refuse(&rules::FREE_FLAGS, Errno::EINVAL, format!("{:#x}", list.dfl_flags)));
        }
        let dkioc_free_list_ext_s { dfle_start, dfle_length } = list.dfl_exts[0];
        let start = list.dfl_offset.checked_add(dfle_start);
        let (Some(start), Some(end)) = (start, start.and_then(|start| start.checked_add(dfle_length))) else {
            return Err(self.refuse(&rules::FREE_RANGE, Errno::EINVAL, format!("{dfle_start:#x}+{dfle_length:#x}")));
        };
        if dfle_length == 0 {
            self.break_rule(&rules::FREE_RANGE, format!("nothing at {dfle_start:#x}"));
        }
        if self.volume.spec.unmap == Unmap::Refused {
            return Err(Errno::ENOTSUP);
        }
        self.said().has_written = true;
        state.note(|| format!("DKIOCFREE {start}+{dfle_length} flags {}", list.dfl_flags));
        let stably = !state.write_cache || list.dfl_flags & DF_WAIT_SYNC != 0;
        let end = end.min(state.size_bytes);
        let zeroes = [0; 64 << 10];
        let mut at = start;
        while at < end {
            let len = usize::try_from(end - at).unwrap_or(usize::MAX).min(zeroes.len());
            state.content.write(&zeroes[..len], at, stably).map_err(|error| translate(&error))?;
            at += len as u64;
        }
        Ok(0)
    }

    /// How much of a transfer there is.
    fn transfer(&self, state: &State, bytes: &[u8], offset: u64) -> SysResult<usize> {
        if self.volume.is_guest_memory(bytes) {
            self.break_rule(&rules::PROCESS_MEMORY, format!("{} bytes at {offset:#x}", bytes.len()));
        }
        if !self.said().knows_size {
            self.break_rule(&rules::SIZE_FIRST, format!("{} bytes at {offset:#x}", bytes.len()));
        }
        let left = state.size_bytes.checked_sub(offset).filter(|left| *left > 0).ok_or(Errno::EIO)?;
        Ok(usize::try_from(left).unwrap_or(usize::MAX).min(bytes.len()))
    }
}

impl Node for OpenVolume {
    unsafe fn ioctl(&self, _call: &Call<'_>, request: i32, arg: IoctlArg<'_>) -> SysResult<i32> {
        let bytes = self.argument(request, arg)?;
        let spec = &self.volume.spec;
        let state = &mut *self.volume.state();
        match request {
            DKIOCSETWCE => state.note(|| format!("DKIOCSETWCE {}", bytes.first().copied().unwrap_or_default())),
            DKIOCFREE => {}
            _ => state.note(|| names::ioctl(request)),
        }
        match request {
            DKIOCGMEDIAINFOEXT if spec.media_ext => self.media(state, bytes, true),
            DKIOCGMEDIAINFO => self.media(state, bytes, false),
            DKIOCGETWCE if spec.switchable => {
                self.said().found.get_or_insert(state.write_cache);
                put(bytes, &i32::from(state.write_cache))
            }
            DKIOCSETWCE if spec.switchable => {
                self.must_be_writable("DKIOCSETWCE")?;
                self.set_cache(state, bytes)
            }
            DKIOCFLUSHWRITECACHE => self.flush(state),
            DKIOC_CANFREE => {
                let can = spec.unmap == Unmap::Works;
                self.said().can_free = Some(can);
                put(bytes, &i32::from(can))
            }
            DKIOCFREE => self.free(state, bytes),
            _ => Err(Errno::ENOTTY),
        }
    }

    fn read_at(&self, _call: &Call<'_>, buffer: &mut [u8], offset_bytes: u64) -> SysResult<usize> {
        let state = &mut *self.volume.state();
        state.note(|| format!("pread {offset_bytes}+{}", buffer.len()));
        let len = self.transfer(state, buffer, offset_bytes)?;
        state.content.read(&mut buffer[..len], offset_bytes).map_err(|error| translate(&error))?;
        Ok(len)
    }

    fn write_at(&self, _call: &Call<'_>, buffer: &[u8], offset_bytes: u64) -> SysResult<usize> {
        self.must_be_writable("pwrite")?;
        let mut state = self.volume.state();
        state.note(|| format!("pwrite {offset_bytes}+{}", buffer.len()));
        let len = self.transfer(&state, buffer, offset_bytes)?;
        // The driver looks at the cache when a write begins, and acts on it when it ends: whoever switches it meanwhile
        // must not count on this write.
        let stably = !state.write_cache;
        drop(state);
        std::thread::yield_now();
        let mut said = self.said();
        if self.volume.spec.switchable && !said.cache_was_set {
            self.break_rule(&rules::CACHE_SET_FIRST, format!("{len} bytes at {offset_bytes:#x}"));
        }
        said.has_written = true;
        drop(said);
        let mut state = self.volume.state();
        state.content.write(&buffer[..len], offset_bytes, stably).map_err(|error| translate(&error))?;
        Ok(len)
    }

    fn close(&self) {
        let state = &mut *self.volume.state();
        state.note(|| "close".to_owned());
        state.opens = state.opens.saturating_sub(1);
        state.exclusive = false;
        let said = self.said();
        if let Some(found) = said.found.filter(|found| said.cache_was_set && *found != state.write_cache) {
            self.break_rule(&rules::CACHE_BACK, format!("found {found}, left {}", state.write_cache));
        }
    }

    fn device_number(&self) -> DeviceNumber {
        // Major and minor of a driver's node; which, is nobody's business.
        DeviceNumber(0x0000_00b6_0000_0001)
    }
}

fn put<T: IntoBytes + Immutable>(bytes: &mut [u8], value: &T) -> SysResult<i32> {
    bytes.copy_from_slice(value.as_bytes());
    Ok(0)
}
