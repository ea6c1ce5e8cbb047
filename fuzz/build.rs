//! Tells the linker to leave out the coverage counters of functions that a program does not have.
//!
//! rustc has lld keep every section that anybody could walk by its start and stop symbols. libFuzzer walks all counters after
//! each run, so that the counters of what other targets need would cost more than most programs.

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    if std::env::var_os("CARGO_CFG_FUZZING").is_some() {
        println!("cargo::rustc-link-arg-bins=-Wl,-z,start-stop-gc");
    }
}
