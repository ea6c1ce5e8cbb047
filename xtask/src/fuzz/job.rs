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
    /// Edges of the control flow that were reached.
    pub edges: u64,
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
            self.edges = after("cov:").and_then(number).unwrap_or(self.edges);
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
        Ok(Self { child, said, reader: Some(reader) })
    }

    /// What it has said.
    pub fn said(&self) -> MutexGuard<'_, Said> {
        lock(&self.said)
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
            "#2\tINITED cov: 12 ft: 13 corp: 1/1b exec/s: 0 rss: 40Mb",
            "#812\tNEW    cov: 340 ft: 512 corp: 27/1024b lim: 64 exec/s: 0 rss: 41Mb L: 9/64 MS: 1 ChangeBit-",
            "zvmm-fuzz: 4096 programs 81920 operations",
            "#4100\tpulse  cov: 341 ft: 513 corp: 28/1024b lim: 64 exec/s: 4100 rss: 41Mb",
            "artifact_prefix='/f/'; Test unit written to /f/crash-0123",
        ] {
            said.line(line);
        }
        assert_eq!((said.programs, said.operations), (4100, 81920));
        assert_eq!((said.edges, said.corpus, said.new), (341, 28, 1));
        assert_eq!(said.finding.as_deref(), Some(Path::new("/f/crash-0123")));
        assert_eq!(said.tail.len(), 2, "progress is not kept");
    }
}
