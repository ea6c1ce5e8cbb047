#![cfg_attr(fuzzing, no_main)]
//! libFuzzer's way into the target `legacy`.
zvmm_fuzz::fuzz_bin!(legacy);
