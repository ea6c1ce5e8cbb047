//! A campaign: processes that share a corpus, told about as they go.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::path::Path;
use std::process::Command;
use std::sync::{Mutex, PoisonError};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};

use super::job::Job;
use super::{Target, files, finding, folder, sources};

/// How often progress is told.
const TELL: Duration = Duration::from_secs(10);
const POLL: Duration = Duration::from_millis(100);
/// What a process may take beyond its time: it reads the corpus first, and looks at its clock between inputs.
const PATIENCE: Duration = Duration::from_secs(120);

/// How targets are fuzzed.
pub struct Campaign<'a> {
    /// Folder of the programs.
    pub programs: &'a Path,
    /// How long.
    pub time: Duration,
    /// Processes a target.
    pub jobs: u32,
    /// Begin with the committed inputs alone and the same random numbers each time: most programs are the same then.
    pub repeatable: bool,
}

/// What the processes of a target have done together.
#[derive(Default)]
struct Sum {
    programs: u64,
    operations: u64,
    features: u64,
    corpus: u64,
    new: u64,
    cpu_s: f64,
}

impl Sum {
    fn of<'a>(jobs: impl Iterator<Item = &'a Job>) -> Self {
        jobs.fold(Self::default(), |sum, job| {
            let said = job.said();
            Self {
                programs: sum.programs + said.programs,
                operations: sum.operations + said.operations,
                // The processes know much of the same: there is no sum of these.
                features: sum.features.max(said.features),
                corpus: sum.corpus.max(said.corpus),
                new: sum.new + said.new,
                cpu_s: sum.cpu_s + job.cpu_s(),
            }
        })
    }
}

impl Campaign<'_> {
    /// Fuzzes every target, `at_once` at a time; returns what went wrong, a line a target.
    pub fn run_all(&self, targets: &[Target], at_once: usize) -> Vec<String> {
        let (queue, failures) = (Mutex::new(targets.iter()), Mutex::new(Vec::new()));
        std::thread::scope(|scope| {
            for _ in 0..at_once {
                scope.spawn(|| {
                    while let Some(target) = { queue.lock().unwrap_or_else(PoisonError::into_inner).next() } {
                        if let Err(error) = self.run(target) {
                            let mut failures = failures.lock().unwrap_or_else(PoisonError::into_inner);
                            failures.push(format!("{}: {error:#}", target.name));
                        }
                    }
                });
            }
        });
        failures.into_inner().unwrap_or_else(PoisonError::into_inner)
    }

    /// Fuzzes one target. The first finding ends the campaign: it is made smaller, explained, and kept.
    ///
    /// # Errors
    /// When there is a finding, or a process cannot be run.
    pub fn run(&self, target: &Target) -> anyhow::Result<()> {
        let name = &target.name;
        let start = Instant::now();
        let mut jobs = (0..self.jobs).map(|number| self.start(target, number)).collect::<anyhow::Result<Vec<_>>>()?;
        let mut told = start;
        let mut before = 0;
        loop {
            sleep(POLL);
            let ended = jobs.iter_mut().map(Job::ended).collect::<anyhow::Result<Vec<_>>>()?;
            if let Some(which) = ended.iter().position(|end| end.is_some_and(|status| !status.success())) {
                self.tell(name, start, &Sum::of(jobs.iter()));
                let said = jobs.swap_remove(which).take_said();
                // The others stop here: making the finding smaller has the machine for itself.
                drop(jobs);
                return Err(finding::report(&self.programs.join(name), target, said));
            }
            if ended.iter().all(Option::is_some) {
                break;
            }
            if start.elapsed() > self.time + PATIENCE {
                bail!("does not end after {} s", start.elapsed().as_secs());
            }
            if told.elapsed() >= TELL {
                let sum = Sum::of(jobs.iter());
                let rate = (sum.programs - before) as f64 / told.elapsed().as_secs_f64();
                println!(
                    "{name:<14} {:>5} s  {rate:>8.0} execs/s  {:>6} features  corpus {:>5}  new {:>5}  findings 0",
                    start.elapsed().as_secs(),
                    sum.features,
                    sum.corpus,
                    sum.new
                );
                (told, before) = (Instant::now(), sum.programs);
            }
        }
        self.tell(name, start, &Sum::of(jobs.iter()));
        Ok(())
    }

    fn start(&self, target: &Target, number: u32) -> anyhow::Result<Job> {
        let name = &target.name;
        let [corpus, findings, logs] = [if self.repeatable { "gate" } else { "corpus" }, "findings", "logs"]
            .map(|kind| folder().join(kind).join(name));
        if self.repeatable && corpus.exists() {
            fs::remove_dir_all(&corpus)?;
        }
        let mut command = self.command_in(name, &corpus, &findings)?;
        if self.repeatable {
            command.args(["-seed=1".to_owned(), format!("-runs={}", target.gate_programs)]);
        }
        fs::create_dir_all(&logs).with_context(|| format!("cannot create {}", logs.display()))?;
        Job::start(&mut command, &logs.join(format!("{number}.log")))
    }

    /// The command of one process with everything it makes in `place`: it begins with the committed inputs alone.
    ///
    /// # Errors
    /// When the place cannot be made.
    pub fn command(&self, name: &str, place: &Path) -> anyhow::Result<Command> {
        self.command_in(name, &place.join("corpus"), &place.join("findings"))
    }

    fn command_in(&self, name: &str, corpus: &Path, findings: &Path) -> anyhow::Result<Command> {
        for folder in [corpus, findings] {
            fs::create_dir_all(folder).with_context(|| format!("cannot create {}", folder.display()))?;
        }
        let mut command = finding::command(&self.programs.join(name));
        command
            .arg(format!("-max_total_time={}", self.time.as_secs()))
            .arg(format!("-artifact_prefix={}/", findings.display()))
            // By the clock on the wall: a machine that is busy with something else may leave a program alone for long. What
            // spins is found by its steps.
            .args(["-timeout=120", "-rss_limit_mb=2048", "-max_len=4096", "-print_final_stats=1"]);
        // To replace inputs by shorter ones takes a fifth of the time, mostly the file system's; programs are short anyway.
        command.arg("-reduce_inputs=0");
        // To keep count of rare features for each input takes a quarter of the time while most are still rare, and what it
        // chooses by them finds no more: as many programs find fewer features than with the plain schedule.
        command.arg("-entropic=0");
        if self.jobs == 1 {
            // Nobody else finds anything.
            command.arg("-reload=0");
        }
        let dictionary = sources().join("dictionaries").join(format!("{name}.dict"));
        if dictionary.is_file() {
            command.arg(format!("-dict={}", dictionary.display()));
        }
        command.arg(corpus);
        // What was found once stays in reach: bugs come in families.
        // Named one by one, in an order that is the same in every file system.
        let starts = ["seeds", "regressions"].map(|kind| files(&sources().join(kind).join(name))).concat();
        if !starts.is_empty() {
            let starts: Vec<_> = starts.iter().map(|file| file.as_os_str()).collect();
            let mut seeds = OsString::from("-seed_inputs=");
            seeds.push(starts.join(OsStr::new(",")));
            command.arg(seeds);
        }
        Ok(command)
    }

    fn tell(&self, name: &str, start: Instant, sum: &Sum) {
        let took = start.elapsed().as_secs_f64();
        let operations = match sum.operations {
            0 => String::new(),
            operations => format!("  {:.1} operations a program", operations as f64 / sum.programs.max(1) as f64),
        };
        println!(
            "{name:<14} ran {} programs in {took:.0} s: {:.0} execs/s, {:.0} a second of CPU  {} features  corpus {}{operations}",
            sum.programs,
            sum.programs as f64 / took,
            sum.programs as f64 / sum.cpu_s.max(0.01),
            sum.features,
            sum.corpus
        );
    }
}
