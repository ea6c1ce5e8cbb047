#![cfg_attr(fuzzing, no_main)]
//! libFuzzer's way into the target `transport`.
zvmm_fuzz::fuzz_bin!(transport);
zvmm_fuzz::program_mutator!();
