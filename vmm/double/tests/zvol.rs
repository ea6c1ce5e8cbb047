//! The back end of volumes keeps the rules of their driver: its own code, unchanged, over the strict double.

#![cfg(target_os = "linux")]

use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use devices_host::disk::DiskProblem;
use devices_host::sys::Sys;
use devices_host::zvol::Volume;
use zvmm_double::zvol::{Unmap, VolumeSpec, Zvol, Zvols};
use zvmm_double::{DoubleSys, Host, Injecting, Mutating, Zone};

const PATH: &str = "/dev/zvol/rdsk/zones/guest/disk0";
const SIZE: u64 = 1 << 20;

struct Rig {
    process: Arc<DoubleSys>,
    sys: Arc<dyn Sys>,
    zvol: Arc<Zvol>,
    stable: tempfile::NamedTempFile,
}

fn rig(spec: VolumeSpec) -> Rig {
    let stable = tempfile::NamedTempFile::new().unwrap();
    stable.as_file().set_len(spec.size_bytes).unwrap();
    let zvols = Zvols::new();
    let zvol = zvols.add(PATH, stable.reopen().unwrap(), spec);
    let process = DoubleSys::new(&Host::new(vec![zvols]), Zone::bhyve(1));
    Rig { sys: process.clone(), process, zvol, stable }
}

impl Rig {
    fn injecting(mut self, failure: &str) -> Self {
        self.sys = Injecting::new(self.sys, vec![failure.parse().unwrap()]);
        self
    }

    fn mutating(mut self, damage: &str) -> Self {
        self.sys = Mutating::new(self.sys, vec![damage.parse().unwrap()]);
        self
    }

    fn open(&self) -> Volume {
        Volume::open(&self.sys, Path::new(PATH), false).unwrap()
    }

    fn refusal(&self) -> DiskProblem {
        Volume::open(&self.sys, Path::new(PATH), false).unwrap_err()
    }

    fn stable(&self, offset: u64) -> u8 {
        let mut byte = [0];
        self.stable.as_file().read_exact_at(&mut byte, offset).unwrap();
        byte[0]
    }

    #[track_caller]
    fn is_clean(&self) {
        let broken = self.process.violations();
        assert!(broken.is_empty(), "{broken:?}");
        assert_eq!(self.process.leaks(), []);
    }
}

fn put(volume: &Volume, value: u8, offset: u64) -> io::Result<()> {
    volume.write_all_at(&[value; 512], offset)
}

#[test]
fn a_volume_has_the_shape_that_its_driver_tells() {
    for media_ext in [true, false] {
        let rig = rig(VolumeSpec { block_bytes: 16384, media_ext, ..VolumeSpec::new(SIZE) });
        let volume = rig.open();
        let media = volume.media();
        assert_eq!((media.size_bytes, media.logical_block_bytes), (SIZE, 512));
        assert_eq!(media.physical_block_bytes, if media_ext { 16384 } else { 512 });
        drop(volume);
        rig.is_clean();
    }
}

#[test]
fn the_cache_is_off_from_the_start_switched_once_a_change_and_put_back() {
    for found in [false, true] {
        let rig = rig(VolumeSpec { write_cache: found, ..VolumeSpec::new(SIZE) });
        let volume = rig.open();
        assert!(!rig.zvol.write_cache());
        for on in [false, true, true, false, false, true] {
            volume.set_write_cache(on);
            assert_eq!(rig.zvol.write_cache(), on);
        }
        drop(volume);
        assert_eq!(rig.zvol.write_cache(), found);
        rig.is_clean();
        let switches: Vec<_> = rig.zvol.calls().into_iter().filter(|call| call.starts_with("DKIOCSETWCE")).collect();
        let mut expected = vec!["DKIOCSETWCE 0", "DKIOCSETWCE 1", "DKIOCSETWCE 0", "DKIOCSETWCE 1"];
        if !found {
            expected.push("DKIOCSETWCE 0");
        }
        assert_eq!(switches, expected, "found {found}");
    }
}

#[test]
fn a_durable_write_survives_and_costs_a_flush_only_where_there_is_a_cache() {
    let rig = rig(VolumeSpec::new(SIZE));
    let volume = rig.open();
    let flushes = || rig.zvol.calls().iter().filter(|call| *call == "DKIOCFLUSHWRITECACHE").count();
    volume.durably(|| put(&volume, 1, 0)).unwrap();
    assert_eq!((rig.stable(0), flushes()), (1, 0), "write-through");
    volume.set_write_cache(true);
    volume.durably(|| put(&volume, 2, 512)).unwrap();
    assert_eq!((rig.stable(512), flushes()), (2, 1), "write-back");
    put(&volume, 3, 1024).unwrap();
    assert_eq!(rig.stable(1024), 0);
    volume.flush().unwrap();
    assert_eq!((rig.stable(1024), flushes()), (3, 2));
    // Whatever the cache becomes meanwhile.
    volume.set_write_cache(false);
    let turned_on = || {
        volume.set_write_cache(true);
        put(&volume, 4, 1536)
    };
    volume.durably(turned_on).unwrap();
    assert_eq!((rig.stable(1536), flushes()), (4, 3));
    volume.set_write_cache(false);
    let on_and_off = || {
        volume.set_write_cache(true);
        put(&volume, 5, 2048)?;
        volume.set_write_cache(false);
        Ok(())
    };
    volume.durably(on_and_off).unwrap();
    assert_eq!((rig.stable(2048), flushes()), (5, 4));
    // Nothing is acknowledged that failed.
    let fails = || Err(io::Error::from(io::ErrorKind::StorageFull));
    assert_eq!(volume.durably(fails).unwrap_err().kind(), io::ErrorKind::StorageFull);
    drop(volume);
    rig.is_clean();
}

#[test]
fn a_cache_that_cannot_be_switched_is_taken_for_one_that_is_on() {
    for (spec, failure) in [
        (VolumeSpec { switchable: false, ..VolumeSpec::new(SIZE) }, None),
        (VolumeSpec::new(SIZE), Some("DKIOCSETWCE:1:ENOTSUP")),
        // Only later: neither on nor off is believed.
        (VolumeSpec::new(SIZE), Some("DKIOCSETWCE:2+:EIO")),
    ] {
        let mut rig = rig(spec);
        if let Some(failure) = failure {
            rig = rig.injecting(failure);
        }
        let volume = rig.open();
        volume.set_write_cache(true);
        volume.set_write_cache(false);
        volume.durably(|| put(&volume, 1, 0)).unwrap();
        assert_eq!(rig.stable(0), 1, "{failure:?}");
        assert!(rig.zvol.calls().contains(&"DKIOCFLUSHWRITECACHE".to_owned()), "{failure:?}");
    }
}

#[test]
fn space_is_given_back_where_the_driver_can_and_waited_for_without_a_cache() {
    let rig = rig(VolumeSpec::new(SIZE));
    let volume = rig.open();
    assert!(volume.can_free());
    volume.discard(4096, 8192).unwrap();
    volume.set_write_cache(true);
    volume.discard(0, 512).unwrap();
    volume.discard(0, 0).unwrap();
    let frees: Vec<_> = rig.zvol.calls().into_iter().filter(|call| call.starts_with("DKIOCFREE")).collect();
    assert_eq!(frees, ["DKIOCFREE 4096+8192 flags 1", "DKIOCFREE 0+512 flags 0"]);
    drop(volume);
    rig.is_clean();

    let rig = self::rig(VolumeSpec { unmap: Unmap::Refused, ..VolumeSpec::new(SIZE) });
    let volume = rig.open();
    assert!(!volume.can_free());
    assert_eq!(volume.discard(0, 512).unwrap_err().kind(), io::ErrorKind::Unsupported);
    drop(volume);
    rig.is_clean();

    // A raw encrypted volume says that it can, and cannot.
    let rig = self::rig(VolumeSpec::new(SIZE)).injecting("DKIOCFREE:1:ENOTSUP");
    assert_eq!(rig.open().discard(0, 512).unwrap_err().kind(), io::ErrorKind::Unsupported);
}

#[test]
fn zeroes_are_written_and_can_be_stopped() {
    let rig = rig(VolumeSpec::new(SIZE));
    let volume = rig.open();
    volume.write_all_at(&[9; 8192], 0).unwrap();
    volume.write_zeroes(512, 4000, &[0; 1024], &|| true).unwrap();
    let mut read = [0; 8192];
    volume.read_exact_at(&mut read, 0).unwrap();
    assert!(read.iter().enumerate().all(|(at, &byte)| byte == if (512..4512).contains(&at) { 0 } else { 9 }));
    let stopped = volume.write_zeroes(0, 4096, &[0; 1024], &|| false).unwrap_err();
    assert_eq!(stopped.kind(), io::ErrorKind::Interrupted);
    assert_eq!(
        rig.zvol.calls().iter().filter(|call| call.starts_with("DKIOCFREE")).count(),
        0,
        "{:?}",
        rig.zvol.calls()
    );
    drop(volume);
    rig.is_clean();
}

#[test]
fn a_volume_that_cannot_be_had_says_why() {
    let said = |rig: &Rig| rig.refusal().to_string();
    let sealed = rig(VolumeSpec { read_only: true, ..VolumeSpec::new(SIZE) });
    assert!(said(&sealed).starts_with("is read-only; with ro"), "{}", said(&sealed));
    let reader = Volume::open(&sealed.sys, Path::new(PATH), true).unwrap();
    assert!(!reader.can_free());
    assert_eq!(put(&reader, 1, 0).unwrap_err().raw_os_error(), Some(libc::EBADF));
    drop(reader);
    assert!(!sealed.zvol.calls().iter().any(|call| call.contains("WCE")), "a reader leaves the cache alone");

    let rig = rig(VolumeSpec::new(SIZE));
    let first = rig.open();
    assert_eq!(said(&rig), "is in use by another process or mounted");
    assert!(matches!(Volume::open(&rig.sys, Path::new(PATH), true), Err(DiskProblem::InUse)));
    drop(first);
    rig.is_clean();
    for (failure, line) in [
        ("open:1:EACCES", "cannot open it: Permission denied (os error 13)"),
        ("open:1:ENXIO", "cannot open it: No such device or address (os error 6)"),
        ("DKIOCGMEDIAINFOEXT:1:EIO", "cannot read its size: Input/output error (os error 5)"),
        ("DKIOCGETWCE:1:EIO", "cannot set its write cache: Input/output error (os error 5)"),
        ("DKIOCSETWCE:1:EIO", "cannot set its write cache: Input/output error (os error 5)"),
    ] {
        let rig = self::rig(VolumeSpec { write_cache: true, ..VolumeSpec::new(SIZE) }).injecting(failure);
        assert_eq!(said(&rig), line);
        assert!(rig.zvol.write_cache(), "{failure}: left as it was found");
        assert_eq!(rig.process.leaks(), []);
    }
    let tape =
        self::rig(VolumeSpec { media_ext: false, ..VolumeSpec::new(SIZE) }).injecting("DKIOCGMEDIAINFO:1:ENOTTY");
    assert_eq!(said(&tape), "is a character device, not a file or block device");
}

#[test]
fn an_interrupted_call_is_made_again_and_a_full_pool_stays_a_full_pool() {
    let calls = ["open", "DKIOCGMEDIAINFOEXT", "DKIOCGETWCE", "DKIOCSETWCE", "pwrite", "pread", "DKIOCFLUSHWRITECACHE"];
    for call in calls {
        let rig = rig(VolumeSpec::new(SIZE)).injecting(&format!("{call}:1:EINTR"));
        let volume = rig.open();
        put(&volume, 1, 0).unwrap();
        volume.read_exact_at(&mut [0; 512], 0).unwrap();
        volume.flush().unwrap();
        drop(volume);
        rig.is_clean();
    }
    let rig = rig(VolumeSpec::new(SIZE)).injecting("pwrite:2:ENOSPC");
    let volume = rig.open();
    volume.durably(|| put(&volume, 1, 0)).unwrap();
    let full = volume.durably(|| put(&volume, 1, 512)).unwrap_err();
    assert_eq!((full.kind(), full.raw_os_error()), (io::ErrorKind::StorageFull, Some(libc::ENOSPC)));
}

#[test]
fn a_volume_that_shrinks_ends_where_it_ends() {
    let rig = rig(VolumeSpec::new(SIZE));
    let volume = rig.open();
    assert_eq!(volume.bytes_now().unwrap(), SIZE);
    rig.zvol.resize(SIZE / 2);
    assert_eq!(volume.bytes_now().unwrap(), SIZE / 2);
    assert_eq!(put(&volume, 1, SIZE / 2).unwrap_err().raw_os_error(), Some(libc::EIO));
    let straddling = volume.read_exact_at(&mut [0; 1024], SIZE / 2 - 512).unwrap_err();
    assert_eq!(straddling.raw_os_error(), Some(libc::EIO));
    put(&volume, 1, SIZE / 2 - 512).unwrap();
}

/// Writers of durable data, while others switch the cache back and forth as a guest with several queues may.
#[test]
fn no_durable_write_is_lost_whoever_switches_the_cache_meanwhile() {
    const ROUNDS: u64 = 400;
    let rig = rig(VolumeSpec::new(SIZE));
    let volume = rig.open();
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let writers: Vec<_> = (0..3u64)
            .map(|writer| {
                let (volume, rig) = (&volume, &rig);
                scope.spawn(move || {
                    for round in 0..ROUNDS {
                        let (value, offset) = (round as u8 | 1, (writer * ROUNDS + round) % 2048 * 512);
                        volume.durably(|| put(volume, value, offset)).unwrap();
                        // What is on stable storage now is what a crash leaves.
                        assert_eq!(rig.stable(offset), value);
                    }
                })
            })
            .collect();
        for start in [false, true] {
            let (volume, done) = (&volume, &done);
            scope.spawn(move || {
                let mut on = start;
                while !done.load(Ordering::Relaxed) {
                    volume.set_write_cache(on);
                    on = !on;
                    std::thread::yield_now();
                }
            });
        }
        let ends: Vec<_> = writers.into_iter().map(|writer| writer.join()).collect();
        done.store(true, Ordering::Relaxed);
        ends.into_iter().for_each(|end| end.unwrap());
    });
    volume.set_write_cache(false);
    assert!(!rig.zvol.write_cache(), "the last word counts");
    drop(volume);
    rig.is_clean();
}

/// All that a volume's back end does, with what a guest would notice: what it wrote and read, and what was stable when
/// that was promised.
fn life(rig: &Rig) -> Result<(), String> {
    let told = |what: &str| Err(what.to_owned());
    let volume = Volume::open(&rig.sys, Path::new(PATH), false).map_err(|error| error.to_string())?;
    let ok = |result: io::Result<()>| result.map_err(|error| error.to_string());
    ok(volume.durably(|| put(&volume, 1, 0)))?;
    if rig.stable(0) != 1 {
        return told("a write-through write was not stable");
    }
    volume.set_write_cache(true);
    ok(put(&volume, 2, 512))?;
    ok(put(&volume, 3, 512))?;
    ok(volume.flush())?;
    if rig.stable(512) != 3 {
        return told("a flushed write was not stable");
    }
    ok(put(&volume, 4, 1024))?;
    volume.set_write_cache(false);
    if rig.stable(1024) != 4 {
        return told("a write was not stable when the cache was off");
    }
    ok(put(&volume, 5, 1536))?;
    ok(volume.discard(0, 512))?;
    let mut read = [0xee; 1024];
    ok(volume.read_exact_at(&mut read, 1024))?;
    if read[..512] != [4; 512] || read[512..] != [5; 512] {
        return told("what was read is not what was written");
    }
    drop(volume);
    rig.zvol.crash(|_| false).map_err(|error| error.to_string())?;
    let blocks = [(0u64, 0), (512, 3), (1024, 4), (1536, 5)];
    match blocks.iter().find(|(offset, value)| (0..512).any(|byte| rig.stable(offset + byte) != *value)) {
        None => Ok(()),
        Some((offset, _)) => told(&format!("the volume does not hold what was promised at {offset}")),
    }
}

const LIFE: &[&str] = &[
    "open",
    "DKIOCGMEDIAINFOEXT",
    "DKIOCGETWCE",
    "DKIOCSETWCE 0",
    "DKIOC_CANFREE",
    "pwrite 0+512",
    "DKIOCSETWCE 1",
    "pwrite 512+512",
    "pwrite 512+512",
    "DKIOCFLUSHWRITECACHE",
    "pwrite 1024+512",
    "DKIOCSETWCE 0",
    "pwrite 1536+512",
    "DKIOCFREE 0+512 flags 1",
    "pread 1024+1024",
    "close",
];

/// Who notices a damage.
enum Notices {
    /// The double, by this rule.
    Rule(&'static str),
    /// The guest, or whoever looks at the volume after the crash.
    Guest,
    /// Who compares the calls with those of an undamaged life: it makes no difference to anybody else here.
    Calls,
}
use Notices::{Calls, Guest, Rule};

const DAMAGES: &[(&str, Notices)] = &[
    // Calls that are left out.
    ("drop:DKIOCGMEDIAINFOEXT:1", Rule("zvol-size-first")),
    ("drop:DKIOCGETWCE:1", Rule("zvol-cache-found")),
    ("drop:DKIOCSETWCE:1", Rule("zvol-cache-set-first")),
    ("drop:DKIOCSETWCE:2", Rule("zvol-cache-change")),
    ("drop:DKIOCSETWCE:3", Rule("zvol-cache-back")),
    ("drop:DKIOCFLUSHWRITECACHE:1", Guest),
    ("drop:DKIOC_CANFREE:1", Guest),
    ("drop:DKIOCFREE:1", Guest),
    ("drop:pwrite:1", Guest),
    ("drop:pwrite:3", Guest),
    ("drop:pwrite:5", Guest),
    ("drop:pread:1", Guest),
    ("drop:close:1", Rule("sys-leak-handle")),
    // Calls that come twice.
    ("duplicate:DKIOCSETWCE:1", Rule("zvol-cache-change")),
    ("duplicate:DKIOCSETWCE:2", Rule("zvol-cache-change")),
    ("duplicate:DKIOCSETWCE:3", Rule("zvol-cache-change")),
    ("duplicate:close:1", Rule("sys-close-once")),
    ("duplicate:DKIOCGMEDIAINFOEXT:1", Calls),
    ("duplicate:DKIOCGETWCE:1", Calls),
    ("duplicate:DKIOC_CANFREE:1", Calls),
    ("duplicate:DKIOCFLUSHWRITECACHE:1", Calls),
    ("duplicate:DKIOCFREE:1", Calls),
    ("duplicate:pwrite:1", Calls),
    // Calls that come too late.
    ("late:DKIOCSETWCE:1", Calls),
    ("late:DKIOCSETWCE:2", Calls),
    ("late:DKIOCSETWCE:3", Guest),
    ("late:DKIOCFLUSHWRITECACHE:1", Guest),
    ("late:DKIOCFREE:1", Calls),
    ("late:pwrite:1", Guest),
    ("late:pwrite:2", Guest),
    ("late:pwrite:4", Calls),
    // Arguments of a wrong size, kind or content.
    ("resize=-8:DKIOCGMEDIAINFOEXT:1", Rule("zvol-argument")),
    ("resize=4:DKIOCGETWCE:1", Rule("zvol-argument")),
    ("resize=-2:DKIOCSETWCE:1", Rule("zvol-argument")),
    ("resize=16:DKIOCFREE:1", Rule("zvol-argument")),
    ("resize=-1:pwrite:5", Guest),
    ("resize=-512:pread:1", Guest),
    ("kind:DKIOCSETWCE:1", Rule("zvol-argument")),
    ("kind:DKIOCFLUSHWRITECACHE:1", Rule("zvol-argument")),
    ("bytes=0+01:DKIOCSETWCE:1", Rule("zvol-cache-off-first")),
    ("bytes=0+02:DKIOCSETWCE:2", Rule("zvol-cache-value")),
    ("bytes=0+02:DKIOCFREE:1", Rule("zvol-free-flags")),
    ("bytes=8+00:DKIOCFREE:1", Rule("zvol-free-count")),
    ("bytes=8+02:DKIOCFREE:1", Rule("zvol-free-count")),
    ("bytes=24+ffffffffffffffff:DKIOCFREE:1", Rule("zvol-free-range")),
    ("bytes=32+0000:DKIOCFREE:1", Rule("zvol-free-range")),
    ("bytes=100+77:pwrite:5", Guest),
];

#[test]
fn a_life_without_damage_breaks_nothing_and_makes_these_calls() {
    let rig = rig(VolumeSpec::new(SIZE));
    life(&rig).unwrap();
    rig.is_clean();
    assert_eq!(rig.zvol.calls(), LIFE);
}

#[test]
fn a_damaged_call_is_noticed() {
    for (damage, notices) in DAMAGES {
        let rig = rig(VolumeSpec::new(SIZE)).mutating(damage);
        let told = life(&rig);
        for leak in rig.process.leaks() {
            rig.process.note_leak(leak);
        }
        let broken: Vec<_> = rig.process.violations().iter().map(|violation| violation.rule.name).collect();
        let calls = rig.zvol.calls();
        match notices {
            Rule(rule) => assert!(broken.contains(rule), "{damage}: {broken:?} {told:?} {calls:?}"),
            Guest => assert!(told.is_err(), "{damage}: {broken:?} {calls:?}"),
            Calls => assert!(told.is_ok() && calls != LIFE, "{damage}: {broken:?} {told:?} {calls:?}"),
        }
    }
}

/// Every error that a call of the interface may give, at every one of these calls: the guest is told, or it makes no
/// difference to it; nothing that it was promised is lost, and nothing is left behind.
#[test]
fn every_error_at_every_call_is_told_or_makes_no_difference() {
    let errors: &[(&str, &[&str])] = &[
        ("open", &["EACCES", "ENOENT", "ENXIO", "EBUSY", "EROFS"]),
        ("DKIOCGMEDIAINFOEXT", &["EIO", "ENXIO", "ENOTTY"]),
        ("DKIOCGETWCE", &["EIO", "ENXIO", "ENOTTY", "ENOTSUP"]),
        ("DKIOCSETWCE", &["EIO", "ENXIO", "ENOTTY", "ENOTSUP", "EINVAL"]),
        ("DKIOC_CANFREE", &["EIO", "ENOTTY"]),
        ("DKIOCFLUSHWRITECACHE", &["EIO", "ENXIO"]),
        ("DKIOCFREE", &["EIO", "ENOTSUP", "EINVAL"]),
        ("pwrite", &["EIO", "ENOSPC", "ENXIO"]),
        ("pread", &["EIO", "ENXIO"]),
    ];
    let mut told_of = 0;
    for (call, errnos) in errors {
        let times = LIFE.iter().filter(|made| made.split(' ').next() == Some(call)).count();
        for (errno, nth) in errnos.iter().flat_map(|errno| (1..=times).map(move |nth| (errno, nth))) {
            let failure = format!("{call}:{nth}:{errno}");
            let rig = rig(VolumeSpec::new(SIZE)).injecting(&failure);
            let told = life(&rig);
            let harmless = ["DKIOCGMEDIAINFOEXT", "DKIOCGETWCE", "DKIOCSETWCE", "DKIOC_CANFREE"].contains(call);
            assert!(told.is_err() || harmless, "{failure}");
            told_of += usize::from(told.is_err());
            let broken = rig.process.violations();
            // The double does not hear of a call that fails before it.
            let unheard = |rule| call.ends_with("WCE") && ["zvol-cache-change", "zvol-cache-set-first"].contains(&rule);
            assert!(broken.iter().all(|violation| unheard(violation.rule.name)), "{failure}: {broken:?}");
            assert_eq!(rig.process.leaks(), [], "{failure}");
        }
    }
    assert!(told_of >= 30, "{told_of}");
}
