//! The responder between a card's two workers: one hears the guest, the other delivers.

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};
use vm_memory::GuestMemory;

use super::{HEAD_BYTES, Heard, MAX_ANSWER_BYTES, MAX_REQUEST_BYTES, Responder};
use crate::virtio::net::backend::HEADER_BYTES;
use crate::virtio::queue::Reader;
use crate::wake::Wake;

/// What both workers share: the responder, and the one answer that may wait. Its lock is taken for a request or for an
/// answer, and for no other frame.
pub struct Station {
    responder: Responder,
    /// Whether there is an answer, for who receives to see without the lock.
    waiting: AtomicBool,
    mailbox: Mutex<Mailbox>,
    receiver: Arc<dyn Wake>,
}

struct Mailbox {
    answer: [u8; MAX_ANSWER_BYTES],
    /// Bytes of the answer that waits; 0 where none does.
    len_bytes: usize,
    next_ip_id: u16,
}

impl fmt::Debug for Station {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_tuple("Station").field(&self.responder.server_ip()).finish()
    }
}

impl Station {
    /// A responder whose answers are for the worker that `receiver` wakes.
    pub fn new(responder: Responder, receiver: Arc<dyn Wake>) -> Self {
        let mailbox = Mailbox { answer: [0; MAX_ANSWER_BYTES], len_bytes: 0, next_ip_id: 0 };
        Self { responder, waiting: AtomicBool::new(false), mailbox: Mutex::new(mailbox), receiver }
    }

    /// Hears a frame; also whether an older answer had to make room for this one's.
    fn hear(&self, frame: &[u8]) -> (Heard, bool) {
        let mut mailbox = self.mailbox();
        let Mailbox { answer, len_bytes: waiting_bytes, next_ip_id } = &mut *mailbox;
        let heard = self.responder.hear(frame, next_ip_id, answer);
        let Heard::Answered { len_bytes } = heard else { return (heard, false) };
        let replaced = std::mem::replace(waiting_bytes, len_bytes) != 0;
        self.waiting.store(true, Ordering::Release);
        drop(mailbox);
        self.receiver.wake();
        (heard, replaced)
    }

    /// Moves the answer that waits to `frame`, if one does: its bytes.
    pub fn take(&self, frame: &mut [u8]) -> Option<usize> {
        if !self.waiting.load(Ordering::Acquire) {
            return None;
        }
        let mut mailbox = self.mailbox();
        let len_bytes = std::mem::take(&mut mailbox.len_bytes);
        self.waiting.store(false, Ordering::Release);
        let (answer, to) = (mailbox.answer.get(..len_bytes)?, frame.get_mut(..len_bytes)?);
        to.copy_from_slice(answer);
        (len_bytes > 0).then_some(len_bytes)
    }

    /// Forgets the answer that waits, with who wanted it.
    pub fn forget(&self) {
        self.mailbox().len_bytes = 0;
        self.waiting.store(false, Ordering::Release);
    }

    /// What it would go on with elsewhere, where that is anything.
    pub fn save(&self) -> Option<AnswersState> {
        let mailbox = self.mailbox();
        let waiting = mailbox.answer.get(..mailbox.len_bytes).unwrap_or_default().to_vec();
        let next_ip_id = mailbox.next_ip_id;
        (next_ip_id != 0 || !waiting.is_empty()).then_some(AnswersState { next_ip_id, waiting })
    }

    /// Takes back what [`save`](Self::save) gave; `false` where that is no answer.
    pub fn restore(&self, saved: Option<&AnswersState>) -> bool {
        let mut mailbox = self.mailbox();
        let none = AnswersState { next_ip_id: 0, waiting: Vec::new() };
        let AnswersState { next_ip_id, waiting } = saved.unwrap_or(&none);
        let Some(to) = mailbox.answer.get_mut(..waiting.len()) else { return false };
        to.copy_from_slice(waiting);
        (mailbox.len_bytes, mailbox.next_ip_id) = (waiting.len(), *next_ip_id);
        self.waiting.store(!waiting.is_empty(), Ordering::Release);
        true
    }

    fn mailbox(&self) -> MutexGuard<'_, Mailbox> {
        self.mailbox.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What a saved responder goes on with.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AnswersState {
    next_ip_id: u16,
    /// The answer that waits.
    waiting: Vec<u8>,
}

#[cfg(test)]
impl AnswersState {
    /// Makes the answer longer than any is.
    pub(crate) fn lengthen(&mut self) {
        self.waiting.resize(MAX_ANSWER_BYTES.wrapping_add(1), 0);
    }
}

/// The sending worker's end of a station.
pub struct Ear {
    station: Arc<Station>,
    /// A driver's header and its frame, as far as they are looked at.
    seen: Box<[u8; HEADER_BYTES + MAX_REQUEST_BYTES]>,
}

/// What has been seen of a chain, and what has not.
pub struct Sight<'c, M> {
    header_bytes: usize,
    head_bytes: usize,
    rest: Reader<'c, M>,
}

impl Ear {
    /// An ear that hears what is for this station.
    pub fn new(station: Arc<Station>) -> Self {
        Self { station, seen: Box::new([0; HEADER_BYTES + MAX_REQUEST_BYTES]) }
    }

    /// Reads the driver's header and, with it, the first bytes of the frame: most frames are somebody else's, and a read of
    /// their own would be half of what those cost. `None` where there is no whole header.
    pub fn look<'c, M: GuestMemory>(&mut self, mut rest: Reader<'c, M>, header: &mut [u8]) -> Option<Sight<'c, M>> {
        let bytes = bytes_of(&rest, header.len().saturating_add(HEAD_BYTES));
        let head_bytes = bytes.checked_sub(header.len())?;
        let seen = self.seen.get_mut(..bytes)?;
        rest.read(seen).ok()?;
        header.copy_from_slice(seen.get(..header.len())?);
        Some(Sight { header_bytes: header.len(), head_bytes, rest })
    }

    /// Hears the frame that was looked at, each byte read once at most; also whether an older answer is lost.
    pub fn hear<M: GuestMemory>(&mut self, sight: Sight<'_, M>) -> (Heard, bool) {
        let Sight { header_bytes, head_bytes, mut rest } = sight;
        let passed = (Heard::Passed, false);
        let Some((_, request)) = self.seen.split_at_mut_checked(header_bytes) else { return passed };
        let Some((head, more)) = request.split_at_mut_checked(head_bytes) else { return passed };
        if !self.station.responder.concerns(head) {
            return passed;
        }
        let more_bytes = bytes_of(&rest, MAX_REQUEST_BYTES.saturating_sub(head_bytes));
        let read = more.get_mut(..more_bytes).is_some_and(|more| rest.read(more).is_ok());
        match request.get(..head_bytes.saturating_add(more_bytes)) {
            Some(request) if read => self.station.hear(request),
            _ => (Heard::Swallowed, false),
        }
    }
}

/// Bytes left, up to `most`.
fn bytes_of<M: GuestMemory>(reader: &Reader<'_, M>, most: usize) -> usize {
    most.min(usize::try_from(reader.remaining()).unwrap_or(usize::MAX))
}
