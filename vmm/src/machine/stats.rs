//! Counters as `query-stats` shows them: docs/query-stats.md says what each means.

use std::sync::Arc;

use serde_json::{Map, Value, json};

use super::virtio::Device;
use crate::vcpu::VcpuCounters;

/// All counters now: returns to the process by vCPU and kind, and each queue's by device.
#[cold]
pub fn snapshot(vcpus: &[Arc<VcpuCounters>], devices: &[Device], resets: u64) -> Value {
    let exits = |counters: &VcpuCounters| -> Value {
        counters.snapshot().map(|(kind, count)| (kind.to_owned(), Value::from(count))).collect::<Map<_, _>>().into()
    };
    let device = |device: &Device| {
        let queues: Vec<Value> = (0..device.queues.len()).map(|queue| queue_counters(device, queue)).collect();
        let mut shown = json!({ "id": device.id, "kind": device.kind, "queues": queues });
        if let Some(card) = &device.card {
            shown["link"] = json!({
                "up": card.is_up(), "plugged": card.is_plugged(), "carrier": card.has_carrier(),
            });
            shown["pairs"] = json!({ "offered": card.pairs(), "in_use": card.pairs_in_use() });
        }
        shown
    };
    json!({
        "vcpus": vcpus.iter().map(|vcpu| json!({ "exits": exits(vcpu) })).collect::<Vec<_>>(),
        "devices": devices.iter().map(device).collect::<Vec<_>>(),
        "resets": resets,
    })
}

fn queue_counters(device: &Device, queue: usize) -> Value {
    let mut counters = serde_json::to_value(device.queues[queue].snapshot()).unwrap_or_default();
    if let (Some(requests), Some(counters)) = (device.requests.get(queue), counters.as_object_mut()) {
        counters.insert("requests".to_owned(), serde_json::to_value(requests.snapshot()).unwrap_or_default());
    }
    counters
}

#[cfg(test)]
mod tests {
    use devices::virtio::blk::BlkStats;
    use devices::virtio::counters::QueueCounters;
    use devices::virtio::net::{NetConfig, NetDevice};
    use devices::virtio::testing::guest_ram;

    use super::*;
    use crate::worker::{DeviceWorkers, Rings};

    fn answer(requests: Vec<Arc<BlkStats>>) -> Value {
        answer_of(None, requests)
    }

    fn answer_of(card: Option<NetDevice>, requests: Vec<Arc<BlkStats>>) -> Value {
        let workers = DeviceWorkers::spawn(&guest_ram(0x1000), Rings::default(), Vec::new()).unwrap();
        let queues: Vec<_> = (0..2).map(|_| Arc::new(QueueCounters::default())).collect();
        queues[1].chains.add(7);
        let device = Device { id: "disk0".to_owned(), kind: "disk", workers, queues, disk: None, card, requests };
        snapshot(&[Arc::default()], &[device], 3)
    }

    #[test]
    fn each_queue_shows_its_own_counters_and_a_disks_those_of_its_requests() {
        let shown = answer(vec![Arc::new(BlkStats::new(true)), Arc::new(BlkStats::new(false))]);
        let queues = &shown["devices"][0]["queues"];
        assert_eq!((&queues[0]["chains"], &queues[1]["chains"], &shown["resets"]), (&json!(0), &json!(7), &json!(3)));
        assert_eq!(queues[0]["requests"]["latency"]["total"]["buckets"], json!([]));
        assert_eq!(queues[1]["requests"]["ops"]["read"], json!(0));
        assert_eq!(queues[1]["requests"].get("latency"), None, "not measured");
        assert_eq!(answer(Vec::new())["devices"][0]["queues"][0].get("requests"), None);
    }

    fn card() -> NetDevice {
        let (speed_mbits, duplex) = (None, None);
        NetDevice::new(NetConfig { mac: [2; 6], mtu: None, offloads: true, queue_size: 16, speed_mbits, duplex })
    }

    #[test]
    fn a_network_interface_shows_its_link_and_why_it_is_down() {
        let card = card();
        let link = || answer_of(Some(card.clone()), Vec::new())["devices"][0]["link"].clone();
        assert_eq!(link(), json!({"up": true, "plugged": true, "carrier": true}));
        card.set_carrier(false);
        assert_eq!(link(), json!({"up": false, "plugged": true, "carrier": false}));
        card.set_carrier(true);
        card.set_link(false);
        assert_eq!(link(), json!({"up": false, "plugged": false, "carrier": true}));
        assert_eq!(answer(Vec::new())["devices"][0].get("link"), None);
    }

    #[test]
    fn a_network_interface_shows_its_queue_pairs() {
        let wake: Arc<dyn devices::wake::Wake> = Arc::<devices::wake::WakeCounter>::default();
        let pairs = |card: NetDevice| answer_of(Some(card), Vec::new())["devices"][0]["pairs"].clone();
        assert_eq!(pairs(card()), json!({"offered": 1, "in_use": 1}));
        assert_eq!(pairs(card().with_pairs(vec![wake; 4])), json!({"offered": 4, "in_use": 1}));
        assert_eq!(answer(Vec::new())["devices"][0].get("pairs"), None);
    }

    /// The names of every number in an answer, without those of vCPU exits.
    fn names(value: &Value, into: &mut Vec<String>) {
        for (name, value) in value.as_object().into_iter().flatten().filter(|(name, _)| *name != "exits") {
            into.push(name.clone());
            names(value, into);
        }
        value.as_array().into_iter().flatten().for_each(|value| names(value, into));
    }

    #[test]
    fn the_manual_explains_every_name_in_an_answer() {
        let manual = include_str!("../../../docs/query-stats.md");
        let mut all = Vec::new();
        names(&answer_of(Some(card()), vec![Arc::new(BlkStats::new(true))]), &mut all);
        assert!(all.len() > 30, "{all:?}");
        for name in all {
            let found = ["`", ".", "\""].iter().any(|before| {
                ["`", "\"", ".", "["].iter().any(|after| manual.contains(&format!("{before}{name}{after}")))
            });
            assert!(found, "{name}");
        }
    }
}
