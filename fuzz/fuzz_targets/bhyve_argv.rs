#![cfg_attr(fuzzing, no_main)]
//! libFuzzer's way into the target `bhyve_argv`.
zvmm_fuzz::fuzz_bin!(bhyve_argv);
