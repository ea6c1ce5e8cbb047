//! Random programs without a fuzzer: `soak TARGET PROGRAMS [SEED]` prints programs and operations a second. A finding is
//! written to `finding-TARGET` and explained.

use std::panic::catch_unwind;
use std::time::Instant;

use zvmm_fuzz::program::{KNOBS, RECORD};
use zvmm_fuzz::soak::program;

fn main() {
    let mut args = std::env::args().skip(1);
    let name = args.next().expect("a target");
    let programs: u64 = args.next().and_then(|count| count.parse().ok()).unwrap_or(100_000);
    let seed: u64 = args.next().and_then(|seed| seed.parse().ok()).unwrap_or(1);
    let target = zvmm_fuzz::target(&name).expect("no such target");
    let hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(|_| {}));
    let (mut data, mut ops, start) = (Vec::new(), 0, Instant::now());
    for number in seed..seed + programs {
        program(number, &mut data);
        ops += (data.len() - KNOBS) / RECORD;
        if catch_unwind(|| (target.run)(&data)).is_err() {
            drop(hook);
            let file = format!("finding-{name}");
            std::fs::write(&file, &data).expect("a file in the working directory");
            println!("program {number}, in {file}:\n{}", (target.explain)(&data));
            std::process::exit(1);
        }
    }
    let seconds = start.elapsed().as_secs_f64();
    println!(
        "{name}: {:.0} programs/s of {:.1} operations, {:.1} s",
        programs as f64 / seconds,
        ops as f64 / programs as f64,
        seconds
    );
}
