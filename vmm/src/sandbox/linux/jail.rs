//! `--jail`: an empty root directory, another user, no capabilities.
//!
//! Everything the configuration names is opened before, so the directory can be empty, and should be: nothing in it is
//! used. What the process made outside of it (sockets, the file with its id) stays there at its end; the next process takes
//! a socket that nobody listens on, and a file that nobody holds.
//!
//! User, groups and capabilities belong to a thread on Linux. Each gives up its own as it begins; the root belongs to all
//! of them, and the main thread changes it last.

use std::ffi::CString;
use std::fs;
use std::os::unix::ffi::OsStrExt;

use super::{SandboxError, ThreadKind, call, calls};
use crate::config::{JailConfig, system_text};

/// A jail that can be entered.
pub struct Jail {
    directory: CString,
    /// User and group to become.
    user: Option<(u32, u32)>,
}

impl Jail {
    /// Looks up what it needs while there is a file system. A process that is not the superuser's moves into namespaces of
    /// its own, where it may change its root.
    ///
    /// # Errors
    /// When the directory or user does not exist, or the system has no such namespaces for this user.
    pub fn prepare(config: &JailConfig) -> Result<Self, SandboxError> {
        let wrong = |problem: String| SandboxError::Config(format!("jail (--jail): {problem}"));
        let shown = config.dir.display();
        match fs::metadata(&config.dir) {
            Ok(metadata) if metadata.is_dir() => {}
            Ok(_) => return Err(wrong(format!("{shown} is not a directory"))),
            Err(error) => return Err(wrong(format!("{shown}: {}", system_text(&error)))),
        }
        // The working directory can have gone by the time the root changes.
        let directory = fs::canonicalize(&config.dir).map_err(call("jail"))?;
        let text = |bytes: &[u8]| CString::new(bytes).map_err(|_| wrong("a name has a zero byte".to_owned()));
        let directory = text(directory.as_os_str().as_bytes())?;
        let is_root = calls::is_root();
        let user = match &config.user {
            None => None,
            Some(name) if !is_root => {
                return Err(wrong(format!("user={name}: only the superuser can become another user")));
            }
            Some(name) => {
                let found = calls::user(&text(name.as_bytes())?).map_err(call("jail: cannot look up its user"))?;
                match found.ok_or_else(|| wrong(format!("user={name}: there is no such user")))? {
                    (0, _) => return Err(wrong(format!("user={name} is the superuser"))),
                    ids => Some(ids),
                }
            }
        };
        if !is_root {
            own_namespaces()?;
        }
        Ok(Self { directory, user })
    }

    /// Has the calling thread give up its user, groups and capabilities; the main thread changes the root first.
    pub fn enter(&self, kind: ThreadKind) -> Result<(), SandboxError> {
        if kind == ThreadKind::Main {
            calls::change_root(&self.directory).map_err(call("jail: cannot change the root directory"))?;
        }
        if let Some((uid, gid)) = self.user {
            calls::become_user(uid, gid).map_err(call("jail: cannot become its user"))?;
        }
        calls::drop_capabilities().map_err(call("jail: cannot give up capabilities"))
    }
}

/// Namespaces in which the process is still its user, and may change its root (user_namespaces(7)).
fn own_namespaces() -> Result<(), SandboxError> {
    let (uid, gid) = calls::own_ids();
    calls::own_namespaces().map_err(call("jail: cannot have namespaces of its own (the superuser needs none)"))?;
    let write = |file, text: String| fs::write(file, text).map_err(call("jail: cannot map its user"));
    write("/proc/self/setgroups", "deny".to_owned())?;
    write("/proc/self/uid_map", format!("{uid} {uid} 1"))?;
    write("/proc/self/gid_map", format!("{gid} {gid} 1"))
}
