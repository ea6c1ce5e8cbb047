#![cfg_attr(fuzzing, no_main)]
//! libFuzzer's way into the target `zhyve_cmd`.
zvmm_fuzz::fuzz_bin!(zhyve_cmd);
