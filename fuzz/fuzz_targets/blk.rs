#![cfg_attr(fuzzing, no_main)]
//! libFuzzer's way into the target `blk`.
zvmm_fuzz::fuzz_bin!(blk);
zvmm_fuzz::program_mutator!();
