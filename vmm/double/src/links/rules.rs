//! The rules of frame devices (vnd) and of streams of the data link provider interface (DLPI).

/// Those of `/dev/vnd/*`.
pub mod vnd {
    crate::rules! {
        OPEN = "vnd-open", "smartos-zone 5.2", "a frame device is opened for reading and writing, not exclusively, and made non-blocking after that";
        COMMAND = "vnd-command", "smartos-zone 5.2", "only requests that exist are made";
        NOT_MODELLED = "vnd-not-modelled", "smartos-zone 5.2", "nothing is used that this double cannot judge";
        ARGUMENT = "vnd-argument", "smartos-zone 5.2", "a request gets the kind and the size of argument it takes";
        NAME = "vnd-name", "smartos-zone 5.2", "a link's name ends in NUL within 32 bytes and is not empty";
        ATTACHED = "vnd-attached", "smartos-zone 5.2", "a device of one's own is attached before it is used";
        ATTACH_ONCE = "vnd-attach-once", "illumos io/vnd/vnd.c", "a device is attached once";
        ERRNO_CLEAR = "vnd-errno-clear", "illumos io/vnd/vnd.c", "the error in a structure is 0 before the call, which sets it only when it fails";
        BUFFER_ROOM = "vnd-buffer-room", "illumos io/vnd/vnd.c", "a buffer holds the largest frame, or that frame is refused for ever";
        BUFFERS_SET = "vnd-buffers-set", "smartos-zone 5.2", "both buffers have got their size before the first frame";
        LIMITS_ASKED = "vnd-limits-asked", "smartos-zone 5.2", "the limits of a frame are asked for before the first frame";
        MAXBUF_ZONE = "vnd-maxbuf-zone", "illumos io/vnd/vnd.c", "the limit of buffers is asked for in the global zone only";
        NONBLOCKING = "vnd-nonblocking", "smartos-zone 5.2", "the descriptor is non-blocking before the first frame";
        VERSION = "vnd-version", "smartos-zone 5.2", "a frameio header has version 1";
        VECTORS = "vnd-vectors", "smartos-zone 5.2", "a frameio header has 1 to 32 vectors, and as many follow";
        ONE_FRAME = "vnd-one-frame", "smartos-zone 5.2", "one frame a call: the driver counts the bytes of several wrongly";
        VECTOR = "vnd-vector", "illumos io/frameio.c", "no vector is empty or points nowhere";
        MEMORY = "vnd-memory", "illumos io/frameio.c", "vectors point to memory of the process";
        LENGTH_CLEAR = "vnd-length-clear", "illumos io/frameio.c", "the lengths to be returned are 0 before the call: those of vectors that a frame does not reach stay";
        READ_ROOM = "vnd-read-room", "smartos-zone 5.2", "a read has room for the largest frame: a longer one stays where it is";
        ETHERNET = "vnd-ethernet", "illumos io/vnd/vnd.c", "what is sent has an Ethernet header: of nothing the driver says for ever that it waits";
        LIMITS_KEPT = "vnd-limits-kept", "smartos-zone 5.2", "what is sent is within the limits that were asked for";
        SPIN = "vnd-spin", "smartos-zone 5.2", "who was told to wait waits";
    }
}

/// Those of `/dev/net/*`.
pub mod dlpi {
    crate::rules! {
        OPEN = "dlpi-open", "illumos lib/libdlpi/common/libdlpi.c", "a link's node is opened for reading and writing, not exclusively, and made non-blocking after that";
        COMMAND = "dlpi-command", "illumos lib/libdlpi/common/libdlpi.c", "the only request by ioctl is DLIOCRAW, with the number 0";
        PRIMITIVE = "dlpi-primitive", "illumos io/dld/dld_proto.c", "only primitives that the driver knows, and this double can judge, are sent";
        SIZE = "dlpi-size", "illumos io/dld/dld_proto.c", "a primitive has the size of its structure";
        URGENT = "dlpi-urgent", "illumos lib/libdlpi/common/libdlpi.c", "DL_INFO_REQ is urgent (RS_HIPRI), and no other message is";
        ANSWER_TAKEN = "dlpi-answer-taken", "illumos lib/libdlpi/common/libdlpi.c", "the answer to a request is taken before the next request";
        INFO_FIRST = "dlpi-info-first", "illumos lib/libdlpi/common/libdlpi.c", "what a node is, is asked before anything else of it";
        RAW_FIRST = "dlpi-raw-first", "illumos lib/libdlpi/common/libdlpi.c", "a stream is raw before it is bound";
        BIND_ONCE = "dlpi-bind-once", "illumos io/dld/dld_proto.c", "a stream is bound once";
        BIND_MODE = "dlpi-bind-mode", "illumos lib/libdlpi/common/libdlpi.c", "a stream is bound to SAP 0, connectionless";
        RX_ONLY_FIRST = "dlpi-rx-only-first", "illumos sys/dlpi.h", "a stream asks not to hear itself before it asks to hear more";
        FIXUPS_FIRST = "dlpi-fixups-first", "illumos sys/dlpi.h", "a stream asks for frames with their checksums before it asks to hear more";
        LEVEL = "dlpi-level", "illumos sys/dlpi.h", "a stream hears every protocol and every group, and nobody else's frames";
        READY = "dlpi-ready", "illumos io/dld/dld_str.c", "frames go once the stream is raw, bound and hears all that is for it";
        WHOLE = "dlpi-whole", "illumos lib/libdlpi/common/libdlpi.c", "a frame of a raw stream is a message without a control part";
        ETHERNET = "dlpi-ethernet", "illumos io/dld/dld_str.c", "what is sent has an Ethernet header and is no longer than the link's frames: the rest is thrown away unseen";
        READ_ROOM = "dlpi-read-room", "illumos lib/libdlpi/common/libdlpi.c", "a read has room for the largest frame";
        CONTROL_ROOM = "dlpi-control-room", "illumos lib/libdlpi/common/libdlpi.c", "a read has room for any control message";
        NONBLOCKING = "dlpi-nonblocking", "illumos lib/libdlpi/common/libdlpi.c", "the descriptor is non-blocking before the first frame";
        NOTES = "dlpi-notes", "illumos sys/dlpi.h", "what is to be told of is the link's going up and down";
    }
}
