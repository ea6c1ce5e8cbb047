//! What a queue's worker takes for a request or packet whose back end takes nothing: how many a second and core; and that
//! it allocates nothing for any.
//!
//! `cargo bench -p benches --bench null`, behind it `-- blk` or `-- net` for one of the two devices. The virtual driver of the
//! tests posts; only the worker's steps are timed, and only their allocations counted.

use std::time::{Duration, Instant};

use benches::allocations;
use benches::null::{Null, NullCard, NullQueue, Way};
use criterion::measurement::WallTime;
use criterion::{BenchmarkGroup, BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};

#[global_allocator]
static ALLOCATOR: allocations::Counting = allocations::Counting;

/// Fails where the worker allocates.
fn measure<Q: Null>(group: &mut BenchmarkGroup<'_, WallTime>, name: &str, make: impl Fn(bool) -> Q, depths: [u64; 2]) {
    group.throughput(Throughput::Elements(1)).warm_up_time(Duration::from_secs(1));
    for (format, packed) in [("split", false), ("packed", true)] {
        for depth in depths {
            group.bench_function(BenchmarkId::new(format!("{name}{format}"), depth), |bencher| {
                let mut queue = make(packed);
                // What the first ones have to allocate comes back from each.
                queue.run(depth, depth, Q::step);
                assert!(allocations::so_far() > 0, "nothing is counted");
                bencher.iter_custom(|count| {
                    let (mut time, mut allocated) = (Duration::ZERO, 0);
                    queue.run(count, depth, |queue| {
                        let before = allocations::so_far();
                        let start = Instant::now();
                        queue.step();
                        time += start.elapsed();
                        allocated += allocations::so_far() - before;
                    });
                    assert_eq!(allocated, 0, "allocations of {count}, {name}{format}, {depth} at once");
                    time
                });
            });
        }
    }
}

fn requests(c: &mut Criterion) {
    measure(&mut c.benchmark_group("blk"), "", NullQueue::new, [1, 32]);
}

fn packets(c: &mut Criterion) {
    let mut group = c.benchmark_group("net");
    for (name, way) in [("tx-", Way::Tx), ("rx-", Way::Rx)] {
        // With fewer free buffers than the longest frame takes the receive queue goes another way.
        measure(&mut group, name, |packed| NullCard::new(way, packed), [1, 128]);
    }
    group.finish();
}

criterion_group!(benches, requests, packets);
criterion_main!(benches);
