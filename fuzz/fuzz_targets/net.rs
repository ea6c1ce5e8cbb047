#![cfg_attr(fuzzing, no_main)]
//! libFuzzer's way into the target `net`.
zvmm_fuzz::fuzz_bin!(net);
zvmm_fuzz::program_mutator!();
