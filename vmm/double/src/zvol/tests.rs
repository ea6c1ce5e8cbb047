//! The double itself: what it answers, and that each rule is noticed when it is broken.

use std::os::unix::fs::FileExt;
use std::sync::Arc;

use devices_host::sys::dkio::*;
use devices_host::sys::{Errno, IoctlArg, OpenAccess, OpenFlags, RawHandle, Sys, SysResult};
use zerocopy::{FromBytes, Immutable, IntoBytes};

use super::*;
use crate::{Host, Rule, Zone};

const PATH: &str = "/dev/zvol/rdsk/zones/guest/disk0";
const SIZE: u64 = 1 << 20;
const WRITER: OpenFlags = OpenFlags { access: OpenAccess::ReadWrite, exclusive: true, nonblocking: false };
const READER: OpenFlags = OpenFlags { access: OpenAccess::Read, exclusive: false, nonblocking: false };

struct Rig {
    sys: Arc<DoubleSys>,
    volume: Arc<Zvol>,
    stable: tempfile::NamedTempFile,
}

fn rig(spec: VolumeSpec) -> Rig {
    let stable = tempfile::NamedTempFile::new().unwrap();
    stable.as_file().set_len(spec.size_bytes).unwrap();
    let zvols = Zvols::new();
    let volume = zvols.add(PATH, stable.reopen().unwrap(), spec);
    Rig { sys: DoubleSys::new(&Host::new(vec![zvols]), Zone::bhyve(1)), volume, stable }
}

impl Rig {
    fn ask<T: IntoBytes + FromBytes + Immutable>(
        &self,
        handle: RawHandle,
        request: i32,
        arg: &mut T,
    ) -> SysResult<i32> {
        // SAFETY: the double looks at the bytes and at nothing they point to.
        unsafe { self.sys.ioctl(handle, request, IoctlArg::Buffer(arg.as_mut_bytes())) }
    }

    fn flush(&self, handle: RawHandle) -> SysResult<i32> {
        // SAFETY: there is no argument.
        unsafe { self.sys.ioctl(handle, DKIOCFLUSHWRITECACHE, IoctlArg::None) }
    }

    fn set_cache(&self, handle: RawHandle, value: i32) {
        self.ask(handle, DKIOCSETWCE, &mut { value }).unwrap();
    }

    /// A writer who did everything right so far.
    fn writer(&self) -> RawHandle {
        let handle = self.sys.open(PATH, WRITER).unwrap();
        self.ask(handle, DKIOCGMEDIAINFOEXT, &mut dk_minfo_ext::default()).unwrap();
        self.ask(handle, DKIOCGETWCE, &mut 0i32).unwrap();
        self.set_cache(handle, 0);
        self.ask(handle, DKIOC_CANFREE, &mut 0i32).unwrap();
        handle
    }

    fn stable(&self, offset: u64) -> u8 {
        let mut byte = [0];
        self.stable.as_file().read_exact_at(&mut byte, offset).unwrap();
        byte[0]
    }

    fn broken(&self) -> Vec<&'static str> {
        self.sys.violations().iter().map(|violation| violation.rule.name).collect()
    }
}

fn extent(start: u64, length: u64) -> dkioc_free_list_s {
    dkioc_free_list_s {
        dfl_num_exts: 1,
        dfl_exts: [dkioc_free_list_ext_s { dfle_start: start, dfle_length: length }],
        ..dkioc_free_list_s::default()
    }
}

#[test]
fn who_does_everything_right_breaks_no_rule() {
    let rig = rig(VolumeSpec::new(SIZE));
    let handle = rig.writer();
    rig.set_cache(handle, 1);
    assert_eq!(rig.sys.write_at(handle, &[1; 700], 300), Ok(700));
    let mut read = [9; 1024];
    assert_eq!(rig.sys.read_at(handle, &mut read, 0), Ok(1024));
    assert_eq!((&read[..300], &read[300..1000], &read[1000..]), (&[0; 300][..], &[1; 700][..], &[0; 24][..]));
    rig.ask(handle, DKIOCFREE, &mut extent(512, 512)).unwrap();
    rig.flush(handle).unwrap();
    rig.set_cache(handle, 0);
    rig.sys.close(handle);
    assert_eq!(rig.broken(), [""; 0]);
    assert_eq!((rig.stable(300), rig.stable(600)), (1, 0));
    assert_eq!(
        rig.volume.calls()[4..],
        [
            "DKIOC_CANFREE",
            "DKIOCSETWCE 1",
            "pwrite 300+700",
            "pread 0+1024",
            "DKIOCFREE 512+512 flags 0",
            "DKIOCFLUSHWRITECACHE",
            "DKIOCSETWCE 0",
            "close"
        ]
    );
}

#[test]
fn a_crash_loses_what_the_cache_held_and_nothing_else() {
    let rig = rig(VolumeSpec::new(SIZE));
    let handle = rig.writer();
    let write = |offset: u64| assert_eq!(rig.sys.write_at(handle, &[7; 512], offset), Ok(512));
    write(0);
    assert_eq!(rig.stable(0), 7, "the cache is off");
    rig.set_cache(handle, 1);
    write(512);
    rig.flush(handle).unwrap();
    write(1024);
    write(1536);
    assert_eq!((rig.stable(512), rig.stable(1024)), (7, 0));
    assert_eq!(rig.volume.crash(|block| block == 3).unwrap(), 1);
    assert_eq!((rig.stable(0), rig.stable(512), rig.stable(1024), rig.stable(1536)), (7, 7, 0, 7));
    write(1024);
    rig.set_cache(handle, 0);
    assert_eq!(rig.volume.crash(|_| false).unwrap(), 0, "switching the cache off commits");
    rig.set_cache(handle, 1);
    rig.ask(handle, DKIOCFREE, &mut extent(0, 512)).unwrap();
    rig.ask(handle, DKIOCFREE, &mut dkioc_free_list_s { dfl_flags: DF_WAIT_SYNC, ..extent(512, 512) }).unwrap();
    assert_eq!((rig.stable(0), rig.stable(512)), (7, 0), "only the one that waited");
}

#[test]
fn the_end_of_a_volume_is_the_end() {
    let rig = rig(VolumeSpec::new(SIZE));
    let handle = rig.writer();
    let mut buffer = [0; 1024];
    assert_eq!(rig.sys.read_at(handle, &mut buffer, SIZE - 512), Ok(512));
    assert_eq!(rig.sys.write_at(handle, &buffer, SIZE - 512), Ok(512));
    for offset in [SIZE, SIZE + 1, u64::MAX] {
        assert_eq!(rig.sys.read_at(handle, &mut buffer, offset), Err(Errno::EIO));
        assert_eq!(rig.sys.write_at(handle, &buffer, offset), Err(Errno::EIO));
    }
    rig.ask(handle, DKIOCFREE, &mut extent(SIZE - 512, 1 << 40)).unwrap();
    rig.volume.resize(SIZE / 2);
    assert_eq!(rig.sys.read_at(handle, &mut buffer, SIZE / 2), Err(Errno::EIO));
    rig.sys.close(handle);
    assert_eq!(rig.broken(), [""; 0]);
}

#[test]
fn a_volume_is_opened_by_one_writer_or_by_readers() {
    let rig = rig(VolumeSpec::new(SIZE));
    let writer = rig.sys.open(PATH, WRITER).unwrap();
    assert_eq!(rig.sys.open(PATH, WRITER), Err(Errno::EBUSY));
    assert_eq!(rig.sys.open(PATH, READER), Err(Errno::EBUSY));
    rig.sys.close(writer);
    let readers = [rig.sys.open(PATH, READER).unwrap(), rig.sys.open(PATH, READER).unwrap()];
    assert_eq!(rig.sys.open(PATH, WRITER), Err(Errno::EBUSY));
    readers.into_iter().for_each(|reader| rig.sys.close(reader));
    rig.sys.close(rig.sys.open(PATH, WRITER).unwrap());
    assert_eq!(rig.sys.open("/dev/zvol/rdsk/zones/other", READER), Err(Errno::ENOENT));
    let sealed = self::rig(VolumeSpec { read_only: true, ..VolumeSpec::new(SIZE) });
    assert_eq!(sealed.sys.open(PATH, WRITER), Err(Errno::EROFS));
    sealed.sys.open(PATH, READER).unwrap();
    assert_eq!((rig.broken(), sealed.broken()), (vec![], vec![]));
}

#[test]
fn every_rule_is_noticed_when_it_is_broken() {
    type Breaks = fn(&Rig);
    fn fresh(rig: &Rig) -> RawHandle {
        rig.sys.open(PATH, WRITER).unwrap()
    }
    let cases: &[(&Rule, Breaks)] = &[
        (&rules::EXCLUSIVE, |rig| {
            rig.sys.open(PATH, OpenFlags { exclusive: false, ..WRITER }).unwrap();
        }),
        (&rules::COMMAND, |rig| assert_eq!(rig.ask(rig.writer(), 0x4ff, &mut 0i32), Err(Errno::ENOTTY))),
        (&rules::NOT_MODELLED, |rig| assert_eq!(rig.ask(rig.writer(), DKIOCINFO, &mut 0i32), Err(Errno::ENOTTY))),
        (&rules::ARGUMENT, |rig| assert_eq!(rig.ask(rig.writer(), DKIOCSETWCE, &mut 0u64), Err(Errno::EFAULT))),
        (&rules::WRITABLE, |rig| {
            let handle = rig.sys.open(PATH, READER).unwrap();
            assert_eq!(rig.sys.write_at(handle, &[0], 0), Err(Errno::EBADF));
        }),
        (&rules::SIZE_FIRST, |rig| {
            rig.sys.read_at(fresh(rig), &mut [0], 0).unwrap();
        }),
        (&rules::CACHE_FOUND, |rig| rig.set_cache(fresh(rig), 0)),
        (&rules::CACHE_OFF_FIRST, |rig| {
            let handle = fresh(rig);
            rig.ask(handle, DKIOCGETWCE, &mut 0i32).unwrap();
            rig.set_cache(handle, 1);
        }),
        (&rules::CACHE_SET_FIRST, |rig| {
            let handle = fresh(rig);
            rig.ask(handle, DKIOCGMEDIAINFO, &mut dk_minfo::default()).unwrap();
            rig.sys.write_at(handle, &[0], 0).unwrap();
        }),
        (&rules::CACHE_VALUE, |rig| rig.set_cache(rig.writer(), 2)),
        (&rules::CACHE_CHANGE, |rig| rig.set_cache(rig.writer(), 0)),
        (&rules::CACHE_BACK, |rig| {
            let handle = rig.writer();
            rig.set_cache(handle, 1);
            rig.sys.close(handle);
        }),
        (&rules::FLUSH_WRITER, |rig| {
            let writer = rig.writer();
            rig.set_cache(writer, 1);
            rig.sys.write_at(writer, &[1], 0).unwrap();
            rig.set_cache(writer, 0);
            rig.sys.close(writer);
            let other = fresh(rig);
            rig.volume.state().content.write(&[1], 0, false).unwrap();
            rig.flush(other).unwrap();
        }),
        (&rules::FREE_PROBED, |rig| {
            rig.ask(fresh(rig), DKIOCFREE, &mut extent(0, 512)).unwrap();
        }),
        (&rules::FREE_COUNT, |rig| {
            let none = dkioc_free_list_s { dfl_num_exts: 0, ..extent(0, 512) };
            assert_eq!(rig.ask(rig.writer(), DKIOCFREE, &mut { none }), Err(Errno::EINVAL));
        }),
        (&rules::FREE_FLAGS, |rig| {
            let odd = dkioc_free_list_s { dfl_flags: 2, ..extent(0, 512) };
            assert_eq!(rig.ask(rig.writer(), DKIOCFREE, &mut { odd }), Err(Errno::EINVAL));
        }),
        (&rules::FREE_RANGE, |rig| {
            assert_eq!(rig.ask(rig.writer(), DKIOCFREE, &mut extent(u64::MAX, 512)), Err(Errno::EINVAL));
        }),
        (&rules::PROCESS_MEMORY, |rig| {
            let mut memory = [0; 512];
            rig.volume.guest_memory(memory.as_ptr_range().start.addr()..memory.as_ptr_range().end.addr());
            rig.sys.read_at(rig.writer(), &mut memory[100..], 0).unwrap();
        }),
    ];
    for (rule, breaks) in cases {
        let rig = rig(VolumeSpec::new(SIZE));
        breaks(&rig);
        assert_eq!(rig.broken(), [rule.name]);
    }
    let tried: Vec<_> = cases.iter().map(|(rule, _)| rule.name).collect();
    for rule in rules::ALL {
        assert!(tried.contains(&rule.name), "nothing breaks {}", rule.name);
    }
}
