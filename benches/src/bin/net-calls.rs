//! System calls of a network card's workers a packet, and bytes that they copy themselves; and whether the calls stay within
//! what the design allows: in a round at most one wait, a read a wake-up by the driver, a write a batch that was shown to
//! it, and a read or write of the TAP device a frame, which is the least that one can do.
//!
//! `cargo run --release -p benches --bin net-calls` (root) runs itself under strace. Calls of starting and stopping are not
//! in it: every figure is the difference between a long run and a short one.

#[cfg(target_os = "linux")]
mod linux {
    use std::path::Path;
    use std::process::ExitCode;

    use benches::calls::{Calls, Trace, difference, list};
    use benches::counted::{CountedRun, main_counted};
    use benches::net::{Card, Load, Pair, Shape};
    use benches::null::Way;

    const PACKETS: u64 = 2048;
    /// At once: a few times what the ring has buffers for, so that it is full while they last.
    const FULL: usize = 1024;

    const LOADS: [(&str, Load); 2] = [("small", Load::SMALL), ("gso", Load::GSO)];

    /// Moves packets and prints what the parent needs to know.
    fn run(told: &CountedRun) {
        let (load, way) = told.side.rsplit_once('-').expect("a load and a way");
        let load = LOADS.iter().find(|(name, _)| *name == load).expect("a load").1;
        let way = if way == "tx" { Way::Tx } else { Way::Rx };
        let pair = Pair::make().expect("a pair of TAP devices");
        let shape = Shape { counts_copies: true, ..Shape::default() };
        let mut card = Card::start(&pair, &load, shape).expect("a card");
        let (back, depth) = (load.frame(false), told.depth as u64);
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
        let counters = card.counters(way);
        let shown = counters.interrupts_sent + counters.interrupts_suppressed;
        let copied = card.copied_bytes(way);
        let thread = card.threads[usize::from(way == Way::Tx)];
        println!("{thread} {} {} {shown} {copied}", counters.wakeups, counters.interrupts_sent);
    }

    /// What one run came to.
    struct Counts {
        wakeups: f64,
        interrupts: f64,
        shown: f64,
        copied: f64,
        calls: Calls,
    }

    fn count(side: &str, depth: usize, packets: u64, path: &Path) -> Option<Counts> {
        let told = CountedRun { side: side.to_owned(), depth, count: packets, path: path.to_owned() };
        let trace = Trace::of_run(&told)?;
        let words = trace.said.split_whitespace().map(|word| word.parse::<f64>().ok()).collect::<Option<Vec<_>>>()?;
        let [thread, wakeups, interrupts, shown, copied] = words[..] else { return None };
        Some(Counts { wakeups, interrupts, shown, copied, calls: trace.of_thread(thread as i32) })
    }

    fn measure(path: &Path) -> Option<bool> {
        println!(
            "| packets | wake-ups by the driver | batches shown | interrupts | calls | bound | of them | bytes copied |"
        );
        println!("|---|---|---|---|---|---|---|---|");
        let mut holds = true;
        let rows = [("small-tx", 1), ("small-tx", FULL), ("small-rx", 1), ("small-rx", FULL)];
        for (side, depth) in rows.into_iter().chain([("gso-tx", FULL), ("gso-rx", FULL)]) {
            let [short, long] = [PACKETS, 3 * PACKETS].map(|packets| count(side, depth, packets, path));
            let (short, long, packets) = (short?, long?, 2.0 * PACKETS as f64);
            let calls = difference(&long.calls, &short.calls);
            let all = calls.values().sum::<f64>() / packets;
            let of = |what: fn(&Counts) -> f64| (what(&long) - what(&short)) / packets;
            let (wakeups, interrupts) = (of(|c| c.wakeups), of(|c| c.interrupts));
            let (shown, copied) = (of(|c| c.shown), of(|c| c.copied));
            // A worker that sends waits by the read of its wake-up; one that receives waits for two things, once a round, of
            // which each shows something.
            let waits = if side.ends_with("tx") { 0.0 } else { shown };
            let bound = 1.0 + waits + wakeups + interrupts;
            println!(
                "| {side}, {depth} at once | {wakeups:.3} | {shown:.3} | {interrupts:.3} | {all:.3} | {bound:.3} | {} | {copied:.0} |",
                list(&calls, packets)
            );
            // Starting and ending are a few calls more or less from run to run.
            if all > bound + 0.02 {
                println!("BEYOND: {side}, {depth} at once: {all:.3} calls a packet, {bound:.3} allowed");
                holds = false;
            }
        }
        Some(holds)
    }

    pub fn main() -> ExitCode {
        main_counted("net-calls: no calls were counted: install strace, and be root", run, measure)
    }
}

fn main() -> std::process::ExitCode {
    #[cfg(target_os = "linux")]
    return linux::main();
    #[cfg(not(target_os = "linux"))]
    std::process::ExitCode::SUCCESS
}
