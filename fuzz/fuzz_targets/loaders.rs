#![cfg_attr(fuzzing, no_main)]
//! libFuzzer's way into the target `loaders`.
zvmm_fuzz::fuzz_bin!(loaders);
