//! System calls of a disk queue's worker a request, and whether they stay within what the design allows: in a round at most
//! one submission and wait, a read a wake-up, a write a batch that was shown to the driver.
//!
//! `cargo run --release -p benches --bin disk-calls` runs itself under strace. Calls of starting and stopping are not in
//! it: every figure is the difference between a long run and a short one.

#[cfg(target_os = "linux")]
mod linux {
    use std::path::Path;
    use std::process::ExitCode;

    use benches::calls::{Calls, Trace, difference, list};
    use benches::counted::{CountedRun, main_counted};
    use benches::disk;

    const REQUESTS: u64 = 2000;

    /// Runs requests and prints what the parent needs to know.
    fn run(told: &CountedRun) {
        let mut stack = disk::counted_stack(told).expect("a stack");
        let done = stack.run_count(told.count).requests;
        let (counters, rounds, worker) = (stack.counters(), stack.rounds(), stack.worker_thread);
        let pool = threads_named("disk0-q0-");
        let (wakeups, interrupts) = (counters.wakeups, counters.interrupts_sent);
        println!("{worker} {done} {rounds} {wakeups} {interrupts} {pool:?}");
    }

    fn threads_named(start: &str) -> Vec<i32> {
        let tasks = std::fs::read_dir("/proc/self/task").into_iter().flatten().flatten();
        tasks
            .filter(|task| std::fs::read_to_string(task.path().join("comm")).is_ok_and(|name| name.starts_with(start)))
            .filter_map(|task| task.file_name().to_str()?.parse().ok())
            .collect()
    }

    /// What one run came to.
    struct Counts {
        requests: f64,
        rounds: f64,
        wakeups: f64,
        interrupts: f64,
        worker: Calls,
        pool: Calls,
    }

    fn count(engine: &str, depth: usize, requests: u64, path: &Path) -> Option<Counts> {
        let told = CountedRun { side: engine.to_owned(), depth, count: requests, path: path.to_owned() };
        let trace = Trace::of_run(&told)?;
        let (numbers, pool) = trace.said.trim().split_once(" [")?;
        let [worker, requests, rounds, wakeups, interrupts] =
            numbers.split(' ').map(|word| word.parse::<f64>().ok()).collect::<Option<Vec<_>>>()?[..]
        else {
            return None;
        };
        let pool: Vec<i32> = pool.trim_end_matches(']').split(", ").filter_map(|id| id.parse().ok()).collect();
        let (worker, pool) = (trace.of_thread(worker as i32), trace.of_threads(&pool));
        Some(Counts { requests, rounds, wakeups, interrupts, worker, pool })
    }

    fn measure(path: &Path) -> Option<bool> {
        disk::prepare_counted(path).ok()?;
        println!(
            "| engine, depth | rounds | wake-ups | batches shown | worker's calls | bound | of them | its threads' calls |"
        );
        println!("|---|---|---|---|---|---|---|---|");
        let mut holds = true;
        for engine in ["io_uring", "threads"] {
            for depth in [1, 32] {
                let [short, long] = [REQUESTS, 3 * REQUESTS].map(|requests| count(engine, depth, requests, path));
                let (short, long) = (short?, long?);
                let requests = long.requests - short.requests;
                let (worker, pool) = (difference(&long.worker, &short.worker), difference(&long.pool, &short.pool));
                let all = worker.values().sum::<f64>() / requests;
                let of = |what: fn(&Counts) -> f64| (what(&long) - what(&short)) / requests;
                let (rounds, wakeups, batches) = (of(|c| c.rounds), of(|c| c.wakeups), of(|c| c.interrupts));
                let bound = rounds + wakeups + batches;
                println!(
                    "| {engine}, {depth} | {rounds:.3} | {wakeups:.3} | {batches:.3} | {all:.3} | {bound:.3} | {} | {} |",
                    list(&worker, requests),
                    list(&pool, requests)
                );
                // Starting and ending are a few calls more or less from run to run.
                if all > bound + 0.01 && !(engine == "threads" && depth > 1) {
                    println!("BEYOND: {engine}, {depth} in flight: {all:.3} calls a request, {bound:.3} allowed");
                    holds = false;
                }
            }
        }
        Some(holds)
    }

    pub fn main() -> ExitCode {
        main_counted("disk-calls: no calls were counted: install strace", run, measure)
    }
}

fn main() -> std::process::ExitCode {
    #[cfg(target_os = "linux")]
    return linux::main();
    #[cfg(not(target_os = "linux"))]
    std::process::ExitCode::SUCCESS
}
