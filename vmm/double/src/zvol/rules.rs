//! The rules of a volume's raw device.

crate::rules! {
    EXCLUSIVE = "zvol-exclusive", "bhyve 5.1", "who writes to a volume opens it with O_EXCL";
    COMMAND = "zvol-command", "bhyve 5.2", "only requests that exist are made";
    NOT_MODELLED = "zvol-not-modelled", "bhyve 5.2", "nothing is used that this double cannot judge";
    ARGUMENT = "zvol-argument", "bhyve 5.2", "a request gets the kind and the size of argument it takes";
    WRITABLE = "zvol-writable", "bhyve 5.1", "nothing is changed through a descriptor that was opened for reading";
    SIZE_FIRST = "zvol-size-first", "bhyve 5.2", "the size is asked for before anything is read or written";
    CACHE_FOUND = "zvol-cache-found", "bhyve 5.2", "the write cache is looked at before it is set, or it cannot be put back";
    CACHE_OFF_FIRST = "zvol-cache-off-first", "bhyve 5.3", "the write cache is off until a guest has negotiated to flush it";
    CACHE_SET_FIRST = "zvol-cache-set-first", "smartos-zone 6", "the write cache is set before the first write, whatever it was";
    CACHE_VALUE = "zvol-cache-value", "bhyve 5.2", "the write cache is set to 0 or 1";
    CACHE_CHANGE = "zvol-cache-change", "bhyve 5.2", "the write cache is set again for a change only: switching it off commits everything";
    CACHE_BACK = "zvol-cache-back", "bhyve 5.2", "the write cache is put back before the volume is closed";
    FLUSH_WRITER = "zvol-flush-writer", "smartos-zone 6", "a flush goes through the descriptor that wrote";
    FREE_PROBED = "zvol-free-probed", "bhyve 5.2", "space is freed where the driver has said that it can be";
    FREE_COUNT = "zvol-free-count", "bhyve 5.2", "space is freed by one extent a call";
    FREE_FLAGS = "zvol-free-flags", "bhyve 5.2", "the only flag of freeing space is DF_WAIT_SYNC";
    FREE_RANGE = "zvol-free-range", "bhyve 5.2", "an extent to free is not empty, and its end is a number";
    PROCESS_MEMORY = "zvol-process-memory", "bhyve 5.4", "what is read and written is memory of the process and not its guest's";
}
