//! The tests that need a KVM (the backends' own, and those with our small guests), built to run in an outer machine: static,
//! each a run of a job.

use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, ensure};

use super::job::{Job, Outcome, Run, Step};
use super::place::Place;
use super::vmm::Vmm;
use super::{Lab, OUTER_CPUS, keep_log, matrix};
use crate::{guests, paths};

const TARGET: &str = "x86_64-unknown-linux-gnu";

/// Packages with tests that need a KVM, and the name of those among the library's own tests (empty: all).
pub const PACKAGES: [(&str, &str); 2] = [("zvmm", "hypervisor::kvm"), ("zvmm-double", "")];

/// The package and the program of tests that are not run unless there is time for them: those that are ignored otherwise.
pub const LONG: (&str, &str) = ("zvmm", "zone");

/// In the outer machine: where the test programs and the guests are.
const BIN: &str = "lab/bin";
const GUESTS: &str = "lab/guests";

/// One test program.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Program {
    /// The package's and the target's name, such as `zvmm-p0`.
    name: String,
    path: PathBuf,
    /// Only tests with this in their name.
    filter: &'static str,
}

/// All of them.
#[derive(Default)]
pub struct KvmTests {
    programs: Vec<Program>,
    guests: PathBuf,
    /// Where the tests believe the workspace's programs to be.
    target: PathBuf,
}

impl KvmTests {
    /// Builds the tests, and the guests they run.
    ///
    /// # Errors
    /// When cargo fails.
    pub fn build() -> anyhow::Result<Self> {
        let target_dir = paths::lab().join("cargo");
        let output = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
            .args(["test", "--quiet", "--lib", "--tests", "--no-run", "--message-format", "json", "--target", TARGET])
            .args(PACKAGES.iter().flat_map(|(package, _)| ["--package", package]))
            .arg("--target-dir")
            .arg(&target_dir)
            .env("CARGO_ENCODED_RUSTFLAGS", "-Ctarget-feature=+crt-static")
            // The emulator runs them: small and not quite naive.
            .envs([("CARGO_PROFILE_DEV_DEBUG", "0"), ("CARGO_PROFILE_DEV_STRIP", "true")])
            .env("CARGO_PROFILE_DEV_OPT_LEVEL", "1")
            .current_dir(paths::workspace())
            .stdin(Stdio::null())
            .stderr(Stdio::inherit())
            .output()
            .context("cannot run cargo")?;
        ensure!(output.status.success(), "cannot build the tests");
        let programs = programs(&String::from_utf8_lossy(&output.stdout));
        ensure!(!programs.is_empty(), "cargo built no test program");
        Ok(Self { programs, guests: guests::build()?, target: target_dir.join(TARGET).join("debug") })
    }

    /// The files that the outer machine needs: path there, file here.
    ///
    /// # Errors
    /// When the guests cannot be listed.
    pub fn files(&self) -> anyhow::Result<Vec<(String, PathBuf)>> {
        let mut files: Vec<_> =
            self.programs.iter().map(|program| (format!("{BIN}/{}", program.name), program.path.clone())).collect();
        for entry in std::fs::read_dir(&self.guests)? {
            let entry = entry?;
            files.push((format!("{GUESTS}/{}", entry.file_name().to_string_lossy()), entry.path()));
        }
        Ok(files)
    }

    /// A run of each program that tests something, or only of the one with that name.
    #[must_use]
    pub fn runs(&self, only: Option<&str>) -> Vec<Run> {
        // Bochs is the slowest: hundreds of reboots take minutes there.
        const LIMIT_S: u64 = 1800;
        let chosen = self.programs.iter().filter(|program| only.is_none_or(|only| program.name == only));
        chosen.map(|Program { name, filter, .. }| self.run(format!("tests/{name}"), name, filter, LIMIT_S)).collect()
    }

    /// The run of what takes long.
    fn long_run(&self) -> Run {
        const LIMIT_S: u64 = 3600;
        let (package, program) = LONG;
        self.run("tests/long".to_owned(), &format!("{package}-{program}"), "--ignored", LIMIT_S)
    }

    fn run(&self, name: String, program: &str, words: &str, limit_s: u64) -> Run {
        let command = format!("ZVMM_GUESTS=/{GUESTS} exec /{BIN}/{program} --test-threads=1 {words} 2>&1");
        Run {
            name,
            before: vec![self.links()],
            command: vec!["sh".to_owned(), "-c".to_owned(), command],
            steps: vec![Step::Exit { within_s: limit_s, status: Some(0) }],
            limit_s,
            ..Run::default()
        }
    }

    /// The tests start zvmm from where cargo put it.
    fn links(&self) -> String {
        let folder = self.target.display();
        format!(
            "mkdir -p {folder}; for p in zvmm zvmm-double; do ln -sf $(which $p || echo /missing) {folder}/$p; done"
        )
    }
}

/// What cargo says it built that are tests.
fn programs(messages: &str) -> Vec<Program> {
    messages
        .lines()
        .filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok())
        .filter(|message| message["profile"]["test"] == true)
        .filter_map(|message| {
            let path = PathBuf::from(message["executable"].as_str()?);
            let target = message["target"]["name"].as_str()?;
            let kind = message["target"]["kind"][0].as_str()?;
            let package = |name: &str| message["package_id"].as_str().is_some_and(|id| is_package(id, name));
            let (package, filter) = PACKAGES.into_iter().find(|(name, _)| package(name))?;
            // A program's own tests, if it has any, need no KVM.
            let (name, filter) = match kind {
                "lib" => ("lib", filter),
                "test" => (target, ""),
                _ => return None,
            };
            Some(Program { name: format!("{package}-{name}"), path, filter })
        })
        .collect()
}

/// Whether a package id (`path+file:///…/vmm#zvmm@0.1.0`, or without the name when the folder has it) is of this package.
fn is_package(id: &str, name: &str) -> bool {
    let (path, end) = id.rsplit_once('#').unwrap_or((id, ""));
    match end.split_once('@') {
        Some((package, _version)) => package == name,
        None => path.ends_with(&format!("/{name}")),
    }
}

/// Whether a test program ran something, and all of it passed.
///
/// # Errors
/// Says what did not.
pub fn all_passed(outcome: &Outcome) -> anyhow::Result<()> {
    let lines = || outcome.lines.iter().map(|(_, line)| line.as_str());
    let result = lines().find(|line| line.starts_with("test result:")).context("the test program said no result")?;
    let failed: Vec<&str> = lines().filter(|line| line.ends_with("FAILED") || line.contains("panicked at")).collect();
    ensure!(result.starts_with("test result: ok.") && !result.contains(" 0 passed"), "{result} {}", failed.join("; "));
    Ok(())
}

/// Runs all of them in the outer machine with nested SVM, whatever this machine can do; `full`: also what takes long.
///
/// # Errors
/// When something cannot be built or started, or a test fails.
pub fn run(why: &str, full: bool) -> anyhow::Result<()> {
    let tests = KvmTests::build()?;
    let mut lab = Lab::prepare(&[Vmm::ZVMM, matrix::DOUBLES[0].1[0]])?;
    lab.place = Place::Nested(why.to_owned());
    lab.programs.extend(tests.files()?);
    let mut job = Job { runs: tests.runs(None) };
    job.runs.extend(full.then(|| tests.long_run()));
    println!("lab: {} test programs run {}", job.runs.len(), lab.place.describe());
    let report = lab.run("kvm-tests", (OUTER_CPUS, 2048), &job, false)?;
    let mut failures = Vec::new();
    for run in &job.runs {
        let outcome = report.outcomes.iter().find(|outcome| outcome.name == run.name);
        let outcome = outcome.with_context(|| format!("the outer machine ended before it ({:?})", report.end));
        let verdict = outcome.and_then(|outcome| {
            keep_log(outcome)?;
            all_passed(outcome).map(|()| outcome.wall_ms)
        });
        match verdict {
            Ok(wall_ms) => println!("ok      {:<40} {:.1} s", run.name, Duration::from_millis(wall_ms).as_secs_f64()),
            Err(error) => {
                println!("FAILED  {:<40} {error:#}", run.name);
                failures.push(run.name.as_str());
            }
        }
    }
    println!("lab: {:?} after {:.0} s; console log: {}", report.end, report.wall.as_secs_f64(), report.log.display());
    ensure!(failures.is_empty(), "failed: {}", failures.join(", "));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outcome(lines: &[&str]) -> Outcome {
        Outcome { lines: lines.iter().map(|line| (0, (*line).to_owned())).collect(), ..Outcome::default() }
    }

    #[test]
    fn a_test_program_that_ran_nothing_or_said_nothing_has_not_passed() {
        assert!(all_passed(&outcome(&["test a ... ok", "test result: ok. 9 passed; 0 failed; 0 ignored"])).is_ok());
        for said in ["test result: ok. 0 passed; 0 failed", "test result: FAILED. 8 passed; 1 failed", "killed"] {
            assert!(all_passed(&outcome(&[said])).is_err(), "{said}");
        }
    }

    #[test]
    fn cargos_messages_name_the_test_programs_and_nothing_else() {
        let message = |kind: &str, name: &str, test: bool| {
            serde_json::json!({
                "package_id": "path+file:///w/vmm#zvmm@0.1.0",
                "target": {"kind": [kind], "name": name},
                "profile": {"test": test},
                "executable": format!("/t/{name}-0"),
            })
            .to_string()
        };
        let messages = [
            message("lib", "zvmm", true),
            message("bin", "zvmm", false),
            message("bin", "zvmm", true),
            message("test", "p0", true),
            "not JSON".to_owned(),
        ];
        let programs = programs(&messages.join("\n"));
        let names: Vec<_> = programs.iter().map(|program| (program.name.as_str(), program.filter)).collect();
        assert_eq!(names, [("zvmm-lib", "hypervisor::kvm"), ("zvmm-p0", "")]);
    }

    #[test]
    fn a_package_is_known_by_its_id_in_both_forms() {
        assert!(is_package("path+file:///w/vmm#zvmm@0.1.0", "zvmm"));
        assert!(!is_package("path+file:///w/vmm/double#zvmm-double@0.1.0", "zvmm"));
        assert!(is_package("path+file:///w/zvmm#0.1.0", "zvmm") && !is_package("path+file:///w/zvmm#0.1.0", "vmm"));
    }

    #[test]
    fn every_program_runs_with_its_filter_where_its_files_are_put() {
        let program = |name: &str, filter| Program { name: name.to_owned(), path: PathBuf::from("/t/x"), filter };
        let tests = KvmTests {
            programs: vec![program("zvmm-lib", "hypervisor::kvm"), program("zvmm-p0", "")],
            guests: PathBuf::from(env!("CARGO_MANIFEST_DIR")),
            target: PathBuf::from("/t"),
        };
        let runs = tests.runs(None);
        let files = tests.files().unwrap();
        for run in &runs {
            let path = run.command[2].split_whitespace().nth(2).unwrap();
            assert!(files.iter().any(|(to, _)| format!("/{to}") == path), "{path}");
        }
        assert!(runs[0].command[2].contains(" hypervisor::kvm "));
        assert_eq!(tests.runs(Some("zvmm-p0")).len(), 1);
    }
}
