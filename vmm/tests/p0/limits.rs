//! Rate limits of disks, as the whole process keeps them, and what it tells of its requests.

use std::time::{Duration, Instant};

use super::process::{Zvmm, ask, guests};
use super::{ENGINES, disk, path};

#[test]
fn a_limit_holds_a_guest_to_its_rate_and_wakes_nobody_once_the_guest_has_done() {
    let Some(guests) = guests() else { return };
    for engine in ENGINES {
        let image = disk(1);
        let folder = tempfile::tempdir().expect("a temporary folder");
        let socket = folder.path().join("qmp");
        let start = Instant::now();
        let running = Zvmm::new(&guests, "doorbell")
            .cmdline("dev=blk n=100 hold=2000")
            .args(["--disk", &format!("{},engine={engine},limit_group=slow", path(&image))])
            .args(["--limit-group", "slow,limit_ops=200,limit_ops_burst=10", "--qmp", &socket.display().to_string()])
            .start();
        running.wait_for("PASS doorbell burst 100");
        let took = start.elapsed();
        // The last interrupt's round may still be ending.
        std::thread::sleep(Duration::from_millis(200));
        let look = || {
            let stats = ask(&socket, "query-stats");
            let disk = stats["devices"].as_array().and_then(|all| all.iter().find(|device| device["kind"] == "disk"));
            let queue = disk.expect("a disk")["queues"][0].clone();
            (queue, running.switches("disk0-"))
        };
        let (queue, switches) = look();
        let requests = &queue["requests"];
        let done: u64 = requests["ops"].as_object().into_iter().flatten().filter_map(|(_, count)| count.as_u64()).sum();
        assert!(done >= 200, "{queue:#}");
        // All but the burst and a turn, at 200 a second.
        let least = Duration::from_secs_f64((done - 11) as f64 / 200.0);
        assert!(took >= least, "{engine}: {done} requests in {took:?}, not {least:?}");
        assert!(requests["throttled"].as_u64() > Some(0), "{queue:#}");

        let latency = &requests["latency"];
        let asked = done - requests["ops"]["other"].as_u64().expect("a counter");
        for phase in ["queued", "disk", "injected", "total"] {
            let of = |name: &str| latency[phase][name].as_u64().expect("a number");
            assert_eq!(of("count"), asked, "{phase}: {queue:#}");
            let buckets = latency[phase]["buckets"].as_array().expect("buckets").iter();
            assert_eq!(buckets.filter_map(serde_json::Value::as_u64).sum::<u64>(), asked, "{phase}: {queue:#}");
            let ascending = ["p50_ns", "p99_ns", "p999_ns", "max_ns"].map(of);
            assert!(ascending.is_sorted() && ascending[3] > 0, "{phase}: {queue:#}");
        }
        assert_eq!(requests["in_flight"], 0);
        assert!(requests["in_flight_max"].as_u64() > Some(0));

        std::thread::sleep(Duration::from_millis(1000));
        assert_eq!(look(), (queue, switches), "{engine}: a guest that does nothing costs nothing");
        running.finish().passed(&["doorbell single 100", "doorbell burst 100"]);
    }
}
