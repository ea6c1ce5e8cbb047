#![cfg_attr(fuzzing, no_main)]
//! libFuzzer's way into the target `queue_packed`.
zvmm_fuzz::fuzz_bin!(queue_packed);
zvmm_fuzz::program_mutator!();
