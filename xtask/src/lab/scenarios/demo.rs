//! What `cargo xtask demo` shows.

use super::super::job::Outcome;
use super::{Scenario, Script, nothing_more};

const FROM_HOST: &str = "greetings from the host";
const FROM_GUEST: &str = "greetings from the guest";
const GREETING_ARRIVED: &str = "cat /tmp/greeting";

/// The demo.
#[must_use]
pub fn demo() -> Scenario {
    Scenario::new(
        "demo",
        "a Debian guest: banner, root on /dev/vda, TCP with the host, clean power-off",
        |_| {
            Script::new()
                .debian_root()
                .nic()
                // Here people watch: with the kernel's messages.
                .with(|machine| machine.cmdline = machine.cmdline.replace(" quiet", ""))
                .limit(300)
                .before(&format!("echo {FROM_HOST} | nc -l -p 5001 > /tmp/greeting &"))
                .ready_within(200)
                .guest("lscpu | head -n 12; lsblk; free -m")
                .guest(
                    "ip addr add 10.0.0.2/24 dev eth0 && ip link set eth0 up && ip -brief addr && ping -c 2 10.0.0.1",
                )
                .guest(&format!("echo {FROM_GUEST} | nc -N -w 10 10.0.0.1 5001"))
                .shell(GREETING_ARRIVED)
                .send("shutdown -h -P now\n")
                .expect("LAB-DOWN poweroff", 60)
                .exit(30, Some(0))
        },
        nothing_more,
    )
}

/// The four things the demo is about, each with the line that shows it, if it was seen.
#[must_use]
pub fn demo_sights(outcome: &Outcome) -> [(&'static str, Option<String>); 4] {
    let line = |text: &str| outcome.lines.iter().map(|(_, line)| line).find(|line| line.contains(text)).cloned();
    let heard = |text: &str| outcome.outputs.iter().any(|(_, output)| output.contains(text));
    [
        ("the kernel's banner", line("Linux version")),
        ("the root file system on /dev/vda", line(" on /dev/vda").filter(|line| line.starts_with("LAB-READY"))),
        (
            "a TCP exchange with the host over virtio-net",
            (line(FROM_HOST).is_some() && heard(FROM_GUEST)).then(|| format!("`{FROM_GUEST}`, `{FROM_HOST}`")),
        ),
        ("a clean power-off", line("LAB-DOWN poweroff").filter(|_| outcome.end.as_deref() == Some("exit 0"))),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_demo_that_was_cut_off_shows_nothing() {
        assert!(demo_sights(&Outcome::default()).iter().all(|(_, seen)| seen.is_none()));
    }
}
