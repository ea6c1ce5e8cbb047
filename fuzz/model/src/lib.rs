//! What must hold whatever a guest does: models beside the fuzzed machine, and the guest memory that tells them what the
//! device model does there.
//!
//! They are a crate of their own for a campaign's sake: a fuzzer counts what the devices do, and not what judges them
//! (counting both, and going through both, had half of its time).

pub mod lone;
pub mod oracle;
pub mod ram;

/// Ends the run with a finding of an oracle.
#[macro_export]
macro_rules! finding {
    ($oracle:literal, $($what:tt)+) => {
        panic!("[{}] {}", $oracle, format_args!($($what)+))
    };
}
