//! The real calls.

/// The system the process runs on.
#[derive(Debug, Default)]
pub struct RealSys;
