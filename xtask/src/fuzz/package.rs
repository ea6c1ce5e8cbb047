//! What the fuzz package says about itself.

use std::collections::BTreeMap;
use std::process::Command;

use anyhow::Context as _;
use serde::Deserialize;

use super::{build, sources};

/// One target.
pub struct Target {
    /// Its name.
    pub name: String,
    /// Sources it is to cover: files and folders from the root of the workspace.
    pub covers: Vec<String>,
    /// Programs that the gate's campaign ends after.
    pub gate_programs: u64,
    /// Planted bugs it is to find.
    pub finds: Vec<String>,
}

#[derive(Deserialize)]
struct Metadata {
    packages: Vec<Package>,
}

#[derive(Deserialize)]
struct Package {
    targets: Vec<CargoTarget>,
    /// The models have none.
    metadata: Option<PackageMetadata>,
}

#[derive(Deserialize)]
struct CargoTarget {
    name: String,
    kind: Vec<String>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
struct PackageMetadata {
    #[serde(default)]
    covers: BTreeMap<String, Vec<String>>,
    #[serde(default)]
    gate_programs: BTreeMap<String, u64>,
    #[serde(default)]
    finds: BTreeMap<String, Vec<String>>,
}

/// Every target, by name: the programs of the package, and `package.metadata.covers` of its manifest.
///
/// # Errors
/// When cargo cannot read the manifest.
pub fn targets() -> anyhow::Result<Vec<Target>> {
    let output = Command::new(build::cargo())
        .args(["metadata", "--no-deps", "--format-version", "1", "--manifest-path"])
        .arg(sources().join("Cargo.toml"))
        .output()
        .context("cannot start cargo")?;
    anyhow::ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr).trim_end());
    let metadata: Metadata = serde_json::from_slice(&output.stdout).context("cargo metadata")?;
    let mut targets = Vec::new();
    for Package { targets: programs, metadata } in metadata.packages {
        let PackageMetadata { mut covers, mut gate_programs, mut finds } = metadata.unwrap_or_default();
        for CargoTarget { name, .. } in programs.into_iter().filter(|target| target.kind == ["bin"]) {
            let covers = covers.remove(&name).unwrap_or_default();
            let finds = finds.remove(&name).unwrap_or_default();
            let of_gate =
                gate_programs.remove(&name).with_context(|| format!("fuzz/Cargo.toml: no gate-programs of {name}"))?;
            targets.push(Target { name, covers, gate_programs: of_gate, finds });
        }
        let left: Vec<String> = covers.into_keys().chain(gate_programs.into_keys()).chain(finds.into_keys()).collect();
        anyhow::ensure!(left.is_empty(), "fuzz/Cargo.toml: metadata of what is no target: {}", left.join(", "));
    }
    targets.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(targets)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::paths;

    #[test]
    fn every_fuzz_target_says_which_existing_sources_it_is_to_cover() {
        let targets = targets().unwrap();
        assert!(!targets.is_empty());
        for Target { name, covers, .. } in targets {
            assert!(!covers.is_empty(), "{name}");
            for source in covers {
                assert!(paths::workspace().join(&source).exists(), "{name}: {source}");
            }
        }
    }
}
