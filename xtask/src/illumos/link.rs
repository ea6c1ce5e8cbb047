//! Linking for illumos without illumos: against stub libraries that hold the listed names and nothing else.
//!
//! rustc calls a C compiler to link. Here it calls a script of [`prepare`], which comes back to this program; the arguments
//! are made those of the linker, which is the Rust tool chain's own.

use std::ffi::{OsStr, OsString};
use std::fmt::Write as _;
use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, bail};

use super::imports::List;
use crate::debian;

/// illumos' dynamic linker for 64-bit programs.
pub const DYNAMIC_LINKER: &str = "/lib/amd64/ld.so.1";

/// Libraries that the compiler names on every command line and that hold nothing we use: empty stubs.
const NAMED_ANYWAY: [&str; 9] = [
    "libssp.so.0",
    "libpthread.so.1",
    "libresolv.so.2",
    "librt.so.1",
    "libnsl.so.1",
    "libm.so.2",
    "libsendfile.so.1",
    "liblgrp.so.1",
    "libumem.so.1",
];

/// What rustc passes to its linker: hidden, for the wrapper.
#[derive(clap::Args)]
pub struct Options {
    /// The folder of stub libraries
    stubs: PathBuf,
    /// The linker and what comes first on its command line
    #[arg(long, allow_hyphen_values = true)]
    linker: Vec<OsString>,
    /// The arguments of a C compiler
    #[arg(last = true)]
    arguments: Vec<String>,
}

/// Links.
///
/// # Errors
/// When there is no linker, or it fails.
pub fn run(options: Options) -> anyhow::Result<()> {
    let mut arguments = Vec::new();
    for argument in options.arguments {
        // Long command lines come in a file.
        match argument.strip_prefix('@') {
            Some(path) => {
                let text = fs::read_to_string(path).with_context(|| format!("cannot read {path}"))?;
                arguments.extend(text.lines().map(unquote));
            }
            None => arguments.push(argument),
        }
    }
    let status = command(&options.linker)
        .args(linker_arguments(&arguments))
        .arg("-L")
        .arg(&options.stubs)
        // The start files are the C compiler's there: nothing is run here.
        .args(["--entry=main", "--dynamic-linker", DYNAMIC_LINKER, "--gc-sections"])
        // All of them are judged afterwards, in one go and by name.
        .arg("--unresolved-symbols=ignore-all")
        .status()
        .context("cannot start the linker")?;
    if !status.success() {
        bail!("the linker failed");
    }
    Ok(())
}

/// The linker of the Rust tool chain that runs this program; Debian's where that has none.
fn linker() -> anyhow::Result<Command> {
    let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let output = Command::new(rustc).args(["--print", "sysroot"]).output().context("cannot run rustc")?;
    let sysroot = PathBuf::from(String::from_utf8_lossy(&output.stdout).trim_end());
    let own = sysroot.join("lib/rustlib/x86_64-unknown-linux-gnu/bin/rust-lld");
    if own.is_file() {
        let mut command = Command::new(own);
        command.args(["-flavor", "gnu"]);
        return Ok(command);
    }
    debian::command(&debian::unpack("lld", &["lld"])?, "ld.lld")
}

/// Makes the stub libraries of a list, and a program that rustc can take for a C compiler; its path. Where the list has
/// changed since, `binary` is taken away, so that it is linked again.
///
/// # Errors
/// When the folder cannot be written, or there is no linker.
pub fn prepare(list: &List, text: &str, folder: &Path, binary: &Path) -> anyhow::Result<PathBuf> {
    fs::create_dir_all(folder)?;
    let linker = linker()?;
    let stubs = folder.join("stubs");
    let made_of = folder.join("stubs.txt");
    if !fs::read_to_string(&made_of).is_ok_and(|old| old == text) {
        // Taken away first: should this end in between, it begins anew.
        remove(&made_of)?;
        remove(binary)?;
        write_stubs(list, &stubs, &linker)?;
        fs::write(&made_of, text)?;
    }
    // Written where it differs only: cargo takes another linker for a reason to build everything again.
    let own = std::env::current_exe().context("cannot find this program")?;
    let mut script = format!("#!/bin/sh\nexec '{}' illumos-link '{}'", own.display(), stubs.display());
    for word in std::iter::once(linker.get_program()).chain(linker.get_args()) {
        let _ = write!(script, " --linker='{}'", Path::new(word).display());
    }
    script += " -- \"$@\"\n";
    let path = folder.join("cc");
    if !fs::read_to_string(&path).is_ok_and(|old| old == script) {
        fs::write(&path, script).with_context(|| format!("cannot write {}", path.display()))?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?;
    }
    Ok(path)
}

fn remove(path: &Path) -> anyhow::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove {}", path.display()))
        }
        _ => Ok(()),
    }
}

fn command(words: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Command {
    let mut words = words.into_iter();
    let mut command = Command::new(words.next().map(|word| word.as_ref().to_owned()).unwrap_or_default());
    command.args(words);
    command
}

/// A C compiler's arguments as the linker takes them.
fn linker_arguments(arguments: &[String]) -> Vec<String> {
    let mut flat = Vec::new();
    for argument in arguments {
        match argument.strip_prefix("-Wl,") {
            Some(list) => flat.extend(list.split(',')),
            None => flat.push(argument.as_str()),
        }
    }
    let mut linker = Vec::new();
    let mut words = flat.into_iter().peekable();
    while let Some(word) = words.next() {
        match word {
            "-m64" | "-std=c99" | "-nodefaultlibs" | "-nostartfiles" => {}
            // illumos' own linker calls it so.
            "-z" if words.peek() == Some(&"ignore") => {
                words.next();
                linker.push("--as-needed".to_owned());
            }
            "-zignore" => linker.push("--as-needed".to_owned()),
            word => linker.push(word.to_owned()),
        }
    }
    linker
}

/// An argument from a response file: rustc escapes blanks and quotes with a backslash.
fn unquote(line: &str) -> String {
    let (mut text, mut escaped) = (String::new(), false);
    for c in line.chars() {
        if c == '\\' && !escaped {
            escaped = true;
            continue;
        }
        escaped = false;
        text.push(c);
    }
    text
}

/// Writes the stub libraries of a list into a folder.
fn write_stubs(list: &List, folder: &Path, linker: &Command) -> anyhow::Result<()> {
    if folder.exists() {
        fs::remove_dir_all(folder).with_context(|| format!("cannot empty {}", folder.display()))?;
    }
    fs::create_dir_all(folder)?;
    let empty = NAMED_ANYWAY.iter().copied().filter(|library| !list.libraries().contains(library));
    for library in list.libraries().into_iter().chain(empty) {
        let [symbols, versions, output] = ["ld", "map", ""].map(|end| match end {
            "" => folder.join(library),
            end => folder.join(format!("{library}.{end}")),
        });
        let names: Vec<(&str, &str)> = list.of(library).collect();
        fs::write(&symbols, symbol_script(&names))?;
        fs::write(&versions, version_script(&names))?;
        let status = command(std::iter::once(linker.get_program()).chain(linker.get_args()))
            .args(["-shared", "-m", "elf_x86_64", "-soname", library, "--version-script"])
            .arg(&versions)
            .arg("-o")
            .arg(&output)
            .arg(&symbols)
            .status()
            .context("cannot start the linker")?;
        if !status.success() {
            bail!("cannot make the stub of {library}");
        }
        let short = library.split(".so").next().unwrap_or(library);
        std::os::unix::fs::symlink(library, folder.join(format!("{short}.so")))?;
    }
    // What std asks for by an old name of librt.
    std::os::unix::fs::symlink("librt.so.1", folder.join("libposix4.so"))?;
    Ok(())
}

/// A linker script that defines every name.
fn symbol_script(names: &[(&str, &str)]) -> String {
    names.iter().map(|(name, _)| format!("\"{name}\" = 1;\n")).collect()
}

/// A version script that exports every name in its version and nothing else.
fn version_script(names: &[(&str, &str)]) -> String {
    let mut versions: Vec<&str> = names.iter().map(|(_, version)| *version).collect();
    versions.sort_unstable();
    versions.dedup();
    let mut text = String::new();
    for version in versions {
        text += &format!("{version} {{\n  global:\n");
        for (name, _) in names.iter().filter(|(_, other)| *other == version) {
            text += &format!("    {name};\n");
        }
        text += "};\n";
    }
    text + if names.is_empty() { "{ local: *; };\n" } else { "" }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::illumos::elf::Binary;

    fn words(text: &str) -> Vec<String> {
        text.split_whitespace().map(str::to_owned).collect()
    }

    #[test]
    fn a_c_compilers_arguments_become_the_linkers() {
        let from = words("-m64 -std=c99 a.o -Wl,-Bstatic -lx -Wl,-Bdynamic,-z,ignore -z ignore -nodefaultlibs -o out");
        assert_eq!(linker_arguments(&from), words("a.o -Bstatic -lx -Bdynamic --as-needed --as-needed -o out"));
        assert_eq!(linker_arguments(&words("-Wl,-zignore -z text")), words("--as-needed -z text"));
        assert_eq!(unquote("a\\ b\\\\c"), "a b\\c");
    }

    #[test]
    fn a_stub_exports_its_names_in_their_versions_under_its_own_name() {
        let folder = std::env::temp_dir().join(format!("zvmm-stubs-{}", std::process::id()));
        let list =
            List::parse("libc.so.1 poll SYSVABI_1.3\nlibc.so.1 getrandom ILLUMOS_0.29\nlibx.so.9 x X_1\n").unwrap();
        write_stubs(&list, &folder, &linker().unwrap()).unwrap();
        // A program that imports one name of each, in Rust's own words: none is needed, an object file would be.
        let bytes = fs::read(folder.join("libc.so.1")).unwrap();
        let text = String::from_utf8_lossy(&bytes);
        for name in ["poll", "getrandom", "SYSVABI_1.3", "ILLUMOS_0.29", "libc.so.1"] {
            assert!(text.contains(name), "{name}");
        }
        let stub = Binary::read(&bytes).unwrap();
        assert!(stub.imports.is_empty() && stub.needed.is_empty());
        for link in ["libc.so", "libx.so", "libssp.so", "libposix4.so"] {
            assert!(folder.join(link).exists(), "{link}");
        }
        fs::remove_dir_all(&folder).unwrap();
    }

    /// The check would be blind if the linker dropped what it does not find.
    #[test]
    fn a_name_that_no_stub_has_is_still_imported_and_found() {
        let folder = std::env::temp_dir().join(format!("zvmm-link-{}", std::process::id()));
        let list = List::parse("libc.so.1 poll SUNW_0.7\n").unwrap();
        let linker = linker().unwrap();
        write_stubs(&list, &folder, &linker).unwrap();
        let source = "#![no_std] unsafe extern \"C\" { fn poll() -> i32; fn epoll_create1() -> i32; fn news() -> i32; } \
                      #[unsafe(no_mangle)] pub extern \"C\" fn main() -> i32 { unsafe { poll() | epoll_create1() | news() } }";
        fs::write(folder.join("a.rs"), source).unwrap();
        let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
        let compiled = Command::new(rustc)
            .args(["--edition=2024", "--crate-type=lib", "--emit=obj", "-Cpanic=abort", "-O", "-o", "a.o", "a.rs"])
            .current_dir(&folder)
            .status()
            .unwrap();
        assert!(compiled.success());
        let path = |name: &str| folder.join(name).display().to_string();
        let words = std::iter::once(linker.get_program()).chain(linker.get_args()).map(OsStr::to_owned).collect();
        let arguments =
            [&path("a.o"), "-Wl,-z,ignore", "-lsocket", "-lc", "-lssp", "-o", &path("a")].map(str::to_owned);
        // The library of the std that is not on this list.
        std::os::unix::fs::symlink("libc.so", folder.join("libsocket.so")).unwrap();
        run(Options { stubs: folder.clone(), linker: words, arguments: arguments.into() }).unwrap();
        let binary = Binary::read(&fs::read(folder.join("a")).unwrap()).unwrap();
        assert_eq!(binary.needed, ["libc.so.1"]);
        assert_eq!(binary.interpreter, DYNAMIC_LINKER);
        let imports: Vec<_> = binary.imports.iter().map(|import| (&*import.name, import.version.as_deref())).collect();
        assert_eq!(imports, [("epoll_create1", None), ("news", None), ("poll", Some("SUNW_0.7"))]);
        let problems: Vec<String> = list.problems(&binary).iter().map(ToString::to_string).collect();
        assert!(problems.iter().any(|line| line.starts_with("epoll_create1 is forbidden: it opens /dev/poll")));
        assert!(problems.iter().any(|line| line.starts_with("news is imported and not in ")), "{problems:?}");
        fs::remove_dir_all(&folder).unwrap();
    }
}
