//! The gate and the vCPU loop, on a CPU that does what a test says.

use std::sync::atomic::{AtomicBool, AtomicUsize};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;
use std::time::Duration;

use super::*;
use crate::hypervisor::{ExitKind, Stop};

/// What the scripted CPU did, in order.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Did {
    Boot(u8),
    WaitForSipi(u8),
    Quiesce,
    Nmi,
    NotePause,
    Run,
}

struct FakeVcpu {
    id: u8,
    log: Arc<Mutex<Vec<Did>>>,
    kicked: Arc<FakeKick>,
    stops: Receiver<Stop>,
}

#[derive(Default)]
struct FakeKick(Mutex<bool>, Condvar);

impl Kick for FakeKick {
    fn kick(&self) {
        *self.0.lock().unwrap() = true;
        self.1.notify_all();
    }
}

impl Vcpu for FakeVcpu {
    fn reset(&mut self, start: &VcpuStart) -> Result<(), HypervisorError> {
        self.log.lock().unwrap().push(match start {
            VcpuStart::Boot(_) => Did::Boot(self.id),
            VcpuStart::WaitForSipi => Did::WaitForSipi(self.id),
        });
        Ok(())
    }
    fn bind_to_current_thread(&mut self) -> Result<(), HypervisorError> {
        Ok(())
    }
    fn run(&mut self, io: &mut dyn ExitHandler) -> Result<Stop, HypervisorError> {
        self.log.lock().unwrap().push(Did::Run);
        io.count(ExitKind::Other);
        loop {
            if let Ok(stop) = self.stops.try_recv() {
                return Ok(stop);
            }
            let kicked = self.kicked.0.lock().unwrap();
            let (mut kicked, _) = self.kicked.1.wait_timeout(kicked, Duration::from_millis(1)).unwrap();
            if std::mem::take(&mut *kicked) {
                return Ok(Stop::Kicked);
            }
        }
    }
    fn quiesce(&mut self) -> Result<(), HypervisorError> {
        self.log.lock().unwrap().push(Did::Quiesce);
        Ok(())
    }
    fn kicker(&self) -> Arc<dyn Kick> {
        self.kicked.clone()
    }
    fn inject_nmi(&mut self) -> Result<(), HypervisorError> {
        self.log.lock().unwrap().push(Did::Nmi);
        Ok(())
    }
    fn note_pause(&mut self) {
        self.log.lock().unwrap().push(Did::NotePause);
    }
}

#[derive(Default)]
struct FakeOwner {
    events: Mutex<Vec<String>>,
    resets: AtomicUsize,
    /// A device reset that has to be waited for.
    parked: Option<Parked>,
    gave_up: AtomicBool,
    /// Told of every reset that is through.
    done: Mutex<Option<Sender<()>>>,
}

impl VcpuOwner for FakeOwner {
    fn event(&self, event: VcpuEvent) {
        self.events.lock().unwrap().push(format!("{event:?}"));
    }
    fn reset(&self, wait: &dyn Fn(&Parked) -> bool) -> Result<VcpuStart, HypervisorError> {
        self.resets.fetch_add(1, Ordering::SeqCst);
        if let Some(token) = &self.parked
            && !wait(token)
        {
            self.gave_up.store(true, Ordering::SeqCst);
        }
        Ok(VcpuStart::Boot(Box::default()))
    }
    fn reset_done(&self) {
        if let Some(done) = &*self.done.lock().unwrap() {
            done.send(()).unwrap();
        }
    }
}

struct Machine {
    gate: Arc<Gate>,
    owner: Arc<FakeOwner>,
    logs: Vec<Arc<Mutex<Vec<Did>>>>,
    stops: Vec<Sender<Stop>>,
    threads: Vec<JoinHandle<()>>,
}

fn machine(vcpus: u8, owner: FakeOwner) -> Machine {
    let gate = Gate::new(vcpus.into());
    let mut machine =
        Machine { gate: gate.clone(), owner: Arc::new(owner), logs: vec![], stops: vec![], threads: vec![] };
    for id in 0..vcpus {
        let (stop, stops) = channel();
        let log = Arc::new(Mutex::new(Vec::new()));
        machine.logs.push(log.clone());
        machine.stops.push(stop);
        let (gate, owner) = (gate.clone(), machine.owner.clone());
        let vcpu = Box::new(FakeVcpu { id, log, kicked: Arc::default(), stops });
        let start = if id == 0 { VcpuStart::Boot(Box::default()) } else { VcpuStart::WaitForSipi };
        machine.threads.push(std::thread::spawn(move || {
            let bus = Arc::new(Bus::new());
            let mut io = VcpuIo::new(bus.clone(), bus, Vendor::Other, Arc::default());
            run(id, vcpu, start, &gate, &*owner, &mut io);
        }));
    }
    machine
}

impl Machine {
    fn runs(&self, vcpu: usize) -> usize {
        self.logs[vcpu].lock().unwrap().iter().filter(|did| **did == Did::Run).count()
    }
    fn eventually(&self, what: &str, holds: impl Fn() -> bool) {
        for _ in 0..5_000 {
            if holds() {
                return;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        panic!("never: {what}; {:?}", self.logs);
    }
    fn stop(self) -> Arc<FakeOwner> {
        self.gate.stop();
        self.threads.into_iter().for_each(|thread| thread.join().unwrap());
        self.owner
    }
}

#[test]
fn vcpus_start_when_the_gate_opens_and_not_before() {
    let machine = machine(2, FakeOwner::default());
    std::thread::sleep(Duration::from_millis(20));
    assert_eq!(machine.runs(0) + machine.runs(1), 0);
    machine.gate.resume();
    machine.eventually("both run", || machine.runs(0) > 0 && machine.runs(1) > 0);
    machine.stop();
}

#[test]
fn a_pause_returns_only_when_every_vcpu_is_out() {
    let machine = machine(4, FakeOwner::default());
    machine.gate.resume();
    machine.eventually("all run", || (0..4).all(|vcpu| machine.runs(vcpu) > 0));
    machine.gate.pause();
    let before: Vec<_> = (0..4).map(|vcpu| machine.runs(vcpu)).collect();
    std::thread::sleep(Duration::from_millis(20));
    assert_eq!(before, (0..4).map(|vcpu| machine.runs(vcpu)).collect::<Vec<_>>());
    machine.gate.resume();
    machine.eventually("they run again", || (0..4).all(|vcpu| machine.runs(vcpu) > before[vcpu]));
    let noted = |vcpu: usize| machine.logs[vcpu].lock().unwrap().iter().filter(|did| **did == Did::NotePause).count();
    assert_eq!((0..4).map(noted).collect::<Vec<_>>(), [1; 4], "the start is no pause");
    machine.stop();
}

#[test]
fn a_reset_gathers_all_vcpus_resets_the_machine_once_and_then_every_vcpu() {
    let machine = machine(3, FakeOwner::default());
    machine.gate.resume();
    machine.eventually("all run", || (0..3).all(|vcpu| machine.runs(vcpu) > 0));
    machine.gate.reset();
    machine.eventually("the reset ends", || machine.gate.resets() == 1);
    machine.eventually("all run again", || (0..3).all(|vcpu| machine.runs(vcpu) > 1));
    let after = |vcpu: usize| {
        let log = machine.logs[vcpu].lock().unwrap();
        let quiesced = log.iter().position(|did| *did == Did::Quiesce).unwrap();
        log[quiesced + 1].clone()
    };
    assert_eq!(after(0), Did::Boot(0));
    assert_eq!(after(1), Did::WaitForSipi(1));
    assert_eq!(after(2), Did::WaitForSipi(2));
    assert_eq!(machine.stop().resets.load(Ordering::SeqCst), 1);
}

#[test]
fn a_stop_wins_over_a_reset_that_waits_for_a_device() {
    let owner = FakeOwner { parked: Some(Parked::new()), ..Default::default() };
    let machine = machine(2, owner);
    machine.gate.resume();
    machine.gate.reset();
    machine.eventually("the reset has begun", || machine.owner.resets.load(Ordering::SeqCst) == 1);
    let owner = machine.stop();
    assert!(owner.gave_up.load(Ordering::SeqCst));
}

#[test]
fn a_reset_while_paused_leaves_the_machine_paused() {
    let machine = machine(2, FakeOwner::default());
    machine.gate.reset();
    machine.eventually("the reset ends", || machine.gate.resets() == 1);
    std::thread::sleep(Duration::from_millis(20));
    assert_eq!(machine.runs(0) + machine.runs(1), 0);
    machine.stop();
}

#[test]
fn a_parked_access_keeps_its_vcpu_out_until_it_completes_and_the_others_running() {
    let machine = machine(2, FakeOwner::default());
    machine.gate.resume();
    machine.eventually("both run", || machine.runs(0) > 0 && machine.runs(1) > 0);
    let token = Parked::new();
    machine.stops[0].send(Stop::Parked(token.clone())).unwrap();
    std::thread::sleep(Duration::from_millis(20));
    let runs = machine.runs(0);
    // A kick lets it look, and it goes on waiting.
    machine.gate.inject_nmi(1);
    machine.eventually("the other takes its nmi", || machine.logs[1].lock().unwrap().contains(&Did::Nmi));
    assert_eq!(machine.runs(0), runs);
    token.complete();
    machine.eventually("it runs again", || machine.runs(0) > runs);
    machine.stop();
}

#[test]
fn a_triple_fault_is_reported_once_and_a_reset_revives_the_cpu() {
    let machine = machine(1, FakeOwner::default());
    machine.gate.resume();
    machine.stops[0].send(Stop::TripleFault).unwrap();
    machine.eventually("it is reported", || !machine.owner.events.lock().unwrap().is_empty());
    std::thread::sleep(Duration::from_millis(10));
    let runs = machine.runs(0);
    machine.gate.reset();
    machine.eventually("it runs again", || machine.runs(0) > runs);
    assert_eq!(*machine.stop().events.lock().unwrap(), ["TripleFault"]);
}

#[test]
fn an_nmi_for_a_cpu_that_does_not_exist_is_refused() {
    let machine = machine(1, FakeOwner::default());
    assert!(!machine.gate.inject_nmi(1));
    machine.stop();
}

#[test]
fn a_guest_that_asked_for_a_reset_stands_still_until_it_comes() {
    let machine = machine(2, FakeOwner::default());
    machine.gate.resume();
    machine.eventually("both run", || machine.runs(0) > 0 && machine.runs(1) > 0);
    machine.gate.freeze();
    let waiting = || machine.gate.lock().waiting;
    machine.eventually("both wait", || waiting() == 2);
    let before = (machine.runs(0), machine.runs(1));
    machine.gate.pause();
    machine.gate.resume();
    std::thread::sleep(Duration::from_millis(20));
    assert_eq!((machine.runs(0), machine.runs(1)), before, "a pause that ends does not let it go on");
    machine.gate.reset();
    machine.eventually("both run again", || machine.runs(0) > before.0 && machine.runs(1) > before.1);
    assert_eq!(machine.stop().resets.load(Ordering::SeqCst), 1);
}

/// A reset that was swallowed by the one before left the controller waiting for its end, and the guest dead, for ever.
#[test]
fn whoever_asks_for_a_reset_once_the_last_one_is_told_to_be_through_gets_another() {
    let (done, resets) = channel();
    let machine = machine(2, FakeOwner { done: Mutex::new(Some(done)), ..Default::default() });
    machine.gate.resume();
    for _ in 0..1000 {
        machine.gate.reset();
        resets.recv_timeout(std::time::Duration::from_secs(10)).expect("the end of the reset");
    }
    assert_eq!(machine.stop().resets.load(Ordering::SeqCst), 1000);
}
