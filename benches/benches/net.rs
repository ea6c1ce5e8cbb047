//! What a network queue's worker takes for a packet whose link takes nothing: packets a second and core.
//!
//! `cargo bench -p benches --bench net`. The virtual driver of the tests posts; only the worker's steps are timed.

use std::time::{Duration, Instant};

use benches::null::{NullCard, Way};
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};

fn packets(c: &mut Criterion) {
    let mut group = c.benchmark_group("net-null");
    group.throughput(Throughput::Elements(1)).warm_up_time(Duration::from_secs(1));
    for (name, way) in [("tx", Way::Tx), ("rx", Way::Rx)] {
        for (format, packed) in [("split", false), ("packed", true)] {
            for depth in [1, 128] {
                group.bench_function(BenchmarkId::new(format!("{name}-{format}"), depth), |bencher| {
                    let mut card = NullCard::new(way, packed);
                    bencher.iter_custom(|count| {
                        let mut time = Duration::ZERO;
                        let mut left = count;
                        while left > 0 {
                            let now = left.min(depth);
                            card.post(now);
                            let start = Instant::now();
                            card.step();
                            time += start.elapsed();
                            card.take_back(now);
                            left -= now;
                        }
                        time
                    });
                });
            }
        }
    }
    group.finish();
}

criterion_group!(benches, packets);
criterion_main!(benches);
