//! How the process confines itself.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// Whether threads give up what they do not need, and what becomes of one that asks for it all the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SandboxMode {
    /// Nothing is given up.
    Off,
    /// As `strict`, but system calls beyond the policy are done and logged by the kernel: to find out what a host needs.
    Log,
    /// A system call beyond the policy ends the process.
    Strict,
}

impl SandboxMode {
    /// What a configuration that says nothing gets.
    pub const DEFAULT: Self = Self::Strict;
}

impl Default for SandboxMode {
    fn default() -> Self {
        Self::DEFAULT
    }
}

/// An empty root directory and another user for the process, once everything is open.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct JailConfig {
    /// The directory.
    pub dir: PathBuf,
    /// Name of the user.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
}
