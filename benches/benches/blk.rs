//! What a disk queue's worker takes for a request whose back end takes nothing: requests a second and core.
//!
//! `cargo bench -p benches --bench blk`. The virtual driver of the tests posts; only the worker's steps are timed.

use std::time::{Duration, Instant};

use benches::null::NullQueue;
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};

fn requests(c: &mut Criterion) {
    let mut group = c.benchmark_group("blk-null");
    group.throughput(Throughput::Elements(1)).warm_up_time(Duration::from_secs(1));
    for (format, packed) in [("split", false), ("packed", true)] {
        for depth in [1, 32] {
            group.bench_function(BenchmarkId::new(format, depth), |bencher| {
                let mut queue = NullQueue::new(packed);
                bencher.iter_custom(|count| {
                    let mut time = Duration::ZERO;
                    let mut left = count;
                    while left > 0 {
                        let now = left.min(depth);
                        queue.post(now);
                        let start = Instant::now();
                        queue.step();
                        time += start.elapsed();
                        queue.take_back(now);
                        left -= now;
                    }
                    time
                });
            });
        }
    }
    group.finish();
}

criterion_group!(benches, requests);
criterion_main!(benches);
