//! The server's side of the NBD protocol: fixed newstyle negotiation of the one export, then reads, writes and flushes in
//! the order in which they come.

use std::io::{self, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::sync::Mutex;

use anyhow::{Context as _, bail, ensure};

use super::{SECTOR, State, lock};

const HELLO: &[u8; 16] = b"NBDMAGICIHAVEOPT";
const OPTION: &[u8; 8] = b"IHAVEOPT";
const OPTION_REPLY: u64 = 0x0003_e889_0455_65a9;
const REQUEST: u32 = 0x2560_9513;
const REPLY: u32 = 0x6744_6698;

/// Fixed newstyle, and no zeroes after the size.
const HANDSHAKE_FLAGS: u16 = 1 | 2;
const NO_ZEROES: u32 = 2;

const OPT_EXPORT_NAME: u32 = 1;
const OPT_ABORT: u32 = 2;
const OPT_GO: u32 = 7;
const REP_ACK: u32 = 1;
const REP_INFO: u32 = 3;
const REP_UNSUPPORTED: u32 = 1 << 31 | 1;
const INFO_EXPORT: u16 = 0;
/// The longest option a client sends.
const OPTION_MAX: usize = 4096;

/// There are flags; flush is understood; so is force unit access.
const EXPORT_FLAGS: u16 = 1 | 4 | 8;

const READ: u16 = 0;
const WRITE: u16 = 1;
const DISCONNECT: u16 = 2;
const FLUSH: u16 = 3;
const FUA: u16 = 1;
/// What clients keep to when they are told nothing else.
const LEN_MAX: usize = 32 << 20;

/// Serves one client until it goes away, in whatever manner.
pub fn serve(mut client: &UnixStream, state: &Mutex<State>) -> anyhow::Result<()> {
    let size_bytes = lock(state).size_bytes;
    match negotiate(client, size_bytes).and_then(|agreed| if agreed { transmit(client, state) } else { Ok(()) }) {
        Err(error) if is_gone(&error) => Ok(()),
        result => {
            let _ = client.flush();
            result
        }
    }
}

/// Whether the client ended: killed in the middle of a request it leaves a part of one.
fn is_gone(error: &anyhow::Error) -> bool {
    use io::ErrorKind::{BrokenPipe, ConnectionReset, UnexpectedEof};
    error
        .downcast_ref::<io::Error>()
        .is_some_and(|error| [BrokenPipe, ConnectionReset, UnexpectedEof].contains(&error.kind()))
}

fn take<const N: usize>(mut client: &UnixStream) -> anyhow::Result<[u8; N]> {
    let mut bytes = [0; N];
    client.read_exact(&mut bytes)?;
    Ok(bytes)
}

/// Agrees with the client; `false` when it wants nothing.
fn negotiate(mut client: &UnixStream, size_bytes: u64) -> anyhow::Result<bool> {
    client.write_all(&[&HELLO[..], &HANDSHAKE_FLAGS.to_be_bytes()].concat())?;
    let flags = u32::from_be_bytes(take(client)?);
    loop {
        ensure!(take::<8>(client)? == *OPTION, "no option where one must be");
        let option = u32::from_be_bytes(take(client)?);
        let len = u32::from_be_bytes(take(client)?) as usize;
        ensure!(len <= OPTION_MAX, "an option of {len} bytes");
        client.read_exact(&mut vec![0; len])?;
        let export = [&size_bytes.to_be_bytes()[..], &EXPORT_FLAGS.to_be_bytes()].concat();
        let mut reply = |kind: u32, data: &[u8]| {
            let words = [option, kind, data.len() as u32].map(u32::to_be_bytes).concat();
            client.write_all(&[&OPTION_REPLY.to_be_bytes()[..], &words, data].concat())
        };
        match option {
            OPT_GO => {
                reply(REP_INFO, &[&INFO_EXPORT.to_be_bytes()[..], &export].concat())?;
                reply(REP_ACK, &[])?;
                return Ok(true);
            }
            OPT_EXPORT_NAME => {
                let zeroes = if flags & NO_ZEROES == 0 { 124 } else { 0 };
                client.write_all(&[&export[..], &vec![0; zeroes]].concat())?;
                return Ok(true);
            }
            OPT_ABORT => {
                reply(REP_ACK, &[])?;
                return Ok(false);
            }
            _ => reply(REP_UNSUPPORTED, &[])?,
        }
    }
}

fn transmit(mut client: &UnixStream, state: &Mutex<State>) -> anyhow::Result<()> {
    let mut data = Vec::new();
    loop {
        ensure!(u32::from_be_bytes(take(client)?) == REQUEST, "no request where one must be");
        let (flags, kind) = (u16::from_be_bytes(take(client)?), u16::from_be_bytes(take(client)?));
        let cookie: [u8; 8] = take(client)?;
        let offset = u64::from_be_bytes(take(client)?);
        let len = u32::from_be_bytes(take(client)?) as usize;
        ensure!(len <= LEN_MAX, "a request of {len} bytes");
        let mut state = lock(state);
        let inside = offset.checked_add(len as u64).is_some_and(|end| end <= state.size_bytes);
        let whole = len.is_multiple_of(SECTOR) && offset.is_multiple_of(SECTOR as u64);
        if matches!(kind, READ | WRITE) {
            ensure!(inside && whole, "{len} bytes at {offset} are no sectors of the disk");
            data.resize(len, 0);
        }
        match kind {
            READ => state.read(offset, &mut data).context("cannot read the image")?,
            WRITE => {
                // Not while others would wait: there is one client, and it gets its answer in turn.
                client.read_exact(&mut data)?;
                state.write(offset, &data, flags & FUA != 0).context("cannot write the image")?;
            }
            FLUSH => state.flush().context("cannot write the image")?,
            DISCONNECT => return Ok(()),
            _ => bail!("a request of the kind {kind}, which was not offered"),
        }
        drop(state);
        let head = [&REPLY.to_be_bytes()[..], &[0; 4], &cookie].concat();
        client.write_all(&head)?;
        if kind == READ {
            client.write_all(&data)?;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::PowerDisk;
    use super::*;

    fn request(flags: u16, kind: u16, offset: u64, len: u32, data: &[u8]) -> Vec<u8> {
        let mut bytes = REQUEST.to_be_bytes().to_vec();
        bytes.extend([flags.to_be_bytes(), kind.to_be_bytes()].concat());
        bytes.extend(b"a cookie");
        bytes.extend(offset.to_be_bytes());
        bytes.extend(len.to_be_bytes());
        bytes.extend(data);
        bytes
    }

    /// A client that has chosen the export, after an option that does not exist.
    fn client(dir: &tempfile::TempDir) -> (PowerDisk, UnixStream) {
        let (image, socket) = (dir.path().join("image"), dir.path().join("socket"));
        std::fs::write(&image, vec![0; 1 << 16]).unwrap();
        let disk = PowerDisk::serve(&image, &socket, &std::collections::BTreeMap::new()).unwrap();
        let mut client = UnixStream::connect(socket).unwrap();
        assert_eq!(take::<18>(&client).unwrap(), *b"NBDMAGICIHAVEOPT\0\x03");
        client.write_all(&3u32.to_be_bytes()).unwrap();
        for (option, data) in [(8u32, &[][..]), (OPT_GO, &[0, 0, 0, 0, 0, 0])] {
            let head = [&OPTION[..], &option.to_be_bytes(), &(data.len() as u32).to_be_bytes()].concat();
            client.write_all(&[&head, data].concat()).unwrap();
        }
        let unsupported: [u8; 20] = take(&client).unwrap();
        assert_eq!(unsupported[8..16], [0, 0, 0, 8, 0x80, 0, 0, 1]);
        let info: [u8; 32] = take(&client).unwrap();
        assert_eq!(info[22..32], [0, 0, 0, 0, 0, 1, 0, 0, 0, 13]);
        let ack: [u8; 20] = take(&client).unwrap();
        assert_eq!(ack[12..20], [0, 0, 0, 1, 0, 0, 0, 0]);
        (disk, client)
    }

    fn answer(client: &UnixStream) {
        assert_eq!(take::<16>(client).unwrap(), *b"\x67\x44\x66\x98\0\0\0\0a cookie");
    }

    #[test]
    fn a_client_writes_flushes_reads_and_is_killed_in_the_middle_of_a_request() {
        let dir = tempfile::tempdir().unwrap();
        let (disk, mut client) = client(&dir);
        for (flags, kind, offset, data) in [
            (0, WRITE, 512, [1; SECTOR]),
            (0, FLUSH, 0, [0; SECTOR]),
            (FUA, WRITE, 1024, [2; SECTOR]),
            (0, WRITE, 0, [3; SECTOR]),
        ] {
            let data = if kind == WRITE { &data[..] } else { &[] };
            client.write_all(&request(flags, kind, offset, data.len() as u32, data)).unwrap();
            answer(&client);
        }
        client.write_all(&request(0, READ, 0, 2048, &[])).unwrap();
        answer(&client);
        let read: [u8; 2048] = take(&client).unwrap();
        assert_eq!([0, 512, 1024, 1536].map(|at| read[at]), [3, 1, 2, 0]);
        client.write_all(&request(0, WRITE, 512, 512, &[9; 100])).unwrap();
        drop(client);
        disk.cut_power(|_| false).unwrap();
        let image = std::fs::read(dir.path().join("image")).unwrap();
        assert_eq!([0, 512, 1024, 1536].map(|at| image[at]), [0, 1, 2, 0]);
    }

    #[test]
    fn a_client_that_leaves_the_disk_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let (disk, mut client) = client(&dir);
        client.write_all(&request(0, READ, 1 << 16, 512, &[])).unwrap();
        assert!(disk.cut_power(|_| false).is_err());
    }
}
