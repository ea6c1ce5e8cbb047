#![cfg_attr(fuzzing, no_main)]
//! libFuzzer's way into the target `dhcp`.
zvmm_fuzz::fuzz_bin!(dhcp);
