use devices::virtio::blk::OpsSnapshot;

use super::*;
use crate::control::inventory::NetFacts;

/// A machine with one of everything.
pub(in crate::control::qmp) fn machine() -> Inventory {
    let vcpu = |thread_id, core| VcpuFacts { thread_id, socket: 0, core, thread: 0 };
    let ops = OpsSnapshot { read: 3, write: 4, flush: 5, discard: 6, ..OpsSnapshot::default() };
    let host =
        PciFacts { id: "host bridge".into(), vendor: 0x8086, device: 0x1237, class: 0x0600, ..PciFacts::default() };
    let bars = vec![
        BarFacts { index: 0, is_io: true, address: 0xc000, len: 64, ..BarFacts::default() },
        BarFacts {
            index: 4,
            is_io: false,
            is_prefetchable: true,
            is_64_bit: true,
            address: 0xc_0000_0000,
            len: 0x4000,
        },
    ];
    let card = PciFacts {
        id: "net0".into(),
        slot: 3,
        function: 0,
        vendor: 0x1af4,
        device: 0x1000,
        class: 0x0200,
        irq: Some(11),
        bars,
    };
    Inventory {
        name: "web".into(),
        uuid: Some("6e2b1f0a-2c55-4b63-9a53-0d6f3a1f7c11".into()),
        is_kvm: true,
        vcpus: vec![vcpu(70, 0), vcpu(71, 1)],
        disks: vec![DiskFacts {
            id: "disk0".into(),
            path: "/dev/zvol/rdsk/zones/web-disk0".into(),
            read_only: true,
            size_bytes: 1 << 30,
            limit_ops: Some(500),
            limit_bytes: None,
            ops,
            read_bytes: 1536,
            written_bytes: 2048,
        }],
        nets: vec![NetFacts { id: "net0".into(), mac: "02:00:00:00:00:01".into(), host: "tap0".into(), is_up: true }],
        characters: vec![CharacterFacts { label: "qmp".into(), filename: "unix:/tmp/vm.qmp,server".into() }],
        functions: vec![host, card],
    }
}

/// Every member of `least` is in `value`, at every depth; `value` may have more.
fn has(value: &Value, least: &Value) -> bool {
    match (value, least) {
        (Value::Object(value), Value::Object(least)) => {
            least.iter().all(|(key, least)| value.get(key).is_some_and(|value| has(value, least)))
        }
        (Value::Array(value), Value::Array(least)) => {
            value.len() == least.len() && value.iter().zip(least).all(|(value, least)| has(value, least))
        }
        (value, least) => value == least,
    }
}

/// The examples of qemu 0.14's `qmp-commands.hx`, for this machine: `wr_highest_offset`, `parent` and `pc`, which are not
/// known here, aside.
#[test]
fn answers_have_the_shapes_of_qemu_0_14() {
    for (query, least) in [
        (Query::Name, json!({"name": "web"})),
        (Query::Uuid, json!({"UUID": "6e2b1f0a-2c55-4b63-9a53-0d6f3a1f7c11"})),
        (Query::Kvm, json!({"enabled": true, "present": true})),
        (
            Query::Block,
            json!([{
                "device": "disk0", "type": "hd", "locked": false, "removable": false,
                "inserted": {
                    "ro": true, "drv": "raw", "encrypted": false, "file": "/dev/zvol/rdsk/zones/web-disk0",
                },
            }]),
        ),
        (
            Query::BlockStats,
            json!([{"device": "disk0", "stats": {
                "wr_bytes": 2048, "wr_operations": 4, "rd_bytes": 1536, "rd_operations": 3,
            }}]),
        ),
        (
            Query::Cpus,
            json!([
                {"CPU": 0, "current": true, "halted": false},
                {"CPU": 1, "current": false, "halted": false},
            ]),
        ),
        (Query::Characters, json!([{"label": "qmp", "filename": "unix:/tmp/vm.qmp,server"}])),
        (
            Query::Pci,
            json!([{"bus": 0, "devices": [
                {
                    "bus": 0, "qdev_id": "host bridge", "slot": 0, "function": 0, "regions": [],
                    "class_info": {"class": 1536, "desc": "Host bridge"}, "id": {"device": 4663, "vendor": 32902},
                },
                {
                    "bus": 0, "qdev_id": "net0", "slot": 3, "function": 0, "irq": 11,
                    "class_info": {"class": 512, "desc": "Ethernet controller"},
                    "id": {"device": 4096, "vendor": 6900},
                    "regions": [
                        {"type": "io", "bar": 0, "address": 49152, "size": 64},
                        {
                            "type": "memory", "bar": 4, "address": 51_539_607_552_u64, "size": 16384,
                            "prefetch": true, "mem_type_64": true,
                        },
                    ],
                },
            ]}]),
        ),
        (Query::Display, json!({"enabled": false})),
    ] {
        let answer = answer(query, &machine());
        assert!(has(&answer, &least), "{query:?}: {answer} has not all of {least}");
    }
    let pci = answer(Query::Pci, &machine());
    assert!(pci[0]["devices"][0].get("irq").is_none(), "a function without a pin has no interrupt");
}

#[test]
fn todays_clients_find_what_they_look_for() {
    let props = |core| json!({"socket-id": 0, "core-id": core, "thread-id": 0});
    let cpu = |index: u32, thread: u32| {
        json!({
            "cpu-index": index, "thread-id": thread, "target": "x86_64", "props": props(index),
            "qom-path": format!("/machine/unattached/device[{index}]"),
        })
    };
    assert_eq!(answer(Query::CpusFast, &machine()), json!([cpu(0, 70), cpu(1, 71)]));
    let block = answer(Query::Block, &machine());
    let inserted = &block[0]["inserted"];
    assert_eq!((&inserted["iops"], &inserted["bps"]), (&json!(500), &json!(0)));
    assert_eq!(inserted["image"]["virtual-size"], json!(1 << 30));
    assert_eq!(answer(Query::BlockStats, &machine())[0]["stats"]["flush_operations"], json!(5));
}

#[test]
fn a_machine_without_devices_has_empty_lists_and_an_identity_of_zeroes() {
    let machine = Inventory::default();
    for query in [Query::Block, Query::BlockStats, Query::Cpus, Query::CpusFast, Query::Characters] {
        assert_eq!(answer(query, &machine), json!([]));
    }
    assert_eq!(answer(Query::Uuid, &machine), json!({"UUID": "00000000-0000-0000-0000-000000000000"}));
    assert_eq!(answer(Query::Kvm, &machine), json!({"enabled": false, "present": false}));
}
