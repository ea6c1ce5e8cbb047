#![cfg_attr(fuzzing, no_main)]
//! libFuzzer's way into the target `saved_state`.
zvmm_fuzz::fuzz_bin!(saved_state);
