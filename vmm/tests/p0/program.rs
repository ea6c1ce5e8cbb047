//! What of the program stays in memory.

use std::fs;
use std::time::{Duration, Instant};

use super::process::{Running, Zvmm, guests};
use super::{disk, path};

#[test]
fn what_only_a_start_needs_of_the_program_leaves_memory_once_the_guest_runs() {
    let Some(guests) = guests() else { return };
    let image = disk(1);
    let running =
        Zvmm::new(&guests, "doorbell").cmdline("dev=blk n=100 hold=3000").args(["--disk", &path(&image)]).start();
    let (mut most_kib, end) = (0, Instant::now() + Duration::from_secs(30));
    loop {
        let now_kib = program_kib(&running);
        if now_kib > 0 && now_kib < most_kib / 4 * 3 {
            break;
        }
        most_kib = most_kib.max(now_kib);
        assert!(now_kib > 0 || most_kib == 0, "it ended with nearly all of {most_kib} KiB still there");
        assert!(Instant::now() < end, "{now_kib} KiB of at most {most_kib} are still there");
        std::thread::sleep(Duration::from_millis(1));
    }
    running.finish().passed(&["doorbell single 100", "doorbell burst 100"]);
}

/// KiB of the program's file that are in memory where the process never writes; nothing before it runs the program.
fn program_kib(running: &Running) -> u64 {
    let Ok(maps) = fs::read_to_string(format!("/proc/{}/smaps", running.id())) else { return 0 };
    let (mut ours, mut sum) = (false, 0);
    for line in maps.lines() {
        match line.split_whitespace().collect::<Vec<_>>()[..] {
            [range, access, .., file] if range.contains('-') && access.len() == 4 => {
                ours = file == env!("CARGO_BIN_EXE_zvmm") && !access.contains('w');
            }
            ["Rss:", kib, "kB"] if ours => sum += kib.parse::<u64>().expect("a number"),
            _ => {}
        }
    }
    sum
}
