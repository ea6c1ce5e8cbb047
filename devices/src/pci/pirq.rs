//! PIRQ route registers: the bytes by which a guest connects a board's PCI interrupt links to interrupts of the PIC
//! (Intel 82371SB datasheet §2.3, PIRQRC).

use std::sync::{Arc, Mutex, PoisonError};

use super::config::{ConfigSpace, Field};
use super::host_bridge::FixedFunction;
use super::intx::IntxRouter;

const DISABLED: u8 = 0x80;
const ISA_INTERRUPT: u8 = 0x0f;

/// The bridge of `space` with the route registers of links 0, 1, … at `offsets`. They start with what the router has, as
/// firmware would have left them, and reroute it when the guest writes them.
pub(super) fn with_pirq_registers(
    mut space: ConfigSpace,
    offsets: &'static [u8],
    router: Arc<IntxRouter>,
) -> FixedFunction {
    let start: Vec<Option<u32>> = (0..offsets.len()).map(|link| router.gsi(link)).collect();
    for (offset, gsi) in offsets.iter().zip(&start) {
        // The register can name ISA interrupts only; a link routed beyond them stays where the machine put it.
        let value = gsi.filter(|gsi| *gsi < 16).unwrap_or(DISABLED.into());
        space.define(&[Field::writable(*offset, 1, value, u32::from(DISABLED | ISA_INTERRUPT))]);
    }
    let read = |space: &ConfigSpace, offset: &u8| space.get(*offset, 1) as u8;
    let last: Vec<u8> = offsets.iter().map(|offset| read(&space, offset)).collect();
    let last = Mutex::new(last);
    FixedFunction::with_hook(space, move |space| {
        let mut last = last.lock().unwrap_or_else(PoisonError::into_inner);
        let registers = offsets.iter().map(|offset| read(space, offset));
        for (link, ((route, before), start)) in registers.zip(last.iter_mut()).zip(&start).enumerate() {
            let beyond_isa = start.is_some_and(|gsi| gsi >= 16);
            if route != *before && !beyond_isa {
                router.route(link, (route & DISABLED == 0).then_some(u32::from(route & ISA_INTERRUPT)));
            }
            *before = route;
        }
    })
}
