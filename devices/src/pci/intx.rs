//! INTx: from a function's pin over the four PIRQ links to an interrupt line, shared by everything that asserts it.

use std::sync::{Arc, Mutex, PoisonError};

use super::PciAddress;
use crate::interrupt::IrqLine;

/// PIRQ links of a 440FX board, PIRQA# to PIRQD#.
pub const PIRQ_LINKS: usize = 4;

/// A function's interrupt pin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InterruptPin {
    /// INTA#.
    A,
    /// INTB#.
    B,
    /// INTC#.
    C,
    /// INTD#.
    D,
}

impl InterruptPin {
    /// The value of the interrupt pin register: 1–4.
    pub const fn register(self) -> u8 {
        match self {
            Self::A => 1,
            Self::B => 2,
            Self::C => 3,
            Self::D => 4,
        }
    }
}

/// The link (0 is PIRQA#) that a 440FX board wires `pin` of `slot` to: pins rotate with the device number, and device 1
/// starts at PIRQA#, as guests installed under qemu remember it. The firmware tables have to say the same.
pub const fn i440fx_link(slot: PciAddress, pin: InterruptPin) -> usize {
    // Device number - 1 + pin, modulo 4; +3 is -1 there.
    (slot.device() as usize & 3).wrapping_add(pin.register() as usize).wrapping_add(2) & 3
}

struct Line {
    /// What routes know it by; `None`: it belongs to one link for good.
    gsi: Option<u32>,
    line: Arc<dyn IrqLine>,
    asserted: bool,
}

struct Link {
    /// Index of the line it is routed to.
    routed: Option<usize>,
    /// Index of the line it drives besides, however it is routed.
    fixed: Option<usize>,
    /// Functions that assert it.
    asserting: u32,
}

#[derive(Default)]
struct Routes {
    lines: Vec<Line>,
    links: Vec<Link>,
}

/// Routes links to lines. INTx is the fallback behind MSI-X, and shared by definition: one lock covers all of it.
#[derive(Default)]
pub struct IntxRouter {
    routes: Mutex<Routes>,
}

impl IntxRouter {
    /// A router that can reach `lines` (GSI and line) and starts with link *n* on the GSI `table[n]`. A GSI without a
    /// line leaves its link unconnected.
    pub fn new<const LINKS: usize>(lines: Vec<(u32, Arc<dyn IrqLine>)>, table: [u32; LINKS]) -> Arc<Self> {
        Self::build(lines, &table, Vec::new())
    }

    /// As [`new`](Self::new), and link *n* drives `fixed[n]` besides, whatever it is routed to: a board that wires its
    /// links to pins of the IOAPIC and lets only the way to the PIC be routed.
    pub fn with_fixed<const LINKS: usize>(
        lines: Vec<(u32, Arc<dyn IrqLine>)>,
        table: [u32; LINKS],
        fixed: [Arc<dyn IrqLine>; LINKS],
    ) -> Arc<Self> {
        Self::build(lines, &table, fixed.into())
    }

    fn build(lines: Vec<(u32, Arc<dyn IrqLine>)>, table: &[u32], fixed: Vec<Arc<dyn IrqLine>>) -> Arc<Self> {
        let line = |(gsi, line)| Line { gsi, line, asserted: false };
        let mut lines: Vec<Line> = lines.into_iter().map(|(gsi, wire)| line((Some(gsi), wire))).collect();
        let first_fixed = lines.len();
        lines.extend(fixed.into_iter().map(|wire| line((None, wire))));
        let mut routes = Routes { lines, links: Vec::new() };
        for (index, gsi) in table.iter().enumerate() {
            let fixed = first_fixed.saturating_add(index);
            routes.links.push(Link {
                routed: routes.line_of(Some(*gsi)),
                fixed: (fixed < routes.lines.len()).then_some(fixed),
                asserting: 0,
            });
        }
        Arc::new(Self { routes: Mutex::new(routes) })
    }

    /// One function's input into `link`.
    pub fn input(self: &Arc<Self>, link: usize) -> IntxPin {
        IntxPin { router: self.clone(), link, asserted: Mutex::new(false) }
    }

    /// The GSI `link` is routed to: what the interrupt line register says.
    pub fn gsi(&self, link: usize) -> Option<u32> {
        self.change(|routes| {
            let line = routes.links.get(link)?.routed?;
            routes.lines.get(line)?.gsi
        })
    }

    /// Connects `link` to `gsi`, or to nothing; an assertion moves with it.
    pub fn route(&self, link: usize, gsi: Option<u32>) {
        self.change(|routes| {
            let line = routes.line_of(gsi);
            if let Some(link) = routes.links.get_mut(link) {
                link.routed = line;
            }
            routes.drive();
        });
    }

    fn change<R>(&self, edit: impl FnOnce(&mut Routes) -> R) -> R {
        edit(&mut self.routes.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Routes {
    fn line_of(&self, gsi: Option<u32>) -> Option<usize> {
        let gsi = gsi?;
        self.lines.iter().position(|line| line.gsi == Some(gsi))
    }

    fn drive(&mut self) {
        for (index, line) in self.lines.iter_mut().enumerate() {
            let drives = |link: &Link| link.asserting > 0 && [link.routed, link.fixed].contains(&Some(index));
            let asserted = self.links.iter().any(drives);
            if asserted != line.asserted {
                line.asserted = asserted;
                line.line.set(asserted);
            }
        }
    }
}

/// One function's end of a shared line: remembers its own level, so the others' assertions survive its own.
pub struct IntxPin {
    router: Arc<IntxRouter>,
    link: usize,
    asserted: Mutex<bool>,
}

impl IrqLine for IntxPin {
    fn set(&self, asserted: bool) {
        let mut own = self.asserted.lock().unwrap_or_else(PoisonError::into_inner);
        if *own == asserted {
            return;
        }
        *own = asserted;
        self.router.change(|routes| {
            if let Some(link) = routes.links.get_mut(self.link) {
                let count = link.asserting;
                link.asserting = if asserted { count.saturating_add(1) } else { count.saturating_sub(1) };
            }
            routes.drive();
        });
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A line that remembers every change, and fails on a repeated level as bhyve's counters would.
    #[derive(Default)]
    pub(crate) struct FakeLine(pub(crate) Mutex<Vec<bool>>);

    impl FakeLine {
        pub(crate) fn level(&self) -> bool {
            self.0.lock().unwrap().last().copied().unwrap_or(false)
        }
    }

    impl IrqLine for FakeLine {
        fn set(&self, asserted: bool) {
            assert_ne!(self.level(), asserted, "the level was set twice");
            self.0.lock().unwrap().push(asserted);
        }
    }

    fn router() -> (Arc<IntxRouter>, Arc<FakeLine>, Arc<FakeLine>) {
        let (ten, eleven) = (Arc::new(FakeLine::default()), Arc::new(FakeLine::default()));
        let lines: Vec<(u32, Arc<dyn IrqLine>)> = vec![(10, ten.clone()), (11, eleven.clone())];
        (IntxRouter::new(lines, [10, 10, 11, 11]), ten, eleven)
    }

    #[test]
    fn pins_rotate_with_the_device_number() {
        let link = |device, pin| i440fx_link(PciAddress::new(device, 0).unwrap(), pin);
        assert_eq!([0, 1, 2, 3, 4, 5].map(|device| link(device, InterruptPin::A)), [3, 0, 1, 2, 3, 0]);
        assert_eq!(link(1, InterruptPin::D), 3);
        assert_eq!(link(3, InterruptPin::B), 3);
    }

    #[test]
    fn a_shared_line_stays_asserted_until_the_last_function_lets_go() {
        let (router, ten, eleven) = router();
        let [a, b, c] = [0, 0, 1].map(|link| router.input(link));
        a.set(true);
        a.set(true);
        b.set(true);
        c.set(true);
        a.set(false);
        b.set(false);
        assert!(ten.level());
        c.set(false);
        c.set(false);
        assert_eq!(*ten.0.lock().unwrap(), [true, false]);
        assert!(eleven.0.lock().unwrap().is_empty());
    }

    #[test]
    fn an_assertion_follows_its_link_to_another_line_and_back_from_nowhere() {
        let (router, ten, eleven) = router();
        let pin = router.input(1);
        pin.set(true);
        router.route(1, Some(11));
        assert_eq!((ten.level(), eleven.level(), router.gsi(1)), (false, true, Some(11)));
        router.route(1, None);
        assert_eq!((eleven.level(), router.gsi(1)), (false, None));
        router.route(1, Some(10));
        assert!(ten.level());
        router.route(9, Some(10));
        router.route(1, Some(99));
        assert!(!ten.level());
    }

    #[test]
    fn a_fixed_line_follows_its_link_alone_whatever_the_route() {
        let (ten, first, second) = (Arc::<FakeLine>::default(), Arc::<FakeLine>::default(), Arc::<FakeLine>::default());
        let router = IntxRouter::with_fixed(vec![(10, ten.clone())], [10, 10], [first.clone(), second.clone()]);
        let [a, b] = [0, 1].map(|link| router.input(link));
        a.set(true);
        assert_eq!((ten.level(), first.level(), second.level()), (true, true, false));
        b.set(true);
        router.route(0, None);
        assert_eq!((ten.level(), first.level(), second.level()), (true, true, true));
        router.route(1, Some(0));
        assert_eq!((ten.level(), router.gsi(1)), (false, None), "a fixed line has no number to be routed to");
        a.set(false);
        assert_eq!((first.level(), second.level()), (false, true));
    }
}
