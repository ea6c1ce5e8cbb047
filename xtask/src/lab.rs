//! The lab: stock guests inside an emulated machine with nested virtualization.

/// Options.
#[derive(clap::Args)]
pub struct Options {}

/// Runs it.
pub fn run(_options: Options) -> anyhow::Result<()> {
    let root = crate::debian::unpack("qemu", &["qemu-system-x86", "seabios"])?;
    let out = crate::debian::command(&root, "qemu-system-x86_64")?.arg("--version").status()?;
    println!("{out}");
    crate::debian::unpack("kernel-backports", &["linux-image-cloud-amd64/bookworm-backports"])?;
    crate::debian::unpack("kernel-6.1", &["linux-image-cloud-amd64"])?;
    Ok(())
}
