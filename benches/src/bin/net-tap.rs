//! Frames through zvmm's whole path and a pair of TAP devices, without a VM, against a plain loop of reads or writes with
//! the same header on the same device: `cargo run --release -p benches --bin net-tap -- --realtime` (root).
//!
//! The card is the machine's own (guest memory, workers in their threads, real wake-ups); a thread on another CPU is the
//! guest's driver. The loop has the workers' CPU. Frames that are received wait in the device before the clock starts, and
//! those that are sent are taken from the far end when it has stopped: the pair's other end is in nobody's time, and every
//! frame has to arrive. In every round each side runs once, in turn; a ratio is made of the two runs of one round, and the
//! median of the rounds counts. `--check` fails where a limit is not kept.

#[cfg(target_os = "linux")]
mod linux {
    use std::io;
    use std::process::ExitCode;
    use std::time::{Duration, Instant};

    use benches::figures::{Figure, median, spread};
    use benches::net::{Card, Load, Pair, Raw, Shape};
    use benches::null::Way;
    use benches::threads::{become_realtime, eventfd_round_trip_us, keep_cpus_awake, on_worker_cpu};
    use clap::Parser;

    /// Least part of the plain loop's frames a second: of small packets, and of large segments.
    const SMALL_RATIO: f64 = 0.70;
    const GSO_RATIO: f64 = 0.90;
    /// More than the plain loop and a wake-up there and back, µs, of one frame there and back.
    const LATENCY_US: f64 = 5.0;

    #[derive(Parser)]
    struct Options {
        /// Rounds; in each every side runs once
        #[arg(long, default_value_t = 7)]
        rounds: usize,
        /// Time of one run, ms; what is not measured in it comes on top
        #[arg(long, default_value_t = 150)]
        ms: u64,
        /// Frames there and back in a round
        #[arg(long, default_value_t = 2000)]
        round_trips: u64,
        /// Run ahead of everything else on the machine, whose CPUs do not sleep meanwhile (root)
        #[arg(long)]
        realtime: bool,
        /// How long the driver's CPU looks for what comes back before it sleeps, µs. By default it hardly ever sleeps, or the
        /// time it takes to wake would be the card's; KVM looks for 200 µs where a vCPU halts
        #[arg(long, default_value_t = 5000)]
        halt_poll_us: u64,
        /// Fail when a limit is not kept
        #[arg(long)]
        check: bool,
    }

    /// Frames a second of each side, by round.
    #[derive(Default)]
    struct Sides {
        card: Vec<f64>,
        raw: Vec<f64>,
    }

    impl Sides {
        fn ratios(&self) -> Vec<f64> {
            self.card.iter().zip(&self.raw).map(|(card, raw)| card / raw).collect()
        }
    }

    /// Frames a second of bursts, until so much time was measured.
    fn rate(time: Duration, burst: u64, mut move_frames: impl FnMut() -> io::Result<Duration>) -> io::Result<f64> {
        let (mut frames, mut measured) = (0, Duration::ZERO);
        let end = Instant::now() + 10 * time;
        while measured < time && Instant::now() < end {
            measured += move_frames()?;
            frames += burst;
        }
        Ok(frames as f64 / measured.as_secs_f64())
    }

    fn measure(options: &Options, pair: &Pair, load: &Load, figures: &mut Vec<Figure>) -> io::Result<()> {
        let shape = Shape { halt_poll: Duration::from_micros(options.halt_poll_us), ..Shape::default() };
        let mut card = Card::start(pair, load, shape)?;
        let mut raw = Raw::new(&card, load)?;
        let back = load.frame(false);
        // A burst is a few times the ring, and no more than the devices keep.
        let burst = if load.gso { 512 } else { 4096 };
        for (name, way) in [("tx", Way::Tx), ("rx", Way::Rx)] {
            let mut sides = Sides::default();
            for round in 0..=options.rounds {
                // The first round is for what only happens once.
                let time = Duration::from_millis(options.ms) / if round == 0 { 4 } else { 1 };
                for turn in 0..2 {
                    let ours = (round + turn) % 2 == 0;
                    let rate = match (ours, way) {
                        (true, Way::Tx) => rate(time, burst, || card.send(pair, burst))?,
                        (true, Way::Rx) => rate(time, burst, || card.receive(pair, &back, burst))?,
                        (false, Way::Tx) => rate(time, burst, || {
                            on_worker_cpu(|| raw.write(burst))?.and_then(|time| pair.taken(burst, time))
                        })?,
                        (false, Way::Rx) => {
                            card.pause();
                            let rate = rate(time, burst, || {
                                pair.send(&back, burst)?;
                                on_worker_cpu(|| raw.read(burst))?
                            })?;
                            card.resume();
                            rate
                        }
                    };
                    if round > 0 {
                        if ours { sides.card.push(rate) } else { sides.raw.push(rate) }
                    }
                }
            }
            let ratios = sides.ratios();
            let [ours, floor] = [&sides.card, &sides.raw].map(|rates| median(rates));
            let gbits = |rate: f64| rate * load.frame_bytes as f64 * 8.0 / 1e9;
            println!(
                "| {}, {name} | {:.1} | {:.1} | {:.2} | {:.2} | {} |",
                load.name,
                floor / 1e3,
                ours / 1e3,
                gbits(floor),
                gbits(ours),
                spread(&ratios, 2)
            );
            let limit = if load.gso { GSO_RATIO } else { SMALL_RATIO };
            let name = format!("{}, {name}: frames a second, of the plain loop's", load.name);
            figures.push(Figure { name, value: median(&ratios), limit, at_least: true });
        }
        Ok(())
    }

    /// One frame there and back, with a driver that sleeps at once.
    fn latency(options: &Options, pair: &Pair, figures: &mut Vec<Figure>) -> io::Result<()> {
        let load = Load::SMALL;
        let mut card = Card::start(pair, &load, Shape::default())?;
        let mut raw = Raw::new(&card, &load)?;
        let (mut ours, mut floor, mut wakes, mut rest) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        for round in 0..=options.rounds {
            let count = options.round_trips;
            let echo = pair.echo(load.frame(false), count)?;
            let card_us = median(&card.round_trips_us(count));
            echo.join().map_err(|_| io::Error::other("a thread panicked"))??;
            card.pause();
            let echo = pair.echo(load.frame(false), count)?;
            let raw_us = median(&on_worker_cpu(|| raw.round_trips_us(count))??);
            echo.join().map_err(|_| io::Error::other("a thread panicked"))??;
            card.resume();
            let wake_us = eventfd_round_trip_us(count as usize)?;
            if round > 0 {
                ours.push(card_us);
                floor.push(raw_us);
                wakes.push(wake_us);
                rest.push(card_us - raw_us - wake_us);
            }
        }
        println!(
            "\n| a frame there and back, µs | plain loop | wake-up there and back | the rest |\n|---|---|---|---|"
        );
        println!("| {} | {} | {} | {} |", spread(&ours, 1), spread(&floor, 1), spread(&wakes, 1), spread(&rest, 1));
        figures.push(Figure {
            name: "a frame there and back beyond the plain loop's and a wake-up there and back, µs".to_owned(),
            value: median(&rest),
            limit: LATENCY_US,
            at_least: false,
        });
        Ok(())
    }

    fn run(options: &Options) -> io::Result<bool> {
        let pair = Pair::make()?;
        if options.realtime {
            become_realtime()?;
            keep_cpus_awake()?;
        }
        println!(
            "| load | plain loop, 1000/s | zvmm, 1000/s | plain loop, Gb/s | zvmm, Gb/s | ratio |\n|---|---|---|---|---|---|"
        );
        let mut figures = Vec::new();
        for load in [Load::SMALL, Load::MTU, Load::GSO] {
            measure(options, &pair, &load, &mut figures)?;
        }
        latency(options, &pair, &mut figures)?;
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
                eprintln!("net-tap: {error}");
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
