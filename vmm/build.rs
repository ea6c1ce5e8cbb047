//! Turns the measured layouts of the illumos interfaces into assertions: see `src/hypervisor/layout.rs`.

#[path = "build/layout.rs"]
mod layout;

use std::error::Error;
use std::path::Path;
use std::{env, fs};

fn main() -> Result<(), Box<dyn Error>> {
    let on_illumos = env::var("CARGO_CFG_TARGET_OS")? == "illumos";
    let mut text = format!("#[cfg(test)]\nconst ON_ILLUMOS: bool = {on_illumos};\n");
    for name in layout::LAYOUTS {
        let [table, names] = layout::files(Path::new("src/hypervisor"), name);
        for file in [&table, &names] {
            println!("cargo::rerun-if-changed={}", file.display());
        }
        let assertions = layout::assertions(&fs::read_to_string(&table)?, &fs::read_to_string(&names)?, on_illumos)
            .map_err(|error| format!("{}: {error}", names.display()))?;
        let (code, asserted) = (&assertions.code, assertions.asserted.len());
        text += &format!("mod {name} {{\nuse super::*;\n{code}");
        text += &format!("#[cfg(test)]\npub(super) const ASSERTED: usize = {asserted};\n}}\n");
    }
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed=build/layout.rs");
    fs::write(Path::new(&env::var("OUT_DIR")?).join("layout.rs"), text)?;
    Ok(())
}
