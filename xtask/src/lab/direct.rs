//! Jobs directly on this machine: the same runner, paths and scripts as in the outer machine, in a change-rooted folder
//! with mount and network namespaces of its own, so that TAP devices need no root and nothing outside is touched.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::Context as _;

use super::content::Content;
use super::job::Job;
use super::outer::{Guard, Report, RunFolder, Shape};

/// Prepares the namespaces and hands over to the runner. `$1` is the folder that becomes the root, `$2` the
/// file for the report.
const ENTER: &str = "set -e
mount --rbind /dev $1/dev
mount -t proc proc $1/proc
mount --rbind /sys $1/sys
mount -t tmpfs tmpfs $1/tmp
mount --bind $2 $1/results
exec chroot $1 /bin/sh -c 'cd /tmp; export PATH=/bin:/tools/bin; ip link set lo up; exec lab-runner /job.json /results'";

/// Runs a job on this machine.
///
/// # Errors
/// When the namespaces cannot be made.
pub fn run(
    shape: &Shape,
    content: &Content,
    job: &Job,
    runner: &Path,
    programs: &[(String, PathBuf)],
) -> anyhow::Result<Report> {
    let folder = RunFolder::new(&shape.name)?;
    let root = folder.file("root");
    for folder in ["bin", "dev", "proc", "sys", "tmp"] {
        fs::create_dir_all(root.join(folder))?;
    }
    let busybox = root.join("bin/busybox");
    fs::copy(&content.busybox_path, &busybox)?;
    // `busybox --install` writes absolute links to where it is called from: make relative ones.
    let applets = Command::new(&busybox).arg("--list").output().context("cannot run busybox")?;
    for applet in String::from_utf8_lossy(&applets.stdout).lines().filter(|name| *name != "busybox") {
        std::os::unix::fs::symlink("busybox", root.join("bin").join(applet))?;
    }
    fs::copy(runner, root.join("bin/lab-runner"))?;
    fs::copy(&content.peer_path, root.join("bin/lab-peer"))?;
    for (to, from) in programs {
        let to = root.join(to);
        fs::create_dir_all(to.parent().unwrap_or(&root))?;
        fs::copy(from, to).with_context(|| format!("cannot copy {}", from.display()))?;
    }
    fs::write(root.join("job.json"), serde_json::to_vec(job)?)?;
    // Scenarios write here: a copy, with holes kept.
    let status = Command::new("cp")
        .args(["-a", "--reflink=auto", "--sparse=always"])
        .arg(&content.tools_tree)
        .arg(root.join("tools"))
        .status()?;
    anyhow::ensure!(status.success(), "cannot copy the tools");

    for results in [root.join("results"), folder.file("results")] {
        fs::write(results, "")?;
    }
    let log = folder.file("log");
    let output = fs::File::create(&log)?;
    let mut command = Command::new("unshare");
    command
        .args(["--user", "--map-root-user", "--mount", "--net", "--pid", "--fork", "--kill-child", "sh", "-c", ENTER])
        .arg("sh")
        .arg(&root)
        .arg(folder.file("results"))
        .stdin(Stdio::null())
        .stdout(output.try_clone()?)
        .stderr(output);
    let start = Instant::now();
    let child = command.spawn().context("cannot run unshare: install the package `util-linux`")?;
    let mut guard = Guard(child);
    let (_, stuck) = guard.wait(shape, start, &folder)?;
    drop(guard);
    folder.report(start.elapsed(), stuck)
}
