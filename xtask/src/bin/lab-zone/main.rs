//! Stock guests in zones of the stand-in for SmartOS' global zone; static, for the lab's outer machine.
//!
//! `lab-zone BRAND SCENE PROGRAM [WORDS…]` plays a scene (`scenes.rs`) with a zone of the brand whose VMM is the program, with
//! these words before the arguments that the brand gives it. What is shown is a line each; what is not so is a panic.

mod agent;
#[path = "../lab-mdata/frame.rs"]
mod frame;
mod guest;
mod scenes;

use anyhow::{Context as _, bail};
use zvmm_zone::root::Brand;

fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [brand, scene, program, words @ ..] = &arguments[..] else {
        bail!("usage: lab-zone bhyve|kvm SCENE PROGRAM [WORDS…]");
    };
    let brand = match brand.as_str() {
        "bhyve" => Brand::Bhyve,
        "kvm" => Brand::Kvm,
        other => bail!("there is no brand {other}"),
    };
    let (_, play) = scenes::ALL.iter().find(|(name, _)| *name == scene.as_str()).context("there is no such scene")?;
    play(brand, program, words);
    Ok(())
}
