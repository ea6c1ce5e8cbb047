//! The mark by which a zone's guest tells that it runs.
//!
//! A zone of the bhyve brand is made with a file that says "provisioning"; the VMM renames it once its guest can run. Whoever
//! made the zone waits for that for 300 s, and then calls the guest failed and halts it. In the kvm brand it is renamed by
//! the one who waits, when the control socket says `hwsetup`.

use std::fs;
use std::io;
use std::path::Path;

use crate::config::system_text;

/// Where the marks are, in the zone.
const FOLDER: &str = "/var/svc";
const BEFORE: &str = "provisioning";
const AFTER: &str = "provision_success";

/// Marks the zone as one whose guest runs. Nothing to do is what every start finds but the first one.
///
/// Needs the right to change files, so it comes before that is given up.
pub fn succeeded() {
    succeeded_in(Path::new(FOLDER));
}

fn succeeded_in(folder: &Path) {
    let (before, after) = (folder.join(BEFORE), folder.join(AFTER));
    match fs::rename(&before, &after) {
        Ok(()) => log::info!("the zone is provisioned"),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        // The guest itself is well, and an operator who reads this can rename the file in time.
        Err(error) => log::error!(
            "cannot rename {} to {AFTER}: {}: the zone will be called failed, and halted",
            before.display(),
            system_text(&error)
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tempfile::TempDir;

    #[test]
    fn the_mark_is_renamed_once_and_a_zone_without_one_is_left_alone() {
        let place = TempDir::new().unwrap();
        succeeded_in(place.path());
        assert_eq!(fs::read_dir(place.path()).unwrap().count(), 0);
        fs::write(place.path().join(BEFORE), "").unwrap();
        for _ in 0..2 {
            succeeded_in(place.path());
            assert!(place.path().join(AFTER).exists() && !place.path().join(BEFORE).exists());
        }
    }

    #[test]
    fn a_mark_that_cannot_be_renamed_ends_no_guest() {
        let place = TempDir::new().unwrap();
        fs::write(place.path().join(BEFORE), "").unwrap();
        fs::create_dir(place.path().join(AFTER)).unwrap();
        succeeded_in(place.path());
        assert!(place.path().join(BEFORE).exists());
    }
}
