//! Reads and writes of a file through zvmm's whole path, without a VM, against a plain io_uring loop on the same file with
//! the same flags: `cargo run --release -p benches --bin disk-file -- --realtime`.
//!
//! The stack is the machine's own (guest memory, worker in its thread, engine, real wake-ups); a thread on another CPU is
//! the guest's driver. The loop has the worker's CPU. In every round each side runs once, in turn; a ratio is made of the
//! two runs of one round, and the median of the rounds counts. `--check` fails where a limit is not kept.
//!
//! Where `qemu-storage-daemon` is installed it is one more side: the same driver has it work, by vhost-user. No limit
//! is set by it.

#[cfg(target_os = "linux")]
mod linux {
    use std::io;
    use std::path::PathBuf;
    use std::process::ExitCode;
    use std::sync::Once;
    use std::time::Duration;

    use benches::disk::{self, Daemon, EngineShape, Load, Raw, Stack, Times};
    use benches::figures::{Figure, median, quartiles};
    use benches::threads::{become_realtime, eventfd_round_trip_us, on_worker_cpu, own_cpu_ns, thread_cpu_ns};
    use clap::Parser;
    use devices_host::engine::Kind;
    use zvmm::config::DiskConfig;

    /// Least part of the plain loop's requests a second: on the disk, and where the page cache has everything.
    const DIRECT_RATIO: f64 = 0.90;
    const CACHED_RATIO: f64 = 0.70;
    const SEQUENTIAL_RATIO: f64 = 0.95;
    /// What the worker may take for a request, µs: to submit it and to return it.
    const WORKER_US: f64 = 3.0;
    /// More than the plain loop and a wake-up there and back, µs, one request at a time.
    const LATENCY_US: f64 = 5.0;

    /// How long nobody runs after each run, of its time. By default (`sched_rt_runtime_us`) Linux has real-time threads
    /// stand still for 50 ms of each second, and all of it would fall on one side; this is more.
    const REST: f64 = 0.08;

    /// How often all sides are set up anew. Where a side's memory lies in the machine's makes it a few hundredths faster or
    /// slower for as long as it has it.
    const SET_UPS: usize = 5;

    const ENGINES: [(&str, Kind); 2] = [("io_uring", Kind::IoUring), ("threads", Kind::Threads)];
    /// Of the sides: the loop, one for each engine, the daemon.
    const DAEMON: usize = 1 + ENGINES.len();

    #[derive(Parser)]
    struct Options {
        /// The file; made where it is not there, kept for the next time
        #[arg(long, default_value = "target/bench-disk.img")]
        file: PathBuf,
        /// Its size where it is made, MiB
        #[arg(long, default_value_t = 1024)]
        mib: u64,
        /// Rounds, some for each time that all sides are set up; in each every side runs once. Many short ones: what else
        /// happens on the machine then falls on a few of them, or on all sides alike
        #[arg(long, default_value_t = 105)]
        rounds: usize,
        /// Time of one run, ms
        #[arg(long, default_value_t = 20)]
        ms: u64,
        /// Loads to run, by the beginning of a name such as `direct-rr32` or `cached-sr4`
        #[arg(long)]
        only: Option<String>,
        /// Run ahead of everything else on the machine (root)
        #[arg(long)]
        realtime: bool,
        /// How long the driver's CPU looks for an interrupt before it sleeps, µs. By default it hardly ever sleeps, or the
        /// time it takes to wake would be the disk's; KVM looks for 200 µs where a vCPU halts
        #[arg(long, default_value_t = 5000)]
        halt_poll_us: u64,
        /// How long the worker looks for a request before it sleeps, at most, µs: as a machine's disk does by default
        #[arg(long, default_value_t = DiskConfig::DEFAULT_POLL_US.into())]
        poll_us: u64,
        /// Fail when a limit is not kept
        #[arg(long)]
        check: bool,
        /// The daemon to export the file by vhost-user for one more side, of the kind of `qemu-storage-daemon`
        #[arg(long, default_value = "qemu-storage-daemon")]
        daemon: PathBuf,
        /// Resets of the device under load to take the time of; 0 for none
        #[arg(long, default_value_t = 200)]
        resets: usize,
    }

    /// What one side did, by round.
    #[derive(Default)]
    struct Side {
        iops: Vec<f64>,
        latency_us: Vec<f64>,
        cpu_us: Vec<f64>,
    }

    impl Side {
        fn add(&mut self, times: &Times, cpu_ns: u64) {
            self.iops.push(times.iops());
            self.latency_us.push(times.latency_us());
            self.cpu_us.push(cpu_ns as f64 / 1e3 / times.requests as f64);
        }

        fn ratios(&self, floor: &Self) -> Vec<f64> {
            self.iops.iter().zip(&floor.iops).map(|(ours, floor)| ours / floor).collect()
        }
    }

    fn title(load: &Load) -> String {
        format!("{}-{}", if load.direct { "direct" } else { "cached" }, load.name())
    }

    fn loads() -> Vec<Load> {
        let mut loads = Vec::new();
        // Reads first: what was written is on its way to the disk for a while.
        for (writes, direct) in [(false, false), (false, true), (true, true), (true, false)] {
            let random = Load { depth: 1, bytes: 4 << 10, piece_bytes: 4 << 10, random: true, writes, direct };
            loads.extend([1, 32, 128].map(|depth| Load { depth, ..random }));
            let sequential = [(4, 4 << 10), (4, 128 << 10), (32, 4 << 10), (32, 128 << 10)];
            loads.extend(sequential.map(|(depth, piece_bytes)| Load {
                depth,
                bytes: 128 << 10,
                piece_bytes,
                random: false,
                ..random
            }));
        }
        loads
    }

    /// The daemon on the load's file; `None` where there is none, which was said once for all loads.
    fn start_daemon(options: &Options, load: &Load, halt_poll: Duration) -> io::Result<Option<Daemon>> {
        static SAID: Once = Once::new();
        match Daemon::start(&options.daemon, &options.file, load, halt_poll) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                SAID.call_once(|| eprintln!("disk-file: without {}: {error}", options.daemon.display()));
                Ok(None)
            }
            result => result.map(Some),
        }
    }

    /// With `sleeps` the driver's CPU sleeps at once while it waits: what a request takes with a wake-up each way.
    fn measure(options: &Options, load: &Load, sleeps: bool, figures: &mut Vec<Figure>) -> io::Result<()> {
        disk::set_cached(&options.file, !load.direct)?;
        let title = format!("{}{}", title(load), if sleeps { ", sleeping" } else { "" });
        let time = Duration::from_millis(options.ms);
        let halt_poll = Duration::from_micros(if sleeps { 0 } else { options.halt_poll_us });
        let poll = Duration::from_micros(options.poll_us);
        let shape = |kind, timed| EngineShape { kind, timed, halt_poll, poll };
        let mut sides: [Side; DAEMON + 1] = Default::default();
        let mut round_trips_us = Vec::new();
        let mut has_daemon = false;
        for _ in 0..SET_UPS {
            let disk = disk::open_disk(&options.file, load)?;
            let start = |(_, kind)| Stack::start(disk.clone(), load, shape(kind, false));
            let mut stacks = ENGINES.map(start).into_iter().collect::<io::Result<Vec<_>>>()?;
            // The memory of the side that the limits are for.
            let mut raw = Raw::new(disk::open(&options.file, load)?, load, stacks[0].mem())?;
            let mut daemon = start_daemon(options, load, halt_poll)?;
            has_daemon = daemon.is_some();
            for round in 0..=options.rounds.div_ceil(SET_UPS) {
                // The first round is for what only happens once.
                let time = if round == 0 { time / 4 } else { time };
                for turn in 0..sides.len() {
                    let at = (round + turn) % sides.len();
                    let (times, cpu_ns) = match at {
                        0 => on_worker_cpu(|| {
                            let before = own_cpu_ns()?;
                            Ok::<_, io::Error>((raw.run(time)?, own_cpu_ns()? - before))
                        })??,
                        DAEMON => {
                            let Some(daemon) = &mut daemon else { continue };
                            let before = daemon.cpu_ns()?;
                            (daemon.run(time), daemon.cpu_ns()? - before)
                        }
                        _ => {
                            let stack = &mut stacks[at - 1];
                            let before = thread_cpu_ns(stack.worker_thread)?;
                            let times = stack.run(time);
                            (times, thread_cpu_ns(stack.worker_thread)? - before)
                        }
                    };
                    if round > 0 {
                        sides[at].add(&times, cpu_ns);
                    }
                    std::thread::sleep(time.mul_f64(REST));
                }
                if sleeps && round > 0 {
                    round_trips_us.push(eventfd_round_trip_us(500)?);
                }
            }
        }
        let [floor, ours @ .., theirs] = &sides;
        for ((engine, kind), side) in ENGINES.iter().zip(ours) {
            let mut timed = Stack::start(disk::open_disk(&options.file, load)?, load, shape(*kind, true))?;
            timed.run(time * 10);
            let [submit_us, complete_us] = timed.worker_times_us();
            drop(timed);
            let ratios = side.ratios(floor);
            println!(
                "| {title} | {engine} | {:.1} | {:.1} | {} | {:.2} | {:.2} | {submit_us:.2} + {complete_us:.2} | {} |",
                median(&floor.iops) / 1e3,
                median(&side.iops) / 1e3,
                quartiles(&ratios, 3),
                median(&floor.cpu_us),
                median(&side.cpu_us),
                if has_daemon { quartiles(&side.ratios(theirs), 2) } else { "–".to_owned() },
            );
            if *kind != Kind::IoUring {
                continue;
            }
            let mut least = |what: &str, value, limit| {
                figures.push(Figure { name: format!("{title}: {what}"), value, limit, at_least: true });
            };
            let ratio = "requests a second, of the plain loop's";
            match (load.random, load.direct, load.depth) {
                _ if load.writes => {}
                (false, ..) => least(ratio, median(&ratios), SEQUENTIAL_RATIO),
                _ if sleeps => {}
                (true, true, _) => least(ratio, median(&ratios), DIRECT_RATIO),
                (true, false, 2..) => least(ratio, median(&ratios), CACHED_RATIO),
                // Two threads take turns there: what counts is the time of a request.
                (true, false, _) => {}
            }
            let mut most = |what: &str, value, limit| {
                figures.push(Figure { name: format!("{title}: {what}"), value, limit, at_least: false });
            };
            most("worker's time to submit and to return a request, µs", submit_us + complete_us, WORKER_US);
            if sleeps {
                let more = |round: usize| side.latency_us[round] - floor.latency_us[round] - round_trips_us[round];
                let more: Vec<f64> = (0..round_trips_us.len()).map(more).collect();
                println!(
                    "| {title} | {engine}: a request {} µs, of the plain loop {}, wake-up there and back {}, the rest {} |",
                    quartiles(&side.latency_us, 1),
                    quartiles(&floor.latency_us, 1),
                    quartiles(&round_trips_us, 1),
                    quartiles(&more, 1)
                );
                most("a request beyond the plain loop's and a wake-up there and back, µs", median(&more), LATENCY_US);
            }
        }
        if has_daemon {
            println!(
                "| {title} | daemon | {:.1} | {:.1} | {} | {:.2} | {:.2} | – | 1 |",
                median(&floor.iops) / 1e3,
                median(&theirs.iops) / 1e3,
                quartiles(&theirs.ratios(floor), 2),
                median(&floor.cpu_us),
                median(&theirs.cpu_us),
            );
        }
        Ok(())
    }

    /// Resets of the device with 32 reads under way.
    fn resets(options: &Options) -> io::Result<()> {
        println!(
            "\n| reset with 32 reads in flight | parked p50, µs | p99 | longest | call p50, µs | p99 |\n|---|---|---|---|---|---|"
        );
        for direct in [false, true] {
            disk::set_cached(&options.file, !direct)?;
            let load = Load { depth: 32, bytes: 4 << 10, piece_bytes: 4 << 10, random: true, writes: false, direct };
            for (engine, kind) in ENGINES {
                let disk = disk::open_disk(&options.file, &load)?;
                let mut stack = Stack::start(disk, &load, EngineShape::sleeping(kind))?;
                let (mut parked, mut call) = (Vec::new(), Vec::new());
                for _ in 0..options.resets {
                    let times = stack.reset_under_load();
                    parked.push(times.0.as_nanos() as f64 / 1e3);
                    call.push(times.1.as_nanos() as f64 / 1e3);
                }
                parked.sort_by(f64::total_cmp);
                call.sort_by(f64::total_cmp);
                let at = |values: &[f64], part: f64| values[((values.len() - 1) as f64 * part).round() as usize];
                println!(
                    "| {}, {engine} | {:.0} | {:.0} | {:.0} | {:.1} | {:.1} |",
                    if direct { "direct" } else { "cached" },
                    at(&parked, 0.5),
                    at(&parked, 0.99),
                    at(&parked, 1.0),
                    at(&call, 0.5),
                    at(&call, 0.99)
                );
            }
        }
        Ok(())
    }

    fn run(options: &Options) -> io::Result<bool> {
        disk::prepare_file(&options.file, options.mib << 20)?;
        if options.realtime {
            become_realtime()?;
        }
        println!(
            "| load | engine | plain loop, 1000/s | zvmm, 1000/s | ratio | loop's CPU, µs | worker's CPU, µs | submit + return, µs | ÷ daemon |"
        );
        println!("|---|---|---|---|---|---|---|---|---|");
        let mut figures = Vec::new();
        for load in loads() {
            if options.only.as_ref().is_none_or(|only| title(&load).starts_with(only.as_str())) {
                measure(options, &load, false, &mut figures)?;
                if load.depth == 1 {
                    measure(options, &load, true, &mut figures)?;
                }
            }
        }
        if options.resets > 0 && options.only.is_none() {
            resets(options)?;
        }
        println!();
        figures.iter().for_each(|figure| println!("{}", figure.line()));
        Ok(figures.iter().all(Figure::holds))
    }

    pub fn main() -> ExitCode {
        let options = Options::parse();
        match run(&options) {
            Ok(holds) if holds || !options.check => ExitCode::SUCCESS,
            Ok(_) => ExitCode::FAILURE,
            Err(error) => {
                eprintln!("disk-file: {error}");
                ExitCode::from(2)
            }
        }
    }
}

fn main() -> std::process::ExitCode {
    #[cfg(target_os = "linux")]
    return linux::main();
    #[cfg(not(target_os = "linux"))]
    std::process::ExitCode::SUCCESS
}
