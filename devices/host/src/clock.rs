//! The host's clocks.

/// Nanoseconds since some fixed moment of the past; never goes back, and is not moved by time corrections.
pub fn monotonic_ns() -> u64 {
    let (seconds, nanos) = read(libc::CLOCK_MONOTONIC);
    u64::try_from(seconds).unwrap_or(0).saturating_mul(1_000_000_000).saturating_add(nanos.into())
}

/// Seconds since 1970-01-01 00:00 UTC without leap seconds, and nanoseconds below 10^9.
pub fn realtime() -> (i64, u32) {
    read(libc::CLOCK_REALTIME)
}

fn read(clock: libc::clockid_t) -> (i64, u32) {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `now` is a valid timespec. Both clocks always exist, so the call cannot fail; if it did, zero is read.
    unsafe { libc::clock_gettime(clock, &mut now) };
    (now.tv_sec, u32::try_from(now.tv_nsec).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, SystemTime, UNIX_EPOCH};

    use super::*;

    #[test]
    fn the_monotonic_clock_counts_nanoseconds() {
        let before_ns = monotonic_ns();
        std::thread::sleep(Duration::from_millis(5));
        let passed_ns = monotonic_ns() - before_ns;
        assert!((5_000_000..5_000_000_000).contains(&passed_ns), "{passed_ns}");
    }

    #[test]
    fn realtime_agrees_with_the_standard_library() {
        let (seconds, nanos) = realtime();
        let theirs = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
        assert!(nanos < 1_000_000_000);
        assert!(theirs.as_secs().abs_diff(seconds as u64) <= 1);
    }
}
