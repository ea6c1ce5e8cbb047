//! The fuzz targets of zvmm.
//!
//! A target is a module with two functions: `run` judges one input and panics on a finding, `explain` says what the
//! input means, a line a step. Nothing here knows a fuzzer: libFuzzer calls `run` from the small programs in
//! `fuzz_targets/`, `cargo test` replays the inputs of `regressions/`, and `cargo xtask fuzz` drives campaigns.

pub mod counters;
pub mod judge;
pub mod machine;
pub mod program;
pub mod record;
pub mod replay;
pub mod soak;
pub mod stats;
pub mod targets;
pub mod teeth;

pub use model::{finding, lone, oracle};

/// One thing that is fuzzed.
pub struct Target {
    /// Its name: of its program, and of its folders of seeds and regressions.
    pub name: &'static str,
    /// Judges one input. Panics on a finding.
    pub run: fn(&[u8]),
    /// What the input means, a line a step. Runs nothing, so it also explains an input that crashes.
    pub explain: fn(&[u8]) -> String,
}

/// Lines of [`TARGETS`]: the module is the name.
macro_rules! targets {
    ($($name:ident),* $(,)?) => {
        &[$(Target { name: stringify!($name), run: targets::$name::run, explain: targets::$name::explain }),*]
    };
}

/// Every target, by name.
pub const TARGETS: &[Target] = targets![
    bhyve_argv,
    blk,
    config,
    console,
    dhcp,
    legacy,
    loaders,
    metadata,
    net,
    pci_config,
    qemu_argv,
    qmp,
    queue_packed,
    queue_split,
    rng,
    saved_state,
    transport,
    vmadm,
    zhyve_cmd
];

/// Finds a target.
#[must_use]
pub fn target(name: &str) -> Option<&'static Target> {
    TARGETS.iter().find(|target| target.name == name)
}

/// The program of a target: libFuzzer's in a fuzzing build, else one that explains and runs the files it is given. It names
/// its own target only: what others need is not linked, and costs nothing each run.
#[macro_export]
macro_rules! fuzz_bin {
    (@target $name:ident) => {
        $crate::Target {
            name: stringify!($name),
            run: $crate::targets::$name::run,
            explain: $crate::targets::$name::explain,
        }
    };
    ($name:ident) => {
        #[cfg(fuzzing)]
        libfuzzer_sys::fuzz_target!(init: $crate::replay::if_asked(&$crate::fuzz_bin!(@target $name)), |data: &[u8]| {
            $crate::stats::program();
            $crate::targets::$name::run(data)
        });

        #[cfg(not(fuzzing))]
        fn main() -> std::process::ExitCode {
            $crate::replay::main(&$crate::fuzz_bin!(@target $name))
        }
    };
}

/// A mutator that knows programs, beside libFuzzer's own: for programs of records, see [`program`].
#[macro_export]
macro_rules! program_mutator {
    () => {
        #[cfg(fuzzing)]
        libfuzzer_sys::fuzz_mutator!(|data: &mut [u8], size: usize, max_size: usize, seed: u32| {
            // Now and then libFuzzer's own, which knows what comparisons wanted.
            match seed % 4 {
                0 => libfuzzer_sys::fuzzer_mutate(data, size, max_size),
                _ => $crate::program::mutate::mutate(data, size, max_size, seed),
            }
        });
    };
}
