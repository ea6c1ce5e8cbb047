//! The runner inside the outer machine: starts each VMM of a job, drives its guest over the serial port and reports.
//!
//! `lab-runner JOB.json RESULTS`: progress goes to stdout, one JSON line a run to RESULTS, `LAB-DONE` last. Jobs call it as
//! `lab-runner tap NAME on` or `off`, too, for TAP devices with several queues.

mod guest;
#[path = "../../lab/job.rs"]
mod job;
mod sample;
mod tap;

use std::fs;
use std::io::Write as _;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use job::{DONE, Job, Outcome, PULSE, Run};

const PULSE_INTERVAL: Duration = Duration::from_secs(5);

fn main() -> anyhow::Result<()> {
    let mut arguments = std::env::args().skip(1);
    let (Some(job), Some(results)) = (arguments.next(), arguments.next()) else {
        anyhow::bail!("usage: lab-runner JOB.json RESULTS, or lab-runner tap NAME on|off");
    };
    if let ("tap", Some(what)) = (job.as_str(), arguments.next()) {
        return tap::run(&results, &what);
    }
    let job: Job = serde_json::from_slice(&fs::read(&job).with_context(|| format!("cannot read {job}"))?)
        .context("cannot understand the job")?;
    // RESULTS is a serial port in the outer machine and a file elsewhere.
    let mut results = fs::OpenOptions::new()
        .create(true)
        .append(true)
        .open(&results)
        .with_context(|| format!("cannot open {results}"))?;
    // Signs of life: who waits outside can tell a dead outer machine from a slow guest.
    let mut pulse = results.try_clone()?;
    std::thread::spawn(move || {
        while pulse.write_all(format!("{PULSE}\n").as_bytes()).is_ok() {
            std::thread::sleep(PULSE_INTERVAL);
        }
    });
    for run in &job.runs {
        println!("== {}", run.name);
        let outcome = one(run);
        match &outcome.failure {
            None => println!("== {} ok in {} ms", run.name, outcome.wall_ms),
            Some(why) => println!("== {} FAILED after {} ms: {why}", run.name, outcome.wall_ms),
        }
        // One write, so that a sign of life cannot come between: an empty line before it ends a cut one.
        results.write_all(format!("\n{}\n", serde_json::to_string(&outcome)?).as_bytes())?;
    }
    results.write_all(format!("\n{DONE}\n").as_bytes())?;
    results.flush()?;
    println!("{DONE}");
    Ok(())
}

fn one(run: &Run) -> Outcome {
    let start = Instant::now();
    let mut outcome = Outcome { name: run.name.clone(), ..Outcome::default() };
    let result = run
        .before
        .iter()
        .try_for_each(|command| shell(command, None, &mut outcome))
        .and_then(|()| guest::drive(run, start + Duration::from_secs(run.limit_s), &mut outcome));
    if let Err(error) = result {
        outcome.failure = Some(format!("{error:#}"));
    }
    for command in &run.after {
        if let Err(error) = shell(command, None, &mut outcome) {
            outcome.failure.get_or_insert(format!("afterwards: {error:#}"));
        }
    }
    outcome.wall_ms = u64::try_from(start.elapsed().as_millis()).unwrap_or(u64::MAX);
    outcome
}

/// Runs a shell command and records its output; fails when it does.
fn shell(command: &str, vmm: Option<u32>, outcome: &mut Outcome) -> anyhow::Result<()> {
    let mut sh = Command::new("/bin/sh");
    sh.arg("-c").arg(command).stdin(std::process::Stdio::null());
    if let Some(pid) = vmm {
        sh.env("VMM", pid.to_string());
    }
    // Output through a file: a background child that keeps a pipe open would block us.
    let path = format!("/tmp/lab-shell.{}", std::process::id());
    let file = fs::File::create(&path)?;
    let status = sh.stdout(file.try_clone()?).stderr(file).status().context("cannot run /bin/sh")?;
    let output = String::from_utf8_lossy(&fs::read(&path)?).into_owned();
    println!("-- {command}: {status}: {}", output.trim_end());
    outcome.outputs.push((command.to_owned(), output.clone()));
    anyhow::ensure!(status.success(), "`{command}` failed with {status}: {}", output.trim_end());
    Ok(())
}
