#![cfg_attr(fuzzing, no_main)]
//! libFuzzer's way into the target `rng`.
zvmm_fuzz::fuzz_bin!(rng);
zvmm_fuzz::program_mutator!();
