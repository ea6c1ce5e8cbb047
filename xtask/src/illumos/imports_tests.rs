use super::*;
use crate::illumos::elf::Import;
use crate::illumos::link::DYNAMIC_LINKER;

fn list() -> List {
    List::parse("# remark\nlibc.so.1 poll SYSVABI_1.3\nlibc.so.1 getrandom ILLUMOS_0.21  # why\n\nlibsocket.so.1 send SISCD_2.3\n")
        .unwrap()
}

fn binary(imports: &[(&str, Option<&str>)], needed: &[&str]) -> Binary {
    Binary {
        is_executable: true,
        interpreter: DYNAMIC_LINKER.into(),
        needed: needed.iter().map(|&library| library.to_owned()).collect(),
        imports: imports
            .iter()
            .map(|&(name, version)| Import { name: name.into(), version: version.map(str::to_owned) })
            .collect(),
    }
}

fn said(imports: &[(&str, Option<&str>)], needed: &[&str]) -> Vec<String> {
    list().problems(&binary(imports, needed)).iter().map(Problem::to_string).collect()
}

#[test]
fn listed_names_in_their_versions_from_listed_libraries_pass() {
    let imports = [("poll", Some("SYSVABI_1.3")), ("send", Some("SISCD_2.3"))];
    assert_eq!(said(&imports, &["libsocket.so.1", "libc.so.1"]), [""; 0]);
}

#[test]
fn a_name_outside_the_list_is_refused() {
    let said = said(&[("flock", None)], &["libc.so.1"]);
    assert_eq!(said.len(), 1, "{said:?}");
    assert!(said[0].starts_with("flock is imported and not in xtask/illumos-imports.txt: find"), "{said:?}");
}

#[test]
fn forbidden_names_are_refused_with_their_reason_even_where_they_are_listed() {
    for (name, reason) in [
        ("epoll_create1", "/dev/poll"),
        ("epoll_pwait", "/dev/poll"),
        ("eventfd", "/dev/eventfd"),
        ("timerfd_create", "/dev/timerfd"),
        ("signalfd", "/dev/signalfd"),
        ("fork", "may not fork"),
        ("forkx", "may not fork"),
        ("vfork", "may not fork"),
        ("posix_spawnp", "may not fork"),
        ("execvp", "proc_exec"),
        ("sigset", "sigaction"),
        ("sigwait", "__posix_sigwait"),
        ("dlpi_open", "/dev/net"),
    ] {
        let said = said(&[(name, Some("SUNW_1.1"))], &["libc.so.1"]);
        assert_eq!(said.len(), 1, "{said:?}");
        assert!(said[0].starts_with(&format!("{name} is forbidden: ")) && said[0].contains(reason), "{said:?}");
        let refused = List::parse(&format!("libc.so.1 {name} SUNW_1.1\n")).unwrap_err();
        assert!(matches!(&refused[..], [Problem::Forbidden { name: listed, .. }] if listed == name), "{refused:?}");
    }
}

#[test]
fn names_that_only_begin_like_a_forbidden_one_are_not_forbidden() {
    for name in ["signalled", "__posix_sigwait", "sigaction", "getsockname", "systemd", "sigwaitinfo"] {
        assert_eq!(forbidden(name), None, "{name}");
    }
}

#[test]
fn a_library_outside_the_list_is_refused() {
    let said = said(&[("poll", Some("SYSVABI_1.3"))], &["libc.so.1", "libssp.so.0"]);
    assert_eq!(said, ["libssp.so.0 is needed, and not one of libc.so.1, libsocket.so.1: a zone may not have it"]);
}

#[test]
fn a_name_without_its_version_or_in_another_is_refused() {
    assert_eq!(
        said(&[("poll", None), ("getrandom", Some("ILLUMOS_0.29"))], &["libc.so.1"]),
        [
            "poll is imported as no version, xtask/illumos-imports.txt says SYSVABI_1.3: run the check again",
            "getrandom is imported as ILLUMOS_0.29, xtask/illumos-imports.txt says ILLUMOS_0.21: run the check again",
        ]
    );
}

#[test]
fn a_file_that_illumos_would_not_start_is_refused() {
    let mut linux = binary(&[], &[]);
    linux.interpreter = "/lib64/ld-linux-x86-64.so.2".into();
    linux.is_executable = false;
    let said: Vec<String> = list().problems(&linux).iter().map(Problem::to_string).collect();
    assert_eq!(
        said,
        ["not a dynamic executable for x86-64", "started by '/lib64/ld-linux-x86-64.so.2', not by /lib/amd64/ld.so.1"]
    );
}

#[test]
fn a_line_that_is_none_and_a_name_listed_twice_are_refused() {
    let problems = List::parse("libc.so.1 poll\nlibc.so.1 read SYSVABI_1.2\nlibc.so.1 read SYSVABI_1.3\n").unwrap_err();
    let said: Vec<String> = problems.iter().map(Problem::to_string).collect();
    assert_eq!(
        said,
        [
            "xtask/illumos-imports.txt, line 1: expected library, name and version",
            "xtask/illumos-imports.txt, line 3: read is there already"
        ]
    );
}

#[test]
fn the_committed_list_can_be_read_and_names_system_libraries_only() {
    let text = std::fs::read_to_string(crate::paths::workspace().join(LIST)).unwrap();
    let list = List::parse(&text).unwrap();
    assert!(list.names.len() > 50);
    assert_eq!(list.libraries(), ["libc.so.1", "libdladm.so.1", "libgcc_s.so.1", "libsocket.so.1"]);
}
