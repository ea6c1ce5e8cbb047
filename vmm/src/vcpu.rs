//! The vCPU threads: run, dispatch, pause, reset, stop.
//!
//! Every vCPU thread is a loop around [`Vcpu::run`] with a [`Gate`] in front of it. Whoever wants the vCPUs to do
//! something else changes the gate and kicks them; a vCPU looks at the gate whenever it is out. So nobody but its own
//! thread ever touches a vCPU, and a stop overtakes everything that waits at the gate, a reset in progress included.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use arch::msr::{MsrVerdict, Vendor};
use devices::bus::{Access, Bus, BusView};
use devices::park::Parked;
use devices::wake::Wake;

use crate::hypervisor::{ExitHandler, ExitKind, HypervisorError, Kick, Stop, Vcpu, VcpuStart};

/// What a guest's CPUs tell the machine.
#[derive(Debug)]
pub enum VcpuEvent {
    /// A CPU shut down by triple fault.
    TripleFault,
    /// The hypervisor reports a reset that no device of ours saw.
    Reset,
    /// The hypervisor reports a power-off that no device of ours saw.
    PowerOff,
    /// The hypervisor reports that no vCPU will ever run again. Each vCPU tells.
    AllHalted,
    /// A CPU cannot go on.
    Failed(HypervisorError),
}

/// What the vCPU threads ask of the machine.
pub trait VcpuOwner: Send + Sync {
    /// Something happened that the life cycle must decide on. The vCPU waits at the gate.
    fn event(&self, event: VcpuEvent);

    /// Puts memory, devices and interrupt controllers into their state before the first instruction. All vCPUs are
    /// out. `wait` waits for a parked device reset; it returns `false` when the machine is stopping, and then the
    /// reset is to be given up.
    fn reset(&self, wait: &dyn Fn(&Parked) -> bool) -> Result<VcpuStart, HypervisorError>;

    /// The reset is through. Called before any vCPU runs again, and when [`Gate::reset`] would begin another one: told
    /// any earlier, whoever answers with a reset would have it swallowed by the one that is about to end.
    fn reset_done(&self);
}

/// Where vCPUs wait, and what for.
pub struct Gate {
    state: Mutex<GateState>,
    changed: Condvar,
    kicks: Mutex<Vec<Arc<dyn Kick>>>,
    vcpus: usize,
}

#[derive(Default)]
struct GateState {
    stopping: bool,
    paused: bool,
    /// The guest asked for its end or a reset: no instruction runs before the answer.
    frozen: bool,
    /// A reset is wanted or under way; counts up with every reset.
    reset: Option<ResetPhase>,
    resets: u64,
    /// vCPUs that wait here.
    waiting: usize,
    /// vCPUs that have reached the present phase of the reset.
    arrived: usize,
    /// vCPUs that owe the guest an NMI.
    nmi: Vec<bool>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum ResetPhase {
    /// Waiting for every vCPU to leave the guest.
    Gathering,
    /// vCPU 0 resets the machine; the others wait.
    Machine,
    /// Every vCPU resets itself.
    Vcpus,
}

/// What a vCPU does next.
enum Turn {
    Run {
        nmi: bool,
        /// The vCPU stood still by order, after it had run.
        was_paused: bool,
    },
    Reset,
    Stop,
}

impl Gate {
    /// A gate for `vcpus` CPUs, closed (paused) until [`resume`](Self::resume).
    pub fn new(vcpus: usize) -> Arc<Self> {
        let state = GateState { paused: true, nmi: vec![false; vcpus], ..Default::default() };
        Arc::new(Self { state: Mutex::new(state), changed: Condvar::new(), kicks: Mutex::default(), vcpus })
    }

    fn lock(&self) -> MutexGuard<'_, GateState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change(&self, edit: impl FnOnce(&mut GateState)) {
        edit(&mut self.lock());
        self.changed.notify_all();
        self.kick_all();
    }

    fn kick_all(&self) {
        for kick in self.kicks.lock().unwrap_or_else(PoisonError::into_inner).iter() {
            kick.kick();
        }
    }

    /// Holds all vCPUs; returns when all of them are out of the guest (or the machine is stopping).
    pub fn pause(&self) {
        self.change(|state| state.paused = true);
        let mut state = self.lock();
        while state.waiting < self.vcpus && !state.stopping && state.reset.is_none() {
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Lets the vCPUs run again.
    pub fn resume(&self) {
        // Nobody is kicked: who was held waits here, and who was not may go on.
        self.lock().paused = false;
        self.changed.notify_all();
    }

    /// Keeps all vCPUs out of the guest until a reset or a stop: the guest has asked for one or the other, and must not
    /// run on into whatever follows such a request (Linux tries the next way, the last of which is a triple fault).
    pub fn freeze(&self) {
        self.change(|state| state.frozen = true);
    }

    /// Has the machine reset; one reset serves every request that comes while it runs.
    pub fn reset(&self) {
        self.change(|state| {
            if state.reset.is_none() {
                state.reset = Some(ResetPhase::Gathering);
                state.arrived = 0;
            }
        });
    }

    /// Ends all vCPU threads, whatever they wait for.
    pub fn stop(&self) {
        self.change(|state| state.stopping = true);
    }

    /// Has vCPU `id` take a non-maskable interrupt; `false` where there is none.
    pub fn inject_nmi(&self, id: usize) -> bool {
        let mut known = false;
        self.change(|state| {
            if let Some(owed) = state.nmi.get_mut(id) {
                *owed = true;
                known = true;
            }
        });
        known
    }

    /// Resets completed since the start.
    pub fn resets(&self) -> u64 {
        self.lock().resets
    }

    /// Waits until vCPU `id` has something to do. `held` keeps it out of the guest: a parked access that is not
    /// complete, or a CPU that has shut down.
    fn turn(&self, id: usize, held: &dyn Fn() -> bool) -> Turn {
        let mut state = self.lock();
        state.waiting += 1;
        // Tell a pause that waits for the last vCPU.
        self.changed.notify_all();
        let mut was_paused = false;
        let turn = loop {
            was_paused |= state.paused;
            if state.stopping {
                break Turn::Stop;
            }
            if state.reset.is_some() {
                break Turn::Reset;
            }
            if !state.paused && !state.frozen && !held() {
                break Turn::Run { nmi: std::mem::take(&mut state.nmi[id]), was_paused };
            }
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        };
        state.waiting -= 1;
        turn
    }

    /// Arrives at the present phase; the last one to arrive moves everybody to `next`, and tells the owner when that is
    /// the end. Returns `false` when the machine is stopping.
    fn arrive(&self, phase: ResetPhase, next: Option<ResetPhase>, owner: &dyn VcpuOwner) -> bool {
        let mut state = self.lock();
        state.arrived += 1;
        if state.arrived == self.vcpus {
            state.arrived = 0;
            state.reset = next;
            if next.is_none() {
                state.resets += 1;
                state.frozen = false;
                state.nmi.fill(false);
                owner.reset_done();
            }
            self.changed.notify_all();
        }
        while state.reset == Some(phase) && !state.stopping {
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        !state.stopping
    }

    /// vCPU 0 has reset the machine.
    fn machine_is_reset(&self) {
        let mut state = self.lock();
        state.reset = Some(ResetPhase::Vcpus);
        state.arrived = 0;
        self.changed.notify_all();
    }

    /// Waits while vCPU 0 resets the machine; `false` when stopping.
    fn wait_for_machine(&self) -> bool {
        let mut state = self.lock();
        while state.reset == Some(ResetPhase::Machine) && !state.stopping {
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        !state.stopping
    }

    /// A vCPU that failed waits here: others may wait for it at the gate, only a stop can follow, and nobody may wait
    /// for a dead thread.
    fn wait_for_stop(&self) {
        let mut state = self.lock();
        state.waiting += 1;
        self.changed.notify_all();
        while !state.stopping {
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Waits for a parked access of the reset itself; `false` when the machine is stopping.
    fn wait_for(&self, token: &Parked) -> bool {
        let mut state = self.lock();
        while !token.is_complete() && !state.stopping {
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        !state.stopping
    }
}

impl Wake for Gate {
    fn wake(&self) {
        // Under the lock, so that a waiter between its check and its sleep does not miss it.
        drop(self.lock());
        self.changed.notify_all();
    }
}

/// Counters of one vCPU, written by its thread alone.
#[derive(Default)]
pub struct VcpuCounters {
    exits: [AtomicU64; ExitKind::ALL.len()],
}

impl VcpuCounters {
    /// Returns to the process by kind.
    pub fn snapshot(&self) -> impl Iterator<Item = (&'static str, u64)> + '_ {
        ExitKind::ALL.iter().zip(&self.exits).map(|((_, name), count)| (*name, count.load(Ordering::Relaxed)))
    }
}

/// Dispatches one vCPU's exits to the buses.
pub struct VcpuIo {
    ports: BusView,
    memory: BusView,
    vendor: Vendor,
    counters: Arc<VcpuCounters>,
}

impl VcpuIo {
    /// A dispatcher with its own view of both buses.
    pub fn new(ports: Arc<Bus>, memory: Arc<Bus>, vendor: Vendor, counters: Arc<VcpuCounters>) -> Self {
        Self { ports: BusView::new(ports), memory: BusView::new(memory), vendor, counters }
    }
}

impl ExitHandler for VcpuIo {
    fn port_in(&mut self, port: u16, data: &mut [u8]) -> Access {
        let access = self.ports.read(port.into(), data);
        log::trace!("in {port:#x} -> {data:02x?}");
        access
    }

    fn port_out(&mut self, port: u16, data: &[u8]) -> Access {
        log::trace!("out {port:#x} <- {data:02x?}");
        self.ports.write(port.into(), data)
    }

    fn mmio_read(&mut self, address: u64, data: &mut [u8]) -> Access {
        let access = self.memory.read(address, data);
        log::trace!("read {address:#x} -> {data:02x?}");
        access
    }

    fn mmio_write(&mut self, address: u64, data: &[u8]) -> Access {
        log::trace!("write {address:#x} <- {data:02x?}");
        self.memory.write(address, data)
    }

    fn rdmsr(&mut self, code: u32) -> Option<u64> {
        arch::msr::unknown_rdmsr(code, self.vendor)
    }

    fn wrmsr(&mut self, code: u32, value: u64) -> bool {
        arch::msr::unknown_wrmsr(code, value, self.vendor) == MsrVerdict::Ignore
    }

    fn count(&mut self, exit: ExitKind) {
        // One writer: no read-modify-write instruction is needed.
        let counter = &self.counters.exits[exit as usize];
        counter.store(counter.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
    }
}

/// The body of vCPU thread `id`: returns when the machine stops.
pub fn run(
    id: u8,
    mut vcpu: Box<dyn Vcpu>,
    start: VcpuStart,
    gate: &Arc<Gate>,
    owner: &dyn VcpuOwner,
    io: &mut dyn ExitHandler,
) {
    if let Err(error) = vcpu.bind_to_current_thread() {
        owner.event(VcpuEvent::Failed(error));
        gate.wait_for_stop();
        return;
    }
    gate.kicks.lock().unwrap_or_else(PoisonError::into_inner).push(vcpu.kicker());
    let mut thread =
        Thread { id: id.into(), vcpu: &mut *vcpu, gate, owner, shut_down: false, parked: None, has_run: false };
    let failed = match thread.vcpu.reset(&start) {
        Ok(()) => thread.run(io).err(),
        Err(error) => Some(error),
    };
    if let Some(error) = failed {
        owner.event(VcpuEvent::Failed(error));
        gate.wait_for_stop();
    }
}

struct Thread<'a> {
    id: usize,
    vcpu: &'a mut dyn Vcpu,
    gate: &'a Arc<Gate>,
    owner: &'a dyn VcpuOwner,
    /// The CPU cannot run before a reset.
    shut_down: bool,
    parked: Option<Parked>,
    has_run: bool,
}

impl Thread<'_> {
    fn run(&mut self, io: &mut dyn ExitHandler) -> Result<(), HypervisorError> {
        loop {
            let (shut_down, parked) = (self.shut_down, self.parked.as_ref());
            let was_held = || shut_down || parked.is_some_and(|token| !token.is_complete());
            match self.gate.turn(self.id, &was_held) {
                Turn::Stop => return Ok(()),
                Turn::Reset => {
                    if !self.reset()? {
                        return Ok(());
                    }
                    continue;
                }
                Turn::Run { nmi, was_paused } => {
                    self.parked = None;
                    if was_paused && self.has_run {
                        self.vcpu.note_pause();
                    }
                    self.has_run = true;
                    if nmi {
                        self.vcpu.inject_nmi()?;
                    }
                }
            }
            let event = match self.vcpu.run(io)? {
                Stop::Kicked => continue,
                Stop::Parked(token) => {
                    token.wake_on_complete(self.gate.clone());
                    self.parked = Some(token);
                    continue;
                }
                // A halted CPU with nothing to wake it waits for a reset like one that shut down.
                Stop::Halt => {
                    self.shut_down = true;
                    continue;
                }
                Stop::AllHalted => VcpuEvent::AllHalted,
                Stop::TripleFault => VcpuEvent::TripleFault,
                Stop::Reset => VcpuEvent::Reset,
                Stop::PowerOff => VcpuEvent::PowerOff,
            };
            self.shut_down = true;
            self.owner.event(event);
        }
    }

    /// This vCPU's part of a machine reset; `false` when the machine is stopping.
    fn reset(&mut self) -> Result<bool, HypervisorError> {
        // What the last exit still owes the vCPU must be consumed before its state is replaced.
        self.vcpu.quiesce()?;
        if !self.gate.arrive(ResetPhase::Gathering, Some(ResetPhase::Machine), self.owner) {
            return Ok(false);
        }
        let mut start = VcpuStart::WaitForSipi;
        if self.id == 0 {
            let gate = self.gate.clone();
            let wait = |token: &Parked| {
                token.wake_on_complete(gate.clone());
                gate.wait_for(token)
            };
            start = self.owner.reset(&wait)?;
            self.gate.machine_is_reset();
        } else if !self.gate.wait_for_machine() {
            return Ok(false);
        }
        self.vcpu.reset(&start)?;
        self.parked = None;
        self.shut_down = false;
        Ok(self.gate.arrive(ResetPhase::Vcpus, None, self.owner))
    }
}

#[cfg(test)]
mod tests;
