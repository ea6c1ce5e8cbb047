//! What each attack does.

mod blk;
mod chains;
mod console_rng;
mod lifecycle;
mod net;
mod pci;
pub mod ports;
mod registers;
mod rings;
mod widths;

use crate::attacks_list::Attack;
use crate::device::{Device, Verdict};

/// No machine has memory there, and a 52-bit physical address may name it.
const NOWHERE: u64 = 0x000f_ffff_f000_0000;

/// Makes one attack on a device that was reset.
///
/// # Errors
/// When the device reacts in a way it must not.
pub fn run(device: &mut Device, attack: Attack) -> Verdict {
    match attack {
        Attack::CommonWidths => widths::common(device),
        Attack::NotifyWidths => widths::notify(device),
        Attack::IsrWidths => widths::isr(device),
        Attack::ConfigWidths => widths::config(device),
        Attack::WindowWidths => widths::window(device),
        Attack::MsixWidths => widths::msix(device),
        Attack::LegacyWidths => widths::legacy_header(device),
        Attack::PciWidths => widths::pci_config(device),
        Attack::FieldsAfterDriverOk => registers::fields_after_driver_ok(device),
        Attack::QueueSizes => registers::queue_sizes(device),
        Attack::RingsOutside => registers::rings_at(device, NOWHERE),
        Attack::RingsWrap => registers::rings_at(device, !0xfff),
        Attack::RingsInBar => registers::rings_at(device, device.own_registers()),
        Attack::RingsMisaligned => registers::rings_misaligned(device),
        Attack::NoQueue => registers::no_queue(device),
        Attack::EarlyKick => registers::early_kick(device),
        Attack::NotifyNothing => registers::notify_nothing(device),
        Attack::StatusOrder => registers::status_order(device),
        Attack::Features => registers::features(device),
        Attack::VectorOutside => registers::vector_outside(device),
        Attack::IndexJumpOne => rings::index_jump_one(device),
        Attack::IndexJumpSize => rings::index_jump_size(device),
        Attack::IndexJumpMore => rings::index_jump_too_far(device, |size| size + 1),
        Attack::IndexJumpFar => rings::index_jump_too_far(device, |_| 0x8000),
        Attack::IndexBack => rings::index_jump_too_far(device, |_| 0xffff),
        Attack::HeadOutside => rings::head_outside(device),
        Attack::NextOutside => rings::next_outside(device),
        Attack::CycleOne => rings::cycle(device, 1),
        Attack::CycleAll => rings::cycle(device, u16::MAX),
        Attack::PackedUnavailable => rings::packed_unavailable(device),
        Attack::PackedTooLong => rings::packed_too_long(device),
        Attack::PackedFlags => rings::packed_flags(device),
        Attack::PackedEvents => rings::packed_events(device),
        Attack::EventIndex => rings::event_index(device),
        Attack::DuplicateHead => rings::duplicate_head(device),
        Attack::Rewritten => rings::rewritten(device),
        Attack::ZeroLength => chains::zero_length(device),
        Attack::AddressWraps => chains::buffer(device, u64::MAX - 0xfff, u32::MAX),
        Attack::Outside => chains::buffer(device, NOWHERE, 16),
        Attack::EndOfMemory => chains::buffer(device, device.arena.end_of_memory - 0x1000, 0x1001),
        Attack::InBar => chains::buffer(device, device.own_registers(), 16),
        Attack::InApic => chains::buffer(device, 0xfee0_0000, 0x1000),
        Attack::FourGib => chains::four_gib(device),
        Attack::ReadableLast => chains::readable_last(device),
        Attack::IndirectTooLong => chains::indirect_too_long(device),
        Attack::IndirectNested => chains::indirect_nested(device),
        Attack::IndirectNext => chains::indirect_next(device),
        Attack::IndirectEmpty => chains::indirect_len(device, 0),
        Attack::IndirectOdd => chains::indirect_len(device, 17),
        Attack::IndirectOutside => chains::indirect_outside(device),
        Attack::IndirectCycle => chains::indirect_cycle(device),
        Attack::IndirectRefused => chains::indirect_refused(device),
        Attack::ResetUnderLoad => lifecycle::reset_under_load(device),
        Attack::ResetTwice => lifecycle::reset_twice(device),
        Attack::StartStop => lifecycle::start_stop(device),
        Attack::TwoCpus => lifecycle::two_cpus(device),
        Attack::QueueReset => lifecycle::queue_reset(device),
        Attack::DecodeOff => pci::decode_off(device),
        Attack::BarMoved => pci::bar_moved(device),
        Attack::BarOverMemory => pci::bar_over_memory(device),
        Attack::MsixGarbage => pci::msix_garbage(device),
        Attack::BlkHeaderOnly => blk::header_only(device),
        Attack::BlkHeaderShort => blk::header_short(device),
        Attack::BlkHeaderWritable => blk::header_writable(device),
        Attack::BlkNoStatus => blk::no_status(device),
        Attack::BlkStatusZero => blk::status_zero(device),
        Attack::BlkHugeSector => blk::sector(device, 1 << 40),
        Attack::BlkSectorWraps => blk::sector(device, u64::MAX),
        Attack::BlkNotSectors => blk::not_sectors(device),
        Attack::BlkType => blk::unknown_type(device),
        Attack::BlkIdent => blk::ident(device),
        Attack::BlkZeroes => blk::write_zeroes(device),
        Attack::NetNoHeader => net::transmit(device, 4),
        Attack::NetHeaderOnly => net::transmit(device, device.net_header_bytes() as u32),
        Attack::NetHuge => net::huge(device),
        Attack::NetHeaderGarbage => net::header_garbage(device),
        Attack::NetShort => net::receive_short(device, device.features()),
        Attack::NetReadable => net::receive_readable(device),
        Attack::NetMergeable => net::receive_short(device, device.mergeable_features()),
        Attack::ConsoleFlood => console_rng::flood(device),
        Attack::ConsoleEndless => console_rng::endless(device),
        Attack::ConsoleWritable => console_rng::transmit_writable(device),
        Attack::RngReadable => console_rng::readable(device),
        Attack::RngHuge => console_rng::huge(device),
        Attack::RngPieces => console_rng::pieces(device),
    }
}
