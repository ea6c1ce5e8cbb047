//! A stream between a guest and the outer machine, both ways at once, that goes on while a scenario does what it is about.
//! Every byte is checked at both ends.

use anyhow::{Context as _, ensure};

use super::super::super::job::Outcome;
use super::super::{Script, output};

/// Between two pieces of 64 KiB, milliseconds: without one the emulated machine would do nothing else.
const PAUSE_MS: u64 = 5;

/// A stream by the host's address and a port of its own.
#[derive(Clone, Copy)]
pub struct Stream(pub &'static str, pub u16);

/// What became of one, seen from the guest.
pub struct Exchanged {
    /// Bytes the guest sent.
    pub sent: u64,
    /// Bytes the guest received.
    pub received: u64,
    /// The longest time in which nothing came to the guest, milliseconds.
    pub longest_pause_ms: u64,
}

impl Stream {
    /// Begins it.
    pub fn begin(self, script: Script) -> Script {
        let Self(host, port) = self;
        let answer = format!(
            "rm -f /tmp/answer-{port}; (lab-peer answer {host}:{port} {PAUSE_MS} > /tmp/answer-{port} 2>&1 &); \
             timeout 20 sh -c 'until netstat -ltn | grep -q :{port}; do sleep 0.05; done'"
        );
        let exchange = format!(
            "(lab-peer exchange {host}:{port} /tmp/stop-{port} {PAUSE_MS} > /tmp/exchange-{port} 2>&1 &); \
             timeout 20 sh -c 'until netstat -tn | grep :{port} | grep -q ESTABLISHED; do sleep 0.05; done'"
        );
        script.shell(&answer).guest(&exchange)
    }

    /// Ends it, when both sides have everything. What TCP waits for at both ends is written down before, for whoever looks for
    /// the reason of a stream that does not go on: after a long time without a network it may be the next try of its own, which
    /// comes later each time (timer 01 with the time left, and the number of tries that were in vain).
    pub fn end(self, script: Script) -> Script {
        let sockets = format!("grep -i ':{:04x} ' /proc/net/tcp /proc/net/tcp6; true", self.1);
        script.guest(&sockets).shell(&sockets).guest_within(&self.ended(), 150).shell(&self.answered())
    }

    fn ended(self) -> String {
        let port = self.1;
        format!(
            "touch /tmp/stop-{port}; timeout 140 sh -c 'until grep -Eq \"^exchanged|Error\" /tmp/exchange-{port}; \
             do sleep 0.1; done'; cat /tmp/exchange-{port}"
        )
    }

    fn answered(self) -> String {
        let port = self.1;
        format!(
            "timeout 20 sh -c 'until grep -Eq \"^exchanged|Error\" /tmp/answer-{port}; do sleep 0.1; done'; \
             cat /tmp/answer-{port}"
        )
    }

    /// Checks that each side has what the other one sent.
    pub fn check(self, outcome: &Outcome) -> anyhow::Result<Exchanged> {
        let (guest, host) = (output(outcome, &self.ended())?, output(outcome, &self.answered())?);
        let ours = read(guest).with_context(|| format!("the guest's stream by {}: {}", self.0, guest.trim()))?;
        let theirs = read(host).with_context(|| format!("the host's stream by {}: {}", self.0, host.trim()))?;
        let crossed = (ours.sent, ours.received) == (theirs.received, theirs.sent);
        ensure!(crossed && ours.sent > 0 && ours.received > 0, "not everything arrived: {guest}, {host}");
        Ok(ours)
    }
}

fn read(text: &str) -> anyhow::Result<Exchanged> {
    let parse = || {
        let rest = text.lines().find_map(|line| line.strip_prefix("exchanged "))?;
        let (sent, rest) = rest.split_once(" bytes for ")?;
        let (received, rest) = rest.split_once(", longest pause ")?;
        let pause = rest.strip_suffix(" ms")?;
        Some(Exchanged {
            sent: sent.parse().ok()?,
            received: received.parse().ok()?,
            longest_pause_ms: pause.parse().ok()?,
        })
    };
    parse().context("it came to no good end")
}

#[cfg(test)]
pub mod tests {
    use super::*;

    /// What a stream that is as it should be says, for the tests of those who use one.
    pub fn good(stream: Stream) -> [(String, String); 2] {
        [
            (stream.ended(), "exchanged 65536 bytes for 131072, longest pause 12 ms\n".to_owned()),
            (stream.answered(), "exchanged 131072 bytes for 65536, longest pause 30 ms\n".to_owned()),
        ]
    }

    #[test]
    fn what_one_side_sent_the_other_one_must_have() {
        let stream = Stream("10.0.0.1", 5010);
        let with = |change: fn(&mut [(String, String); 2])| {
            let mut said = good(stream);
            change(&mut said);
            stream.check(&Outcome { outputs: said.into(), ..Outcome::default() })
        };
        assert_eq!(with(|_| ()).unwrap().longest_pause_ms, 12);
        type Change = fn(&mut [(String, String); 2]);
        let changes: [Change; 4] = [
            |said| said[1].1 = "exchanged 131072 bytes for 65535, longest pause 30 ms".into(),
            |said| said[0].1 = "Error: what arrived after byte 0 is not what was sent".into(),
            |said| said[1].1 = String::new(),
            |said| {
                for (_, text) in said {
                    *text = "exchanged 0 bytes for 0, longest pause 0 ms".into();
                }
            },
        ];
        for change in changes {
            assert!(with(change).is_err());
        }
        assert!(stream.check(&Outcome::default()).is_err());
    }
}
