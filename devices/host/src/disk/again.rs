//! A disk opened once more, by a file of its own.

use std::io;
use std::os::unix::fs::MetadataExt;
use std::sync::Arc;

use super::{Disk, Store};
use crate::os;

impl Disk {
    /// The same disk by an open file of its own, for those who have it flushed: Linux tells each open file of what it could
    /// not write, and not each of those who share one (fsync(2)). It keeps the disk that it is of, and with it the lock. A
    /// disk that cannot be written to, and a volume, have nothing to be told of and are what they were.
    ///
    /// # Errors
    /// What open(2) says, and when another file has the disk's name by now.
    pub fn opened_again(self: &Arc<Self>) -> io::Result<Arc<Self>> {
        match &self.store {
            Store::File(file, path) if !self.read_only => {
                let again = os::disk::open_again(file, path)?;
                let (old, new) = (file.metadata()?, again.metadata()?);
                if (old.dev(), old.ino()) != (new.dev(), new.ino()) {
                    return Err(io::Error::other(format!("{} was replaced as it was opened", path.display())));
                }
                Ok(Arc::new(Self { store: Store::File(again, path.clone()), _locked: Some(self.clone()), ..**self }))
            }
            _ => Ok(self.clone()),
        }
    }
}
