#![cfg_attr(fuzzing, no_main)]
//! libFuzzer's way into the target `qmp`.
zvmm_fuzz::fuzz_bin!(qmp);
