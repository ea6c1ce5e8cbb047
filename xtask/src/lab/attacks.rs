//! The attacks of the guest-side attacker by name, and where each applies. Shared source of xtask, which expects a verdict
//! for each, and of the attacker, which cannot leave one out: it matches on them.
//!
//! A verdict is one line on the guest's serial port: `ATTACK <device> <name> PASS|FAIL|WEDGED <reason>`, where the device
//! is `blk/split` (kind and way) or `machine`.

use std::fmt;

/// How every verdict begins.
pub const VERDICT: &str = "ATTACK";

/// How the line begins that says over which ways a device can be attacked.
pub const WAYS: &str = "WAYS";

/// How the line begins that says what the attacker could not do.
pub const ERROR: &str = "ATTACKER-ERROR";

/// The attacker's last line.
pub const OVER: &str = "ATTACKS-OVER";

/// A kind of virtio device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Block device.
    Blk,
    /// Network interface.
    Net,
    /// Console.
    Console,
    /// Entropy source.
    Rng,
}

impl Kind {
    /// All that are attacked.
    pub const ALL: [Self; 4] = [Self::Blk, Self::Net, Self::Console, Self::Rng];
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(match self {
            Self::Blk => "blk",
            Self::Net => "net",
            Self::Console => "console",
            Self::Rng => "rng",
        })
    }
}

/// An interface with a ring format: each has its own registers or its own ring rules.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// The modern interface with split rings.
    Split,
    /// The modern interface with packed rings.
    Packed,
    /// The legacy interface, whose rings are split.
    Legacy,
}

impl Way {
    /// All there are.
    pub const ALL: [Self; 3] = [Self::Split, Self::Packed, Self::Legacy];
}

impl fmt::Display for Way {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(match self {
            Self::Split => "split",
            Self::Packed => "packed",
            Self::Legacy => "legacy",
        })
    }
}

/// Where an attack applies.
type Scope = fn(Kind, Way) -> bool;

const EVERYWHERE: Scope = |_, _| true;
const MODERN: Scope = |_, way| !matches!(way, Way::Legacy);
const LEGACY: Scope = |_, way| matches!(way, Way::Legacy);
/// Where there is an available ring.
const AVAILABLE: Scope = |_, way| !matches!(way, Way::Packed);
const PACKED: Scope = |_, way| matches!(way, Way::Packed);
/// What has nothing to do with rings is attacked over one way.
const ONCE: Scope = |_, way| matches!(way, Way::Split);
const BLK: Scope = |kind, _| matches!(kind, Kind::Blk);
const NET: Scope = |kind, _| matches!(kind, Kind::Net);
const CONSOLE: Scope = |kind, _| matches!(kind, Kind::Console);
const RNG: Scope = |kind, _| matches!(kind, Kind::Rng);

macro_rules! attacks {
    ($type:ident, $about:literal: $($variant:ident $name:literal;)*) => {
        #[doc = $about]
        #[allow(missing_docs)]
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum $type {
            $($variant,)*
        }

        impl $type {
            /// All of them, in the order in which they are made.
            pub const ALL: &[Self] = &[$(Self::$variant,)*];

            /// Its name in the verdict.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$variant => $name,)*
                }
            }
        }
    };
    ($type:ident, $about:literal: $($variant:ident $name:literal $scope:expr;)*) => {
        attacks! { $type, $about: $($variant $name;)* }

        impl $type {
            /// Whether it is made on devices of that kind over that way.
            #[must_use]
            pub fn applies(self, kind: Kind, way: Way) -> bool {
                let scope: Scope = match self {
                    $(Self::$variant => $scope,)*
                };
                scope(kind, way)
            }
        }
    };
}

attacks! { Attack, "An attack on a virtio device.":
    // Registers.
    CommonWidths "common-every-width" MODERN;
    NotifyWidths "notify-every-width" MODERN;
    IsrWidths "isr-every-width" ONCE;
    ConfigWidths "config-every-width" ONCE;
    WindowWidths "window-every-width" ONCE;
    MsixWidths "msix-every-width" ONCE;
    LegacyWidths "legacy-every-width" LEGACY;
    PciWidths "pci-config-every-width" ONCE;
    FieldsAfterDriverOk "fields-after-driver-ok" EVERYWHERE;
    QueueSizes "queue-size-garbage" EVERYWHERE;
    RingsOutside "rings-outside-memory" EVERYWHERE;
    RingsWrap "rings-wrap" EVERYWHERE;
    RingsInBar "rings-in-own-bar" EVERYWHERE;
    RingsMisaligned "rings-misaligned" MODERN;
    NoQueue "driver-ok-without-queue" EVERYWHERE;
    EarlyKick "kick-before-driver-ok" EVERYWHERE;
    NotifyNothing "notify-wrong-queues" EVERYWHERE;
    StatusOrder "status-order" ONCE;
    Features "features-not-offered" ONCE;
    VectorOutside "vector-out-of-range" ONCE;
    // The available ring.
    IndexJumpOne "index-jump-1" AVAILABLE;
    IndexJumpSize "index-jump-size" AVAILABLE;
    IndexJumpMore "index-jump-size-plus-1" AVAILABLE;
    IndexJumpFar "index-jump-far" AVAILABLE;
    IndexBack "index-back" AVAILABLE;
    HeadOutside "head-outside" AVAILABLE;
    NextOutside "next-outside" AVAILABLE;
    CycleOne "cycle-of-one" AVAILABLE;
    CycleAll "cycle-of-all" AVAILABLE;
    // The packed ring.
    PackedUnavailable "chain-past-available" PACKED;
    PackedTooLong "chain-longer-than-ring" PACKED;
    PackedFlags "flags-garbage" PACKED;
    PackedEvents "event-area-garbage" PACKED;
    // Chains in any ring.
    DuplicateHead "duplicate-head" EVERYWHERE;
    ZeroLength "zero-length-buffers" EVERYWHERE;
    AddressWraps "address-wraps" EVERYWHERE;
    Outside "outside-memory" EVERYWHERE;
    EndOfMemory "end-of-memory" EVERYWHERE;
    InBar "data-in-own-bar" EVERYWHERE;
    InApic "data-in-local-apic" EVERYWHERE;
    FourGib "more-than-4-gib" EVERYWHERE;
    ReadableLast "readable-after-writable" EVERYWHERE;
    IndirectTooLong "indirect-longer-than-queue" EVERYWHERE;
    IndirectNested "indirect-nested" EVERYWHERE;
    IndirectNext "indirect-with-next" EVERYWHERE;
    IndirectEmpty "indirect-empty" EVERYWHERE;
    IndirectOdd "indirect-odd-length" EVERYWHERE;
    IndirectOutside "indirect-outside-memory" EVERYWHERE;
    IndirectCycle "indirect-cycle" AVAILABLE;
    IndirectRefused "indirect-not-negotiated" EVERYWHERE;
    EventIndex "event-index-garbage" ONCE;
    Rewritten "ring-rewritten-under-load" EVERYWHERE;
    // Life cycle and PCI.
    ResetUnderLoad "reset-under-load" EVERYWHERE;
    ResetTwice "reset-while-reset" EVERYWHERE;
    StartStop "start-stop-storm" EVERYWHERE;
    TwoCpus "two-cpus-at-once" EVERYWHERE;
    QueueReset "queue-reset" MODERN;
    DecodeOff "decode-off-under-load" EVERYWHERE;
    BarMoved "bar-moved-under-load" EVERYWHERE;
    BarOverMemory "bar-over-memory" ONCE;
    MsixGarbage "msix-garbage-under-load" ONCE;
    // Requests of each kind of device.
    BlkHeaderOnly "blk-header-only" BLK;
    BlkHeaderShort "blk-header-cut-short" BLK;
    BlkHeaderWritable "blk-header-write-only" BLK;
    BlkNoStatus "blk-status-byte-missing" BLK;
    BlkStatusZero "blk-status-zero-length" BLK;
    BlkHugeSector "blk-huge-sector" BLK;
    BlkSectorWraps "blk-sector-wraps" BLK;
    BlkNotSectors "blk-data-not-sectors" BLK;
    BlkType "blk-unknown-type" BLK;
    BlkIdent "blk-ident-huge" BLK;
    BlkZeroes "blk-write-zeroes-overflow" BLK;
    NetNoHeader "net-transmit-without-header" NET;
    NetHeaderOnly "net-transmit-header-only" NET;
    NetHuge "net-transmit-huge" NET;
    NetHeaderGarbage "net-transmit-header-garbage" NET;
    NetShort "net-receive-too-short" NET;
    NetReadable "net-receive-readable" NET;
    NetMergeable "net-mergeable-too-short" NET;
    ConsoleFlood "console-flood" CONSOLE;
    ConsoleEndless "console-endless-output" CONSOLE;
    ConsoleWritable "console-transmit-writable" CONSOLE;
    RngReadable "rng-readable" RNG;
    RngHuge "rng-huge-buffer" RNG;
    RngPieces "rng-many-pieces" RNG;
}

attacks! { MachineAttack, "An attack on what a PC has beside virtio.":
    Keyboard "ports-keyboard";
    Rtc "ports-rtc";
    Port92 "ports-92";
    Com "ports-com";
    Pci "ports-pci";
    Pm "ports-pm";
    Smi "ports-smi-post-debug";
    Absent "pci-absent-functions";
    Chipset "pci-chipset-every-width";
}
