//! How long a worker looks for the next request before it sleeps.

/// What has been worth it lately: looking pays where the next request comes sooner than a sleeping thread wakes, and is
/// wasted where it does not. Times are nanoseconds.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    most_ns: u64,
    now_ns: u64,
}

/// Less than this is not worth the look at the clock.
const LEAST_NS: u64 = 1000;

impl Patience {
    /// Looks for `most_ns` at most; never with 0. It begins with none: the first wait says what comes next.
    pub fn new(most_ns: u64) -> Self {
        Self { most_ns, now_ns: 0 }
    }

    /// How long to look now; `None` to sleep at once.
    pub fn get(self) -> Option<u64> {
        (self.now_ns > 0).then_some(self.now_ns)
    }

    /// Whether what comes next can change anything: otherwise nobody need look at the clock.
    pub fn learns(self) -> bool {
        self.most_ns > 0
    }

    /// The worker looked, and something came.
    pub fn paid_off(&mut self) {
        self.now_ns = self.most_ns;
    }

    /// The worker had nothing to do for so long, looking and asleep. Whoever would have looked all that time without going
    /// beyond the limit looks as long as it may next time; else half as long as before, down to nothing.
    pub fn waited(&mut self, ns: u64) {
        self.now_ns = match self.now_ns / 2 {
            _ if ns <= self.most_ns => self.most_ns,
            half if half >= LEAST_NS => half,
            _ => 0,
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_looks_before_a_short_wait_nor_long_after_the_last_one() {
        let mut patience = Patience::new(50_000);
        assert_eq!(patience.get(), None);
        patience.waited(50_001);
        assert_eq!(patience.get(), None);
        patience.waited(50_000);
        assert_eq!(patience.get(), Some(50_000));
        let mut looks = Vec::new();
        while let Some(ns) = patience.get() {
            looks.push(ns);
            patience.waited(1_000_000_000);
        }
        assert_eq!(looks, [50_000, 25_000, 12_500, 6_250, 3_125, 1_562]);
        patience.waited(10);
        assert_eq!(patience.get(), Some(50_000));
    }

    #[test]
    fn without_a_limit_to_look_for_nothing_is_learnt() {
        let mut patience = Patience::new(0);
        assert!(!patience.learns());
        patience.waited(0);
        assert_eq!(patience.get(), None);
    }
}
