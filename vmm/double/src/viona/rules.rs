//! The rules of `/dev/viona`.

crate::rules! {
    ARGUMENT = "viona-argument", "bhyve 4.1", "an ioctl gets the kind and the size of argument it takes";
    COMMAND = "viona-command", "bhyve 4.1", "only commands that exist are sent";
    NOT_MODELLED = "viona-not-modelled", "bhyve 4.6", "nothing is used that this double cannot judge";
    LINK_KNOWN = "viona-link-known", "bhyve 4.8", "a link is attached by an id that libdladm gave";
    LINK_FREE = "viona-link-free", "bhyve 4.3", "a link has one user of its address";
    VM_HANDLE = "viona-vm-handle", "bhyve 4.3", "a link is attached to an open VM";
    CREATE_ONCE = "viona-create-once", "bhyve 4.3", "an instance is attached once";
    ATTACHED = "viona-attached", "bhyve 4.3", "an instance is attached before it is asked for more";
    RING_INDEX = "viona-ring-index", "bhyve 4.4", "a ring is one of the pairs there are";
    RING_SIZE = "viona-ring-size", "bhyve 4.4", "a ring's size is a power of two up to 32768";
    RING_ALIGNED = "viona-ring-aligned", "bhyve 4.4", "descriptors lie at multiples of 16, available entries of 2, used ones of 4, and all of a legacy ring in pages";
    RING_MEMORY = "viona-ring-memory", "bhyve 4.4", "a ring lies in guest memory, as the kernel takes it on trust";
    RING_FRESH = "viona-ring-fresh", "bhyve 4.4", "a ring is reset before it is initialised";
    RING_KIND = "viona-ring-kind", "bhyve 4.6", "a ring in three parts is a modern driver's, whose features have VERSION_1, and only his";
    RING_UNBOUND = "viona-ring-unbound", "bhyve 4.4", "the thread that initialises a ring is bound to no CPU, as the kernel's worker inherits that";
    FEATURES_FIRST = "viona-features-first", "rshyve 1.5", "features are settled before a ring is initialised";
    FEATURES_STILL = "viona-features-still", "bhyve 4.6", "features do not change under a ring that is initialised";
    FEATURES_CARRIED = "viona-features-carried", "bhyve 4.6", "no feature of the data queues is settled that the kernel does not carry";
    KICK_READY = "viona-kick-ready", "bhyve 4.4", "a ring is kicked between its initialisation and its pause, as a kernel follows a null pointer else";
    KICK_ONCE = "viona-kick-once", "bhyve 4.4", "an initialised ring is kicked, or it never starts";
    KICK_HOOKED = "viona-kick-hooked", "bhyve 4.5", "a running ring's kicks come by its hook where the kernel has one";
    MSI_AFTER_INIT = "viona-msi-after-init", "bhyve 4.4", "a ring gets its message after it is initialised, which takes it away";
    MSI_ADDRESS = "viona-msi-address", "bhyve 2.11", "a ring's message goes to 0xFEExxxxx, and stands behind its address";
    INTERRUPT_TAKEN = "viona-interrupt-taken", "bhyve 4.4", "an interrupt of a ring without a message is polled for, and cleared";
    PAUSE_RUNNING = "viona-pause-initialised", "bhyve 4.4", "a ring that is paused is initialised";
    STATE_PAUSED = "viona-state-paused", "bhyve 4.4", "a ring's state is read while it is paused";
    STATE_SAME = "viona-state-same", "bhyve 4.4", "a ring that was paused goes on where it stood";
    PAIRS_RANGE = "viona-pairs-range", "bhyve 4.4", "there are 1 to 256 pairs of rings, and no fewer than are in use";
    PAIRS_STILL = "viona-pairs-still", "bhyve 4.4", "all rings are reset when the number of pairs changes";
    PAIRS_USED = "viona-pairs-used", "bhyve 4.4", "pairs in use are at least one, and some that there are";
    PAIRS_START = "viona-pairs-start", "bhyve 4.4", "features are settled with one pair in use, as a driver begins with that";
    POLL_RINGS = "viona-poll-rings", "bhyve 4.4", "as many rings are polled as the pairs in use have, and not none";
    HOOK_PORT = "viona-hook-port", "bhyve 4.5", "a port to watch is a number up to 65535";
    HOOK_PLACE = "viona-hook-place", "bhyve 4.5", "addresses to watch are some, are no memory, and are nobody else's";
    HOOK_FOLLOWS = "viona-hook-follows", "bhyve 4.5", "no hook is left when no ring runs any more: on reset and on pause";
    PROMISC_LEVEL = "viona-promisc-level", "bhyve 4.6", "what a link receives is one of the three levels";
    MTU_RANGE = "viona-mtu-range", "bhyve 4.6", "an MTU is at least 68 and at most the link's";
    RINGS_RESET = "viona-rings-reset", "rshyve 1.5", "rings are reset before their link is let go";
}
