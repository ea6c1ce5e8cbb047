//! The main thread's loop: signals and reports, control socket, serial lines, timers.
//!
//! It waits with poll(2) on every system. The handful of descriptors (one event, one socket and its few clients, a
//! serial line or two) changes its wishes with almost every turn, which with epoll would cost a system call each;
//! illumos has no epoll in the zone anyway, and one loop is tested once.

use std::os::fd::AsRawFd;
use std::sync::Arc;

use devices_host::poll::{PollFd, poll};
use devices_host::{clock, image};
use serde_json::json;

use super::inbox::{Inbox, Notice};
use super::line::Lines;
use super::orders::Orders;
use super::qmp::{ErrorClass, QmpServer};
use super::{
    Built, Command, Controller, Event, Machine, MachineEvent, Policy, SignalThread, State, Ticket, Timed, Watched,
};
use crate::config::system_text;
use crate::exit::Exit;
use crate::logging;
use crate::sandbox;

/// How long readers of the console and clients of the control socket may keep the end of the process waiting.
const FAREWELL_NS: u64 = 1_000_000_000;

/// How long the program stays in memory once the guest may run: while it is given back no thread can take a page of it
/// in, and a vCPU that is about to enter its guest for the first time would wait for that.
const SETTLE_NS: u64 = 50_000_000;

/// Everything the main thread looks after.
pub struct MainLoop {
    inbox: Inbox,
    controller: Controller,
    machine: Arc<dyn Machine>,
    timers: Vec<Arc<dyn Timed>>,
    watches: Vec<Arc<dyn Watched>>,
    lines: Lines,
    qmp: Option<QmpServer>,
    orders: Orders,
    fds: Vec<PollFd>,
    restarted: bool,
    signals: Option<SignalThread>,
    /// When most of the program has been run for the last time and is given back; nothing once that is done.
    settles_at_ns: Option<u64>,
}

impl MainLoop {
    /// A loop around a machine that is built; `lines` are joined to its ports.
    pub fn new(inbox: Inbox, policy: Policy, vcpus: u8, built: Built, lines: Lines, qmp: Option<QmpServer>) -> Self {
        let Built { machine, timers, watches, .. } = built;
        let (controller, restarted) = (Controller::new(policy, vcpus), policy.restarted);
        Self {
            inbox,
            controller,
            machine,
            timers,
            watches,
            lines,
            qmp,
            orders: Orders::default(),
            fds: Vec::new(),
            restarted,
            signals: None,
            settles_at_ns: None,
        }
    }

    /// Has the loop end the thread that passes signals on: what that one heard until then is obeyed yet.
    pub fn with_signals(self, signals: SignalThread) -> Self {
        Self { signals: Some(signals), ..self }
    }

    /// Starts the guest and serves it until it ends. On return no thread of the machine runs any more, and what the
    /// guest wrote last has been written out.
    pub fn run(mut self) -> Exit {
        self.controller.start(&*self.machine);
        self.settles_at_ns = Some(clock::monotonic_ns().saturating_add(SETTLE_NS));
        let mut again = false;
        let mut failed = false;
        while !failed && !matches!(self.controller.state(), State::Stopped(_)) {
            if let Err(error) = self.turn(&mut again) {
                logging::say(format_args!("the main loop cannot wait: {}", system_text(&error)));
                self.machine.stop();
                failed = true;
            }
        }
        self.machine.join();
        sandbox::leave();
        self.take_leave();
        drop(self.signals.take());
        self.last_notices();
        let exit = match self.controller.state() {
            State::Stopped(exit) if !failed => exit,
            _ => Exit::HostFailed,
        };
        self.machine.leave(self.restarted && exit == Exit::GuestReset);
        exit
    }

    fn turn(&mut self, again: &mut bool) -> std::io::Result<()> {
        self.fds.clear();
        self.fds.push(PollFd::new(self.inbox.as_raw_fd()).readable(true));
        self.lines.interest(&mut self.fds);
        let lines_end = self.fds.len();
        self.fds.extend(self.watches.iter().map(|watch| PollFd::new(watch.as_raw_fd()).readable(true)));
        let watches_end = self.fds.len();
        if let Some(qmp) = &self.qmp {
            qmp.interest(&mut self.fds);
        }
        let timeout_ns = if *again { Some(0) } else { self.timeout_ns() };
        poll(&mut self.fds, timeout_ns)?;

        // Cleared before anything is looked at: a wake-up that comes now is for what is not seen below.
        if self.fds[0].is_readable() {
            self.inbox.clear();
        }
        self.controller.set_now_ns(clock::monotonic_ns());
        while let Some(notice) = self.inbox.next() {
            let events = match notice {
                Notice::Machine(event) => {
                    if event == MachineEvent::ResetDone {
                        self.lines.guest_was_reset();
                    }
                    self.controller.machine_event(event, &*self.machine)
                }
                Notice::Signal(signal) => self.controller.signal(signal, &*self.machine),
                Notice::Answer(ticket, result) => {
                    self.answer(ticket, result);
                    continue;
                }
            };
            tell(&mut self.qmp, &events);
        }
        for (watch, fd) in self.watches.iter().zip(&self.fds[lines_end..watches_end]) {
            if fd.is_readable() {
                watch.ready();
            }
        }
        let now_ns = clock::monotonic_ns();
        if self.settles_at_ns.take_if(|at_ns| *at_ns <= now_ns).is_some() {
            image::give_back();
        }
        for timer in self.timers.iter().filter(|timer| timer.deadline_ns().is_some_and(|at_ns| at_ns <= now_ns)) {
            timer.tick(now_ns);
        }
        let turn = self.lines.turn(&self.fds[1..lines_end], now_ns);
        *again = turn.again;
        if turn.leave {
            let events = self.controller.command(Command::Quit, &*self.machine).unwrap_or_default();
            tell(&mut self.qmp, &events);
        }
        if let Some(qmp) = &mut self.qmp {
            let (controller, machine, orders) = (&mut self.controller, &*self.machine, &mut self.orders);
            qmp.ready(&self.fds[watches_end..], &mut |order| orders.act(order, controller, machine));
        }
        Ok(())
    }

    fn answer(&mut self, ticket: Ticket, result: Result<(), String>) {
        if let Some(qmp) = &mut self.qmp {
            let (controller, machine, orders) = (&mut self.controller, &*self.machine, &mut self.orders);
            let result = result.map(|()| json!({})).map_err(|desc| (ErrorClass::GenericError, desc));
            qmp.answer(ticket, result, &mut |order| orders.act(order, controller, machine));
        }
    }

    fn timeout_ns(&self) -> Option<u64> {
        let timers = self.timers.iter().filter_map(|timer| timer.deadline_ns());
        let deadline_ns = timers.chain(self.lines.deadline_ns()).chain(self.settles_at_ns).min()?;
        Some(deadline_ns.saturating_sub(clock::monotonic_ns()))
    }

    /// Hears what was said before the machine stood still: clients are owed answers, and an order to end is obeyed.
    fn last_notices(&mut self) {
        while let Some(notice) = self.inbox.next() {
            match notice {
                Notice::Answer(ticket, result) => self.answer(ticket, result),
                Notice::Signal(signal) => drop(self.controller.signal(signal, &*self.machine)),
                Notice::Machine(_) => {}
            }
        }
    }

    /// Writes out what the guest wrote last, and what clients are still owed.
    fn take_leave(&mut self) {
        let deadline_ns = clock::monotonic_ns().saturating_add(FAREWELL_NS);
        self.last_notices();
        let mut left_ns = 0;
        loop {
            self.fds.clear();
            self.lines.interest(&mut self.fds);
            if poll(&mut self.fds, Some(left_ns)).is_err() {
                break;
            }
            let now_ns = clock::monotonic_ns();
            let turn = self.lines.turn(&self.fds, now_ns);
            if now_ns >= deadline_ns || !(turn.again || self.lines.has_output()) {
                break;
            }
            // Typed bytes and waiting clients make the poll return at once; a short sleep keeps that cheap.
            left_ns = 1_000_000;
        }
        if let Some(qmp) = &mut self.qmp {
            qmp.flush(deadline_ns.saturating_sub(clock::monotonic_ns()));
        }
    }
}

fn tell(qmp: &mut Option<QmpServer>, events: &[Event]) {
    if let Some(qmp) = qmp {
        events.iter().for_each(|event| qmp.tell(event));
    }
}

#[cfg(test)]
#[path = "main_loop_tests.rs"]
mod tests;
