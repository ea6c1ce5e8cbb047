//! What vmadmd does with zones of the kvm brand, by their control socket.

use std::fs;
use std::time::Duration;

use serde_json::json;

use crate::global::{Stop, Zone};
use crate::qmp::{ask, try_ask};

impl Zone {
    /// What is done with a zone that is not provisioned yet, each few seconds; whether it is now.
    ///
    /// # Panics
    /// When the VMM does not answer as vmadmd has to have it, or has renamed the mark itself.
    #[must_use]
    pub fn provision(&self) -> bool {
        // The socket is there a moment before somebody listens on it.
        let Some(status) = try_ask(&self.socket("vm.qmp"), "query-status", None) else { return false };
        assert!(status["running"].is_boolean() && status["singlestep"].is_boolean(), "{status}");
        if status["hwsetup"] == true {
            let svc = self.root.path("/var/svc");
            fs::rename(svc.join("provisioning"), svc.join("provision_success")).expect("the mark is still vmadmd's");
        }
        status["hwsetup"] == true
    }

    /// `vmadm stop`.
    ///
    /// # Panics
    /// When the order is not answered.
    pub fn power_down(&mut self, time_out: Duration) -> Stop {
        let answer = ask(&self.socket("vm.qmp"), "system_powerdown", None);
        assert_eq!(answer, json!({}));
        self.wait_for_end(time_out)
    }
}
