//! One call at a time puts what is written on stable storage, for all who asked before it began.
//!
//! Linux tells of data that it could not write once for each open file (fsync(2)), and to one call: another that runs at the
//! same time is told that all is well, and so would be a guest, of writes that are lost. An engine therefore has the disk open
//! by a file of its own ([`Disk::opened_again`](crate::disk::Disk::opened_again)), makes one such call at a time, and reports
//! what it came to before it makes the next.

/// Who asks for such a call, and who waits for the one after it. Nothing is allocated once as many as ever have asked.
#[derive(Debug, Default)]
pub(crate) struct Syncs<T> {
    served: Vec<T>,
    waiting: Vec<T>,
}

impl<T> Syncs<T> {
    pub(crate) fn with_capacity(depth: usize) -> Self {
        Self { served: Vec::with_capacity(depth), waiting: Vec::with_capacity(depth) }
    }

    /// Adds one who asks. `true`: there is no call, and one is to be made now; else the next one is for them.
    #[must_use]
    pub(crate) fn ask(&mut self, who: T) -> bool {
        let is_idle = self.served.is_empty();
        if is_idle { &mut self.served } else { &mut self.waiting }.push(who);
        is_idle
    }

    /// The call has ended: `report` takes each whom it served. `true`: another one is to be made, for those who have asked
    /// meanwhile.
    #[must_use]
    pub(crate) fn end(&mut self, report: impl FnMut(T)) -> bool {
        self.served.drain(..).for_each(report);
        std::mem::swap(&mut self.served, &mut self.waiting);
        !self.served.is_empty()
    }

    /// Takes out those whose call has not begun.
    pub(crate) fn cancel(&mut self) -> impl Iterator<Item = T> + '_ {
        self.waiting.drain(..)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_is_served_by_a_call_that_began_after_they_asked() {
        let mut syncs = Syncs::with_capacity(4);
        assert!(syncs.ask(1));
        assert!(!syncs.ask(2) && !syncs.ask(3));
        let mut told = Vec::new();
        assert!(syncs.end(|who| told.push(who)));
        assert_eq!((told.as_slice(), syncs.served.as_slice()), (&[1][..], &[2, 3][..]));
        assert!(!syncs.ask(4));
        assert_eq!(syncs.cancel().collect::<Vec<_>>(), [4]);
        assert!(!syncs.end(|who| told.push(who)));
        assert_eq!(told, [1, 2, 3]);
        assert!(syncs.ask(5));
    }
}
