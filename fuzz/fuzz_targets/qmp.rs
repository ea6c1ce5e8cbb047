#![cfg_attr(fuzzing, no_main)]
//! libFuzzer's way into the target `qmp`.
zvmm_fuzz::fuzz_bin!(qmp);

#[cfg(fuzzing)]
libfuzzer_sys::fuzz_mutator!(|data: &mut [u8], size: usize, max_size: usize, seed: u32| {
    // Now and then libFuzzer's own, as with other programs.
    let size = match seed % 4 {
        0 => libfuzzer_sys::fuzzer_mutate(data, size, max_size),
        _ => zvmm_fuzz::targets::qmp::mutate(data, size, max_size, seed),
    };
    zvmm_fuzz::targets::qmp::rarely_long(&mut data[..size], seed);
    size
});
