//! Clients of the control socket.

use std::io::{ErrorKind, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;

use devices_host::clock;
use devices_host::poll::{PollFd, poll};
use devices_host::socket::may_send;
use serde_json::Value;

use super::super::socket::{Listener, MAX_SEND};
use super::super::{Event, Ticket};
use super::{ErrorClass, Id, Order, Session, Step, event, failure, success};

/// The most clients at a time; more are told so and let go.
pub const MAX_CLIENTS: usize = 8;

/// A client that leaves this much unread is not listened to until it reads.
const FULL: usize = 64 * 1024;

/// A client that leaves this much unread, events included, is let go.
const TOO_FULL: usize = 1024 * 1024;

/// What an order led to.
#[derive(Debug)]
pub enum Outcome {
    /// The value to return or why not, and what everybody is to be told.
    Now(Result<Value, (ErrorClass, String)>, Vec<Event>),
    /// It takes its time: [`QmpServer::answer`] follows. Until then the client is not heard, as it may rely on one order
    /// being carried out before the next one.
    Later(Ticket),
}

/// The control socket and its clients.
#[derive(Debug)]
pub struct QmpServer {
    listener: Listener,
    clients: Vec<Client>,
}

#[derive(Debug)]
struct Client {
    stream: UnixStream,
    session: Session,
    unsent: Vec<u8>,
    /// The order that is being carried out.
    waiting: Option<(Ticket, Id)>,
    /// What was read behind it, or behind the command whose answer made too much unread.
    unheard: Vec<u8>,
    /// The client has sent its last byte; what it is still owed is sent, then it is let go.
    finished: bool,
    gone: bool,
}

impl QmpServer {
    /// Serves a socket.
    pub fn new(listener: Listener) -> Self {
        Self { listener, clients: Vec::new() }
    }

    /// Adds what this server waits for.
    pub fn interest(&self, fds: &mut Vec<PollFd>) {
        fds.push(PollFd::new(self.listener.as_raw_fd()).readable(true));
        for client in &self.clients {
            let (wants, owed) = (client.wants_input(), !client.unsent.is_empty());
            let fd = if wants || owed { client.stream.as_raw_fd() } else { -1 };
            fds.push(PollFd::new(fd).readable(wants).writable(owed));
        }
    }

    /// Looks at everything that [`QmpServer::interest`] added, in the same order. `act` carries out one order.
    pub fn ready(&mut self, fds: &[PollFd], act: &mut dyn FnMut(Order) -> Outcome) {
        let Some((listening, clients)) = fds.split_first() else { return };
        for (index, fd) in clients.iter().enumerate() {
            if fd.is_readable() && self.clients.get(index).is_some_and(Client::wants_input) {
                self.read(index, act);
            }
        }
        if listening.is_readable() {
            self.accept();
        }
        self.go_on(act);
    }

    /// Tells every client what happened.
    pub fn tell(&mut self, what: &Event) {
        let line = event(what, clock::realtime());
        for client in self.clients.iter_mut().filter(|client| client.session.wants_events()) {
            client.queue(&line);
        }
    }

    /// Sends what clients are still owed, for at most `limit_ns`: the process is about to end.
    pub fn flush(&mut self, limit_ns: u64) {
        let deadline_ns = clock::monotonic_ns().saturating_add(limit_ns);
        loop {
            self.send();
            let owed = self.clients.iter().filter(|client| !client.unsent.is_empty());
            let mut fds: Vec<PollFd> =
                owed.map(|client| PollFd::new(client.stream.as_raw_fd()).writable(true)).collect();
            let left_ns = deadline_ns.saturating_sub(clock::monotonic_ns());
            if fds.is_empty() || left_ns == 0 || poll(&mut fds, Some(left_ns)).is_err() {
                return;
            }
        }
    }

    fn accept(&mut self) {
        while let Some(stream) = self.listener.accept() {
            let mut client = Client::new(stream);
            if self.clients.len() < MAX_CLIENTS {
                client.queue(&Session::greeting());
                self.clients.push(client);
            } else {
                let desc = format!("there are already {MAX_CLIENTS} clients");
                client.queue(&failure(Id::default(), ErrorClass::GenericError, &desc));
                client.send();
            }
        }
    }

    fn read(&mut self, index: usize, act: &mut dyn FnMut(Order) -> Outcome) {
        let mut bytes = [0; 4096];
        let read = match self.clients.get_mut(index) {
            Some(client) => client.read(&mut bytes),
            None => 0,
        };
        self.hear(index, bytes.get(..read).unwrap_or_default(), act);
    }

    /// Sends, and hears what clients with room for answers have said before they had it. That no client says more than was
    /// read of it bounds both what is kept and the time this takes.
    fn go_on(&mut self, act: &mut dyn FnMut(Order) -> Outcome) {
        loop {
            self.send();
            let has_more = |client: &Client| client.may_be_heard() && !client.unheard.is_empty();
            let Some(index) = self.clients.iter().position(has_more) else { return };
            let unheard = std::mem::take(&mut self.clients[index].unheard);
            self.hear(index, &unheard, act);
        }
    }

    /// What a client has said, up to an order that takes its time, or to more answers than it may leave unread.
    fn hear(&mut self, index: usize, bytes: &[u8], act: &mut dyn FnMut(Order) -> Outcome) {
        for (at, byte) in bytes.iter().enumerate() {
            let Some(client) = self.clients.get_mut(index) else { return };
            let answer = match client.session.byte(*byte) {
                None => continue,
                Some(Step::Answer(answer)) => answer,
                Some(Step::Do(request)) => match act(request.order) {
                    Outcome::Later(ticket) => {
                        client.waiting = Some((ticket, request.id));
                        client.unheard = bytes.get(at + 1..).unwrap_or_default().to_vec();
                        return;
                    }
                    Outcome::Now(result, events) => {
                        // Events first, as qemu sends them: after the answer the client knows that it has seen them.
                        events.iter().for_each(|event| self.tell(event));
                        answer(request.id, result)
                    }
                },
            };
            let Some(client) = self.clients.get_mut(index) else { return };
            client.queue(&answer);
            if client.unsent.len() >= FULL {
                client.unheard = bytes.get(at + 1..).unwrap_or_default().to_vec();
                return;
            }
        }
    }

    /// Answers the order that a client waits for, if it still does, and hears what it has said since.
    pub fn answer(
        &mut self,
        ticket: Ticket,
        result: Result<Value, (ErrorClass, String)>,
        act: &mut dyn FnMut(Order) -> Outcome,
    ) {
        let waits = |client: &Client| client.waiting.as_ref().is_some_and(|(waiting, _)| *waiting == ticket);
        let Some(index) = self.clients.iter().position(waits) else { return };
        let client = &mut self.clients[index];
        let id = client.waiting.take().map(|(_, id)| id).unwrap_or_default();
        client.queue(&answer(id, result));
        self.go_on(act);
    }

    fn send(&mut self) {
        self.clients.iter_mut().for_each(Client::send);
        self.clients.retain(|client| !client.gone);
    }
}

/// The answer to a request by its result.
fn answer(id: Id, result: Result<Value, (ErrorClass, String)>) -> Value {
    match result {
        Ok(value) => success(id, value),
        Err((class, desc)) => failure(id, class, &desc),
    }
}

impl Client {
    fn new(stream: UnixStream) -> Self {
        let (session, unsent, unheard) = (Session::default(), Vec::new(), Vec::new());
        Self { stream, session, unsent, waiting: None, unheard, finished: false, gone: false }
    }

    fn wants_input(&self) -> bool {
        !self.finished && self.may_be_heard() && self.unheard.is_empty()
    }

    fn may_be_heard(&self) -> bool {
        self.waiting.is_none() && self.unsent.len() < FULL
    }

    /// Reads what is there; how much.
    fn read(&mut self, bytes: &mut [u8]) -> usize {
        match self.stream.read(bytes) {
            Ok(0) => self.finished = true,
            Ok(read) => return read,
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {}
            Err(_) => self.gone = true,
        }
        0
    }

    fn queue(&mut self, message: &Value) {
        if self.unsent.len() > TOO_FULL {
            self.gone = true;
            return;
        }
        self.unsent.extend_from_slice(message.to_string().as_bytes());
        self.unsent.extend_from_slice(b"\r\n");
    }

    fn send(&mut self) {
        while !self.unsent.is_empty() && !self.gone && may_send(&self.stream) {
            let piece = self.unsent.len().min(MAX_SEND);
            match self.stream.write(&self.unsent[..piece]) {
                Ok(sent) => drop(self.unsent.drain(..sent)),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(_) => self.gone = true,
            }
        }
        self.gone |= self.finished && self.waiting.is_none() && self.unheard.is_empty() && self.unsent.is_empty();
    }
}

#[cfg(test)]
#[path = "server_tests.rs"]
mod tests;
