//! The disk that guests in zones find beside the one they boot from: with the guest's side of the metadata protocol.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use anyhow::Context as _;

use super::{images, outer};
use crate::{debian, paths};

/// Where its image is in the outer machine.
pub const AT: &str = "/zone-data.img";

/// The environment's name of a folder with the guest's programs of SmartOS' own, `mdata-get` and the others, linked statically:
/// they are on the disk then, and the scenes run them as well.
const TOOLS: &str = "ZVMM_MDATA_CLIENT";
const TOOL_NAMES: [&str; 4] = ["mdata-get", "mdata-list", "mdata-put", "mdata-delete"];

/// Makes it anew.
///
/// # Errors
/// When the program does not build, or the image cannot be made.
pub fn image() -> anyhow::Result<PathBuf> {
    let program = outer::build_static("xtask", "lab-mdata")?;
    let lab = paths::lab();
    let stage = lab.join(format!("zone-data.stage{}", std::process::id()));
    debian::remove_tree(&stage)?;
    fs::create_dir_all(stage.join("bin"))?;
    let mut programs = vec![(program, "lab-mdata")];
    if let Some(folder) = std::env::var_os(TOOLS) {
        programs.extend(TOOL_NAMES.map(|name| (Path::new(&folder).join(name), name)));
    }
    for (from, name) in programs {
        let to = stage.join("bin").join(name);
        fs::copy(&from, &to).with_context(|| format!("cannot copy {}", from.display()))?;
        fs::set_permissions(&to, fs::Permissions::from_mode(0o755))?;
    }
    let image = lab.join("zone-data.img");
    images::ext4(&stage, &image, 0)?;
    debian::remove_tree(&stage)?;
    Ok(image)
}
