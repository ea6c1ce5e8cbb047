//! Answers about the machine, held against what it is made of and the members that docs/qmp.md names.

use serde_json::{Value, json};
use zvmm::control::inventory::{BarFacts, Inventory, PciFacts, VcpuFacts};
use zvmm::fuzzing::qmp::Query;

/// Judges an answer.
///
/// # Panics
/// On a finding.
pub fn judge(query: Query, answer: &Value, machine: &Inventory) {
    let is_right = match query {
        Query::Name => *answer == json!({"name": machine.name}),
        Query::Uuid => {
            let uuid = machine.uuid.as_deref().unwrap_or("00000000-0000-0000-0000-000000000000");
            *answer == json!({"UUID": uuid})
        }
        Query::Kvm => *answer == json!({"enabled": machine.is_kvm, "present": machine.is_kvm}),
        Query::Display => *answer == json!({"enabled": false}),
        Query::Block => each(answer, &machine.disks, "device inserted locked removable type", |_, entry, disk| {
            let inserted = &entry["inserted"];
            let limits = [("bps", disk.limit_bytes), ("iops", disk.limit_ops)];
            has(
                inserted,
                "backing_file_depth bps bps_rd bps_wr drv encrypted file image iops iops_rd iops_wr node-name ro",
            ) && entry["device"] == *disk.id
                && entry["removable"] == false
                && entry["locked"] == false
                && (&inserted["file"], &inserted["node-name"]) == (&json!(disk.path), &json!(disk.id))
                && inserted["ro"] == disk.read_only
                && inserted["image"]["virtual-size"] == disk.size_bytes
                && limits.iter().all(|(name, limit)| inserted[name] == limit.unwrap_or(0))
        }),
        Query::BlockStats => each(answer, &machine.disks, "device node-name stats", |_, entry, disk| {
            entry["device"] == *disk.id
                && entry["stats"]
                    == json!({
                        "rd_bytes": disk.read_bytes, "rd_operations": disk.ops.read,
                        "wr_bytes": disk.written_bytes, "wr_operations": disk.ops.write,
                        "flush_operations": disk.ops.flush, "unmap_operations": disk.ops.discard,
                    })
        }),
        Query::Cpus => {
            const MEMBERS: &str = "CPU arch current halted props qom_path thread_id";
            each(answer, &machine.vcpus, MEMBERS, |index, entry, vcpu| {
                (&entry["CPU"], &entry["current"], &entry["halted"])
                    == (&json!(index), &json!(index == 0), &json!(false))
                    && entry["thread_id"] == vcpu.thread_id
                    && is_place(&entry["props"], vcpu)
            })
        }
        Query::CpusFast => {
            each(answer, &machine.vcpus, "cpu-index props qom-path target thread-id", |index, entry, vcpu| {
                (&entry["cpu-index"], &entry["thread-id"]) == (&json!(index), &json!(vcpu.thread_id))
                    && is_place(&entry["props"], vcpu)
            })
        }
        Query::Characters => each(answer, &machine.characters, "filename frontend-open label", |_, entry, line| {
            (&entry["label"], &entry["filename"]) == (&json!(line.label), &json!(line.filename))
        }),
        Query::Pci => each(answer, &[()], "bus devices", |_, bus, ()| {
            let functions = bus["devices"].as_array();
            bus["bus"] == 0
                && functions.is_some_and(|shown| {
                    shown.len() == machine.functions.len()
                        && shown.iter().zip(&machine.functions).all(|(shown, function)| is_function(shown, function))
                })
        }),
    };
    assert!(is_right, "{query:?} of {machine:?} is answered by {answer}");
}

fn is_place(props: &Value, vcpu: &VcpuFacts) -> bool {
    *props == json!({"socket-id": vcpu.socket, "core-id": vcpu.core, "thread-id": vcpu.thread})
}

fn is_function(shown: &Value, function: &PciFacts) -> bool {
    let members = "bus class_info function id qdev_id regions slot";
    let members = if function.irq.is_some() { members.replace("id qdev", "id irq qdev") } else { members.to_owned() };
    let PciFacts { slot, function: number, vendor, device, class, id, .. } = function;
    has(shown, &members)
        && (&shown["slot"], &shown["function"], &shown["qdev_id"]) == (&json!(slot), &json!(number), &json!(id))
        && shown["id"] == json!({"vendor": vendor, "device": device})
        && shown["class_info"]["class"] == *class
        && shown.get("irq").and_then(Value::as_u64) == function.irq.map(u64::from)
        && shown["regions"].as_array().is_some_and(|regions| {
            regions.len() == function.bars.len()
                && regions.iter().zip(&function.bars).all(|(shown, bar)| is_bar(shown, bar))
        })
}

fn is_bar(shown: &Value, bar: &BarFacts) -> bool {
    let members = if bar.is_io { "address bar size type" } else { "address bar mem_type_64 prefetch size type" };
    has(shown, members)
        && shown["type"] == if bar.is_io { "io" } else { "memory" }
        && (&shown["bar"], &shown["address"], &shown["size"])
            == (&json!(bar.index), &json!(bar.address), &json!(bar.len))
}

/// Whether the answer is a list with an entry for each of these, which has these members and is right.
fn each<T>(answer: &Value, parts: &[T], members: &str, is_right: impl Fn(usize, &Value, &T) -> bool) -> bool {
    answer.as_array().is_some_and(|entries| {
        entries.len() == parts.len()
            && entries
                .iter()
                .zip(parts)
                .enumerate()
                .all(|(index, (entry, part))| has(entry, members) && is_right(index, entry, part))
    })
}

/// Whether an object has these members, sorted, and no others.
fn has(value: &Value, members: &str) -> bool {
    let Some(object) = value.as_object() else { return false };
    let mut names: Vec<&str> = object.keys().map(String::as_str).collect();
    names.sort_unstable();
    names.iter().copied().eq(members.split(' '))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[should_panic(expected = "is answered by")]
    fn a_member_too_many_is_found() {
        let machine = Inventory { vcpus: vec![VcpuFacts::default()], ..Inventory::default() };
        let place = json!({"socket-id": 0, "core-id": 0, "thread-id": 0});
        let mut entry =
            json!({"cpu-index": 0, "thread-id": 0, "qom-path": "/machine", "target": "x86_64", "props": place});
        judge(Query::CpusFast, &json!([entry]), &machine);
        entry["pc"] = 0.into();
        judge(Query::CpusFast, &json!([entry]), &machine);
    }
}
