//! The built-in metadata responder on COM2, asked by a guest.

use std::path::{Path, PathBuf};

use crate::process::{self, Zvmm, elf, talk};

/// Passes on what it receives: from COM1 to COM2, and from COM2 to COM1. So the test is what runs in the guest.
///
/// The instructions mean the same in 32-bit and 64-bit mode.
const RELAY: &[u8] = &[
    // wait:
    0x66, 0xba, 0xfd, 0x03, // mov dx, 0x3fd
    0xec, // in al, dx
    0xa8, 0x01, // test al, 1
    0x74, 0x0a, // jz other
    0x66, 0xba, 0xf8, 0x03, // mov dx, 0x3f8
    0xec, // in al, dx
    0x66, 0xba, 0xf8, 0x02, // mov dx, 0x2f8
    0xee, // out dx, al
    // other:
    0x66, 0xba, 0xfd, 0x02, // mov dx, 0x2fd
    0xec, // in al, dx
    0xa8, 0x01, // test al, 1
    0x75, 0x0b, // jnz got
    0xb9, 0x00, 0x01, 0x00, 0x00, // mov ecx, 0x100
    0xff, 0xc9, // dec ecx
    0x75, 0xfc, // jnz -4
    0xeb, 0xd9, // jmp wait
    // got:
    0x66, 0xba, 0xf8, 0x02, // mov dx, 0x2f8
    0xec, // in al, dx
    0x66, 0xba, 0xf8, 0x03, // mov dx, 0x3f8
    0xee, // out dx, al
    0xeb, 0xcd, // jmp wait
];

/// A guest that passes on what comes on COM1 to COM2 and back, in a file that is the kernel.
pub fn relay(folder: &Path) -> PathBuf {
    let kernel = folder.join("relay");
    std::fs::write(&kernel, elf(RELAY)).expect("a file");
    kernel
}

#[test]
fn a_guest_asks_for_its_metadata_on_com2_in_both_versions() {
    if process::skip() {
        return;
    }
    let folder = tempfile::TempDir::new().expect("a directory");
    let (kernel, file) = (relay(folder.path()), folder.path().join("m.json"));
    let metadata = r#"{"a": ".one\ntwo", "sdc:nics": []}"#;
    std::fs::write(&file, metadata).expect("a file");
    let responder = format!("com2=metadata:{}", file.display());
    let mut zvmm =
        Zvmm::start(&["--kernel", &kernel.display().to_string(), "--serial", "socket:@com1", "--serial", &responder]);
    let mut guest = process::connect(&zvmm.place("com1"));
    for (request, answer) in [
        ("\n", "invalid command\n"),
        ("GET a\n", "SUCCESS\n..one\ntwo\n.\n"),
        ("NEGOTIATE V2\n", "V2_OK\n"),
        ("V2 25 cad51e5d dc4fae17 GET c2RjOm5pY3M=\n", "V2 21 265ae1d8 dc4fae17 SUCCESS W10=\n"),
        ("V2 41 ee9e3f3e 0000000b PUT WVNCclpYaz0gWVNCMllXeDFaUW89\n", "V2 21 2fcae427 0000000b SUCCESS T0s=\n"),
        ("KEYS\n", "SUCCESS\na\na key\n.\n"),
    ] {
        talk(&mut guest, request.as_bytes(), answer.as_bytes());
    }
    zvmm.signal(libc::SIGQUIT);
    assert_eq!((zvmm.status(), zvmm.errors().as_str()), (Some(130), ""));
    assert_eq!(std::fs::read_to_string(&file).expect("a file"), metadata, "it is never written");
}
