#![cfg_attr(fuzzing, no_main)]
//! libFuzzer's way into the target `qemu_argv`.
zvmm_fuzz::fuzz_bin!(qemu_argv);
