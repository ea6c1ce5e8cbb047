//! Counters as `query-stats` shows them.

use std::sync::Arc;

use serde_json::{Map, Value, json};

use super::virtio::Device;
use crate::vcpu::VcpuCounters;

/// All counters now: returns to the process by vCPU and kind, and each queue's by device.
pub fn snapshot(vcpus: &[Arc<VcpuCounters>], devices: &[Device], resets: u64) -> Value {
    let exits = |counters: &VcpuCounters| -> Value {
        counters.snapshot().map(|(kind, count)| (kind.to_owned(), Value::from(count))).collect::<Map<_, _>>().into()
    };
    let device = |device: &Device| {
        let queues: Vec<Value> =
            device.queues.iter().map(|queue| serde_json::to_value(queue.snapshot()).unwrap_or_default()).collect();
        json!({ "id": device.id, "kind": device.kind, "queues": queues })
    };
    json!({
        "vcpus": vcpus.iter().map(|vcpu| json!({ "exits": exits(vcpu) })).collect::<Vec<_>>(),
        "devices": devices.iter().map(device).collect::<Vec<_>>(),
        "resets": resets,
    })
}
