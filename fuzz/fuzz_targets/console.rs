#![cfg_attr(fuzzing, no_main)]
//! libFuzzer's way into the target `console`.
zvmm_fuzz::fuzz_bin!(console);
zvmm_fuzz::program_mutator!();
