#![cfg_attr(fuzzing, no_main)]
//! libFuzzer's way into the target `config`.
zvmm_fuzz::fuzz_bin!(config);
