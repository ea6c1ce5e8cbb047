//! What a packet costs the process, in user instructions.
//!
//! `CARGO_PROFILE_RELEASE_STRIP=none cargo run --release -p benches --bin net-cost` (root) runs itself under callgrind (no
//! clock is involved, so one run is enough) and fails where a packet of 64 bytes costs a queue's whole thread more
//! instructions than the plain loop of reads or writes on the same TAP device, by more than the limit. Everything the thread
//! does counts: waiting, ring, frame, link, interrupt. What starting and stopping cost is not in it: every figure is the
//! difference between a long run and a short one.

#[cfg(target_os = "linux")]
mod linux {
    use std::path::Path;
    use std::process::ExitCode;

    use benches::counted::{CountedRun, main_counted};
    use benches::figures::Figure;
    use benches::instructions::{Counted, of_run};
    use benches::net::{Card, Load, Pair, Raw, Shape};
    use benches::null::{Null as _, NullCard, Way};

    /// Packets of the short run; the long one has twice as many.
    const PACKETS: u64 = 4096;
    /// At once: a few times what the ring has buffers for, so that it is full while they last.
    const FULL: usize = 1024;
    /// More than the plain loop, at most, with many packets at once.
    const LIMIT: f64 = 800.0;

    /// Who is measured, which way.
    const SIDES: [(&str, &str); 4] = [
        ("null-split", "worker with a null back end, split ring"),
        ("null-packed", "worker with a null back end, packed ring"),
        ("raw", "plain loop"),
        ("card", "whole worker thread"),
    ];
    const WAYS: [(&str, Way); 2] = [("tx", Way::Tx), ("rx", Way::Rx)];

    /// What only the threads of the two queues call.
    const STEP: &str = "devices::virtio::net::worker::NetWorker<B> as devices::virtio::VirtioWorker<M>>::step";

    #[inline(never)]
    #[unsafe(no_mangle)]
    fn net_cost_measured(work: &mut dyn FnMut()) {
        work();
    }

    fn run(told: &CountedRun) {
        let (side, way) = told.side.rsplit_once('-').expect("a side and a way");
        let way = if way == "tx" { Way::Tx } else { Way::Rx };
        let (depth, load) = (told.depth as u64, Load::SMALL);
        if let "null-split" | "null-packed" = side {
            let mut card = NullCard::new(way, side == "null-packed");
            // No more than the ring has.
            let depth = depth.min(256);
            card.run(told.count, depth, |card| net_cost_measured(&mut || card.step()));
            return;
        }
        let pair = Pair::make().expect("a pair of TAP devices");
        let mut card = Card::start(&pair, &load, Shape::default()).expect("a card");
        let back = load.frame(false);
        if side == "raw" {
            card.pause();
            let mut raw = Raw::new(&card, &load).expect("memory");
            for _ in 0..told.count / depth {
                if way == Way::Rx {
                    pair.send(&back, depth).expect("the frames go");
                }
                net_cost_measured(&mut || {
                    let moved = if way == Way::Tx { raw.write(depth) } else { raw.read(depth) };
                    moved.expect("the frames go");
                });
                pair.drain().expect("the frames come");
            }
            return;
        }
        for _ in 0..told.count / depth {
            match way {
                Way::Tx => drop(card.send(&pair, depth).expect("the frames go")),
                Way::Rx if depth > 1 => drop(card.receive(&pair, &back, depth).expect("the frames go")),
                Way::Rx => {
                    pair.send(&back, 1).expect("the frame goes");
                    card.receiver().receive(1);
                }
            }
        }
    }

    fn cost(side: &str, depth: usize, path: &Path) -> Option<f64> {
        let counted = match side.starts_with("card") {
            // The one that has nothing to do costs as much in both runs.
            true => Counted::Threads(STEP, 2),
            false => Counted::Function("net_cost_measured"),
        };
        let [short, long] = [PACKETS, 2 * PACKETS]
            .map(|count| of_run(&CountedRun { side: side.to_owned(), depth, count, path: path.to_owned() }, counted));
        Some((long? - short?) / PACKETS as f64)
    }

    fn measure(path: &Path) -> Option<bool> {
        println!(
            "| user instructions a packet of 64 B | tx, one at a time | tx, a ring full | rx, one at a time | rx, a ring full |"
        );
        println!("|---|---|---|---|---|");
        let mut many = Vec::new();
        for (side, name) in SIDES {
            let mut cells = Vec::new();
            for (way, _) in WAYS {
                let side = format!("{side}-{way}");
                let [one, full] = [cost(&side, 1, path)?, cost(&side, FULL, path)?];
                cells.extend([one, full]);
                many.push((side, full));
            }
            let [a, b, c, d] = cells[..] else { return None };
            println!("| {name} | {a:.0} | {b:.0} | {c:.0} | {d:.0} |");
        }
        let of = |wanted: &str| many.iter().find(|(side, _)| side == wanted).map_or(f64::NAN, |(_, cost)| *cost);
        let figures = WAYS.map(|(way, _)| Figure {
            name: format!("instructions that a worker adds to the plain loop, {way}, a ring full"),
            // A count of nothing is no count.
            value: Some(of(&format!("card-{way}"))).filter(|cost| *cost > 0.0).unwrap_or(f64::NAN)
                - of(&format!("raw-{way}")),
            limit: LIMIT,
            at_least: false,
        });
        figures.iter().for_each(|figure| println!("{}", figure.line()));
        Some(figures.iter().all(Figure::holds))
    }

    pub fn main() -> ExitCode {
        main_counted(
            "net-cost: no instruction count: install valgrind, build without stripping, and be root",
            run,
            measure,
        )
    }
}

fn main() -> std::process::ExitCode {
    #[cfg(target_os = "linux")]
    return linux::main();
    #[cfg(not(target_os = "linux"))]
    std::process::ExitCode::SUCCESS
}
