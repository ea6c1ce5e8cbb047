//! What the binary may ask of illumos: a committed list of library, name and version, and the rules of the bhyve zone.
//!
//! A name on the list exists in every illumos since its version; libraries are those of every zone's `/lib` and `/usr`.

use std::collections::BTreeMap;
use std::fmt;

use super::elf::Binary;

/// The committed list, from the root of the workspace.
pub const LIST: &str = "xtask/illumos-imports.txt";

/// Names that must not be imported even if somebody lists them, and why. `*` at the end stands for any text.
const FORBIDDEN: [(&str, &str); 23] = [
    ("epoll_*", "it opens /dev/poll, which the bhyve zone does not have: use poll(2)"),
    ("eventfd*", "it opens /dev/eventfd, which the bhyve zone does not have: use a pipe"),
    ("timerfd_*", "it opens /dev/timerfd, which the bhyve zone does not have: use the time limit of a wait"),
    ("signalfd", "it opens /dev/signalfd, which the bhyve zone does not have: use sigwait"),
    ("inotify_*", "it opens /dev/inotify, which the bhyve zone does not have"),
    ("fork*", "the zone may not fork"),
    ("vfork*", "the zone may not fork"),
    ("posix_spawn*", "the zone may not fork"),
    ("system", "the zone may not fork"),
    ("popen", "the zone may not fork"),
    ("daemon", "the zone may not fork"),
    ("exec*", "the process gives up proc_exec, and a guest's reset needs none"),
    ("sigset", "it changes the mask of one thread only: use sigaction"),
    ("bsd_signal", "use sigaction"),
    ("sigwait", "it takes one parameter: use __posix_sigwait"),
    ("getaddrinfo", "the zone has no network of its own"),
    ("gethostbyname*", "the zone has no network of its own"),
    ("dlpi_*", "/dev/net is not in the bhyve zone: use libdladm"),
    ("thr_setconcurrency", "it does nothing"),
    ("gets", "it cannot be used safely"),
    ("tmpnam", "another process can take the name"),
    ("mktemp", "another process can take the name"),
    ("dlopen", "it could bring in what this list has not"),
];

/// What the list says about a name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listed {
    pub library: String,
    pub version: String,
}

/// The parsed list.
#[derive(Debug, Default)]
pub struct List {
    pub names: BTreeMap<String, Listed>,
}

/// What is wrong with a binary or with the list, one clear line each.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Problem {
    /// A line of the list is not one.
    Line { number: usize, why: String },
    /// Imported, or listed, and never allowed.
    Forbidden { name: String, why: &'static str },
    /// Imported and not listed.
    Unlisted { name: String },
    /// Imported in a version other than the list's.
    OtherVersion { name: String, listed: String, found: String },
    /// A library that no listed name is from.
    Library { library: String, allowed: String },
    /// Not the kind of file illumos runs.
    Kind(String),
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Line { number, why } => write!(f, "{LIST}, line {number}: {why}"),
            Self::Forbidden { name, why } => write!(f, "{name} is forbidden: {why}"),
            Self::Unlisted { name } => write!(
                f,
                "{name} is imported and not in {LIST}: find the library and version in illumos-gate's \
                 usr/src/lib/*/mapfile-vers and add a line, or do without it"
            ),
            Self::OtherVersion { name, listed, found } => {
                write!(f, "{name} is imported as {found}, {LIST} says {listed}: run the check again")
            }
            Self::Library { library, allowed } => {
                write!(f, "{library} is needed, and not one of {allowed}: a zone may not have it")
            }
            Self::Kind(why) => f.write_str(why),
        }
    }
}

impl List {
    /// Reads `library name version` a line; `#` begins a remark.
    pub fn parse(text: &str) -> Result<Self, Vec<Problem>> {
        let (mut list, mut problems) = (Self::default(), Vec::new());
        for (index, line) in text.lines().enumerate() {
            let line = line.split('#').next().unwrap_or("").trim();
            let words: Vec<&str> = line.split_whitespace().collect();
            let [library, name, version] = words[..] else {
                if !words.is_empty() {
                    problems
                        .push(Problem::Line { number: index + 1, why: "expected library, name and version".into() });
                }
                continue;
            };
            if let Some(why) = forbidden(name) {
                problems.push(Problem::Forbidden { name: name.into(), why });
            }
            let listed = Listed { library: library.into(), version: version.into() };
            if list.names.insert(name.into(), listed).is_some() {
                problems.push(Problem::Line { number: index + 1, why: format!("{name} is there already") });
            }
        }
        if problems.is_empty() { Ok(list) } else { Err(problems) }
    }

    /// The libraries that names are from.
    pub fn libraries(&self) -> Vec<&str> {
        let mut libraries: Vec<&str> = self.names.values().map(|listed| listed.library.as_str()).collect();
        libraries.sort_unstable();
        libraries.dedup();
        libraries
    }

    /// The names of one library with their versions.
    pub fn of<'a>(&'a self, library: &'a str) -> impl Iterator<Item = (&'a str, &'a str)> {
        let own = move |(_, listed): &(&String, &Listed)| listed.library == library;
        self.names.iter().filter(own).map(|(name, listed)| (name.as_str(), listed.version.as_str()))
    }

    /// Everything about a binary that the list or the zone does not allow.
    pub fn problems(&self, binary: &Binary) -> Vec<Problem> {
        let mut problems = Vec::new();
        if !binary.is_executable {
            problems.push(Problem::Kind("not a dynamic executable for x86-64".into()));
        }
        if binary.interpreter != super::link::DYNAMIC_LINKER {
            let found = &binary.interpreter;
            problems.push(Problem::Kind(format!("started by '{found}', not by {}", super::link::DYNAMIC_LINKER)));
        }
        for import in &binary.imports {
            let name = &import.name;
            match (forbidden(name), self.names.get(name)) {
                (Some(why), _) => problems.push(Problem::Forbidden { name: name.clone(), why }),
                (None, None) => problems.push(Problem::Unlisted { name: name.clone() }),
                (None, Some(listed)) => {
                    let found = import.version.as_deref().unwrap_or("no version");
                    if found != listed.version {
                        problems.push(Problem::OtherVersion {
                            name: name.clone(),
                            listed: listed.version.clone(),
                            found: found.into(),
                        });
                    }
                }
            }
        }
        let allowed = self.libraries();
        for library in binary.needed.iter().filter(|library| !allowed.contains(&library.as_str())) {
            problems.push(Problem::Library { library: library.clone(), allowed: allowed.join(", ") });
        }
        problems
    }
}

fn forbidden(name: &str) -> Option<&'static str> {
    let is = |pattern: &str| match pattern.strip_suffix('*') {
        Some(start) => name.starts_with(start),
        None => name == pattern,
    };
    FORBIDDEN.iter().find(|(pattern, _)| is(pattern)).map(|(_, why)| *why)
}

#[cfg(test)]
#[path = "imports_tests.rs"]
mod tests;
