//! The other end of a guest's metadata port: SmartOS's metadata protocol, versions 1 and 2, answered by this process.
//!
//! On SmartOS an agent outside answers, through the socket of COM2. Here is what a guest can tell of it, so that its
//! tools work where no agent is. Bytes go in and out; no file, clock or thread is known.
//!
//! A guest can send anything. Whatever it sends, the memory that is held has a bound: a line ends at [`MAX_LINE`], the
//! store at its own limit, and while more than [`UNREAD`] bytes of answers wait to be read nothing more is taken.

mod frame;
mod store;

use std::collections::VecDeque;

use frame::Frame;
use store::Store;

use crate::config::Metadata;

/// The longest request, in bytes, without its line end: a value of about 140 KiB to put.
const MAX_LINE: usize = 256 * 1024;

/// What is kept of a longer one: enough to say in a frame with its identifier that it was too long.
const HEAD: usize = 64;

/// With more bytes of answers unread, no request is taken. One more answer, the last before that, may be of any size.
const UNREAD: usize = 64 * 1024;

/// How a request ends.
enum Answer {
    Success(Vec<u8>),
    NotFound,
    Failure(String),
}

/// Answers the requests of one guest.
#[derive(Debug)]
pub struct Responder {
    store: Store,
    /// The request so far; of one that became too long, its first bytes.
    line: Vec<u8>,
    too_long: bool,
    answers: VecDeque<u8>,
}

impl Responder {
    /// One that nobody has asked yet.
    pub fn new(metadata: Metadata) -> Self {
        Self { store: Store::new(metadata), line: Vec::new(), too_long: false, answers: VecDeque::new() }
    }

    /// Takes bytes of the guest; how many. Fewer than there are where the guest has to read its answers first.
    pub fn take(&mut self, bytes: &[u8]) -> usize {
        let mut rest = bytes;
        while self.answers.len() <= UNREAD && !rest.is_empty() {
            let end = rest.iter().position(|byte| *byte == b'\n');
            let (part, behind) = rest.split_at(end.unwrap_or(rest.len()));
            self.keep(part);
            rest = behind.get(1..).unwrap_or_default();
            if end.is_some() {
                self.end_line();
            }
        }
        bytes.len() - rest.len()
    }

    /// Bytes for the guest, as far as they lie in one piece; empty where there are none.
    pub fn answers(&self) -> &[u8] {
        self.answers.as_slices().0
    }

    /// The guest has received so many of [`Responder::answers`].
    pub fn sent(&mut self, count: usize) {
        self.answers.drain(..count.min(self.answers.len()));
        if self.answers.is_empty() {
            // A large answer is rare, and its memory is not held for the next one.
            self.answers = VecDeque::new();
        }
    }

    /// The guest begins anew: what it was saying, and what it was told and has not read, are gone. Keys stay as they
    /// are: they are the guest's, not of the time since it started.
    pub fn restart(&mut self) {
        self.line = Vec::new();
        self.too_long = false;
        self.answers = VecDeque::new();
    }

    /// Memory that is held for the request so far and for answers, in bytes.
    pub fn held_bytes(&self) -> usize {
        self.line.capacity().saturating_add(self.answers.capacity())
    }

    fn keep(&mut self, part: &[u8]) {
        if self.too_long {
            return;
        }
        let room = MAX_LINE.saturating_sub(self.line.len());
        self.line.extend_from_slice(&part[..part.len().min(room)]);
        if part.len() > room {
            self.too_long = true;
            self.line.truncate(HEAD);
            self.line.shrink_to_fit();
        }
    }

    fn end_line(&mut self) {
        let line = std::mem::take(&mut self.line);
        let line = line.trim_ascii_end();
        let end = line.iter().position(u8::is_ascii_whitespace).unwrap_or(line.len());
        let (command, argument) = line.split_at(end);
        let argument = argument.trim_ascii_start();
        match command {
            _ if std::mem::take(&mut self.too_long) => self.refuse_too_long(command, argument),
            b"" => self.say(b"invalid command\n"),
            b"NEGOTIATE" | b"GET" if argument.is_empty() => self.say(b"invalid command\n"),
            b"NEGOTIATE" if argument == b"V2" => self.say(b"V2_OK\n"),
            b"V2" => self.answer_frame(argument),
            _ => self.answer_plainly(command, argument),
        }
    }

    fn refuse_too_long(&mut self, command: &[u8], argument: &[u8]) {
        match Frame::claimed_id(argument).filter(|_| command == b"V2") {
            // Its checksum is not known. But a client that hears nothing sends it again, for ever.
            Some(id) => self.say(&frame::encode(id, "FAILURE", b"the request is too long")),
            None if command == b"V2" => {}
            None => self.say(b"invalid command\n"),
        }
    }

    fn answer_plainly(&mut self, command: &[u8], argument: &[u8]) {
        let answer = match command {
            b"GET" => self.get(argument),
            b"KEYS" => Answer::Success(self.store.keys().into_bytes()),
            _ => Answer::Failure(String::new()),
        };
        match answer {
            Answer::Success(value) => {
                self.say(b"SUCCESS\n");
                for line in value.split(|byte| *byte == b'\n') {
                    // A line that is only a dot ends the value.
                    if line.starts_with(b".") {
                        self.say(b".");
                    }
                    self.say(line);
                    self.say(b"\n");
                }
                self.say(b".\n");
            }
            Answer::NotFound => self.say(b"NOTFOUND\n"),
            Answer::Failure(_) => self.say(b"FAILURE\n"),
        }
    }

    fn answer_frame(&mut self, text: &[u8]) {
        // A broken frame has no identifier to answer to: the client asks again.
        let Some(Frame { id, command, payload }) = Frame::parse(text) else { return };
        let answer = match frame::decode(payload) {
            Some(payload) => self.obey(command, &payload),
            None => Answer::Failure("the payload is not base64".to_owned()),
        };
        match answer {
            Answer::Success(value) => self.say(&frame::encode(id, "SUCCESS", &value)),
            Answer::NotFound => self.say(&frame::encode(id, "NOTFOUND", b"")),
            Answer::Failure(why) => self.say(&frame::encode(id, "FAILURE", why.as_bytes())),
        }
    }

    fn obey(&mut self, command: &[u8], payload: &[u8]) -> Answer {
        let changed = match command {
            b"GET" => return self.get(payload),
            b"KEYS" => return Answer::Success(self.store.keys().into_bytes()),
            b"PUT" => put(&mut self.store, payload),
            b"DELETE" => match key_of(payload) {
                Some(key) => self.store.delete(key),
                None => Err("no key is named"),
            },
            _ => Err("the command is not known"),
        };
        match changed {
            // As the agent says it.
            Ok(()) => Answer::Success(b"OK".to_vec()),
            Err(why) => Answer::Failure(why.to_owned()),
        }
    }

    fn get(&self, payload: &[u8]) -> Answer {
        let Ok(key) = std::str::from_utf8(payload) else { return Answer::NotFound };
        match key.trim() {
            "" => Answer::Failure("no key is named".to_owned()),
            key => self.store.get(key).map_or(Answer::NotFound, |value| Answer::Success(value.to_vec())),
        }
    }

    fn say(&mut self, bytes: &[u8]) {
        self.answers.extend(bytes);
    }
}

/// The key that a payload names.
fn key_of(payload: &[u8]) -> Option<&str> {
    std::str::from_utf8(payload).ok().map(str::trim).filter(|key| !key.is_empty())
}

/// Key and value are base64 each, with a blank between.
fn put(store: &mut Store, payload: &[u8]) -> Result<(), &'static str> {
    let mut parts = payload.trim_ascii().split(|byte| *byte == b' ');
    let (Some(key), Some(value), None) = (parts.next(), parts.next(), parts.next()) else {
        return Err("a key and a value are wanted");
    };
    let (Some(key), Some(value)) = (frame::decode(key), frame::decode(value)) else {
        return Err("key and value have to be base64");
    };
    store.put(key_of(&key).ok_or("no key is named")?, value)
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
