//! A machine that does nothing, remembers what it was asked to do, and is made of what clients may be shown.

use std::sync::{LazyLock, Mutex, MutexGuard, PoisonError};

use devices::virtio::blk::OpsSnapshot;
use serde_json::{Value, json};
use zvmm::control::inventory::{BarFacts, CharacterFacts, DiskFacts, Inventory, NetFacts, PciFacts, VcpuFacts};
use zvmm::control::{Chord, DiskResize, LinkChange, Machine, Ticket};

/// What a machine was asked to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Call {
    Pause,
    Resume,
    PowerButton,
    Reset,
    Stop,
    TrustDisks,
    Nmi(u8),
    Keys(Chord),
    Link(LinkChange),
    Resize(DiskResize, Ticket),
}

/// The machine.
pub struct Board {
    parts: &'static Inventory,
    has_keyboard: bool,
    said: Mutex<Said>,
}

#[derive(Default)]
struct Said {
    calls: Vec<Call>,
    pulled: Vec<String>,
}

impl Board {
    /// One of a few: zero is one that has everything.
    pub fn new(knob: u8) -> Self {
        let parts = &MACHINES[usize::from(knob & 3)];
        Self { parts, has_keyboard: knob & 4 == 0, said: Mutex::default() }
    }

    /// How many vCPUs there are.
    pub fn vcpus(&self) -> u8 {
        self.parts.vcpus.len().try_into().expect("few vCPUs")
    }

    /// Whether keys can be pressed.
    pub fn has_keyboard(&self) -> bool {
        self.has_keyboard
    }

    /// Whether there is a disk of that name.
    pub fn has_disk(&self, id: &str) -> bool {
        self.parts.disks.iter().any(|disk| disk.id == id)
    }

    /// Whether there is an interface of that name.
    pub fn has_net(&self, id: &str) -> bool {
        self.parts.nets.iter().any(|net| net.id == id)
    }

    /// What it was asked since the last time.
    pub fn take_calls(&self) -> Vec<Call> {
        std::mem::take(&mut self.said().calls)
    }

    fn said(&self) -> MutexGuard<'_, Said> {
        self.said.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn note(&self, call: Call) {
        self.said().calls.push(call);
    }
}

impl Machine for Board {
    fn pause(&self) {
        self.note(Call::Pause);
    }

    fn resume(&self) {
        self.note(Call::Resume);
    }

    fn press_power_button(&self) {
        self.note(Call::PowerButton);
    }

    fn reset(&self) {
        self.note(Call::Reset);
    }

    fn stop(&self) {
        self.note(Call::Stop);
    }

    fn join(&self) {}

    fn trust_disks(&self) {
        self.note(Call::TrustDisks);
    }

    fn inject_nmi(&self, vcpu: u8) {
        self.note(Call::Nmi(vcpu));
    }

    fn stats(&self) -> Value {
        json!({"vcpus": self.parts.vcpus.len()})
    }

    fn inventory(&self) -> Inventory {
        let mut parts = self.parts.clone();
        let said = self.said();
        parts.nets.iter_mut().for_each(|net| net.is_up = !said.pulled.contains(&net.id));
        parts
    }

    fn press_keys(&self, chord: &Chord) -> Result<(), String> {
        if !self.has_keyboard {
            return Err("the guest has no keyboard".to_owned());
        }
        self.note(Call::Keys(chord.clone()));
        Ok(())
    }

    fn set_link(&self, change: &LinkChange) -> Result<(), String> {
        if !self.has_net(&change.name) {
            return Err(format!("Device '{}' not found", change.name));
        }
        self.note(Call::Link(change.clone()));
        let mut said = self.said();
        said.pulled.retain(|name| *name != change.name);
        if !change.up {
            said.pulled.push(change.name.clone());
        }
        Ok(())
    }

    fn resize_disk(&self, resize: &DiskResize, ticket: Ticket) {
        self.note(Call::Resize(resize.clone(), ticket));
    }
}

static MACHINES: LazyLock<[Inventory; 4]> = LazyLock::new(|| {
    // No line ends: whoever calls a guest so has them in the lines of the human monitor.
    let odd = "\u{1b}[2J\"}]\\\u{202e}";
    [
        machine(["web", "disk0", "d", "net0", "n"], 2, true),
        Inventory { vcpus: vec![VcpuFacts::default()], ..Inventory::default() },
        Inventory { uuid: None, ..machine([odd, "\0\"}]", "", "", "\0\"}]"], 1, false) },
        machine([&"long".repeat(60), "disk0", "disk1", "net0", "net1"], 16, true),
    ]
});

fn machine([name, first_disk, second_disk, first_net, second_net]: [&str; 5], vcpus: u8, is_kvm: bool) -> Inventory {
    let disk = |id: &str, limit| DiskFacts {
        id: id.to_owned(),
        path: format!("/dev/zvol/rdsk/zones/{id}"),
        read_only: limit,
        size_bytes: u64::MAX,
        limit_ops: limit.then_some(500),
        limit_bytes: limit.then_some(u64::MAX),
        ops: OpsSnapshot { read: 3, write: 4, flush: 5, discard: 6, ..OpsSnapshot::default() },
        read_bytes: 1536,
        written_bytes: u64::MAX,
    };
    let net = |id: &str| NetFacts { id: id.to_owned(), mac: "02:00:00:00:00:01".into(), host: id.into(), is_up: true };
    let line = |label: &str| CharacterFacts { label: label.to_owned(), filename: format!("unix:/tmp/{label},server") };
    let bridge = PciFacts { id: "host bridge".into(), vendor: 0x8086, class: 0x0600, ..PciFacts::default() };
    let bar = BarFacts { index: 0, is_io: true, address: 0xc000, len: 64, ..BarFacts::default() };
    let memory = BarFacts { is_io: false, is_64_bit: true, address: u64::MAX, len: 0x4000, index: 4, ..bar };
    let (id, class, irq) = (first_net.to_owned(), 0x0200, Some(11));
    let card =
        PciFacts { id, slot: 3, vendor: 0x1af4, device: 0x1000, class, irq, bars: vec![bar, memory], function: 0 };
    let other = PciFacts { slot: 31, class: 0xffff, ..bridge.clone() };
    Inventory {
        name: name.to_owned(),
        uuid: Some("6e2b1f0a-2c55-4b63-9a53-0d6f3a1f7c11".to_owned()),
        is_kvm,
        vcpus: (0..vcpus).map(|core| VcpuFacts { thread_id: 70, socket: 0, core, thread: 0 }).collect(),
        disks: vec![disk(first_disk, false), disk(second_disk, true)],
        nets: vec![net(first_net), net(second_net)],
        characters: vec![line("qmp"), line("serial0")],
        functions: vec![bridge, card, other],
    }
}
