//! What a request to a disk costs the process, in user instructions.
//!
//! `CARGO_PROFILE_RELEASE_STRIP=none cargo run --release -p benches --bin disk-cost` runs itself under callgrind (no clock
//! is involved, so one run is enough) and fails where a read from the page cache through the whole stack costs the worker's
//! thread more instructions than the plain io_uring loop does, by more than the limit. Everything the thread does counts:
//! waiting, ring, request, engine, interrupt. What starting and stopping cost is not in it: every figure is the difference
//! between a long run and a short one.

#[cfg(target_os = "linux")]
mod linux {
    use std::path::Path;
    use std::process::ExitCode;

    use benches::counted::{CountedRun, main_counted};
    use benches::disk::{self, Driver, Raw};
    use benches::figures::Figure;
    use benches::instructions::{Counted, of_run};
    use benches::null::{Null as _, NullQueue};
    use devices_host::ram::{RamOptions, allocate};

    /// Requests of the short run; the long one has twice as many.
    const REQUESTS: u64 = 4096;
    /// More than the plain loop, at most, with many requests in flight.
    const LIMIT: f64 = 800.0;

    /// Who is measured.
    const SIDES: [(&str, &str); 7] = [
        ("null-split", "worker with a null back end, split ring"),
        ("null-packed", "worker with a null back end, packed ring"),
        ("null-measured", "worker with a null back end, split ring, times measured (without reading the clock)"),
        ("null-limited", "worker with a null back end, split ring, under limits (without reading the clock)"),
        ("raw", "plain io_uring loop"),
        ("io_uring", "whole worker thread, engine io_uring"),
        ("threads", "whole worker thread, engine threads"),
    ];

    #[inline(never)]
    #[unsafe(no_mangle)]
    fn disk_cost_measured(work: &mut dyn FnMut()) {
        work();
    }

    fn run(told: &CountedRun) {
        let (depth, requests) = (told.depth as u64, told.count);
        match &told.side[..] {
            "null-split" | "null-packed" | "null-measured" | "null-limited" => {
                let mut queue = match &told.side[..] {
                    "null-measured" => NullQueue::measured(),
                    "null-limited" => NullQueue::limited(),
                    side => NullQueue::new(side == "null-packed"),
                };
                queue.run(requests, depth, |queue| disk_cost_measured(&mut || queue.step()));
            }
            "raw" => {
                let load = disk::counted_load(told);
                let file = disk::open(&told.path, &load).expect("the file opens");
                let mem = allocate(&Driver::memory(&load), &RamOptions::default()).expect("memory");
                let mut raw = Raw::new(file, &load, mem).expect("io_uring");
                disk_cost_measured(&mut || drop(raw.run_count(requests).expect("reads")));
            }
            _ => drop(disk::counted_stack(told).expect("a stack").run_count(requests)),
        }
    }

    /// What only the worker's thread calls.
    const STEP: &str = "devices::virtio::blk::worker::BlkWorker<B> as devices::virtio::VirtioWorker<M>>::step";

    fn cost(side: &str, depth: usize, path: &Path) -> Option<f64> {
        let counted = match side {
            "io_uring" | "threads" => Counted::Threads(STEP, 1),
            _ => Counted::Function("disk_cost_measured"),
        };
        let [short, long] = [REQUESTS, 2 * REQUESTS]
            .map(|count| of_run(&CountedRun { side: side.to_owned(), depth, count, path: path.to_owned() }, counted));
        Some((long? - short?) / REQUESTS as f64)
    }

    fn measure(path: &Path) -> Option<bool> {
        disk::prepare_counted(path).ok()?;
        println!("| user instructions a request | depth 1 | depth 32 |\n|---|---|---|");
        let mut costs = Vec::new();
        for (side, name) in SIDES {
            let [one, many] = [cost(side, 1, path)?, cost(side, 32, path)?];
            println!("| {name} | {one:.0} | {many:.0} |");
            costs.push((side, many));
        }
        let of = |wanted: &str| costs.iter().find(|(side, _)| *side == wanted).map_or(f64::NAN, |(_, cost)| *cost);
        let added = Figure {
            name: "instructions that io_uring's worker adds to the plain loop, depth 32".to_owned(),
            // A count of nothing is no count.
            value: Some(of("io_uring")).filter(|cost| *cost > 0.0).unwrap_or(f64::NAN) - of("raw"),
            limit: LIMIT,
            at_least: false,
        };
        println!("{}", added.line());
        Some(added.holds())
    }

    pub fn main() -> ExitCode {
        main_counted("disk-cost: no instruction count: install valgrind, and build without stripping", run, measure)
    }
}

fn main() -> std::process::ExitCode {
    #[cfg(target_os = "linux")]
    return linux::main();
    #[cfg(not(target_os = "linux"))]
    std::process::ExitCode::SUCCESS
}
