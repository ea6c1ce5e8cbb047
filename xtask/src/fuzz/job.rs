//! One process of a campaign, and what it says.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use anyhow::Context as _;

/// Last lines that are kept: a panic, its backtrace, and what libFuzzer says about it.
const TAIL_LINES: usize = 80;

/// What a process has said so far.
#[derive(Default, Debug, PartialEq, Eq)]
pub struct Said {
    /// Inputs run.
    pub programs: u64,
    /// Operations in them, where the target counts them.
    pub operations: u64,
    /// Edges of the control flow that were reached, times the orders of magnitude of how often one input took them.
    pub features: u64,
    /// Files of the corpus in use.
    pub corpus: u64,
    /// Inputs that reached something new.
    pub new: u64,
    /// Where the finding is.
    pub finding: Option<PathBuf>,
    /// The last lines.
    pub tail: VecDeque<String>,
}

impl Said {
    fn line(&mut self, line: &str) {
        let words: Vec<&str> = line.split_whitespace().collect();
        let number = |word: Option<&&str>| word.and_then(|word| word.parse::<u64>().ok());
        if let ["zvmm-fuzz:", programs, "programs", operations, "operations"] = words[..] {
            self.programs = self.programs.max(number(Some(&programs)).unwrap_or(0));
            self.operations = number(Some(&operations)).unwrap_or(self.operations);
            return;
        }
        if let Some(executed) = words.first().and_then(|word| word.strip_prefix('#')).and_then(|word| word.parse().ok())
        {
            self.programs = self.programs.max(executed);
            let after = |key: &str| words.iter().position(|word| *word == key).map(|at| words.get(at + 1));
            self.features = after("ft:").and_then(number).unwrap_or(self.features);
            let corpus = after("corp:").flatten().and_then(|corpus| corpus.split('/').next()?.parse().ok());
            self.corpus = corpus.unwrap_or(self.corpus);
            self.new += u64::from(words.get(1) == Some(&"NEW"));
            return;
        }
        if let Some(executed) = line.strip_prefix("stat::number_of_executed_units:") {
            self.programs = executed.trim().parse().unwrap_or(self.programs);
            return;
        }
        if let Some((_, file)) = line.split_once("Test unit written to ") {
            self.finding = Some(PathBuf::from(file.trim()));
        }
        if self.tail.len() == TAIL_LINES {
            self.tail.pop_front();
        }
        self.tail.push_back(line.to_owned());
    }
}

/// A running process; killed when dropped.
pub struct Job {
    child: Child,
    /// Processor time it has taken, as of the last look.
    cpu_s: f64,
    said: Arc<Mutex<Said>>,
    reader: Option<JoinHandle<()>>,
}

impl Job {
    /// Starts the process; what it says goes to the log too.
    ///
    /// # Errors
    /// When it cannot be started or the log cannot be written.
    pub fn start(command: &mut Command, log: &Path) -> anyhow::Result<Self> {
        let mut log = File::create(log).with_context(|| format!("cannot write {}", log.display()))?;
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot start {}", command.get_program().display()))?;
        let output = child.stderr.take().context("the process has no output")?;
        let said = Arc::new(Mutex::new(Said::default()));
        let shared = said.clone();
        let reader = std::thread::spawn(move || {
            for line in BufReader::new(output).split(b'\n').map_while(Result::ok) {
                // A full disk is no reason to stop listening: the process would block.
                let _ = log.write_all(&line).and_then(|()| log.write_all(b"\n"));
                lock(&shared).line(&String::from_utf8_lossy(&line));
            }
        });
        Ok(Self { child, cpu_s: 0.0, said, reader: Some(reader) })
    }

    /// What it has said.
    pub fn said(&self) -> MutexGuard<'_, Said> {
        lock(&self.said)
    }

    /// Processor time it has taken, in seconds: what a rate is made of on a machine that others use, too.
    #[must_use]
    pub fn cpu_s(&self) -> f64 {
        self.cpu_s
    }

    /// What it has said in all, when it has ended.
    #[must_use]
    pub fn take_said(self) -> Said {
        std::mem::take(&mut self.said())
    }

    /// How it ended, when it has; all it said is known then.
    ///
    /// # Errors
    /// When the system does not say.
    pub fn ended(&mut self) -> anyhow::Result<Option<ExitStatus>> {
        // Before it is waited for: then the system forgets it.
        if let Some(cpu_s) =
            std::fs::read_to_string(format!("/proc/{}/stat", self.child.id())).ok().and_then(|s| cpu_s(&s))
        {
            self.cpu_s = cpu_s;
        }
        let status = self.child.try_wait()?;
        if status.is_some()
            && let Some(reader) = self.reader.take()
        {
            let _ = reader.join();
        }
        Ok(status)
    }
}

impl Drop for Job {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Seconds of processor time in a line of `/proc/PID/stat` (proc_pid_stat(5)): user and system time are the 14th and 15th
/// fields, in hundredths, and the second may hold anything in its parentheses.
fn cpu_s(stat: &str) -> Option<f64> {
    let (_, fields) = stat.rsplit_once(')')?;
    let mut times = fields.split_whitespace().skip(11).map(str::parse::<u64>);
    let (user, system) = (times.next()?.ok()?, times.next()?.ok()?);
    Some((user + system) as f64 / 100.0)
}

fn lock(said: &Mutex<Said>) -> MutexGuard<'_, Said> {
    said.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn progress_and_a_finding_are_read_from_what_libfuzzer_says() {
        let mut said = Said::default();
        for line in [
            "INFO: Seed: 1",
            "#2\tINITED ft: 13 corp: 1/1b exec/s: 0 rss: 40Mb",
            "#812\tNEW    ft: 512 corp: 27/1024b lim: 64 exec/s: 0 rss: 41Mb L: 9/64 MS: 1 ChangeBit-",
            "zvmm-fuzz: 4096 programs 81920 operations",
            "#4100\tpulse  ft: 513 corp: 28/1024b lim: 64 exec/s: 4100 rss: 41Mb",
            "artifact_prefix='/f/'; Test unit written to /f/crash-0123",
        ] {
            said.line(line);
        }
        assert_eq!((said.programs, said.operations), (4100, 81920));
        assert_eq!((said.features, said.corpus, said.new), (513, 28, 1));
        assert_eq!(said.finding.as_deref(), Some(Path::new("/f/crash-0123")));
        assert_eq!(said.tail.len(), 2, "progress is not kept");
    }

    #[test]
    fn processor_time_is_read_whatever_a_program_is_called() {
        let stat = "77 (a ) b) R 1 77 1 0 -1 4194304 9 0 0 0 250 50 0 0 20 0 1 0 5 1 1 184";
        assert_eq!(cpu_s(stat), Some(3.0));
        assert!(cpu_s(&std::fs::read_to_string("/proc/self/stat").unwrap()).is_some());
        assert_eq!(cpu_s(""), None);
    }
}
