//! What of the queue and the transport, compiled as the shipped binary is, can reach the panic machinery: nothing but the
//! entries of [`REMAINING`], each with the reason why no guest gets there.
//!
//! The example `guest-paths` is built in release mode with link-time optimisation, so that calls the optimiser proved
//! impossible are gone, and disassembled; then calls are followed from every function of the two modules.
#![cfg(target_os = "linux")]

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::{Command, Stdio};

/// A function of ours, what it calls and where that ends (each as far as its name matters), and why no guest brings it
/// there.
const REMAINING: [(&str, &str, &str); 23] = [
    // Guest memory.
    (
        "",
        "SliceIterator",
        "vm-memory subtracts a region's start from an address inside it, in an access across regions",
    ),
    ("as devices::virtio::queue::mem::RingMem>::", "core::option::unwrap_failed", "the same, where it is inlined"),
    ("mem::load_pair_anywhere", "core::option::unwrap_failed", "the same"),
    ("mem::load_u16_anywhere", "core::option::unwrap_failed", "the same"),
    (
        "as devices::virtio::queue::mem::RingMem>::load",
        "core::panicking::panic_fmt",
        "a load with an order that only a store can have: ours are relaxed and acquiring",
    ),
    ("mem::load_u16_anywhere", "core::panicking::panic_fmt", "the same"),
    ("", "write_slice core::option::unwrap_failed", "the same, before a copy"),
    ("", "read_slice core::option::unwrap_failed", "the same"),
    ("walk::Parser>::find_buffer", "panic_bounds_check", "vm-memory's regions, indexed by its own binary search"),
    ("mem::load_u16_anywhere", "panic_bounds_check", "the same"),
    // Vectors whose length is bounded by the queue's: the host may be out of memory, the capacity does not overflow.
    ("walk::Parser>::add_unknown", "grow_one", "a chain has no more ranges than the queue has entries, 32768 at most"),
    ("chain::Chain>::blank", "handle_alloc_error", "what a chain consists of, of a fixed size, one a chain in flight"),
    (
        "order::Order>::begin",
        "Returned>>>::grow",
        "made as long as the queue, and no more chains than that are in flight",
    ),
    ("guest_path_new", "handle_error", "tables as long as the queue, 32768 entries at most"),
    (">::new", "handle_error", "the same"),
    // The transport's own.
    ("pci::core::Core>::", "handle_alloc_error", "two tokens of a fixed size"),
    ("pci::common::ModernBar as", "handle_alloc_error", "the same, where it is inlined"),
    ("pci::core::Core>::", "capacity_overflow", "an entry a queue of the device, too"),
    ("pci::core::Core>::", "handle_error", "an entry a queue of the device, a number the guest has no say in"),
    ("pci::function::VirtioPci>::apply", "handle_error", "an entry a BAR of the function, six at most"),
    ("as devices::wake::Wake>::wake", "panic_fmt", "the count of references to a device overflows at 2^63"),
    // Before any guest runs.
    ("pci::layout::", "handle_", "capabilities, made when the machine is"),
    ("pci::function::VirtioPci>::build", "", "the function itself, made when the machine is"),
];

/// Names under which the panic machinery goes, and what ends in it.
const PANICS: [&str; 9] = [
    "core::panicking::",
    "unwrap_failed",
    "expect_failed",
    "slice_error_fail",
    "slice_index",
    "handle_error",
    "handle_alloc_error",
    "capacity_overflow",
    "begin_panic",
];

type Calls = BTreeMap<String, BTreeSet<String>>;

/// Which function names which others: calls, jumps and addresses taken.
fn calls(disassembly: &str) -> Calls {
    let mut calls = Calls::new();
    let mut current = String::new();
    for line in disassembly.lines() {
        if let Some(name) = line.strip_suffix(">:").and_then(|line| line.split_once(" <")).map(|(_, name)| name) {
            current = name.to_owned();
            calls.entry(current.clone()).or_default();
        } else if let Some((_, target)) = line.trim_end().strip_suffix('>').and_then(|line| line.split_once(" <")) {
            let target = target.rsplit_once("+0x").map_or(target, |(name, _)| name);
            if target != current {
                calls.entry(current.clone()).or_default().insert(target.to_owned());
            }
        }
    }
    calls
}

fn is_panic(name: &str) -> bool {
    PANICS.iter().any(|panic| name.contains(panic))
}

/// Whether a function belongs to the queue or the transport. Instances of the library's containers do not, though their
/// names mention what they contain; they are followed as callees.
fn is_ours(name: &str) -> bool {
    let modules = name.contains("devices::virtio::queue") || name.contains("devices::virtio::pci");
    modules && !name.starts_with("<alloc::") || name.contains("guest_paths::guest_path_")
}

/// The first panic that `from` leads to without passing through another function of ours.
fn panic_behind(calls: &Calls, from: &str, seen: &mut BTreeSet<String>) -> Option<String> {
    if is_panic(from) {
        return Some(from.to_owned());
    }
    if is_ours(from) || !seen.insert(from.to_owned()) {
        return None;
    }
    calls.get(from)?.iter().find_map(|callee| panic_behind(calls, callee, seen))
}

fn disassembly() -> String {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let target = root.join("target/no-panic");
    let built = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
        .args(["build", "--quiet", "--release", "-p", "devices", "--example", "guest-paths", "--target-dir"])
        .arg(&target)
        .env("CARGO_PROFILE_RELEASE_STRIP", "none")
        .env("RUSTFLAGS", "-Csymbol-mangling-version=v0")
        .current_dir(root)
        .stdin(Stdio::null())
        .status()
        .unwrap();
    assert!(built.success());
    let output = Command::new("objdump")
        .args(["--disassemble", "--no-show-raw-insn", "--demangle"])
        .arg(target.join("release/examples/guest-paths"))
        .output()
        .expect("objdump, of the same package as the linker");
    assert!(output.status.success());
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn of_queue_and_transport_only_what_is_listed_reaches_the_panic_machinery() {
    let calls = calls(&disassembly());
    let teeth = calls.keys().find(|name| name.contains("guest_paths::teeth")).expect("the function that can panic");
    assert!(panic_behind(&calls, teeth, &mut BTreeSet::new()).is_some(), "the search finds nothing at all");
    let ours: Vec<_> = calls.keys().filter(|name| is_ours(name)).collect();
    assert!(ours.len() > 50, "only {} functions", ours.len());

    let mut used = BTreeSet::new();
    let mut unexplained = Vec::new();
    for name in ours {
        for callee in &calls[name] {
            let Some(panic) = panic_behind(&calls, callee, &mut BTreeSet::new()) else { continue };
            let end = if *callee == panic { panic.clone() } else { format!("{callee} {panic}") };
            let explained = REMAINING.iter().position(|(who, how, _)| name.contains(who) && end.contains(how));
            match explained {
                Some(entry) => drop(used.insert(entry)),
                None => unexplained.push(format!("{name} -> {end}")),
            }
        }
    }
    assert!(unexplained.is_empty(), "these can panic:\n{}", unexplained.join("\n"));
    for (entry, (who, how, _)) in REMAINING.iter().enumerate() {
        assert!(used.contains(&entry), "nothing in `{who}` reaches `{how}` any more: take the entry out");
    }
}
