//! TCP between a guest and the outer machine, as the network figures are taken: one byte there and back, or many one way.
//!
//! The guest's side is started phase by phase with a line, as reads of a disk are (`GO rtt`, a line, the traffic, `END rtt`),
//! and prints what it measured when all phases are over. The outer machine's side does what it is asked for on the same
//! connection.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::time::Instant;

use anyhow::{Context as _, bail, ensure};

use super::{CHUNK, prepare};

const MIB: u64 = 1 << 20;

/// What goes on in a phase.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// So many round trips of one byte.
    RoundTrips(u64),
    /// So many MiB from the guest.
    Send(u64),
    /// So many MiB to it.
    Receive(u64),
}

impl Phase {
    fn parse(text: &str) -> anyhow::Result<Self> {
        let parse = || {
            let (kind, count) = text.split_once(':')?;
            let count = count.parse().ok().filter(|count| *count > 0)?;
            Some(match kind {
                "rtt" => Self::RoundTrips(count),
                "send" => Self::Send(count),
                "recv" => Self::Receive(count),
                _ => return None,
            })
        };
        parse().with_context(|| format!("`{text}` is no traffic: give rtt:<round trips>, send:<MiB> or recv:<MiB>"))
    }

    fn name(self) -> &'static str {
        match self {
            Self::RoundTrips(_) => "rtt",
            Self::Send(_) => "send",
            Self::Receive(_) => "recv",
        }
    }

    /// As [`parse`](Self::parse) takes it, and as it is reported.
    fn count(self) -> (u64, &'static str) {
        match self {
            Self::RoundTrips(count) => (count, "round-trips"),
            Self::Send(count) | Self::Receive(count) => (count, "MiB"),
        }
    }
}

/// The guest's side.
pub fn run(address: &str, phases: &[String]) -> anyhow::Result<()> {
    let phases = phases.iter().map(|text| Phase::parse(text)).collect::<anyhow::Result<Vec<_>>>()?;
    let stream = TcpStream::connect(address).with_context(|| format!("cannot connect to {address}"))?;
    prepare(&stream)?;
    stream.set_nodelay(true)?;
    let mut results = Vec::new();
    for phase in &phases {
        println!("GO {}", phase.name());
        let mut line = String::new();
        ensure!(std::io::stdin().read_line(&mut line)? > 0, "nobody starts {}", phase.name());
        let start = Instant::now();
        ask(&stream, *phase)?;
        results.push(start.elapsed());
        println!("END {}", phase.name());
    }
    for (phase, time) in phases.iter().zip(results) {
        let (count, unit) = phase.count();
        println!("LOAD {} {count} {unit} in {} us", phase.name(), time.as_micros());
    }
    std::io::stdout().flush()?;
    Ok(())
}

/// Has the other side take part in a phase, and does it.
fn ask(mut stream: &TcpStream, phase: Phase) -> anyhow::Result<()> {
    stream.write_all(format!("{}:{}\n", phase.name(), phase.count().0).as_bytes())?;
    match phase {
        Phase::RoundTrips(count) => {
            for n in 0..count {
                let (there, mut back) = ([n as u8], [0]);
                stream.write_all(&there)?;
                stream.read_exact(&mut back)?;
                ensure!(there == back, "round trip {n} brought {back:?} back");
            }
        }
        Phase::Send(mib) => {
            put(stream, mib * MIB)?;
            // All of it has arrived.
            stream.read_exact(&mut [0])?;
        }
        Phase::Receive(mib) => take(stream, mib * MIB)?,
    }
    Ok(())
}

/// The outer machine's side: one connection, until it is closed.
pub fn serve(address: &str) -> anyhow::Result<()> {
    let listener = TcpListener::bind(address).with_context(|| format!("cannot listen on {address}"))?;
    answer(&listener.accept()?.0)
}

fn answer(stream: &TcpStream) -> anyhow::Result<()> {
    prepare(stream)?;
    // A guest that is being measured may take its time before the next phase.
    stream.set_read_timeout(None)?;
    stream.set_nodelay(true)?;
    // One byte at a time: what comes behind a line is not to be read with it.
    let mut asked = BufReader::with_capacity(1, stream);
    loop {
        let mut line = String::new();
        if asked.read_line(&mut line)? == 0 {
            return Ok(());
        }
        let mut to = stream;
        match Phase::parse(line.trim_end())? {
            Phase::RoundTrips(count) => {
                for _ in 0..count {
                    let mut byte = [0];
                    to.read_exact(&mut byte)?;
                    to.write_all(&byte)?;
                }
            }
            Phase::Send(mib) => {
                take(stream, mib * MIB)?;
                to.write_all(&[0])?;
            }
            Phase::Receive(mib) => put(stream, mib * MIB)?,
        }
    }
}

fn put(mut stream: &TcpStream, bytes: u64) -> anyhow::Result<()> {
    let chunk = vec![0x5a; CHUNK];
    let mut left = bytes;
    while left > 0 {
        let now = usize::try_from(left.min(CHUNK as u64))?;
        stream.write_all(&chunk[..now])?;
        left -= now as u64;
    }
    Ok(())
}

fn take(mut stream: &TcpStream, bytes: u64) -> anyhow::Result<()> {
    let mut chunk = vec![0; CHUNK];
    let mut left = bytes;
    while left > 0 {
        let now = usize::try_from(left.min(CHUNK as u64))?;
        match stream.read(&mut chunk[..now])? {
            0 => bail!("the other side closed with {left} bytes left"),
            came => left -= came as u64,
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn traffic_is_read_from_its_text() {
        assert_eq!(Phase::parse("rtt:300").unwrap(), Phase::RoundTrips(300));
        assert_eq!(Phase::parse("send:8").unwrap(), Phase::Send(8));
        assert_eq!(Phase::parse("recv:1").unwrap(), Phase::Receive(1));
        for text in ["rtt", "rtt:", "rtt:0", "send:x", "ping:5", ""] {
            assert!(Phase::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn every_phase_goes_through_one_connection() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let server = std::thread::spawn(move || answer(&listener.accept().unwrap().0));
        let stream = TcpStream::connect(address).unwrap();
        for phase in [Phase::RoundTrips(300), Phase::Send(2), Phase::Receive(2), Phase::RoundTrips(5)] {
            ask(&stream, phase).unwrap();
        }
        drop(stream);
        server.join().unwrap().unwrap();
    }
}
