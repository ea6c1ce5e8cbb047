//! The disk that guests in zones find beside the one they boot from: with the guest's side of the metadata protocol.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;

use super::{images, outer};
use crate::{debian, paths};

/// Where its image is in the outer machine.
pub const AT: &str = "/zone-data.img";

/// Makes it anew.
///
/// # Errors
/// When the program does not build, or the image cannot be made.
pub fn image() -> anyhow::Result<PathBuf> {
    let program = outer::build_static("xtask", "lab-mdata")?;
    let lab = paths::lab();
    let stage = lab.join(format!("zone-data.stage{}", std::process::id()));
    let to = stage.join("bin/lab-mdata");
    debian::remove_tree(&stage)?;
    fs::create_dir_all(stage.join("bin"))?;
    fs::copy(program, &to)?;
    fs::set_permissions(&to, fs::Permissions::from_mode(0o755))?;
    let image = lab.join("zone-data.img");
    images::ext4(&stage, &image, 0)?;
    debian::remove_tree(&stage)?;
    Ok(image)
}
