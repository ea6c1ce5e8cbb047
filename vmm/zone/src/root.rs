//! A zone's root: what the brand has in it, and the two ends that the global zone holds.

use std::ffi::CString;
use std::fs::{self, File};
use std::io::{ErrorKind, Read as _, Write as _};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use devices_host::poll::{PollFd, poll};
use devices_host::tty::Pty;
use tempfile::TempDir;

use crate::argv::{Disk, Properties};
use crate::confined::{Mount, Way};

/// Which VMM a zone is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Brand {
    /// bhyve.
    Bhyve,
    /// qemu.
    Kvm,
}

impl Brand {
    /// The file by which another VMM takes the place of the brand's own.
    #[must_use]
    pub fn program(self) -> &'static str {
        match self {
            Self::Bhyve => "bhyve.zone",
            Self::Kvm => "startvm.zone",
        }
    }
}

/// What a zone is made of, beside what follows from its guest's properties.
#[derive(Debug, Clone, Copy)]
pub struct Parts<'a> {
    /// The VMM.
    pub program: &'a Path,
    /// What it takes before the arguments that the brand gives it: a double of a kernel has options of its own.
    pub words: &'a [String],
    /// Files of the zone's root: which one, and its name there.
    pub files: &'a [(&'a Path, &'a str)],
    /// In which folder the zone's root is made.
    pub place: &'a Path,
}

/// The zone's files, and the far side of its console.
pub struct Root {
    place: TempDir,
    way: Arc<Way>,
    console: File,
    /// Kept open, as the console is there whether somebody in the zone has it open or not.
    _console: OwnedFd,
    said: String,
}

impl Root {
    /// As the installer leaves a zone, and the boot of it: with the mark of a zone that is not provisioned yet.
    ///
    /// # Panics
    /// When it cannot be made.
    #[must_use]
    pub fn new(brand: Brand, parts: &Parts<'_>, properties: &Properties) -> Self {
        let place = TempDir::new_in(parts.place).expect("a folder");
        let at = |path: &str| place.path().join(path);
        for folder in ["tmp", "var/svc", "var/run", "dev/net", "etc/svc/volatile", "sys"] {
            fs::create_dir_all(at(folder)).expect("a folder");
        }
        fs::set_permissions(at("tmp"), PermissionsExt::from_mode(0o1777)).expect("a mode");
        fs::write(at("var/svc/provisioning"), "").expect("a file");
        for (from, name) in parts.files {
            fs::copy(from, at(name)).expect("a file");
        }
        for Disk { path, image, .. } in &properties.disks {
            let path = at(path.trim_start_matches('/'));
            fs::create_dir_all(path.parent().expect("a folder")).expect("a folder");
            match image {
                Some(image) => fs::copy(image, path).map(drop).expect("a disk"),
                None => File::create(path).and_then(|file| file.set_len(1 << 20)).expect("a disk"),
            }
        }
        let console = Pty::open().expect("a console");
        let pts = console.path().to_owned();
        let (console, near) = console.into_parts();
        let mut mounts = Vec::new();
        let mut mount = |from: &Path, to: &str, read_only| {
            let (from, to) = (c_string(from), c_string(&at(to)));
            mounts.push(Mount { from, to, read_only });
        };
        // What the program needs to run at all, unless it is a static one in a machine that has nothing.
        for folder in ["/lib", "/lib64", "/usr"].map(Path::new).into_iter().filter(|folder| folder.is_dir()) {
            let to = folder.to_str().expect("a name").trim_start_matches('/');
            fs::create_dir_all(at(to)).expect("a folder");
            mount(folder, to, true);
        }
        let program = brand.program();
        let program_file = fs::canonicalize(parts.program).expect("the program");
        let files: [(&Path, &str, bool); 4] = [
            (&program_file, program, true),
            (Path::new("/dev/kvm"), "dev/kvm", false),
            (Path::new("/dev/net/tun"), "dev/net/tun", false),
            (&pts, "dev/zconsole", false),
        ];
        for (from, to, read_only) in files {
            if (to == "dev/zconsole" && brand == Brand::Kvm) || !from.exists() {
                continue;
            }
            fs::write(at(to), "").expect("a file");
            mount(from, to, read_only);
        }
        let links = properties.nics.iter().map(|nic| CString::new(nic.link).expect("a name")).collect();
        let links_told = c_string(&at("sys"));
        let way = Arc::new(Way { root: c_string(place.path()), mounts, links, links_told });
        Self { place, way, console, _console: near, said: String::new() }
    }

    /// How a process gets there.
    pub(crate) fn way(&self) -> Arc<Way> {
        self.way.clone()
    }

    /// A path of the zone, as the global zone sees it.
    #[must_use]
    pub fn path(&self, path: &str) -> PathBuf {
        self.place.path().join(path.trim_start_matches('/'))
    }

    /// Names of what is in a folder of the zone.
    ///
    /// # Panics
    /// When it cannot be read.
    #[must_use]
    pub fn names(&self, folder: &str) -> Vec<String> {
        let entries = fs::read_dir(self.path(folder)).expect("a folder");
        let name = |entry: fs::DirEntry| entry.file_name().to_string_lossy().into_owned();
        let mut names: Vec<String> = entries.map(|entry| name(entry.expect("an entry"))).collect();
        names.sort();
        names
    }

    /// Types on the zone's console, as `zlogin -C` does.
    ///
    /// # Panics
    /// When nobody takes it.
    pub fn type_on_console(&mut self, bytes: &[u8]) {
        self.console.write_all(bytes).expect("the console");
    }

    /// Everything that was said on the zone's console since the last time it was forgotten.
    ///
    /// # Panics
    /// When the console is gone.
    pub fn console(&mut self) -> &str {
        let mut bytes = [0; 4096];
        loop {
            let mut fds = [PollFd::new(self.console.as_raw_fd()).readable(true)];
            poll(&mut fds, Some(0)).expect("a descriptor");
            if !fds[0].is_readable() {
                break;
            }
            match self.console.read(&mut bytes) {
                Ok(count @ 1..) => self.said.push_str(&String::from_utf8_lossy(&bytes[..count])),
                Ok(0) => break,
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) => panic!("the console: {error}"),
            }
        }
        &self.said
    }

    /// Forgets what was said on the console.
    pub fn forget_console(&mut self) {
        self.console();
        self.said.clear();
    }
}

fn c_string(path: &Path) -> CString {
    CString::new(path.as_os_str().as_bytes()).expect("a path")
}

/// What the zone's log is made of: one record each time that somebody writes.
#[derive(Debug, Clone, Default)]
pub struct Records(Arc<Mutex<Vec<String>>>);

impl Records {
    /// A stream into the log, for a process of the zone.
    pub(crate) fn stream(&self) -> OwnedFd {
        use std::os::fd::FromRawFd as _;
        let mut ends = [0; 2];
        // SAFETY: the call fills the array; the descriptors are nobody else's.
        let [ours, theirs] = unsafe {
            let kind = libc::SOCK_SEQPACKET | libc::SOCK_CLOEXEC;
            assert_eq!(libc::socketpair(libc::AF_UNIX, kind, 0, ends.as_mut_ptr()), 0);
            ends.map(|end| OwnedFd::from_raw_fd(end))
        };
        let records = self.0.clone();
        std::thread::spawn(move || {
            let mut ours = File::from(ours);
            let mut bytes = [0; 65536];
            while let Ok(count @ 1..) = ours.read(&mut bytes) {
                records.lock().expect("the records").push(String::from_utf8_lossy(&bytes[..count]).into_owned());
            }
        });
        theirs
    }

    /// All of them so far.
    ///
    /// # Panics
    /// When whoever writes them has panicked.
    #[must_use]
    pub fn all(&self) -> Vec<String> {
        self.0.lock().expect("the records").clone()
    }
}
