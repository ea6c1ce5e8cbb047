//! vmadmd's client of the control socket, with its habits: it greets before it is greeted, asks one thing a connection, and
//! whatever is no answer to that leaves it waiting for ever.

use std::io::{BufRead as _, BufReader, ErrorKind, Write as _};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Instant;

use serde_json::{Value, json};

use crate::LIMIT;

/// Asks one thing.
///
/// # Panics
/// Where vmadmd would wait for ever, or throw.
pub fn ask(socket: &Path, command: &str, arguments: Option<Value>) -> Value {
    try_ask(socket, command, arguments).expect("the connection ends without an answer")
}

/// As [`ask`]; `None` where the VMM has ended.
///
/// # Panics
/// As [`ask`].
pub fn try_ask(socket: &Path, command: &str, arguments: Option<Value>) -> Option<Value> {
    let stream = connect(socket)?;
    let mut lines = BufReader::new(stream.try_clone().expect("a descriptor")).lines();
    let mut request = json!({"execute": "qmp_capabilities", "id": 0});
    send(&stream, &request)?;
    answer(&mut lines, 0)?;
    request = json!({"execute": command, "id": 1});
    if let Some(arguments) = arguments {
        request["arguments"] = arguments;
    }
    send(&stream, &request)?;
    answer(&mut lines, 1)
}

fn connect(socket: &Path) -> Option<UnixStream> {
    let end = Instant::now() + LIMIT;
    loop {
        match UnixStream::connect(socket) {
            Ok(stream) => {
                stream.set_read_timeout(Some(LIMIT)).expect("a socket");
                return Some(stream);
            }
            Err(error) if matches!(error.kind(), ErrorKind::ConnectionRefused) => return None,
            Err(error) => assert!(Instant::now() < end, "{}: {error}", socket.display()),
        }
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
}

fn send(mut stream: &UnixStream, request: &Value) -> Option<()> {
    stream.write_all(format!("{request}\n").as_bytes()).ok()
}

/// What comes back for a request; what vmadmd only logs goes by.
fn answer(lines: &mut impl Iterator<Item = std::io::Result<String>>, id: u64) -> Option<Value> {
    loop {
        let line = match lines.next()? {
            Ok(line) => line,
            Err(error) if error.kind() == ErrorKind::WouldBlock => panic!("no answer in time"),
            Err(_) => return None,
        };
        let message: Value = serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error}: {line}"));
        if let Some(value) = message.get("return") {
            assert_eq!(message["id"], id, "vmadmd throws: {line}");
            return Some(value.clone());
        }
        if message.get("event").is_some() {
            let time = &message["timestamp"];
            assert!(time["seconds"].is_u64() && time["microseconds"].is_u64(), "{line}");
        } else {
            assert!(message.get("QMP").is_some(), "vmadmd waits for ever: {line}");
        }
    }
}
