#![cfg_attr(fuzzing, no_main)]
//! libFuzzer's way into the target `vmadm`.
zvmm_fuzz::fuzz_bin!(vmadm);
