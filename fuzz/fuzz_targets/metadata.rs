#![cfg_attr(fuzzing, no_main)]
//! libFuzzer's way into the target `metadata`.
zvmm_fuzz::fuzz_bin!(metadata);

#[cfg(fuzzing)]
libfuzzer_sys::fuzz_mutator!(|data: &mut [u8], size: usize, max_size: usize, seed: u32| {
    let size = libfuzzer_sys::fuzzer_mutate(data, size, max_size);
    zvmm_fuzz::targets::metadata::rarely_long(&mut data[..size], seed);
    size
});
