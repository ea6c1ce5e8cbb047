//! A stream both ways at once, for as long as a scenario takes: what happens to the network meanwhile may slow it down, and
//! may not change a byte.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};

use crate::{CHUNK, Pattern};

/// Silence after which the other side is given up: what is lost while there is no network is sent again later and later, by
/// Linux after two minutes at most.
const SILENCE: Duration = Duration::from_secs(130);

/// Accepts one connection, and sends until the other side has no more.
pub fn answer(address: &str, pause_ms: u64) -> anyhow::Result<()> {
    let listener = TcpListener::bind(address).with_context(|| format!("cannot listen on {address}"))?;
    let (stream, _) = listener.accept()?;
    let over = AtomicBool::new(false);
    both_ways(&stream, pause_ms, || over.load(Ordering::Relaxed), || over.store(true, Ordering::Relaxed))
}

/// Connects, and sends until there is a file of that name.
pub fn call(address: &str, stop: &Path, pause_ms: u64) -> anyhow::Result<()> {
    let stream = TcpStream::connect(address).with_context(|| format!("cannot connect to {address}"))?;
    both_ways(&stream, pause_ms, || stop.exists(), || ())
}

/// Sends until it is `over`, and checks what arrives to its end, at which `ended` is called.
fn both_ways(
    stream: &TcpStream,
    pause_ms: u64,
    over: impl Fn() -> bool + Sync,
    ended: impl FnOnce(),
) -> anyhow::Result<()> {
    stream.set_read_timeout(Some(SILENCE))?;
    stream.set_write_timeout(Some(SILENCE))?;
    let (sent, received) = std::thread::scope(|scope| {
        let sender = scope.spawn(|| send(stream, pause_ms, &over));
        let received = receive(stream);
        ended();
        if received.is_err() {
            // Else the other thread might go on for good.
            let _ = stream.shutdown(Shutdown::Both);
        }
        (sender.join(), received)
    });
    let (received, longest) = received?;
    let sent = sent.map_err(|_| anyhow::anyhow!("the sender panicked"))??;
    println!("exchanged {sent} bytes for {received}, longest pause {} ms", longest.as_millis());
    Ok(())
}

/// Returns how much was sent, bytes.
fn send(mut stream: &TcpStream, pause_ms: u64, over: &impl Fn() -> bool) -> anyhow::Result<u64> {
    let (mut pattern, mut chunk, mut sent) = (Pattern::new(), vec![0; CHUNK], 0);
    while !over() {
        pattern.fill(&mut chunk);
        stream.write_all(&chunk).with_context(|| format!("cannot send after {sent} bytes"))?;
        sent += CHUNK as u64;
        std::thread::sleep(Duration::from_millis(pause_ms));
    }
    stream.shutdown(Shutdown::Write)?;
    Ok(sent)
}

/// Returns how much arrived, bytes, and the longest time in which nothing did.
fn receive(mut from: impl Read) -> anyhow::Result<(u64, Duration)> {
    let (mut pattern, mut want, mut got) = (Pattern::new(), vec![0; CHUNK], vec![0; CHUNK]);
    let (mut received, mut longest, mut last) = (0, Duration::ZERO, Instant::now());
    loop {
        let mut filled = 0;
        while filled < CHUNK {
            let more = from.read(&mut got[filled..]).with_context(|| format!("nothing after {received} bytes"))?;
            longest = longest.max(last.elapsed());
            last = Instant::now();
            if more == 0 {
                break;
            }
            filled += more;
        }
        pattern.fill(&mut want);
        ensure!(got[..filled] == want[..filled], "what arrived after byte {received} is not what was sent");
        received += filled as u64;
        if filled < CHUNK {
            return Ok((received, longest));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stream_goes_both_ways_until_there_is_the_file() {
        let folder = tempfile::tempdir().unwrap();
        let stop = folder.path().join("stop");
        let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
        std::thread::scope(|scope| {
            let server = scope.spawn(|| answer(&free, 0));
            let caller = scope.spawn(|| {
                while call(&free, &stop, 0).is_err() {
                    std::thread::sleep(Duration::from_millis(5));
                }
            });
            std::thread::sleep(Duration::from_millis(100));
            assert!(!server.is_finished() && !caller.is_finished());
            std::fs::write(&stop, "").unwrap();
            server.join().unwrap().unwrap();
            caller.join().unwrap();
        });
    }

    #[test]
    fn one_wrong_byte_and_a_lost_one_are_noticed() {
        let mut bytes = vec![0; 2 * CHUNK];
        Pattern::new().fill(&mut bytes);
        assert_eq!(receive(&bytes[..]).unwrap().0, 2 * CHUNK as u64);
        let lost = [&bytes[..100], &bytes[101..]].concat();
        assert!(receive(&lost[..]).is_err());
        bytes[CHUNK + 7] ^= 1;
        assert!(receive(&bytes[..]).unwrap_err().to_string().contains("not what was sent"));
    }
}
