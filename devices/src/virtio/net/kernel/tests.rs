use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Mutex};

use super::*;
use crate::GuestRam;
use crate::virtio::net::{NetConfig, NetDevice};
use crate::virtio::pci::{Doorbell, Doorbells, QueueMessages};
use crate::virtio::testing::{DriverQueue, RecordingInterrupt, guest_ram};
use crate::virtio::{VirtioDevice, VirtioWorker};
use crate::wake::WakeCounter;

const VERSION_1: u64 = 1 << 32;
/// `VIRTIO_NET_F_CTRL_MAC_ADDR`.
const CTRL_MAC_ADDR: u64 = 1 << 23;
const SIZE: u16 = 16;
const WINDOW: Window = Window::Mmio { address: 0xe000_3000, len_bytes: 8 };

/// A kernel that remembers what it was asked.
#[derive(Default)]
struct Fake {
    calls: Mutex<Vec<String>>,
    /// What the next initialisation says.
    answer: Mutex<Option<KernelError>>,
    /// What a call without an answer has met.
    failure: Mutex<Option<String>>,
    /// Interrupts that wait, a bit each.
    waiting: AtomicU64,
    /// Rings it has given up, a bit each, where it says so.
    broken: AtomicU64,
    tells: AtomicBool,
}

impl Fake {
    fn note(&self, call: impl Into<String>) {
        self.calls.lock().unwrap().push(call.into());
    }

    fn take(&self) -> Vec<String> {
        std::mem::take(&mut *self.calls.lock().unwrap())
    }
}

impl KernelQueues for Fake {
    fn features(&self) -> u64 {
        1 | 1 << 15 | CTRL_MAC_ADDR | 1 << 28 | 1 << 29
    }

    fn accept(&self, features: u64) -> Result<(), KernelError> {
        self.note(format!("accept {features:#x}"));
        Ok(())
    }

    fn use_pairs(&self, pairs: u16) -> Result<(), KernelError> {
        self.note(format!("use {pairs}"));
        self.answer.lock().unwrap().take().map_or(Ok(()), Err)
    }

    fn init(&self, queue: u16, ring: &QueueState, legacy: bool) -> Result<(), KernelError> {
        self.note(format!(
            "init {queue} at {} {}{}",
            ring.next_avail,
            ring.next_used,
            if legacy { " legacy" } else { "" }
        ));
        self.answer.lock().unwrap().take().map_or(Ok(()), Err)
    }

    fn kick(&self, queue: u16) {
        self.note(format!("kick {queue}"));
    }

    fn set_msi(&self, queue: u16, message: Option<MsiMessage>) {
        self.note(format!("msi {queue} {:?}", message.map(|message| message.data)));
    }

    fn pause(&self, queue: u16) -> Result<(), KernelError> {
        self.note(format!("pause {queue}"));
        Ok(())
    }

    fn state(&self, queue: u16) -> Result<(u16, u16), KernelError> {
        self.note(format!("state {queue}"));
        Ok((7 + queue, 5 + queue))
    }

    fn reset(&self, queue: u16) {
        self.note(format!("reset {queue}"));
    }

    fn notify_window(&self, window: Option<Window>) {
        self.note(format!("window {window:x?}"));
    }

    fn poll(&self, raised: &mut dyn FnMut(u16)) {
        let waiting = self.waiting.swap(0, SeqCst);
        self.note("poll");
        (0..64).filter(|queue| waiting >> queue & 1 != 0).for_each(raised);
    }

    fn tells_of_broken(&self) -> bool {
        self.tells.load(SeqCst)
    }

    fn take_broken(&self, broken: &mut dyn FnMut(u16)) {
        let bits = self.broken.swap(0, SeqCst);
        (0..64).filter(|queue| bits >> queue & 1 != 0).for_each(broken);
    }

    fn set_reception(&self, reception: &Reception) {
        self.note(match reception {
            Reception { others: true, .. } => "all frames".to_owned(),
            Reception { groups: Groups::All, .. } => "all groups".to_owned(),
            Reception { groups: Groups::Only(groups), .. } => format!("groups {groups:x?}"),
        });
    }

    fn set_address(&self, mac: [u8; 6]) -> Result<(), KernelError> {
        self.note(format!("address {mac:x?}"));
        self.answer.lock().unwrap().take().map_or(Ok(()), Err)
    }

    fn failure(&self) -> Option<String> {
        self.failure.lock().unwrap().take()
    }
}

struct Rig {
    mem: GuestRam,
    kernel: Arc<Fake>,
    wake: Arc<WakeCounter>,
    device: KernelNet,
    carried: Arc<Carried>,
    worker: KernelWorker,
    interrupt: Arc<RecordingInterrupt>,
}

fn rig() -> Rig {
    rig_with(1)
}

fn rig_with(pairs: u16) -> Rig {
    let config =
        NetConfig { mac: [2; 6], mtu: None, offloads: true, queue_size: SIZE, speed_mbits: None, duplex: None };
    let (kernel, wake) = (Arc::new(Fake::default()), Arc::new(WakeCounter::default()));
    let receivers = (0..pairs).map(|_| wake.clone() as Arc<dyn crate::wake::Wake>).collect();
    let device = KernelNet::new(NetDevice::new(config).with_pairs(receivers), &*kernel);
    let carried = Carried::new(kernel.clone(), device.data_queues(), wake.clone());
    let worker = device.worker(carried.clone(), &[]);
    Rig { mem: guest_ram(0x80_0000), kernel, wake, device, carried, worker, interrupt: RecordingInterrupt::new() }
}

impl Rig {
    /// The same card with every frame of the network.
    fn promiscuous(self) -> Self {
        let device = self.device.promiscuous(true);
        let carried = Carried::new(self.kernel.clone(), device.data_queues(), self.wake.clone());
        let worker = device.worker(carried.clone(), &[]);
        Self { device, carried, worker, ..self }
    }

    fn ring_at(&self, notify: Option<u64>) {
        for queue in 0..3u16 {
            let at = notify.map(|at| Doorbell::Mmio { address: at + 4 * u64::from(queue), len: 2 });
            Doorbells::place(&*self.carried, queue, at);
        }
    }

    fn message(&self, queue: u16, data: Option<u32>) {
        let message = data.map(|data| MsiMessage { address: 0xfee0_0000, data });
        QueueMessages::place(&*self.carried, queue, message);
    }

    fn states(&self) -> Vec<(u16, QueueState)> {
        (0..=self.device.data_queues())
            .map(|queue| (queue, DriverQueue::new(&self.mem, u64::from(1 + queue) << 20, SIZE, VERSION_1).state()))
            .collect()
    }

    fn start(&mut self, states: &[(u16, QueueState)]) {
        let activation = self.interrupt.activation(self.device.features() | VERSION_1);
        for (queue, state) in states {
            self.worker.start(&self.mem, *queue, *state, &activation);
        }
    }

    fn stop(&mut self, abandon: bool) -> Vec<(u16, QueueState)> {
        self.worker.begin_stop(&self.mem);
        assert!(self.worker.poll_stopped(&self.mem, abandon));
        (0..3)
            .filter_map(|queue| Some((queue, VirtioWorker::<GuestRam>::take_state(&mut self.worker, queue)?)))
            .collect()
    }
}

#[test]
fn a_ring_begins_with_features_place_message_doorbell_and_one_kick_and_ends_the_other_way_round() {
    let mut rig = rig();
    rig.message(0, Some(0x40));
    rig.ring_at(Some(0xe000_3000));
    assert_eq!(rig.kernel.take(), [""; 0], "there is no ring yet");
    let features = rig.device.features() | VERSION_1;
    rig.start(&rig.states());
    let window = format!("window Some({WINDOW:x?})");
    let accept = format!("accept {features:#x}");
    assert_eq!(
        rig.kernel.take(),
        [&accept, "init 0 at 0 0", "msi 0 Some(64)", &window, "kick 0", "init 1 at 0 0", "kick 1"]
    );
    let states = rig.stop(false);
    let end = ["window None", "pause 0", "state 0", "reset 0", "pause 1", "state 1", "reset 1"];
    assert_eq!(rig.kernel.take(), end);
    rig.start(&states);
    assert_eq!(
        rig.kernel.take(),
        [&accept, "init 0 at 7 5", "msi 0 Some(64)", &window, "kick 0", "init 1 at 8 6", "kick 1"]
    );
    assert_eq!(rig.stop(true).len(), 1, "the control queue has a state, and nobody asks for it");
    assert_eq!(rig.kernel.take(), ["window None", "reset 0", "reset 1"]);
}

#[test]
fn the_window_follows_the_bar_and_is_the_kernels_while_a_ring_runs() {
    let mut rig = rig();
    rig.start(&rig.states());
    rig.kernel.take();
    rig.ring_at(Some(0xe000_3000));
    rig.ring_at(Some(0xe010_3000));
    let moved = Window::Mmio { address: 0xe010_3000, len_bytes: 8 };
    // Of one move the kernel hears once.
    assert_eq!(rig.kernel.take(), [format!("window Some({WINDOW:x?})"), format!("window Some({moved:x?})")]);
    rig.ring_at(None);
    assert_eq!(rig.kernel.take(), ["window None"]);
    Doorbells::place(&*rig.carried, 1, Some(Doorbell::Pio { port: 0xc010, datamatch: 1 }));
    Doorbells::place(&*rig.carried, 2, Some(Doorbell::Pio { port: 0xd010, datamatch: 2 }));
    assert_eq!(rig.kernel.take(), [format!("window Some({:x?})", Window::Port(0xc010))], "the control queue's is ours");
    // An address that no window fits before is none.
    Doorbells::place(&*rig.carried, 1, Some(Doorbell::Mmio { address: 3, len: 2 }));
    assert_eq!(rig.kernel.take(), ["window None"]);
    rig.ring_at(Some(0xe000_3000));
    rig.kernel.take();
    assert!(rig.worker.reset_queue(&rig.mem, 0));
    assert_eq!(rig.kernel.take(), ["reset 0"], "the other one goes on");
    assert!(rig.worker.reset_queue(&rig.mem, 1));
    assert_eq!(rig.kernel.take(), ["window None", "reset 1"]);
}

#[test]
fn a_message_goes_to_the_kernel_at_once_and_without_one_the_worker_looks() {
    let mut rig = rig();
    rig.start(&rig.states());
    rig.kernel.take();
    assert!(rig.worker.step(&rig.mem).want_readable);
    rig.message(0, Some(0x40));
    rig.message(1, Some(0x41));
    assert_eq!(rig.kernel.take(), ["poll", "msi 0 Some(64)", "msi 1 Some(65)"]);
    assert_eq!(rig.wake.take(), 2);
    // What waited when the message came is nobody else's to find.
    rig.kernel.waiting.store(0b1010, SeqCst);
    assert!(!rig.worker.step(&rig.mem).want_readable);
    assert_eq!((rig.kernel.take(), rig.interrupt.take_used()), (vec!["poll".to_owned()], vec![1]));
    rig.worker.step(&rig.mem);
    assert_eq!(rig.kernel.take(), [""; 0]);
    rig.message(1, None);
    rig.message(2, Some(0x42));
    assert_eq!((rig.kernel.take(), rig.wake.take()), (vec!["msi 1 None".to_owned()], 1));
    assert!(rig.worker.step(&rig.mem).want_readable);
}

#[test]
fn only_a_running_ring_is_kicked() {
    let mut rig = rig();
    for queue in [0, 1, 2, 63, 64, u16::MAX] {
        rig.carried.note_kick(queue);
    }
    rig.worker.step(&rig.mem);
    assert_eq!(rig.kernel.take(), [""; 0]);
    rig.start(&rig.states());
    rig.message(0, Some(0x40));
    rig.message(1, Some(0x40));
    rig.worker.step(&rig.mem);
    rig.kernel.take();
    rig.carried.note_kick(1);
    rig.carried.note_kick(1);
    rig.worker.step(&rig.mem);
    rig.worker.step(&rig.mem);
    assert_eq!(rig.kernel.take(), ["kick 1"]);
}

#[test]
fn a_ring_the_kernel_does_not_take_is_the_drivers_to_mend() {
    let mut rig = rig();
    *rig.kernel.answer.lock().unwrap() = Some(KernelError::Ring("EINVAL".to_owned()));
    rig.start(&rig.states());
    let told = rig.interrupt.take_needs_reset();
    assert_eq!(told.len(), 1);
    assert_eq!((told[0].queue, told[0].reason.as_str()), (0, "EINVAL"));
    assert!(rig.device.card().is_up());
}

#[test]
fn a_ring_the_kernel_gives_up_is_reset_and_the_drivers_to_mend_while_the_others_go_on() {
    let mut rig = rig();
    rig.kernel.tells.store(true, SeqCst);
    assert!(!rig.worker.step(&rig.mem).want_readable, "no ring can break");
    rig.ring_at(Some(0xe000_3000));
    rig.message(0, Some(0x40));
    rig.message(1, Some(0x41));
    rig.start(&rig.states());
    assert!(rig.worker.step(&rig.mem).want_readable, "messages or not");
    rig.kernel.take();
    rig.kernel.broken.store(0b1010, SeqCst);
    assert!(rig.worker.step(&rig.mem).want_readable);
    let told = rig.interrupt.take_needs_reset();
    assert_eq!(told.iter().map(|told| told.queue).collect::<Vec<_>>(), [1], "the other one is none of its own");
    assert_eq!(rig.kernel.take(), ["reset 1", "poll"]);
    rig.carried.note_kick(0);
    rig.carried.note_kick(1);
    rig.worker.step(&rig.mem);
    assert_eq!(rig.kernel.take(), ["poll", "kick 0"]);
    rig.kernel.broken.store(1, SeqCst);
    assert!(!rig.worker.step(&rig.mem).want_readable);
    assert_eq!(rig.kernel.take(), ["window None", "reset 0"]);
    rig.stop(true);
    VirtioWorker::<GuestRam>::forget_driver(&mut rig.worker);
    rig.kernel.take();
    rig.start(&rig.states());
    assert!(rig.kernel.take().contains(&"init 1 at 0 0".to_owned()));
}

#[test]
fn a_kernel_that_fails_is_a_link_that_is_down_until_a_driver_begins_anew() {
    let mut rig = rig();
    *rig.kernel.answer.lock().unwrap() = Some(KernelError::Failed("gone".to_owned()));
    rig.start(&rig.states());
    assert!(!rig.device.card().is_up());
    assert_eq!(rig.interrupt.take_config_changes(), 1);
    rig.worker.step(&rig.mem);
    let calls = rig.kernel.take();
    assert!(!calls.contains(&"init 1 at 0 0".to_owned()), "{calls:?}");
    rig.stop(true);
    VirtioWorker::<GuestRam>::forget_driver(&mut rig.worker);
    assert!(rig.device.card().is_up());
    rig.start(&rig.states());
    assert!(rig.kernel.take().contains(&"init 1 at 0 0".to_owned()));
}

/// Has the driver use so many pairs; the card's answer.
fn use_pairs(rig: &mut Rig, pairs: u16) -> u8 {
    command(rig, &[&[4, 0], &pairs.to_le_bytes()[..]].concat())
}

/// Carries out a command on a control queue that begins with it; the card's answer.
fn command(rig: &mut Rig, bytes: &[u8]) -> u8 {
    let at = u64::from(1 + rig.device.data_queues()) << 20;
    let state = DriverQueue::new(&rig.mem, at, SIZE, VERSION_1).state();
    let interrupt = rig.interrupt.activation(rig.device.features() | VERSION_1);
    rig.worker.start(&rig.mem, rig.device.data_queues(), state, &interrupt);
    let mut control = DriverQueue::new(&rig.mem, at, SIZE, VERSION_1);
    let posted =
        control.post(&[crate::virtio::testing::Buf::Read(bytes.to_vec()), crate::virtio::testing::Buf::Write(1)]);
    control.publish();
    rig.worker.step(&rig.mem);
    assert_eq!(control.used().len(), 1);
    control.read(posted.buffers[1])[0]
}

#[test]
fn the_kernel_hears_how_many_pairs_a_driver_uses_and_what_it_refuses_the_driver_hears() {
    let mut rig = rig_with(2);
    assert_eq!(rig.device.features() & 1 << 22, 1 << 22);
    rig.start(&rig.states());
    let inits = |calls: Vec<String>| calls.into_iter().filter(|call| call.starts_with("init")).collect::<Vec<_>>();
    assert_eq!(inits(rig.kernel.take()), ["init 0 at 0 0", "init 1 at 0 0", "init 2 at 0 0", "init 3 at 0 0"]);
    assert_eq!((use_pairs(&mut rig, 2), rig.device.card().pairs_in_use()), (0, 2));
    // Interrupts first, as those of a pair that goes out of use could not be asked for any more.
    assert_eq!(rig.kernel.take(), ["poll", "use 2"]);
    *rig.kernel.answer.lock().unwrap() = Some(KernelError::Failed("no".to_owned()));
    assert_eq!((use_pairs(&mut rig, 1), rig.device.card().pairs_in_use()), (1, 2));
    assert!(rig.device.card().is_up());
    // Rings that begin anew go on with what the driver has asked for, and another driver's do not.
    let states = rig.stop(false);
    rig.kernel.take();
    rig.start(&states);
    let calls = rig.kernel.take();
    assert_eq!(calls[1..3], ["use 2", "init 0 at 7 5"], "{calls:?}");
    rig.stop(true);
    VirtioWorker::<GuestRam>::forget_driver(&mut rig.worker);
    rig.kernel.take();
    rig.start(&rig.states());
    let calls = rig.kernel.take();
    assert_eq!(calls[1], "init 0 at 0 0", "{calls:?}");
    // While the link is down there is nobody to tell.
    rig.device.card().set_link(false);
    rig.worker.step(&rig.mem);
    rig.kernel.take();
    assert_eq!(use_pairs(&mut rig, 2), 0);
    assert!(!rig.kernel.take().contains(&"use 2".to_owned()));
    rig.device.card().set_link(true);
    rig.worker.step(&rig.mem);
    assert!(rig.kernel.take().contains(&"use 2".to_owned()));
}

/// `VIRTIO_NET_CTRL_MAC_TABLE_SET` without an address of a single station.
fn table(groups: &[[u8; 6]]) -> Vec<u8> {
    [&[1, 0, 0, 0, 0, 0][..], &(groups.len() as u32).to_le_bytes(), &groups.concat()].concat()
}

#[test]
fn the_kernel_hears_which_groups_a_driver_wants_once_that_has_said_so() {
    let mut rig = rig();
    rig.start(&rig.states());
    rig.worker.step(&rig.mem);
    let asked = |rig: &mut Rig, bytes: &[u8]| {
        assert_eq!(command(rig, bytes), 0);
        let calls = rig.kernel.take();
        calls.into_iter().filter(|call| call.starts_with("groups") || call.starts_with("all ")).collect::<Vec<_>>()
    };
    let groups = [[1, 0, 0x5e, 0, 0, 2], [1, 0, 0x5e, 0, 0, 1]];
    assert_eq!(asked(&mut rig, &table(&groups)), [""; 0], "a driver that names some without a word about all of them");
    let in_order = "groups [[1, 0, 5e, 0, 0, 1], [1, 0, 5e, 0, 0, 2]]";
    assert_eq!(asked(&mut rig, &[0, 1, 0]), [in_order]);
    assert_eq!(asked(&mut rig, &table(&groups)), [""; 0], "the same again");
    // Twice, that of all stations, and one of a single station: what is left is told.
    assert_eq!(asked(&mut rig, &table(&[groups[1], [0xff; 6], groups[1], [2; 6]])), ["groups [[1, 0, 5e, 0, 0, 1]]"]);
    assert_eq!(asked(&mut rig, &table(&[])), ["groups []"]);
    assert_eq!(asked(&mut rig, &[0, 0, 1]), ["all frames"]);
    assert_eq!(asked(&mut rig, &table(&groups)), [""; 0], "no matter meanwhile");
    assert_eq!(asked(&mut rig, &[0, 0, 0]), [in_order]);
    let many: Vec<_> = (0..65).map(|last| [1, 0, 0x5e, 0, 0, last]).collect();
    assert_eq!(asked(&mut rig, &table(&many)), ["all groups"], "more than anybody could tell apart");
    assert!(asked(&mut rig, &table(&many[1..]))[0].starts_with("groups [[1, 0, 5e, 0, 0, 1], "));
    assert_eq!(asked(&mut rig, &[0, 1, 1]), ["all groups"]);
    assert_eq!(asked(&mut rig, &[0, 1, 0]).len(), 1);
    rig.stop(true);
    VirtioWorker::<GuestRam>::forget_driver(&mut rig.worker);
    assert!(rig.kernel.take().contains(&"all groups".to_owned()), "the next driver has not said anything");
}

#[test]
fn a_driver_gives_the_card_another_address_where_the_operator_lets_it_have_every_frame() {
    let mut rig = rig();
    rig.start(&rig.states());
    let other = [&[1, 1][..], &[2, 0, 0, 0, 0, 9]].concat();
    assert_eq!((command(&mut rig, &other), rig.device.features() & CTRL_MAC_ADDR), (1, 0));
    let mut rig = rig.promiscuous();
    assert_eq!(rig.device.features() & CTRL_MAC_ADDR, CTRL_MAC_ADDR);
    rig.start(&rig.states());
    assert!(rig.kernel.take().contains(&"all frames".to_owned()), "before any address changes");
    assert_eq!(command(&mut rig, &other), 0);
    let address = |rig: &Rig| {
        let mut mac = [0; 6];
        rig.device.read_config(0, &mut mac);
        mac
    };
    let now = [2, 0, 0, 0, 0, 9];
    assert_eq!((rig.kernel.take().contains(&format!("address {now:x?}")), address(&rig)), (true, now));
    *rig.kernel.answer.lock().unwrap() = Some(KernelError::Failed("no".to_owned()));
    assert_eq!((command(&mut rig, &[&[1, 1][..], &[4; 6]].concat()), address(&rig)), (1, now));
    assert_eq!(command(&mut rig, &[&[1, 1][..], &[1; 6]].concat()), 1, "that of a group");
    let saved = VirtioWorker::<GuestRam>::save(&rig.worker);
    rig.stop(true);
    rig.kernel.take();
    VirtioWorker::<GuestRam>::forget_driver(&mut rig.worker);
    assert_eq!((rig.kernel.take(), address(&rig)), (vec![format!("address {:x?}", [2; 6])], [2; 6]));
    VirtioWorker::<GuestRam>::restore(&mut rig.worker, &saved).unwrap();
    assert_eq!((rig.kernel.take(), address(&rig)), (vec![format!("address {now:x?}")], now));
}

#[test]
fn a_call_that_failed_without_an_answer_ends_the_link_until_a_driver_begins_anew() {
    let mut rig = rig();
    let fails = |rig: &Rig| *rig.kernel.failure.lock().unwrap() = Some("gone".to_owned());
    rig.start(&rig.states());
    fails(&rig);
    rig.kernel.take();
    rig.worker.step(&rig.mem);
    assert!(!rig.device.card().is_up());
    assert_eq!(rig.interrupt.take_config_changes(), 1);
    let calls = rig.kernel.take();
    assert!(calls.contains(&"reset 0".to_owned()) && calls.contains(&"reset 1".to_owned()), "{calls:?}");
    assert!(!rig.worker.step(&rig.mem).want_readable, "no ring, so nothing to look for");
    // What is met after that, and on the way out, is nothing new.
    fails(&rig);
    rig.worker.step(&rig.mem);
    assert_eq!(rig.interrupt.take_config_changes(), 0);
    fails(&rig);
    rig.stop(true);
    VirtioWorker::<GuestRam>::forget_driver(&mut rig.worker);
    rig.start(&rig.states());
    rig.worker.step(&rig.mem);
    assert!(rig.device.card().is_up());
}

#[test]
fn a_saved_card_knows_what_its_driver_asked_for() {
    let mut rig = rig();
    let untouched = VirtioWorker::<GuestRam>::save(&rig.worker);
    rig.start(&rig.states());
    let mut control = DriverQueue::new(&rig.mem, 3 << 20, SIZE, VERSION_1);
    control.post(&[crate::virtio::testing::Buf::Read(vec![0, 0, 1]), crate::virtio::testing::Buf::Write(1)]);
    control.publish();
    rig.kernel.take();
    rig.worker.step(&rig.mem);
    assert!(rig.kernel.take().contains(&"all frames".to_owned()));
    let saved = VirtioWorker::<GuestRam>::save(&rig.worker);
    let mut other = self::rig();
    VirtioWorker::<GuestRam>::restore(&mut other.worker, &saved).unwrap();
    other.start(&other.states());
    other.worker.step(&other.mem);
    assert!(other.kernel.take().contains(&"all frames".to_owned()));
    other.stop(true);
    VirtioWorker::<GuestRam>::forget_driver(&mut other.worker);
    assert!(other.kernel.take().contains(&"all groups".to_owned()));
    assert_eq!(VirtioWorker::<GuestRam>::save(&other.worker), untouched);
}
