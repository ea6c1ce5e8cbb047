//! Debian packages, fetched with apt and unpacked below `target/lab`: nothing is installed on the machine.
//!
//! apt runs with state, cache, sources and configuration of its own, and believes that no package is installed. So the
//! result does not depend on what the machine already has, needs no root and never touches `/var` or `/etc`. Of the
//! machine's own apt settings only `Acquire::*` (proxies) are kept.

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, SystemTime};

use anyhow::{Context as _, bail};
use serde::{Deserialize, Serialize};

use crate::paths;

/// Suffix that asks for a package from bookworm-backports: `linux-image-cloud-amd64/bookworm-backports`.
pub const BACKPORTS: &str = "bookworm-backports";

const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";
/// Package lists older than this are fetched again before something new is resolved.
const LISTS_MAX_AGE: Duration = Duration::from_secs(24 * 3600);

/// What a finished set was made from: the request, and the exact versions it resolved to.
#[derive(Serialize, Deserialize, PartialEq, Eq)]
struct Stamp {
    request: Vec<String>,
    resolved: Vec<String>,
}

/// One file apt would download.
#[derive(Debug, PartialEq, Eq)]
struct Archive {
    file_name: String,
}

/// Unpacks `packages` and everything they depend on (no recommendations) into `target/lab/debian/<set>/` and returns
/// that folder. A package may be `name`, `name=version` or `name/suite`.
///
/// A set that was already unpacked for the same request is returned at once, without the network; remove
/// `target/lab/debian` to get newer versions. Maintainer scripts do not run; `/bin`, `/sbin`, `/lib*` are links into
/// `/usr`, as on an installed system.
///
/// # Errors
/// When apt or dpkg-deb is missing, the network fails, or a package does not exist.
pub fn unpack(set: &str, packages: &[&str]) -> anyhow::Result<PathBuf> {
    let base = paths::lab().join("debian");
    fs::create_dir_all(&base).with_context(|| format!("cannot create {}", base.display()))?;
    // Two xtask processes may want the same set: the second waits and then finds it.
    let lock = fs::File::create(base.join(".lock")).context("cannot create the package lock")?;
    lock.lock().context("cannot take the package lock")?;

    let root = base.join(set);
    let stamp_path = base.join(format!("{set}.json"));
    let request: Vec<String> = packages.iter().map(|&p| p.to_owned()).collect();
    let stamp: Option<Stamp> = fs::read(&stamp_path).ok().and_then(|text| serde_json::from_slice(&text).ok());
    if let Some(stamp) = &stamp
        && stamp.request == request
        && root.is_dir()
    {
        return Ok(root);
    }

    let apt = Apt::new(&base.join("apt"))?;
    apt.update(false)?;
    eprintln!("lab: fetching Debian packages for `{set}`: {}", packages.join(" "));
    let archives = match apt.fetch(packages) {
        Ok(archives) => archives,
        // The mirror may have replaced a version since the lists were fetched.
        Err(_) => {
            apt.update(true)?;
            apt.fetch(packages)?
        }
    };

    let fresh = base.join(format!("{set}.new"));
    remove_tree(&fresh)?;
    fs::create_dir_all(&fresh)?;
    for name in ["bin", "sbin", "lib", "lib32", "lib64", "libx32"] {
        fs::create_dir_all(fresh.join("usr").join(name))?;
        std::os::unix::fs::symlink(Path::new("usr").join(name), fresh.join(name))?;
    }
    for archive in &archives {
        extract(&apt.archives().join(&archive.file_name), &fresh)?;
    }
    remove_tree(&root)?;
    fs::rename(&fresh, &root)?;
    let stamp = Stamp { request, resolved: archives.into_iter().map(|a| a.file_name.replacen('_', "=", 1)).collect() };
    fs::write(&stamp_path, serde_json::to_vec_pretty(&stamp)?)?;
    Ok(root)
}

/// A command that runs `program` (a name in `usr/bin` or `usr/sbin`, or a path below `root`) of an unpacked set with the
/// set's own dynamic linker and libraries, so that the machine's libraries are never mixed in. Data folders are the
/// caller's to name (for qemu: `-L <root>/usr/share/qemu`).
///
/// # Errors
/// When the set has no such program.
pub fn command(root: &Path, program: &str) -> anyhow::Result<Command> {
    let path = program_path(root, program)?;
    let linker = root.join("usr/lib/x86_64-linux-gnu/ld-linux-x86-64.so.2");
    let mut command = Command::new(linker);
    command.arg("--library-path").arg(library_path(root)).arg("--argv0").arg(&path).arg(&path);
    Ok(command)
}

/// The file of `program` in an unpacked set.
///
/// # Errors
/// When the set has no such program.
pub fn program_path(root: &Path, program: &str) -> anyhow::Result<PathBuf> {
    ["usr/bin", "usr/sbin", "usr/games", ""]
        .iter()
        .map(|folder| root.join(folder).join(program))
        .find(|path| path.is_file())
        .with_context(|| format!("{} holds no program `{program}`", root.display()))
}

/// The library search path of an unpacked set, as the dynamic linker wants it.
#[must_use]
pub fn library_path(root: &Path) -> String {
    let folders = ["", "/pulseaudio", "/ceph", "/systemd"].map(|folder| format!("usr/lib/x86_64-linux-gnu{folder}"));
    folders
        .into_iter()
        .chain(["usr/lib".to_owned()])
        .map(|folder| root.join(folder).display().to_string())
        .collect::<Vec<_>>()
        .join(":")
}

fn extract(archive: &Path, into: &Path) -> anyhow::Result<()> {
    // tar by hand rather than `dpkg-deb -x`: it must follow the /bin -> usr/bin links, and a
    // user who is not root must not try to make device nodes or change owners.
    let mut payload = Command::new("dpkg-deb")
        .arg("--fsys-tarfile")
        .arg(archive)
        .stdout(Stdio::piped())
        .spawn()
        .context("cannot run dpkg-deb: install the package `dpkg`")?;
    let pipe = payload.stdout.take().context("dpkg-deb has no output")?;
    let tar = Command::new("tar")
        .args(["--extract", "--keep-directory-symlink", "--no-same-owner", "--warning=no-timestamp"])
        .arg("--directory")
        .arg(into)
        .stdin(pipe)
        .status()
        .context("cannot run tar")?;
    let payload = payload.wait()?;
    if !tar.success() || !payload.success() {
        bail!("cannot unpack {}", archive.display());
    }
    Ok(())
}

/// Removes a tree that may hold folders without write permission.
pub fn remove_tree(path: &Path) -> anyhow::Result<()> {
    if !path.exists() {
        return Ok(());
    }
    if fs::remove_dir_all(path).is_err() {
        Command::new("chmod").args(["-R", "u+rwX"]).arg(path).status()?;
        fs::remove_dir_all(path).with_context(|| format!("cannot remove {}", path.display()))?;
    }
    Ok(())
}

/// apt with its own state, cache, sources and configuration.
struct Apt {
    base: PathBuf,
    config: PathBuf,
}

impl Apt {
    fn new(base: &Path) -> anyhow::Result<Self> {
        for folder in ["lists/partial", "archives/partial", "empty/partial", "parts", "state"] {
            fs::create_dir_all(base.join(folder))?;
        }
        fs::write(base.join("state/status"), "")?;
        fs::write(base.join("sources.list"), sources())?;
        // A package of backports is taken only when asked for.
        fs::write(base.join("preferences"), format!("Package: *\nPin: release n={BACKPORTS}\nPin-Priority: 50\n"))?;
        let config = base.join("apt.conf");
        let mut file = fs::File::create(&config)?;
        let at = |name: &str| base.join(name).display().to_string();
        for (key, value) in [
            ("Dir::State", at("state")),
            ("Dir::State::status", at("state/status")),
            ("Dir::State::lists", at("lists")),
            ("Dir::Cache", at("")),
            ("Dir::Cache::archives", at("archives")),
            ("Dir::Etc::sourcelist", at("sources.list")),
            ("Dir::Etc::sourceparts", at("parts")),
            ("Dir::Etc::preferences", at("preferences")),
            ("Dir::Etc::preferencesparts", at("parts")),
            ("Dir::Etc::main", at("no-main")),
            ("Dir::Etc::parts", at("parts")),
            ("APT::Architecture", "amd64".to_owned()),
            ("APT::Install-Recommends", "false".to_owned()),
            ("APT::Keep-Downloaded-Packages", "true".to_owned()),
            ("APT::Get::Assume-Yes", "true".to_owned()),
            // apt's own user may not enter the folders of the user who runs this.
            ("APT::Sandbox::User", "root".to_owned()),
            ("Acquire::Languages", "none".to_owned()),
            ("Acquire::Retries", "3".to_owned()),
        ] {
            writeln!(file, "{key} \"{value}\";")?;
        }
        writeln!(file, "APT::Architectures {{ \"amd64\"; }};")?;
        let machine = Command::new("apt-config")
            .arg("dump")
            .output()
            .context("cannot run apt-config: the lab takes its packages with apt, on Debian or a relative of it")?;
        for line in String::from_utf8_lossy(&machine.stdout).lines() {
            if line.starts_with("Acquire::") && line.to_lowercase().contains("proxy") {
                writeln!(file, "{line}")?;
            }
        }
        if !Path::new(KEYRING).exists() {
            bail!("{KEYRING} is missing: install the package `debian-archive-keyring`");
        }
        Ok(Self { base: base.to_owned(), config })
    }

    fn archives(&self) -> PathBuf {
        self.base.join("archives")
    }

    fn get(&self) -> Command {
        let mut command = Command::new("apt-get");
        command.env("APT_CONFIG", &self.config).env("LC_ALL", "C").stdin(Stdio::null()).arg("-q");
        command
    }

    fn update(&self, even_if_young: bool) -> anyhow::Result<()> {
        let stamp = self.base.join("updated");
        let age = fs::metadata(&stamp)
            .and_then(|m| m.modified())
            .ok()
            .and_then(|then| SystemTime::now().duration_since(then).ok());
        if !even_if_young && age.is_some_and(|age| age < LISTS_MAX_AGE) {
            return Ok(());
        }
        run(self.get().arg("update"))?;
        fs::write(stamp, "")?;
        Ok(())
    }

    /// Resolves, downloads, and returns the archives in a stable order.
    fn fetch(&self, packages: &[&str]) -> anyhow::Result<Vec<Archive>> {
        // Archives apt already has are left out of the listing: show it an empty cache.
        let empty = format!("Dir::Cache::archives={}", self.base.join("empty").display());
        let listing = run(self.get().args(["-o", &empty, "install", "--print-uris"]).args(packages))?;
        let archives = parse_uris(&listing);
        if archives.is_empty() {
            bail!("apt found nothing to download for {}", packages.join(" "));
        }
        if archives.iter().all(|a| self.archives().join(&a.file_name).is_file()) {
            return Ok(archives);
        }
        run(self.get().args(["install", "--download-only"]).args(packages))?;
        Ok(archives)
    }
}

/// The package sources: Debian 12 with its updates and backports.
fn sources() -> String {
    let mirror = std::env::var("ZVMM_DEBIAN_MIRROR").unwrap_or_else(|_| "http://deb.debian.org".to_owned());
    let mut text = String::new();
    for (path, suite) in [
        ("debian", "bookworm"),
        ("debian", "bookworm-updates"),
        ("debian", BACKPORTS),
        ("debian-security", "bookworm-security"),
    ] {
        text += &format!("deb [arch=amd64 signed-by={KEYRING}] {mirror}/{path} {suite} main\n");
    }
    text
}

/// Reads `apt-get --print-uris`: lines of `'uri' file size hash`. Sorted by file name, so the order does not depend on
/// apt's mood.
fn parse_uris(listing: &str) -> Vec<Archive> {
    let mut archives: Vec<Archive> = listing
        .lines()
        .filter(|line| line.starts_with('\''))
        .filter_map(|line| line.split_whitespace().nth(1))
        .map(|file| Archive { file_name: file.to_owned() })
        .collect();
    archives.sort_by(|a, b| a.file_name.cmp(&b.file_name));
    archives.dedup();
    archives
}

/// Runs a command to its end and returns its standard output; what it said is in the error when it fails.
fn run(command: &mut Command) -> anyhow::Result<String> {
    let output = command.output().with_context(|| format!("cannot run {}", command.get_program().to_string_lossy()))?;
    if !output.status.success() {
        bail!("{command:?} failed with {}:\n{}", output.status, String::from_utf8_lossy(&output.stderr).trim_end());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_uri_listing_gives_each_archive_once_in_a_stable_order() {
        let listing = "Reading package lists...\n\
            'http://m/b_1.0_amd64.deb' b_1.0_amd64.deb 10 SHA256:00\n\
            'http://m/a_1%3a2_all.deb' a_1%3a2_all.deb 20 SHA256:01\n\
            'http://m/b_1.0_amd64.deb' b_1.0_amd64.deb 10 SHA256:00\n";
        let names: Vec<String> = parse_uris(listing).into_iter().map(|a| a.file_name).collect();
        assert_eq!(names, ["a_1%3a2_all.deb", "b_1.0_amd64.deb"]);
    }

    #[test]
    fn every_source_line_names_the_debian_keyring() {
        assert!(sources().lines().all(|line| line.contains(KEYRING) && line.ends_with(" main")));
    }
}
