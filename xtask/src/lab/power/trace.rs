//! What reached the disk in which order, as far as it proves something: a record of a journal is written only after the one
//! before it was acknowledged. So when a record arrives, the one before must be on stable storage, or an acknowledgement
//! was a lie.

use std::collections::BTreeMap;
use std::fmt;

/// A record begins with this at a multiple of [`BLOCK`], then come its stream, its length and its number.
const MAGIC: &[u8; 16] = b"zvmm-lab-journal";
const BLOCK: usize = 4096;

/// What is wrong with an order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    stream: char,
    /// The record whose arrival or acknowledgement shows it.
    number: u64,
    what: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "record {} of stream {} {}", self.number, self.stream, self.what)
    }
}

/// One stream's records.
#[derive(Debug, Default)]
struct Stream {
    /// The first that arrived, and the last.
    first: u64,
    last: u64,
    /// Whether the last is on stable storage.
    durable: bool,
}

/// What a disk has seen.
#[derive(Debug, Default)]
pub struct Trace {
    /// The last record of each stream that was acknowledged before: on stable storage, and of no interest any more.
    before: BTreeMap<char, u64>,
    streams: BTreeMap<char, Stream>,
    problems: Vec<Problem>,
    flushes: u64,
}

impl Trace {
    /// Of a disk that has the records which were acknowledged `before`.
    pub(super) fn after(before: &BTreeMap<char, u64>) -> Self {
        Self { before: before.clone(), ..Self::default() }
    }

    /// Takes note of a write that begins at a multiple of a sector of the disk; blocks are aligned as memory's pages are,
    /// and so are the writes that carry them.
    pub(super) fn written(&mut self, bytes: &[u8], durable: bool) {
        for block in bytes.chunks(BLOCK) {
            if let Some((stream, number)) = header(block) {
                self.arrived(stream, number, durable);
            }
        }
    }

    pub(super) fn flushed(&mut self) {
        self.flushes += 1;
        for stream in self.streams.values_mut() {
            stream.durable = true;
        }
    }

    fn arrived(&mut self, name: char, number: u64, durable: bool) {
        // A file system that comes back from a power failure writes a page again that its last transaction had changed.
        if self.before.get(&name).is_some_and(|before| number <= *before) {
            return;
        }
        let stream = self.streams.entry(name).or_insert_with(|| Stream { first: number, ..Stream::default() });
        let mut problem = |what: String| self.problems.push(Problem { stream: name, number, what });
        // Older ones may be written again, with what else is on their pages.
        if number > stream.last {
            let before = stream.last;
            if before > 0 && number != before + 1 {
                problem(format!("arrived after {before}: those between are on no stable storage"));
            } else if before > 0 && !stream.durable {
                problem(format!("arrived before {before}, which was acknowledged, was flushed"));
            }
            (stream.last, stream.durable) = (number, durable);
        } else if number == stream.last {
            // Written twice since the last flush, the later copy is what counts.
            stream.durable = durable || stream.durable;
        }
    }

    /// What is wrong, given the last record of each stream that is known to have been acknowledged.
    #[must_use]
    pub fn problems(&self, acknowledged: &BTreeMap<char, u64>) -> Vec<Problem> {
        let mut problems = self.problems.clone();
        for (&stream, &number) in acknowledged {
            let seen = self.streams.get(&stream);
            let ok = seen.is_some_and(|seen| number < seen.last || number == seen.last && seen.durable);
            if !ok {
                let what = "was acknowledged, and is on no stable storage".to_owned();
                problems.push(Problem { stream, number, what });
            }
        }
        problems
    }

    /// How many records arrived, and how many flushes there were.
    #[must_use]
    pub fn counts(&self) -> (u64, u64) {
        (self.streams.values().map(|stream| stream.last + 1 - stream.first).sum(), self.flushes)
    }
}

/// Stream and number of the record that a block begins.
fn header(block: &[u8]) -> Option<(char, u64)> {
    let rest = block.strip_prefix(MAGIC)?;
    let stream = u32::from_le_bytes(rest.get(..4)?.try_into().ok()?);
    Some((char::from_u32(stream)?, u64::from_le_bytes(rest.get(8..16)?.try_into().ok()?)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(stream: char, number: u64) -> Vec<u8> {
        let mut block = vec![0x5a; 2 * BLOCK];
        block[..16].copy_from_slice(MAGIC);
        block[16..20].copy_from_slice(&(stream as u32).to_le_bytes());
        block[24..32].copy_from_slice(&number.to_le_bytes());
        block
    }

    fn problems(trace: &Trace, stream: char, acknowledged: u64) -> usize {
        trace.problems(&BTreeMap::from([(stream, acknowledged)])).len()
    }

    #[test]
    fn records_that_come_one_by_one_with_flushes_between_are_in_order() {
        let mut trace = Trace::default();
        for number in 5..9 {
            // With others' data in the same request.
            trace.written(&[vec![1; BLOCK], record('e', number)].concat(), false);
            trace.written(&record('x', number - 4), false);
            trace.flushed();
        }
        assert_eq!(problems(&trace, 'e', 8), 0);
        assert_eq!(trace.counts(), (8, 4));
    }

    #[test]
    fn a_record_that_comes_before_the_last_was_flushed_shows_a_lie() {
        let mut trace = Trace::default();
        trace.written(&record('e', 1), false);
        trace.written(&record('e', 2), false);
        trace.flushed();
        let said = trace.problems(&BTreeMap::new());
        assert_eq!(said.len(), 1);
        assert!(said[0].to_string().contains("before 1, which was acknowledged, was flushed"), "{}", said[0]);
    }

    #[test]
    fn a_durable_write_needs_no_flush_and_a_later_plain_copy_takes_nothing_from_it() {
        let mut trace = Trace::default();
        trace.written(&record('e', 1), true);
        trace.written(&record('e', 1), false);
        trace.written(&record('e', 2), true);
        assert_eq!(problems(&trace, 'e', 2), 0);
    }

    #[test]
    fn what_was_acknowledged_and_never_arrived_or_was_not_flushed_is_missed() {
        let mut trace = Trace::default();
        assert_eq!(problems(&trace, 'e', 1), 1);
        trace.written(&record('e', 1), false);
        assert_eq!(problems(&trace, 'e', 1), 1);
        trace.flushed();
        assert_eq!(problems(&trace, 'e', 1), 0);
        trace.written(&record('e', 3), false);
        assert_eq!(problems(&trace, 'e', 1), 1, "2 was passed over");
    }

    #[test]
    fn what_was_acknowledged_before_may_be_written_again_and_what_follows_may_not_be_passed_over() {
        let mut trace = Trace::after(&BTreeMap::from([('x', 543)]));
        trace.written(&record('x', 542), false);
        trace.written(&record('x', 544), false);
        trace.flushed();
        trace.written(&record('x', 545), true);
        assert_eq!(problems(&trace, 'x', 545), 0);
        trace.written(&record('x', 547), true);
        assert_eq!(problems(&trace, 'x', 547), 1);
    }
}
