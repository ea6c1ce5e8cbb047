//! Whether the campaign finds the bugs it is there for: one of them is put into the devices, when the environment asks.

use std::env;

/// The variable that holds the name of a [`Defect`](devices::planted::Defect).
const PLANT: &str = "ZVMM_FUZZ_PLANT";

/// Puts the bug that the environment names into the devices of this process.
///
/// # Panics
/// When there is no such bug, or the build cannot hold one: a campaign against nothing would find nothing.
pub fn plant_if_asked() {
    let Some(name) = env::var_os(PLANT) else { return };
    let name = name.to_string_lossy();
    assert!(plant(&name), "{PLANT}: this build can hold no bug of the name {name}");
}

#[cfg(feature = "planted-defects")]
fn plant(name: &str) -> bool {
    let defect = devices::planted::Defect::ALL.into_iter().find(|defect| format!("{defect:?}") == name);
    devices::planted::plant(defect);
    defect.is_some()
}

#[cfg(not(feature = "planted-defects"))]
fn plant(_name: &str) -> bool {
    false
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use devices::planted::Defect;

    /// The lists of `package.metadata.finds`, which `cargo xtask fuzz --teeth` goes by.
    fn listed() -> Vec<&'static str> {
        let (_, finds) = include_str!("../Cargo.toml").split_once("[package.metadata.finds]\n").expect("the table");
        let table = finds.split("\n[").next().unwrap_or_default();
        table.split('"').skip(1).step_by(2).collect()
    }

    #[test]
    fn each_bug_that_can_be_planted_is_for_one_target_to_find() {
        let all: BTreeSet<String> = Defect::ALL.iter().map(|defect| format!("{defect:?}")).collect();
        let listed = listed();
        assert_eq!(listed.iter().map(|name| (*name).to_owned()).collect::<BTreeSet<_>>(), all);
        assert_eq!(listed.len(), all.len(), "a bug is listed twice");
    }
}
