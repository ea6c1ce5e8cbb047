//! A driver that lets its card go and takes it again a hundred times, and an interface that goes down and up, under traffic:
//! a stream that began before goes on behind them all.

use anyhow::{Context as _, ensure};

use super::super::super::content::at;
use super::super::super::job::Outcome;
use super::super::{Scenario, Script, Vmm, output, outputs};
use super::stream::Stream;
use super::{FEATURES, PROGRAMS};

/// `VIRTIO_F_VERSION_1`: the driver uses the modern interface.
const VERSION_1: usize = 32;

const STREAM: Stream = Stream("10.0.0.1", 5010);
const TIMES: usize = 100;
/// In one command.
const AT_ONCE: usize = 20;
/// How often the guest takes its interface down and up.
const DOWNS: usize = 20;

/// The transport's driver is loaded anew, for the legacy interface of the cards.
const FORCE_LEGACY: &str = "rmmod virtio_pci && insmod /modules/virtio_pci.ko force_legacy=1 && \
    timeout 20 sh -c 'until [ -e /sys/class/net/eth0 ]; do sleep 0.1; done'";
const UP: &str = "ip addr add 10.0.0.2/24 dev eth0 && ip link set eth0 up && ping -c 1 10.0.0.1";

/// Each time somebody must answer, without a second chance, and the stream has a moment to go on in: what was lost of it is
/// sent again after a fifth of a second at first.
fn rebind() -> String {
    format!(
        "(device=$(basename $(readlink -f /sys/class/net/eth0/device)); cd /sys/bus/virtio/drivers/virtio_net; n=0; \
         while [ $n -lt {AT_ONCE} ]; do n=$((n+1)); echo $device > unbind || exit 1; echo $device > bind || exit 1; \
         ip addr add 10.0.0.2/24 dev eth0 && ip link set eth0 up || exit 1; \
         ping -c 1 -W 10 10.0.0.1 > /dev/null || {{ echo silent after $n; exit 1; }}; sleep 0.3; done; echo bound $n times)"
    )
}

fn down_and_up() -> String {
    format!(
        "(n=0; while [ $n -lt {DOWNS} ]; do n=$((n+1)); ip link set eth0 down && ip link set eth0 up || exit 1; \
         ping -c 1 -W 10 10.0.0.1 > /dev/null || {{ echo silent after $n; exit 1; }}; done; echo up $n times)"
    )
}

/// Frames that come whether or not anybody takes them: no more than a guest takes that has a tenth of a CPU, which is some
/// hundreds a second. With more of them the device's queue is full for as long as they come, and it is the answer to a ping
/// that is lost.
const FLOOD: &str = "rm -f /tmp/calm; (while [ ! -e /tmp/calm ]; do lab-peer frames tap0 52:54:00:12:34:56 0 20; sleep 0.1; done) \
    > /dev/null 2>&1 &";
/// Frames that the TAP device had no room for, as the guest did not take the others in time: its queue is the network that may
/// lose a ping. For whoever reads the log of one that was not answered.
const LOST: &str = "cat /sys/class/net/tap0/statistics/tx_dropped";
const CALM: &str = "touch /tmp/calm";
const ANSWERS: &str = "ping -c 3 -A -W 5 10.0.0.1 | grep -o '[0-9]* packets received'";

/// The scenario with one of the two interfaces that a card has.
pub fn scenario(legacy: bool) -> Scenario {
    let transport = if legacy { "legacy" } else { "modern" };
    Scenario::new(
        format!("net-rebind-{transport}"),
        format!("a {transport} driver lets its card go and takes it again {TIMES} times under traffic, and a stream outlives that"),
        move |_| {
            let mut script = Script::new()
                .after(LOST)
                .nic()
                .with(|machine| machine.initrd = at::NETWORK.to_owned())
                .before(PROGRAMS)
                .limit(600)
                .ready();
            if legacy {
                script = script.guest(FORCE_LEGACY);
            }
            script = STREAM.begin(script.guest(FEATURES).guest(UP)).shell(FLOOD);
            for _ in 0..TIMES / AT_ONCE {
                script = script.guest_within(&rebind(), 120);
            }
            script = script.guest_within(&down_and_up(), 60).shell(CALM).guest(ANSWERS);
            STREAM.end(script).power_off()
        },
        move |outcome, _| check(outcome, legacy),
    )
    .only_where(Vmm::is_zvmm)
}

fn check(outcome: &Outcome, legacy: bool) -> anyhow::Result<()> {
    let features = output(outcome, FEATURES)?.trim().as_bytes();
    let wanted = if legacy { b'0' } else { b'1' };
    ensure!(features.get(VERSION_1).context("no features")? == &wanted, "the driver uses the other interface");
    let bound =
        outputs(outcome, &rebind()).iter().filter(|said| said.contains(&format!("bound {AT_ONCE} times"))).count();
    ensure!(bound * AT_ONCE == TIMES, "bound {bound} times {AT_ONCE} times only");
    let up = output(outcome, &down_and_up())?;
    ensure!(up.contains(&format!("up {DOWNS} times")), "the interface does not come back: {up}");
    let answers = output(outcome, ANSWERS)?;
    ensure!(answers.trim() == "3 packets received", "after all that: {answers}");
    STREAM.check(outcome).map(drop)
}

#[cfg(test)]
mod tests {
    use super::super::stream::tests::good as exchanged;
    use super::*;

    fn good() -> Vec<(String, String)> {
        let mut outputs = vec![(FEATURES.to_owned(), format!("{}1", "0".repeat(VERSION_1)))];
        outputs.extend((0..TIMES / AT_ONCE).map(|_| (rebind(), "bound 20 times\n".to_owned())));
        outputs.push((down_and_up(), "up 20 times\n".to_owned()));
        outputs.push((ANSWERS.to_owned(), "3 packets received\n".to_owned()));
        outputs.extend(exchanged(STREAM));
        outputs
    }

    #[test]
    fn a_driver_that_comes_back_each_time_passes_and_nothing_else_does() {
        let with = |outputs, legacy| check(&Outcome { outputs, ..Outcome::default() }, legacy);
        with(good(), false).unwrap();
        assert!(with(good(), true).is_err(), "it was modern");
        for nth in 0..good().len() {
            let mut worse = good();
            worse[nth].1 = "silent after 7\n".to_owned();
            assert!(with(worse, false).is_err(), "{}", good()[nth].0);
        }
    }
}
