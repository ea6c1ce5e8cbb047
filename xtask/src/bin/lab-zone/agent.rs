//! The metadata agent of the global zone: the client of the socket of the guest's second serial line, and the server of the
//! protocol that is spoken there.

use std::collections::BTreeMap;
use std::io::{ErrorKind, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;

use crate::frame::Frame;

/// How long to the next try where there is nobody, or no socket.
const RETRY: Duration = Duration::from_millis(100);
/// How long it takes at most to notice that the agent is to end.
const NOTICE: Duration = Duration::from_millis(200);
/// Keys of the host's, which no guest changes and no list has.
const HOSTS: &str = "sdc:";

/// What the agent knows and has seen.
#[derive(Debug, Default)]
pub struct State {
    /// The guest's metadata.
    pub values: BTreeMap<String, String>,
    /// How many requests of either version were answered.
    pub requests: [usize; 2],
    /// How often somebody was there.
    pub connections: usize,
}

/// The agent of a zone, in a thread of its own.
pub struct Agent {
    state: Arc<Mutex<State>>,
    ends: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Agent {
    /// Looks for a socket until it is there, and comes back whenever it has gone.
    pub fn of(socket: PathBuf, values: &[(&str, &str)]) -> Self {
        let values = values.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        let state = Arc::new(Mutex::new(State { values, ..State::default() }));
        let ends = Arc::new(AtomicBool::new(false));
        let (shared, over) = (state.clone(), ends.clone());
        let thread = std::thread::spawn(move || {
            while !over.load(Ordering::Relaxed) {
                serve_once(&socket, &shared, &over);
                std::thread::sleep(RETRY);
            }
        });
        Self { state, ends, thread: Some(thread) }
    }

    /// What it knows and has seen until now.
    pub fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        self.ends.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

/// One connection, from the moment that there is somebody until nobody is.
fn serve_once(socket: &Path, state: &Mutex<State>, ends: &AtomicBool) {
    let Ok(mut stream) = UnixStream::connect(socket) else { return };
    if stream.set_read_timeout(Some(NOTICE)).is_err() {
        return;
    }
    lock(state).connections += 1;
    let (mut bytes, mut pending) = ([0; 4096], Vec::new());
    while !ends.load(Ordering::Relaxed) {
        match stream.read(&mut bytes) {
            Ok(count @ 1..) => pending.extend_from_slice(&bytes[..count]),
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => continue,
            Ok(0) | Err(_) => return,
        }
        while let Some(end) = pending.iter().position(|byte| *byte == b'\n') {
            let line = String::from_utf8_lossy(&pending[..end]).into_owned();
            pending.drain(..=end);
            if let Some(answer) = lock(state).answer(line.trim_end_matches('\r'))
                && stream.write_all(answer.as_bytes()).is_err()
            {
                return;
            }
        }
    }
}

impl State {
    /// What is answered to a line; `None` where that is nothing.
    fn answer(&mut self, line: &str) -> Option<String> {
        if line.starts_with("V2 ") {
            let asked = Frame::parse(line)?;
            self.requests[1] += 1;
            let (word, payload) = match self.carry_out(&asked) {
                Some(Ok(payload)) => ("SUCCESS", Some(payload.into_bytes())),
                Some(Err(word)) => (word, None),
                None => ("FAILURE", None),
            };
            return Some(Frame { id: asked.id, word: word.to_owned(), payload }.line());
        }
        if line.is_empty() || line.starts_with(' ') || line == "GET" {
            return Some("invalid command\n".to_owned());
        }
        if line == "NEGOTIATE V2" {
            return Some("V2_OK\n".to_owned());
        }
        self.requests[0] += 1;
        let value = match line.split_once(' ') {
            Some(("GET", key)) => self.values.get(key).cloned(),
            None if line == "KEYS" => Some(self.keys()),
            _ => return Some("FAILURE\n".to_owned()),
        };
        let Some(value) = value else { return Some("NOTFOUND\n".to_owned()) };
        // A dot at a line's beginning would be its end.
        let lines = value
            .split('\n')
            .map(|line| if line.starts_with('.') { format!(".{line}\n") } else { format!("{line}\n") });
        Some(format!("SUCCESS\n{}.\n", lines.collect::<String>()))
    }

    fn keys(&self) -> String {
        self.values.keys().filter(|key| !key.starts_with(HOSTS)).cloned().collect::<Vec<_>>().join("\n")
    }

    /// Does what a frame asks for: what it comes to, or the word for why there is nothing; `None` where it makes no sense.
    fn carry_out(&mut self, asked: &Frame) -> Option<Result<String, &'static str>> {
        let text = String::from_utf8(asked.payload.clone().unwrap_or_default()).ok()?;
        match asked.word.as_str() {
            "GET" => Some(self.values.get(&text).cloned().ok_or("NOTFOUND")),
            "KEYS" => Some(Ok(self.keys())),
            "DELETE" if !text.starts_with(HOSTS) => {
                self.values.remove(&text);
                Some(Ok("OK".to_owned()))
            }
            "PUT" => {
                let (key, value) = text.split_once(' ')?;
                let decoded = |text: &str| String::from_utf8(BASE64_STANDARD.decode(text).ok()?).ok();
                let (key, value) = (decoded(key)?, decoded(value)?);
                if key.starts_with(HOSTS) {
                    return None;
                }
                self.values.insert(key, value);
                Some(Ok("OK".to_owned()))
            }
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state() -> State {
        let values = [("sdc:uuid", "u"), ("motd", "one\n.two\n"), ("a", "b")];
        State { values: values.map(|(key, value)| (key.to_owned(), value.to_owned())).into(), ..State::default() }
    }

    #[test]
    fn lines_of_version_1_are_answered_in_lines() {
        for (line, answer) in [
            ("", "invalid command\n"),
            ("GET", "invalid command\n"),
            ("NEGOTIATE V2", "V2_OK\n"),
            ("GET sdc:uuid", "SUCCESS\nu\n.\n"),
            ("GET motd", "SUCCESS\none\n..two\n\n.\n"),
            ("GET none", "NOTFOUND\n"),
            ("KEYS", "SUCCESS\na\nmotd\n.\n"),
            ("PUT a b", "FAILURE\n"),
        ] {
            assert_eq!(state().answer(line).as_deref(), Some(answer), "{line}");
        }
    }

    #[test]
    fn frames_change_what_is_the_guests_and_nothing_of_the_hosts() {
        let mut state = state();
        let mut ask = |word: &str, payload: &str| {
            let payload = Some(payload.as_bytes().to_vec());
            let line = Frame { id: "00000001".to_owned(), word: word.to_owned(), payload }.line();
            let answer = state.answer(line.trim_end()).unwrap();
            let answer = Frame::parse(answer.trim_end()).unwrap();
            (answer.word, answer.payload.map(|value| String::from_utf8(value).unwrap()))
        };
        let success = |text: &str| ("SUCCESS".to_owned(), Some(text.to_owned()));
        let put = |key: &str, value: &str| [key, value].map(|text| BASE64_STANDARD.encode(text)).join(" ");
        assert_eq!(ask("PUT", &put("a", "c d")), success("OK"));
        assert_eq!(ask("GET", "a"), success("c d"));
        assert_eq!(ask("DELETE", "a"), success("OK"));
        assert_eq!(ask("GET", "a"), ("NOTFOUND".to_owned(), None));
        assert_eq!(ask("PUT", &put("sdc:uuid", "x")), ("FAILURE".to_owned(), None));
        assert_eq!(ask("GET", "sdc:uuid"), success("u"));
        assert_eq!(state.answer("V2 1 00000000 x"), None, "a damaged one");
    }
}
