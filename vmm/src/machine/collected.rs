//! PCI configuration through ports in one exit an access instead of two.
//!
//! A guest writes the address register 0xCF8 for nothing but the data access that follows, so the hypervisor may collect
//! those writes where it can ([`PortCollector`]). But the reset control register 0xCF9 lies inside: a guest that resets
//! itself there and waits without another exit would wait for ever. Therefore collecting goes on only for a while after
//! the guest's first configuration access, when it looks for its devices, and during that while the main thread takes
//! out what was collected every now and then. A guest that is done with that has collecting end.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use devices::bus::{Access, Bus, BusDevice, BusView};
use devices::legacy::clock::Clock;
use devices::pci::ConfigPorts;
use devices::wake::Wake;

use crate::control::Timed;
use crate::hypervisor::PortCollector;

/// The address register.
const ADDRESS_BYTES: u8 = 4;

/// How long a guest needs to find its devices, generously: an emulated host is fifty times slower than a real one.
const WINDOW_NS: u64 = 10_000_000_000;

/// The longest a reset through 0xCF9 waits during the window.
const TAKE_OUT_NS: u64 = 100_000_000;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Window {
    /// The guest has not asked for its devices yet.
    Ahead,
    Open {
        take_out_ns: u64,
        end_ns: u64,
    },
    Over,
}

/// [`ConfigPorts`] with collected address writes.
pub struct CollectedAddress {
    ports: Arc<ConfigPorts>,
    /// Weak: the bus holds this device.
    bus: Weak<Bus>,
    collector: Arc<dyn PortCollector>,
    clock: Arc<dyn Clock>,
    main: Arc<dyn Wake>,
    window: Mutex<Window>,
}

impl CollectedAddress {
    /// A device for `bus`, which dispatches collected writes; `main` ticks it.
    pub fn new(
        ports: Arc<ConfigPorts>,
        bus: &Arc<Bus>,
        collector: Arc<dyn PortCollector>,
        clock: Arc<dyn Clock>,
        main: Arc<dyn Wake>,
    ) -> Self {
        Self { ports, bus: Arc::downgrade(bus), collector, clock, main, window: Mutex::new(Window::Ahead) }
    }

    fn window(&self) -> MutexGuard<'_, Window> {
        self.window.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn open(&self) {
        let mut window = self.window();
        if *window != Window::Ahead {
            return;
        }
        *window = if self.collector.collect(ConfigPorts::BASE as u16, ADDRESS_BYTES) {
            let now_ns = self.clock.monotonic_ns();
            Window::Open { take_out_ns: now_ns + TAKE_OUT_NS, end_ns: now_ns + WINDOW_NS }
        } else {
            Window::Over
        };
        drop(window);
        self.main.wake();
    }

    fn take_out(&self) {
        if let Some(bus) = self.bus.upgrade() {
            let mut view = BusView::new(bus);
            // The registers among the collected ports answer at once: nothing here can park.
            self.collector.take_out(&mut |port, data| drop(view.write(port.into(), data)));
        }
    }

    fn close(&self) {
        self.collector.release(ConfigPorts::BASE as u16, ADDRESS_BYTES);
        self.take_out();
    }

    /// Back to the state after power-on: the guest will look for its devices again.
    pub fn reset(&self) {
        // Over first: an address that is taken out now is the old guest's and must not begin a new window.
        let before = std::mem::replace(&mut *self.window(), Window::Over);
        if matches!(before, Window::Open { .. }) {
            self.close();
        }
        *self.window() = Window::Ahead;
    }
}

impl BusDevice for CollectedAddress {
    fn read(&self, offset: u64, data: &mut [u8]) -> Access {
        self.ports.read(offset, data)
    }

    fn write(&self, offset: u64, data: &[u8]) -> Access {
        let access = self.ports.write(offset, data);
        if offset == 0 && data.len() == usize::from(ADDRESS_BYTES) {
            self.open();
        }
        access
    }
}

impl Timed for CollectedAddress {
    fn deadline_ns(&self) -> Option<u64> {
        match *self.window() {
            Window::Open { take_out_ns, end_ns } => Some(take_out_ns.min(end_ns)),
            Window::Ahead | Window::Over => None,
        }
    }

    fn tick(&self, now_ns: u64) {
        let mut window = self.window();
        let Window::Open { end_ns, .. } = *window else { return };
        let over = now_ns >= end_ns;
        *window = if over { Window::Over } else { Window::Open { take_out_ns: now_ns + TAKE_OUT_NS, end_ns } };
        drop(window);
        if over {
            self.close();
        } else {
            self.take_out();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use devices::legacy::power::{PowerSink, ResetSource};
    use devices::legacy::reset::ResetControl;
    use devices::pci::PciBus;

    use super::*;

    /// A hypervisor that collects what [`guest_writes`](Self::guest_writes) is given while it is asked to.
    #[derive(Default)]
    struct Ring {
        collecting: Mutex<bool>,
        writes: Mutex<Vec<(u16, Vec<u8>)>>,
    }

    impl PortCollector for Ring {
        fn collect(&self, port: u16, len: u8) -> bool {
            assert_eq!((port, len), (0xcf8, 4));
            !std::mem::replace(&mut *self.collecting.lock().unwrap(), true)
        }

        fn release(&self, _port: u16, _len: u8) {
            *self.collecting.lock().unwrap() = false;
        }

        fn take_out(&self, write: &mut dyn FnMut(u16, &[u8])) {
            for (port, data) in self.writes.lock().unwrap().drain(..) {
                write(port, &data);
            }
        }
    }

    #[derive(Default)]
    struct Host {
        now_ns: AtomicU64,
        resets: AtomicU64,
    }

    impl Clock for Host {
        fn realtime(&self) -> (i64, u32) {
            (0, 0)
        }

        fn monotonic_ns(&self) -> u64 {
            self.now_ns.load(Ordering::Relaxed)
        }
    }

    impl PowerSink for Host {
        fn power_off(&self) {}

        fn reset(&self, _source: ResetSource) {
            self.resets.fetch_add(1, Ordering::Relaxed);
        }

        fn panicked(&self) {}
    }

    impl Wake for Host {
        fn wake(&self) {}
    }

    struct Machine {
        host: Arc<Host>,
        bus: Arc<Bus>,
        ring: Arc<Ring>,
        ports: Arc<ConfigPorts>,
        collected: Arc<CollectedAddress>,
    }

    impl Machine {
        fn new() -> Self {
            let (host, bus, ring) = (Arc::new(Host::default()), Arc::new(Bus::new()), Arc::new(Ring::default()));
            let reset_control = Arc::new(ResetControl::new(host.clone()));
            let ports = Arc::new(ConfigPorts::new(Arc::new(PciBus::new()), reset_control));
            let collected =
                CollectedAddress::new(ports.clone(), &bus, ring.clone(), host.clone(), host.clone() as Arc<dyn Wake>);
            let collected = Arc::new(collected);
            bus.insert(ConfigPorts::BASE, ConfigPorts::LEN, collected.clone()).unwrap();
            Self { host, bus, ring, ports, collected }
        }

        fn guest_writes(&self, port: u16, data: &[u8]) {
            if *self.ring.collecting.lock().unwrap() && (0xcf8..0xcfc).contains(&port) {
                self.ring.writes.lock().unwrap().push((port, data.to_vec()));
            } else {
                drop(BusView::new(self.bus.clone()).write(port.into(), data));
            }
        }

        fn pass_ns(&self, ns: u64) {
            let now_ns = self.host.now_ns.fetch_add(ns, Ordering::Relaxed) + ns;
            if self.collected.deadline_ns().is_some_and(|at_ns| at_ns <= now_ns) {
                self.collected.tick(now_ns);
            }
        }

        fn resets(&self) -> u64 {
            self.host.resets.load(Ordering::Relaxed)
        }
    }

    #[test]
    fn address_writes_are_collected_from_the_first_one_until_the_window_ends() {
        let machine = Machine::new();
        assert_eq!(machine.collected.deadline_ns(), None, "no timer for guests without PCI");
        machine.guest_writes(0xcf8, &0x8000_0800u32.to_le_bytes());
        assert_eq!(machine.ports.address(), 0x8000_0800);
        machine.guest_writes(0xcf8, &0x8000_1000u32.to_le_bytes());
        assert_eq!(machine.ports.address(), 0x8000_0800, "collected");
        machine.pass_ns(TAKE_OUT_NS);
        assert_eq!(machine.ports.address(), 0x8000_1000, "taken out");
        machine.guest_writes(0xcf8, &0x8000_1800u32.to_le_bytes());
        machine.pass_ns(WINDOW_NS);
        assert_eq!(machine.ports.address(), 0x8000_1800, "what was left when the window ended");
        assert_eq!(machine.collected.deadline_ns(), None);
        machine.guest_writes(0xcf8, &0x8000_2000u32.to_le_bytes());
        assert_eq!(machine.ports.address(), 0x8000_2000, "not collected any more");
    }

    #[test]
    fn a_reset_through_0xcf9_takes_a_tenth_of_a_second_at_most() {
        let machine = Machine::new();
        machine.guest_writes(0xcf9, &[6]);
        assert_eq!(machine.resets(), 1, "at once before the first configuration access");
        machine.guest_writes(0xcf9, &[0]);
        machine.guest_writes(0xcf8, &[0; 4]);
        machine.guest_writes(0xcf9, &[6]);
        assert_eq!(machine.resets(), 1);
        machine.pass_ns(TAKE_OUT_NS);
        assert_eq!(machine.resets(), 2);
        machine.guest_writes(0xcf9, &[0]);
        machine.pass_ns(WINDOW_NS);
        machine.guest_writes(0xcf9, &[6]);
        assert_eq!(machine.resets(), 3, "at once after the window");
    }

    #[test]
    fn a_reset_machine_collects_anew() {
        let machine = Machine::new();
        for _ in 0..3 {
            machine.guest_writes(0xcf8, &[0; 4]);
            assert!(*machine.ring.collecting.lock().unwrap());
            machine.collected.reset();
            assert!(!*machine.ring.collecting.lock().unwrap());
            assert_eq!(machine.collected.deadline_ns(), None);
        }
        machine.guest_writes(0xcf8, &[0; 4]);
        machine.pass_ns(WINDOW_NS);
        machine.collected.reset();
        machine.guest_writes(0xcf8, &[0; 4]);
        assert!(*machine.ring.collecting.lock().unwrap());
    }

    #[test]
    fn a_hypervisor_that_refuses_leaves_every_write_an_exit() {
        let machine = Machine::new();
        *machine.ring.collecting.lock().unwrap() = true;
        machine.collected.write(0, &0x8000_0800u32.to_le_bytes());
        assert_eq!(machine.collected.deadline_ns(), None);
        machine.collected.write(0, &0x8000_1000u32.to_le_bytes());
        assert_eq!(machine.ports.address(), 0x8000_1000);
    }
}
