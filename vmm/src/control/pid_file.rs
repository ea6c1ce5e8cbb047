//! The file that tells others which process runs the guest.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use super::socket::exit_for_path;
use crate::exit::Exit;

/// Why the process id cannot be told.
#[derive(Debug, thiserror::Error)]
pub enum PidFileError {
    /// Another process that runs has its own id there.
    #[error("{} is held by another process that runs", .0.display())]
    InUse(PathBuf),
    /// What the system says.
    #[error("cannot write {}: {}", .0.display(), crate::config::system_text(.1))]
    System(PathBuf, io::Error),
}

impl PidFileError {
    /// The status the process ends with.
    pub fn exit(&self) -> Exit {
        match self {
            Self::InUse(_) => Exit::Config,
            Self::System(_, error) => exit_for_path(error),
        }
    }
}

/// A file with the id of this process and a line feed, as qemu writes it; it goes away with this.
///
/// As long as it is there, this process has a lock on it (fcntl(2)): who finds the file and can lock it has found that of a
/// process that died, whatever number is in it.
#[derive(Debug)]
pub struct PidFile {
    _file: File,
    path: PathBuf,
}

impl PidFile {
    /// Writes it. What a process that died left behind is written over.
    pub fn write(path: &Path) -> Result<Self, PidFileError> {
        let system = |error| PidFileError::System(path.into(), error);
        // Not truncated before it is locked: it may be another's.
        let mut file =
            OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(path).map_err(system)?;
        match lock(&file) {
            Ok(()) => {}
            Err(error) if matches!(error.raw_os_error(), Some(libc::EACCES | libc::EAGAIN)) => {
                return Err(PidFileError::InUse(path.into()));
            }
            Err(error) => return Err(system(error)),
        }
        file.set_len(0).and_then(|()| writeln!(file, "{}", std::process::id())).map_err(system)?;
        Ok(Self { _file: file, path: path.into() })
    }
}

impl Drop for PidFile {
    fn drop(&mut self) {
        // Who removed it before has nothing left to remove.
        let _ = fs::remove_file(&self.path);
    }
}

fn lock(file: &File) -> io::Result<()> {
    // SAFETY: the structure holds numbers only, and zero is one of each.
    let mut whole: libc::flock = unsafe { std::mem::zeroed() };
    whole.l_type = libc::F_WRLCK as libc::c_short;
    whole.l_whence = libc::SEEK_SET as libc::c_short;
    // SAFETY: F_SETLK reads the structure, which lives through the call.
    match unsafe { libc::fcntl(file.as_raw_fd(), libc::F_SETLK, &whole) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_has_the_process_id_while_it_is_held_and_is_gone_after() {
        let place = tempfile::TempDir::new().unwrap();
        let path = place.path().join("vm.pid");
        fs::write(&path, "4294967295 of a process that died").unwrap();
        let held = PidFile::write(&path).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), format!("{}\n", std::process::id()));
        drop(held);
        assert!(!path.exists());
    }

    #[test]
    fn a_file_that_cannot_be_written_is_named() {
        let error = PidFile::write(Path::new("/nonexistent/vm.pid")).unwrap_err();
        assert_eq!(error.to_string(), "cannot write /nonexistent/vm.pid: No such file or directory");
        assert_eq!(error.exit(), Exit::Config);
    }
}
