//! System calls of a run's threads, by strace.

use std::collections::BTreeMap;
use std::process::Command;

use crate::counted::CountedRun;

/// How often each call was made, by its name.
pub type Calls = BTreeMap<String, f64>;

/// What a run has made: what it said itself, and the calls of all of its threads.
#[derive(Debug, Default)]
pub struct Trace {
    /// The run's standard output.
    pub said: String,
    threads: BTreeMap<i32, Calls>,
}

impl Trace {
    /// Does a run and counts; `None` where there is no strace.
    #[must_use]
    pub fn of_run(told: &CountedRun) -> Option<Self> {
        let file = told.path.with_extension("strace");
        let output = told.under(Command::new("strace").args(["-f", "-qq", "-o"]).arg(&file)).ok()?;
        let text = std::fs::read_to_string(&file).ok()?;
        let _ = std::fs::remove_file(&file);
        if !output.status.success() {
            eprintln!("{} under strace: {}", told.side, String::from_utf8_lossy(&output.stderr));
            return None;
        }
        Some(Self { said: String::from_utf8_lossy(&output.stdout).into_owned(), threads: count(&text) })
    }

    /// The calls of a thread.
    #[must_use]
    pub fn of_thread(&self, thread: i32) -> Calls {
        self.threads.get(&thread).cloned().unwrap_or_default()
    }

    /// The calls of some threads together.
    #[must_use]
    pub fn of_threads(&self, threads: &[i32]) -> Calls {
        let mut all = Calls::new();
        for (name, count) in threads.iter().flat_map(|thread| self.of_thread(*thread)) {
            *all.entry(name).or_default() += count;
        }
        all
    }
}

/// Calls by thread, of what strace has written.
fn count(text: &str) -> BTreeMap<i32, Calls> {
    let mut threads: BTreeMap<i32, Calls> = BTreeMap::new();
    for line in text.lines() {
        let Some((thread, call)) = line.split_once(char::is_whitespace) else { continue };
        let call = call.trim_start();
        // The rest of one that was cut by another thread's, an end, or a signal.
        if call.starts_with(['<', '+', '-']) {
            continue;
        }
        let (Ok(thread), Some((name, _))) = (thread.parse(), call.split_once('(')) else { continue };
        *threads.entry(thread).or_default().entry(name.to_owned()).or_default() += 1.0;
    }
    threads
}

/// What was called in a long run and not in a short one.
#[must_use]
pub fn difference(long: &Calls, short: &Calls) -> Calls {
    let mut left = long.clone();
    for (name, count) in short {
        *left.entry(name.clone()).or_default() -= count;
    }
    left
}

/// Calls a request, by name.
#[must_use]
pub fn list(calls: &Calls, requests: f64) -> String {
    let each = calls.iter().map(|(name, count)| (name, count / requests)).filter(|(_, each)| *each >= 0.005);
    let words: Vec<String> = each.map(|(name, each)| format!("{name} {each:.2}")).collect();
    if words.is_empty() { "–".to_owned() } else { words.join(", ") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_counts_once_for_its_thread_also_where_another_one_cuts_it() {
        let text = "10 read(3, \"x\", 8) = 8\n11 ppoll([{fd=4}], 2, NULL, NULL, 8 <unfinished ...>\n10 write(5, \"\", 8) = 8\n\
                    11 <... ppoll resumed>) = 1\n10 read(3, 0x7f, 8) = ? ERESTARTSYS\n10 --- SIGTERM ---\n11 +++ exited with 0 +++\n";
        let trace = Trace { said: String::new(), threads: count(text) };
        assert_eq!(trace.of_thread(10), Calls::from([("read".to_owned(), 2.0), ("write".to_owned(), 1.0)]));
        assert_eq!(trace.of_threads(&[10, 11, 12]).values().sum::<f64>(), 4.0);
        assert_eq!(list(&trace.of_thread(10), 2.0), "read 1.00, write 0.50");
        let left = difference(&trace.of_thread(10), &Calls::from([("read".to_owned(), 1.0)]));
        assert_eq!(list(&left, 1.0), "read 1.00, write 1.00");
    }
}
