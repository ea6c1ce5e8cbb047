//! The program that guests and the outer machine run to talk to each other; static, so that it needs nothing.
//!
//! * `lab-peer serve ADDRESS BYTES`: accepts one connection, sends BYTES of the pattern, expects them back.
//! * `lab-peer call ADDRESS BYTES`: connects, receives and checks BYTES of the pattern, sends as many.
//! * `lab-peer pattern FILE BYTES`: writes BYTES of the pattern to a file and reads them back.
//! * `lab-peer clock`: says the real time in seconds for each line it reads.
//! * `lab-peer avx CPUS ROUNDS`: checks that AVX registers outlive exits.
//! * `lab-peer load DEVICE PHASE...`: reads a block device for the storage figures, each phase when a line comes in.
//! * `lab-peer flow ADDRESS PHASE...`: TCP for the network figures, each phase when a line comes in.
//! * `lab-peer flow-serve ADDRESS`: the other side of it, for one connection.
//! * `lab-peer resets DEVICE COUNT`: resets a virtio disk under load; no acknowledged write may be lost.
//! * `lab-peer journal write|check STREAM FOLDER SEQUENCE`: writes records for good and says so, or looks for them.
//! * `lab-peer frames INTERFACE MAC VLAN COUNT`: sends COUNT frames to an address, with a VLAN's tag unless VLAN is 0.
//! * `lab-peer answer ADDRESS PAUSE`: accepts one connection, sends and checks the pattern until the other side has no more.
//! * `lab-peer exchange ADDRESS STOP PAUSE`: connects, does the same until there is a file STOP. Both wait PAUSE ms after each
//!   64 KiB.
//! * `lab-peer hear GROUP OWN COUNT`: joins a group, and checks COUNT datagrams to it.
//! * `lab-peer tell GROUP OWN COUNT`: sends them.
//! * `lab-peer segments serve|call ADDRESS COUNT`: exchanges COUNT messages that the kernel divides into datagrams.
//! * `lab-peer no-sync PROGRAM ARGUMENTS…`: runs a program for which data syncs do nothing and succeed.
//!
//! The first two print how much arrived, its CRC-32 and the time, and fail unless it is what was sent.

#[path = "lab-peer/avx.rs"]
mod avx;
#[path = "lab-peer/exchange.rs"]
mod exchange;
#[path = "lab-peer/flow.rs"]
mod flow;
#[path = "lab-peer/frames.rs"]
mod frames;
#[path = "lab-peer/groups.rs"]
mod groups;
#[path = "lab-peer/journal.rs"]
mod journal;
#[path = "lab-peer/load.rs"]
mod load;
#[path = "lab-peer/no_sync.rs"]
mod no_sync;
#[path = "lab-peer/resets.rs"]
mod resets;
#[path = "lab-peer/rings.rs"]
mod rings;
#[path = "lab-peer/segments.rs"]
mod segments;

use std::fs::File;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::path::Path;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, bail, ensure};

/// Silence after which the other side is given up.
const SILENCE: Duration = Duration::from_secs(30);
const CHUNK: usize = 64 * 1024;

fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if arguments == ["clock"] {
        return clock();
    }
    match &arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["resets", device, count] => return resets::run(device, count.parse().context("COUNT is no number")?),
        ["journal", action, stream, folder, sequence] => {
            let stream = stream.parse().context("STREAM is one letter")?;
            return journal::run(action, stream, folder.as_ref(), sequence.parse().context("SEQUENCE is no number")?);
        }
        ["frames", interface, to, vlan, count] => {
            let vlan = vlan.parse().context("VLAN is no number")?;
            return frames::send(interface, to, vlan, count.parse().context("COUNT is no number")?);
        }
        ["flow", address, ..] => return flow::run(address, &arguments[2..]),
        ["flow-serve", address] => return flow::serve(address),
        ["answer", address, pause] => return exchange::answer(address, pause.parse().context("PAUSE is no number")?),
        ["exchange", address, stop, pause] => {
            return exchange::call(address, stop.as_ref(), pause.parse().context("PAUSE is no number")?);
        }
        ["hear", group, own, count] => return groups::hear(group, own, count.parse().context("COUNT is no number")?),
        ["tell", group, own, count] => return groups::tell(group, own, count.parse().context("COUNT is no number")?),
        ["segments", action @ ("serve" | "call"), address, count] => {
            let count = count.parse().context("COUNT is no number")?;
            return if *action == "serve" { segments::serve(address, count) } else { segments::call(address, count) };
        }
        ["load", device, ..] => return load::run(device.as_ref(), &arguments[2..]),
        ["no-sync", program, rest @ ..] => return no_sync::run(program, rest),
        _ => {}
    }
    let [mode, address, bytes] = &arguments[..] else {
        bail!("usage: lab-peer MODE …; its source says which there are");
    };
    let bytes: u64 = bytes.parse().context("BYTES is no number")?;
    match mode.as_str() {
        "serve" => {
            let listener = TcpListener::bind(address).with_context(|| format!("cannot listen on {address}"))?;
            let (stream, from) = listener.accept()?;
            println!("connection from {from}");
            prepare(&stream)?;
            send(&stream, bytes)?;
            receive(&stream, bytes)
        }
        "call" => {
            let stream = TcpStream::connect(address).with_context(|| format!("cannot connect to {address}"))?;
            prepare(&stream)?;
            receive(&stream, bytes)?;
            send(&stream, bytes)?;
            // The other side closes when it has everything.
            let rest = (&stream).read(&mut [0; 1])?;
            ensure!(rest == 0, "more arrived than was asked for");
            Ok(())
        }
        "pattern" => fill(address.as_ref(), bytes),
        "avx" => avx::run(address.parse().context("CPUS is no number")?, u32::try_from(bytes)?),
        _ => bail!("there is no mode `{mode}`"),
    }
}

fn clock() -> anyhow::Result<()> {
    let mut line = String::new();
    while std::io::stdin().read_line(&mut line)? > 0 && !line.starts_with("end") {
        line.clear();
        let now = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs_f64();
        println!("clock {now:.6}");
    }
    Ok(())
}

fn prepare(stream: &TcpStream) -> anyhow::Result<()> {
    stream.set_read_timeout(Some(SILENCE))?;
    stream.set_write_timeout(Some(SILENCE))?;
    Ok(())
}

/// The pattern: a linear congruential sequence, so that no two chunks are alike and a lost one shows.
struct Pattern(u64);

impl Pattern {
    const fn new() -> Self {
        Self(0x2545_f491_4f6c_dd1d)
    }

    fn fill(&mut self, chunk: &mut [u8]) {
        for word in chunk.chunks_mut(8) {
            self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            word.copy_from_slice(&self.0.to_le_bytes()[..word.len()]);
        }
    }
}

fn fill(path: &Path, bytes: u64) -> anyhow::Result<()> {
    write_pattern(&mut File::create(path).with_context(|| format!("cannot create {}", path.display()))?, bytes)?;
    check_pattern(&mut File::open(path)?, bytes)?;
    println!("{bytes} bytes read as it was written");
    Ok(())
}

fn send(mut stream: &TcpStream, bytes: u64) -> anyhow::Result<()> {
    let start = Instant::now();
    write_pattern(&mut stream, bytes)?;
    stream.shutdown(Shutdown::Write)?;
    println!("sent {bytes} bytes in {} ms", start.elapsed().as_millis());
    Ok(())
}

fn receive(mut stream: &TcpStream, bytes: u64) -> anyhow::Result<()> {
    let start = Instant::now();
    let sum = check_pattern(&mut stream, bytes)?;
    println!("received {bytes} bytes, CRC-32 {sum:08x}, in {} ms", start.elapsed().as_millis());
    Ok(())
}

fn write_pattern(to: &mut impl Write, bytes: u64) -> anyhow::Result<()> {
    let mut pattern = Pattern::new();
    let mut chunk = vec![0; CHUNK];
    let mut left = bytes;
    while left > 0 {
        let now = usize::try_from(left.min(CHUNK as u64))?;
        pattern.fill(&mut chunk);
        to.write_all(&chunk[..now]).with_context(|| format!("cannot send with {left} bytes left"))?;
        left -= now as u64;
    }
    Ok(())
}

/// Returns the CRC-32 of what arrived, which is the pattern.
fn check_pattern(from: &mut impl Read, bytes: u64) -> anyhow::Result<u32> {
    let mut pattern = Pattern::new();
    let (mut want, mut got) = (vec![0; CHUNK], vec![0; CHUNK]);
    let mut sum = crc32fast::Hasher::new();
    let mut received = 0;
    while received < bytes {
        let now = usize::try_from((bytes - received).min(CHUNK as u64))?;
        from.read_exact(&mut got[..now]).with_context(|| format!("only {received} of {bytes} bytes arrived"))?;
        pattern.fill(&mut want);
        ensure!(got[..now] == want[..now], "what arrived after byte {received} is not what was sent");
        sum.update(&got[..now]);
        received += now as u64;
    }
    Ok(sum.finalize())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_serve_sends_call_accepts_and_sends_back() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let server = std::thread::spawn(move || {
            let (stream, _) = listener.accept().unwrap();
            send(&stream, 200_001).unwrap();
            receive(&stream, 200_001).unwrap();
        });
        let stream = TcpStream::connect(address).unwrap();
        receive(&stream, 200_001).unwrap();
        send(&stream, 200_001).unwrap();
        server.join().unwrap();
    }

    #[test]
    fn a_file_holds_the_pattern_and_a_changed_one_is_noticed() {
        let mut bytes = Vec::new();
        write_pattern(&mut bytes, 200_001).unwrap();
        assert!(check_pattern(&mut &bytes[..], 200_001).is_ok());
        bytes[150_000] ^= 1;
        assert!(check_pattern(&mut &bytes[..], 200_001).is_err());
    }

    #[test]
    fn one_wrong_byte_is_noticed() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let server = std::thread::spawn(move || {
            let mut bytes = vec![0; CHUNK];
            Pattern::new().fill(&mut bytes);
            bytes[77] ^= 1;
            (&listener.accept().unwrap().0).write_all(&bytes).unwrap();
        });
        let error = receive(&TcpStream::connect(address).unwrap(), CHUNK as u64).unwrap_err();
        assert!(error.to_string().contains("not what was sent"));
        server.join().unwrap();
    }
}
