//! .

/// Options.
#[derive(clap::Args)]
pub struct Options {}

/// Runs it.
pub fn run(_options: Options) -> anyhow::Result<()> {
    anyhow::bail!("not built yet")
}
