use std::ptr::NonNull;
use std::sync::Mutex;

use super::*;
use crate::sys::{DeviceNumber, Link, MapRequest, OpenFlags, Ready, SysThread};

const VOLUME: RawHandle = RawHandle(7);

type Answer = dyn Fn(i32, &mut [u8]) -> SysResult<i32> + Send + Sync;

/// A driver that answers each ioctl by one function and remembers what it was asked.
struct Driver {
    answer: Box<Answer>,
    asked: Mutex<Vec<(i32, usize)>>,
}

impl Driver {
    fn new(answer: impl Fn(i32, &mut [u8]) -> SysResult<i32> + Send + Sync + 'static) -> Self {
        Self { answer: Box::new(answer), asked: Mutex::default() }
    }

    fn asked(&self) -> Vec<(i32, usize)> {
        self.asked.lock().unwrap().clone()
    }
}

impl Sys for Driver {
    unsafe fn ioctl(&self, handle: RawHandle, request: i32, arg: IoctlArg<'_>) -> SysResult<i32> {
        assert_eq!(handle, VOLUME);
        let IoctlArg::Buffer(bytes) = arg else { panic!("{request:#x} takes a pointer") };
        self.asked.lock().unwrap().push((request, bytes.len()));
        (self.answer)(request, bytes)
    }

    fn is_character_device(&self, _: &str) -> SysResult<bool> {
        unreachable!()
    }
    fn open(&self, _: &str, _: OpenFlags) -> SysResult<RawHandle> {
        unreachable!()
    }
    fn close(&self, _: RawHandle) {
        unreachable!()
    }
    fn mmap(&self, _: RawHandle, _: MapRequest) -> SysResult<NonNull<u8>> {
        unreachable!()
    }
    unsafe fn munmap(&self, _: NonNull<u8>, _: usize) {
        unreachable!()
    }
    unsafe fn mlock(&self, _: NonNull<u8>, _: usize) -> SysResult<()> {
        unreachable!()
    }
    fn device_number(&self, _: RawHandle) -> SysResult<DeviceNumber> {
        unreachable!()
    }
    fn read(&self, _: RawHandle, _: &mut [u8]) -> SysResult<usize> {
        unreachable!()
    }
    fn write(&self, _: RawHandle, _: &[u8]) -> SysResult<usize> {
        unreachable!()
    }
    fn read_at(&self, _: RawHandle, _: &mut [u8], _: u64) -> SysResult<usize> {
        unreachable!()
    }
    fn write_at(&self, _: RawHandle, _: &[u8], _: u64) -> SysResult<usize> {
        unreachable!()
    }
    fn poll(&self, _: RawHandle, _: Ready, _: Option<u64>) -> SysResult<Ready> {
        unreachable!()
    }
    fn bind_thread(&self, _: Option<i32>) -> SysResult<()> {
        unreachable!()
    }
    fn current_thread(&self) -> SysThread {
        unreachable!()
    }
    fn signal_thread(&self, _: SysThread) {
        unreachable!()
    }
    fn kick_signal(&self) -> i32 {
        unreachable!()
    }
    fn block_kick_signal(&self, _: bool) -> SysResult<()> {
        unreachable!()
    }
    fn take_kick_signal(&self) -> bool {
        unreachable!()
    }
    fn link(&self, _: &str) -> SysResult<Link> {
        unreachable!()
    }
    fn in_global_zone(&self) -> bool {
        unreachable!()
    }
}

fn put<T: IntoBytes + Immutable>(bytes: &mut [u8], value: &T) -> SysResult<i32> {
    bytes.copy_from_slice(value.as_bytes());
    Ok(0)
}

#[test]
fn a_volume_tells_its_size_and_both_block_sizes() {
    let driver = Driver::new(|_, bytes| {
        put(
            bytes,
            &dk_minfo_ext {
                dki_media_type: 4,
                dki_lbsize: 512,
                dki_capacity: 20 << 20,
                dki_pbsize: 8192,
                ..dk_minfo_ext::default()
            },
        )
    });
    let media = media(&driver, VOLUME).unwrap();
    assert_eq!(media, Media { size_bytes: 10 << 30, logical_block_bytes: 512, physical_block_bytes: 8192 });
    assert_eq!(driver.asked(), [(DKIOCGMEDIAINFOEXT, 24)]);
}

#[test]
fn an_older_driver_is_asked_by_the_older_request() {
    for refusal in [Errno::ENOTTY, Errno::ENOTSUP] {
        let driver = Driver::new(move |request, bytes| match request {
            DKIOCGMEDIAINFOEXT => Err(refusal),
            _ => put(bytes, &dk_minfo { dki_media_type: 4, dki_lbsize: 4096, dki_capacity: 100 }),
        });
        let media = media(&driver, VOLUME).unwrap();
        assert_eq!(media, Media { size_bytes: 409_600, logical_block_bytes: 4096, physical_block_bytes: 4096 });
        assert_eq!(driver.asked(), [(DKIOCGMEDIAINFOEXT, 24), (DKIOCGMEDIAINFO, 16)]);
    }
}

#[test]
fn a_size_beyond_all_bytes_and_a_broken_disk_are_errors() {
    let huge = dk_minfo_ext { dki_lbsize: 512, dki_capacity: u64::MAX, ..dk_minfo_ext::default() };
    assert_eq!(media(&Driver::new(move |_, bytes| put(bytes, &huge)), VOLUME), Err(Errno::EOVERFLOW));
    let broken = Driver::new(|_, _| Err(Errno::EIO));
    assert_eq!(media(&broken, VOLUME), Err(Errno::EIO));
    assert_eq!(broken.asked().len(), 1, "an I/O error is no reason to ask again");
}

#[test]
fn the_write_cache_is_read_and_set_as_an_int() {
    let driver = Driver::new(|request, bytes| match request {
        DKIOCGETWCE => put(bytes, &1i32),
        DKIOCSETWCE => {
            assert_eq!(bytes, 0i32.as_bytes());
            Ok(0)
        }
        _ => Err(Errno::ENOTTY),
    });
    assert_eq!(write_cache(&driver, VOLUME), Ok(true));
    set_write_cache(&driver, VOLUME, false).unwrap();
    assert_eq!(driver.asked(), [(DKIOCGETWCE, 4), (DKIOCSETWCE, 4)]);
}

#[test]
fn a_range_is_freed_as_one_extent_and_an_empty_one_is_not_asked_for() {
    let driver = Driver::new(|request, bytes| {
        assert_eq!(request, DKIOCFREE);
        let list = dkioc_free_list_s::read_from_bytes(bytes).unwrap();
        assert_eq!((list.dfl_num_exts, list.dfl_offset, list.dfl_flags), (1, 0, DF_WAIT_SYNC));
        assert_eq!((list.dfl_exts[0].dfle_start, list.dfl_exts[0].dfle_length), (1 << 20, 4096));
        Ok(0)
    });
    free(&driver, VOLUME, 5, 0, true).unwrap();
    assert!(driver.asked().is_empty(), "no extent at all is EINVAL");
    free(&driver, VOLUME, 1 << 20, 4096, true).unwrap();
    assert_eq!(driver.asked(), [(DKIOCFREE, 40)]);
}

#[test]
fn only_a_driver_that_says_so_can_free() {
    assert!(can_free(&Driver::new(|_, bytes| put(bytes, &1i32)), VOLUME));
    assert!(!can_free(&Driver::new(|_, bytes| put(bytes, &0i32)), VOLUME));
    assert!(!can_free(&Driver::new(|_, _| Err(Errno::ENOTTY)), VOLUME));
}
