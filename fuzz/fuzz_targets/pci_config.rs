#![cfg_attr(fuzzing, no_main)]
//! libFuzzer's way into the target `pci_config`.
zvmm_fuzz::fuzz_bin!(pci_config);
