//! A guest whose DHCP client asks its interface for an address: what is the same whichever client it has.

use anyhow::{Context as _, ensure};
use serde_json::Value;

use super::super::super::job::Outcome;
use super::super::{Scenario, Script, Vmm, output};

/// What the interface is to give, whoever asks.
const KEYS: &str = ",ip=10.0.0.2,netmask=255.255.255.0,gateway_ip=10.0.0.1,dns_ip0=10.0.0.1,dns_ip1=10.0.0.3,hostname=web,\
    lease_time=600";
/// And what every client makes of that, behind the address and its mask, of which each has words of its own.
pub const LEASE: &str = "router=10.0.0.1 dns=10.0.0.1 10.0.0.3 host=web lease=600 server=169.254.169.254";

/// The address is of use.
pub const NETWORK: &str = "ping -c 3 10.0.0.1";

/// A client.
pub struct Client {
    /// Name of its scenario.
    pub name: &'static str,
    /// What that shows.
    pub about: &'static str,
    /// The initial RAM file system that has it, when it is not the usual one.
    pub initrd: Option<&'static str>,
    /// What the guest does.
    pub steps: fn(Script) -> Script,
    /// What must have come of that.
    pub check: fn(&Outcome) -> anyhow::Result<()>,
    /// Requests that the interface answers at least. One more it swallows: that which gives the address back.
    pub answered: u64,
}

impl Client {
    /// The scenario with this client.
    pub fn scenario(&'static self) -> Scenario {
        let build = move |_| {
            let script = Script::new().nic().with(|machine| {
                machine.nic_keys = KEYS.to_owned();
                if let Some(initrd) = self.initrd {
                    machine.initrd = initrd.to_owned();
                }
            });
            (self.steps)(script.ready()).qmp("query-stats").power_off()
        };
        Scenario::new(self.name, self.about, build, move |outcome, _| self.check(outcome)).only_where(Vmm::is_zvmm)
    }

    /// What must be true after a run.
    fn check(&self, outcome: &Outcome) -> anyhow::Result<()> {
        (self.check)(outcome)?;
        let stats = outcome.replies.first().context("no statistics")?;
        let (answered, swallowed) = (counted(stats, "answered")?, counted(stats, "swallowed")?);
        let right = answered >= self.answered && swallowed >= 1;
        ensure!(right, "{answered} requests answered and {swallowed} swallowed");
        Ok(())
    }
}

/// With the address that it was given, the guest reaches its gateway by this command.
pub fn reaches(outcome: &Outcome, command: &str) -> anyhow::Result<()> {
    let network = output(outcome, command)?;
    ensure!(network.contains("3 packets received"), "the address is of no use: {network}");
    Ok(())
}

/// A counter of the interface's send queue.
fn counted(stats: &Value, name: &str) -> anyhow::Result<u64> {
    let mut devices = stats["return"]["devices"].as_array().context("no devices")?.iter();
    let nic = devices.find(|device| device["id"] == "net0").context("no interface")?;
    nic["queues"][1][name].as_u64().with_context(|| format!("no count of {name} frames"))
}

/// A run of this client passes, and with any of these outputs in place of what it said it fails so.
#[cfg(test)]
pub fn judges(client: &Client, outputs: &[(&str, &str)], wrong: &[(usize, &str, &str)]) {
    use serde_json::json;

    let stats = |answered: u64, swallowed: u64| {
        let queues = json!([{}, {"answered": answered, "swallowed": swallowed}, {}]);
        vec![json!({"return": {"devices": [{"id": "net0", "queues": queues}]}})]
    };
    let good = || {
        let outputs = outputs.iter().map(|(command, said)| ((*command).to_owned(), (*said).to_owned())).collect();
        Outcome { outputs, replies: stats(client.answered, 1), ..Outcome::default() }
    };
    client.check(&good()).unwrap();
    for (nth, said, message) in wrong {
        let mut outcome = good();
        (*said).clone_into(&mut outcome.outputs[*nth].1);
        let error = client.check(&outcome).unwrap_err().to_string();
        assert!(error.starts_with(message), "{error}");
    }
    let answered = client.answered;
    for (replies, message) in [
        (Vec::new(), "no statistics".to_owned()),
        (stats(answered - 1, 1), format!("{} requests answered and 1 swallowed", answered - 1)),
        (stats(answered, 0), format!("{answered} requests answered and 0 swallowed")),
    ] {
        assert_eq!(client.check(&Outcome { replies, ..good() }).unwrap_err().to_string(), message);
    }
}

#[cfg(test)]
mod tests {
    use super::super::{dhclient, dhcp, networkd};
    use super::*;

    #[test]
    fn the_interface_gets_what_the_guest_is_to_see_whoever_asks() {
        for scenario in [dhcp::scenario(), dhclient::scenario(), networkd::scenario()] {
            let command = scenario.run(Vmm::ZVMM).command.join(" ");
            assert!(command.contains(&format!("--net tap=tap0,mac=52:54:00:12:34:56{KEYS} ")), "{command}");
        }
        assert!(!KEYS.contains(' '), "{KEYS}");
    }
}
