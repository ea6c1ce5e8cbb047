//! What can show that a rule is kept: the workspace's tests, found in its sources without building anything, and the
//! lab's scenarios.
//!
//! A test's id is its path: `devices::virtio::queue::tests::NAME` for one beside the code, and
//! `devices/tests/attacks/ring.rs::NAME` for one of a test program. A scenario's is `lab/NAME`; an oracle of a fuzz target
//! will be `fuzz/TARGET/ORACLE`, with a function of that name among the sources of the targets.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, ensure};
use proc_macro2::{TokenStream, TokenTree};
use syn::{Attribute, Expr, ExprLit, Item, ItemMod, Lit, Meta};

/// Folders of packages, and what their tests' paths begin with.
const PACKAGES: [(&str, &str); 8] = [
    ("devices", "devices"),
    ("devices/host", "devices_host"),
    ("vmm", "zvmm"),
    ("vmm/config", "zvmm_config"),
    ("vmm/double", "zvmm_double"),
    ("vmm/zone", "zvmm_zone"),
    ("arch/x86_64", "arch_x86_64"),
    ("firmware", "firmware"),
];
/// Programs and sources of the fuzz targets, and of their models.
const FUZZ_PROGRAMS: &str = "fuzz/fuzz_targets";
const FUZZ_SOURCES: [&str; 2] = ["fuzz/src", "fuzz/model/src"];

/// Ids of everything that can show something.
#[derive(Debug, Default)]
pub struct Proofs(BTreeSet<String>);

impl Proofs {
    /// Every test that runs of itself, of the workspace at `root`.
    ///
    /// # Errors
    /// Names the source that is not there or does not parse.
    pub fn of_sources(root: &Path) -> anyhow::Result<Self> {
        let mut found = Self::default();
        for (folder, name) in PACKAGES {
            let lib = root.join(folder).join("src/lib.rs");
            found.add_file(&lib, &|modules| [&[name.to_owned()], modules].concat().join("::"))?;
            for program in programs(&root.join(folder).join("tests"))? {
                found.add_program(root, &program)?;
            }
        }
        found.add_oracles(root)?;
        Ok(found)
    }

    /// The lab's scenarios.
    pub fn add_scenarios(&mut self, names: impl IntoIterator<Item = String>) {
        self.0.extend(names.into_iter().map(|name| format!("lab/{name}")));
    }

    /// Whether something has this id.
    pub fn contains(&self, id: &str) -> bool {
        self.0.contains(id)
    }

    /// The tests of a test program: named by the file they are in, because a program's modules say little.
    fn add_program(&mut self, root: &Path, program: &Path) -> anyhow::Result<()> {
        let mut files = Vec::new();
        module_tree(program, &[], true, &mut files)?;
        for (path, _, tests) in files {
            let file = path.strip_prefix(root).unwrap_or(&path).display().to_string();
            self.0.extend(tests.into_iter().map(|test| format!("{file}::{}", test.join("::"))));
        }
        Ok(())
    }

    /// The tests of the crate with this root.
    fn add_file(&mut self, lib: &Path, id: &dyn Fn(&[String]) -> String) -> anyhow::Result<()> {
        let mut files = Vec::new();
        module_tree(lib, &[], true, &mut files)?;
        for (_, modules, tests) in files {
            self.0.extend(tests.into_iter().map(|test| id(&[modules.clone(), test].concat())));
        }
        Ok(())
    }

    fn add_oracles(&mut self, root: &Path) -> anyhow::Result<()> {
        let mut functions = BTreeSet::new();
        for folder in FUZZ_SOURCES {
            for file in sources(&root.join(folder))? {
                let text = std::fs::read_to_string(&file)?;
                let parsed = syn::parse_file(&text).with_context(|| file.display().to_string())?;
                functions.extend(parsed.items.iter().filter_map(|item| match item {
                    Item::Fn(function) => Some(function.sig.ident.to_string()),
                    _ => None,
                }));
            }
        }
        for program in sources(&root.join(FUZZ_PROGRAMS))? {
            let target = program.file_stem().unwrap_or_default().to_string_lossy().into_owned();
            self.0.extend(functions.iter().map(|oracle| format!("fuzz/{target}/{oracle}")));
        }
        Ok(())
    }
}

/// A file, the modules it is in, and its tests with the modules inside it.
type File = (PathBuf, Vec<String>, Vec<Vec<String>>);

/// The root files of the test programs in a folder, as Cargo finds them.
fn programs(folder: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    if !folder.is_dir() {
        return Ok(found);
    }
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        let main = path.join("main.rs");
        if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        } else if main.is_file() && !path.join("Cargo.toml").is_file() {
            found.push(main);
        }
    }
    found.sort();
    Ok(found)
}

/// The Rust sources below a folder.
fn sources(folder: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).with_context(|| folder.display().to_string())? {
        let path = entry?.path();
        if path.is_dir() {
            found.extend(sources(&path)?);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}

/// Follows the modules of a crate from one of its files, as the compiler does: a file nobody names is not built, so its
/// tests show nothing. `owns_folder` says that the file's modules are beside it: it is a crate's root or a `mod.rs`.
fn module_tree(path: &Path, modules: &[String], owns_folder: bool, files: &mut Vec<File>) -> anyhow::Result<()> {
    let text = std::fs::read_to_string(path).with_context(|| path.display().to_string())?;
    let parsed = syn::parse_file(&text).with_context(|| path.display().to_string())?;
    let folder = path.parent().unwrap_or(path);
    let below = if owns_folder { folder.to_owned() } else { path.with_extension("") };
    let mut tests = Vec::new();
    let mut outside = Vec::new();
    walk(&parsed.items, &mut Vec::new(), &mut tests, &mut outside);
    files.push((path.to_owned(), modules.to_vec(), tests));
    for (inside, name, explicit) in outside {
        let modules = [modules, &inside, std::slice::from_ref(&name)].concat();
        if let Some(explicit) = explicit {
            // Relative to the file's own folder, or inside a module of the file to where that module's files would be.
            let base = if inside.is_empty() {
                folder.to_owned()
            } else {
                inside.iter().fold(below.clone(), |at, it| at.join(it))
            };
            module_tree(&base.join(explicit), &modules, true, files)?;
            continue;
        }
        let at = inside.iter().fold(below.clone(), |at, it| at.join(it));
        let (file, own) = (at.join(format!("{name}.rs")), at.join(&name).join("mod.rs"));
        let is_file = file.is_file();
        ensure!(is_file || own.is_file(), "{}: there is no file for mod {name}", path.display());
        module_tree(if is_file { &file } else { &own }, &modules, !is_file, files)?;
    }
    Ok(())
}

/// Modules in other files: the modules of this one they are declared in, their name, and their `#[path]`.
type Outside = (Vec<String>, String, Option<String>);

/// Collects the tests among `items`, and the modules that are elsewhere.
fn walk(items: &[Item], inside: &mut Vec<String>, tests: &mut Vec<Vec<String>>, outside: &mut Vec<Outside>) {
    for item in items {
        match item {
            Item::Fn(function) if has(&function.attrs, "test") && !has(&function.attrs, "ignore") => {
                tests.push([inside.as_slice(), &[function.sig.ident.to_string()]].concat());
            }
            Item::Macro(found) if found.mac.path.is_ident("proptest") => {
                let names = property_tests(found.mac.tokens.clone());
                tests.extend(names.into_iter().map(|name| [inside.as_slice(), &[name]].concat()));
            }
            Item::Mod(ItemMod { ident, content: Some((_, items)), .. }) => {
                inside.push(ident.to_string());
                walk(items, inside, tests, outside);
                inside.pop();
            }
            Item::Mod(module) => outside.push((inside.clone(), module.ident.to_string(), explicit_path(&module.attrs))),
            _ => {}
        }
    }
}

fn has(attributes: &[Attribute], name: &str) -> bool {
    attributes.iter().any(|attribute| attribute.path().is_ident(name))
}

/// The file a `#[path = "…"]` names.
fn explicit_path(attributes: &[Attribute]) -> Option<String> {
    attributes.iter().find_map(|attribute| match &attribute.meta {
        Meta::NameValue(pair) if pair.path.is_ident("path") => match &pair.value {
            Expr::Lit(ExprLit { lit: Lit::Str(path), .. }) => Some(path.value()),
            _ => None,
        },
        _ => None,
    })
}

/// The tests in a `proptest!`: functions with `#[test]`, whose parameters no Rust parser knows.
fn property_tests(tokens: TokenStream) -> Vec<String> {
    let (mut found, mut is_test, mut ignored) = (Vec::new(), false, false);
    let mut tokens = tokens.into_iter();
    while let Some(token) = tokens.next() {
        match token {
            TokenTree::Group(group) => {
                let first = group.stream().into_iter().next().map(|token| token.to_string());
                is_test |= first.as_deref() == Some("test");
                ignored |= first.as_deref() == Some("ignore");
            }
            TokenTree::Ident(ident) if ident == "fn" => {
                let name = tokens.next().map(|name| name.to_string());
                found.extend(name.filter(|_| is_test && !ignored));
                (is_test, ignored) = (false, false);
            }
            _ => {}
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A workspace of these files, with the folders that must be there.
    fn workspace(files: &[(&str, &str)]) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        let needed = PACKAGES.iter().map(|(folder, _)| (format!("{folder}/src/lib.rs"), ""));
        let needed = needed.chain([
            ("fuzz/fuzz_targets/config.rs".into(), ""),
            ("fuzz/src/lib.rs".into(), ""),
            ("fuzz/model/src/lib.rs".into(), ""),
        ]);
        let given = files.iter().map(|(path, text)| ((*path).to_owned(), *text));
        for (path, text) in needed.chain(given) {
            let path = root.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        }
        root
    }

    fn found(files: &[(&str, &str)]) -> Vec<String> {
        Proofs::of_sources(workspace(files).path()).unwrap().0.into_iter().collect()
    }

    #[test]
    fn tests_beside_the_code_are_named_by_their_modules_wherever_their_files_are() {
        let files = [
            ("devices/src/lib.rs", "mod a; #[cfg(test)] mod tests { #[test] fn inline() {} fn helper() {} }"),
            ("devices/src/a/mod.rs", "mod b; #[path = \"other_tests.rs\"] mod tests;"),
            ("devices/src/a/b.rs", "mod tests;"),
            ("devices/src/a/b/tests.rs", "mod rules; #[test] #[should_panic] fn beside() {}"),
            ("devices/src/a/b/tests/rules.rs", "#[test] fn below() {}"),
            ("devices/src/a/other_tests.rs", "#[test] fn elsewhere() {}"),
            ("devices/host/src/lib.rs", "#[test] fn of_the_host() {}"),
        ];
        let expected = [
            "devices::a::b::tests::beside",
            "devices::a::b::tests::rules::below",
            "devices::a::tests::elsewhere",
            "devices::tests::inline",
            "devices_host::of_the_host",
        ];
        assert_eq!(found(&files), expected);
    }

    #[test]
    fn tests_of_programs_are_named_by_their_files() {
        let files = [
            ("devices/tests/loom.rs", "#[test] fn model() {} mod part { #[test] fn inner() {} }"),
            ("devices/tests/attacks/main.rs", "mod ring;"),
            ("devices/tests/attacks/ring.rs", "#[test] fn cve() {}"),
            ("vmm/tests/p0.rs", "#[path = \"p0/tap.rs\"] mod tap;"),
            ("vmm/tests/p0/tap.rs", "#[test] fn frames() {}"),
            ("vmm/tests/guests/Cargo.toml", ""),
            ("vmm/tests/guests/main.rs", "#[test] fn another_package() {}"),
        ];
        let expected = [
            "devices/tests/attacks/ring.rs::cve",
            "devices/tests/loom.rs::model",
            "devices/tests/loom.rs::part::inner",
            "vmm/tests/p0/tap.rs::frames",
        ];
        assert_eq!(found(&files), expected);
    }

    #[test]
    fn what_does_not_run_shows_nothing() {
        let files = [
            (
                "devices/src/lib.rs",
                "#[test] #[ignore = \"slow\"] fn ignored() {} fn plain() {} // #[test] fn comment() {}",
            ),
            ("devices/src/orphan.rs", "#[test] fn nobody_builds_this() {}"),
        ];
        assert!(found(&files).is_empty());
    }

    #[test]
    fn property_tests_are_tests() {
        let text = "proptest! { #![proptest_config(Config { cases: 3 })] /// Says.\n #[test] fn holds(a in 0..3, b: bool) \
                    { let fn_like = 1; } #[test] #[ignore] fn slow(a: u8) {} fn composed(a: u8) {} #[test] fn too(a: u8) {} }";
        assert_eq!(found(&[("devices/src/lib.rs", text)]), ["devices::holds", "devices::too"]);
    }

    #[test]
    fn oracles_are_functions_of_the_targets_sources() {
        let files = [("fuzz/src/oracle.rs", "pub fn used_once() {}")];
        assert_eq!(found(&files), ["fuzz/config/used_once"]);
    }

    #[test]
    fn a_module_without_a_file_and_a_source_that_does_not_parse_are_named() {
        for (text, why) in [("mod gone;", "no file for mod gone"), ("fn (", "devices/src/lib.rs")] {
            let root = workspace(&[("devices/src/lib.rs", text)]);
            let error = format!("{:#}", Proofs::of_sources(root.path()).unwrap_err());
            assert!(error.contains(why), "{error}");
        }
    }
}
