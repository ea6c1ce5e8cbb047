//! Clients that others have written, as they are: Python's `qemu.qmp`, its shell, socat, and cloud-init's client of SmartOS'
//! metadata.
//!
//! `cargo xtask test --full clients` fetches them, names their folder in `ZVMM_CLIENTS` and runs these tests.

use std::io::{BufRead as _, BufReader, Write as _};
use std::path::PathBuf;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use serde_json::{Value, json};

use crate::lines::pty_of;
use crate::metadata::relay;
use crate::process::{self, Zvmm};

/// A client of this name.
fn client(name: &str) -> Command {
    let folder = std::env::var_os("ZVMM_CLIENTS").expect("`cargo xtask test --full clients` runs this test");
    Command::new(PathBuf::from(folder).join(name))
}

/// A guest with a control socket that can be connected to, and a console.
fn start(args: &[&str]) -> Zvmm {
    let zvmm = Zvmm::start(&[&["--name", "web", "--serial", "socket:@com1", "--qmp", "@qmp"], args].concat());
    drop(process::connect(&zvmm.place("qmp")));
    zvmm
}

/// It ends when its input does.
fn piped(command: &mut Command) -> (Child, ChildStdin, BufReader<ChildStdout>) {
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("the client runs");
    let (input, output) = (child.stdin.take(), child.stdout.take());
    (child, input.expect("a pipe"), BufReader::new(output.expect("a pipe")))
}

/// The guest has done nothing but run.
fn end(mut zvmm: Zvmm) {
    zvmm.signal(libc::SIGQUIT);
    assert_eq!(zvmm.status(), Some(130));
    assert_eq!(zvmm.errors(), "");
}

#[test]
#[ignore = "needs clients of others: cargo xtask test --full clients"]
fn pythons_library_for_qmp_finds_all_it_asks_for() {
    let image = tempfile::NamedTempFile::new().expect("a file");
    image.as_file().set_len(1 << 20).expect("space");
    let zvmm = start(&[&format!("--disk={},id=root", image.path().display())]);
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/life/clients/conversation.py");
    let output = client("python3").arg(script).arg(zvmm.place("qmp")).output().expect("the client runs");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert_eq!(String::from_utf8_lossy(&output.stdout), "all is well\n", "{errors}");
    end(zvmm);
}

#[test]
#[ignore = "needs clients of others: cargo xtask test --full clients"]
fn the_qemu_projects_shell_speaks_to_a_guest_in_both_its_languages() {
    let zvmm = start(&[]);
    let converse = |language: &[&str], lines: &str| {
        let mut shell = client("python3");
        shell.args(["-m", "qemu.qmp.qmp_shell"]).args(language).arg(zvmm.place("qmp"));
        let (child, mut keys, screen) = piped(&mut shell);
        keys.write_all(lines.as_bytes()).expect("it reads");
        drop(keys);
        let said = std::io::read_to_string(screen).expect("text");
        assert!(child.wait_with_output().expect("it ends").status.success(), "{said}");
        said.replace('"', "'")
    };
    let said = converse(&[], "query-name\nstop\ncont\n\nset_link name=none up=true\n");
    for part in ["'name': 'web'", "'STOP'", "'RESUME'", "'DeviceNotFound'"] {
        assert!(said.contains(part), "{part}: {said}");
    }
    let said = converse(&["--hmp"], "info status\ninfo name\n");
    assert!(said.contains("VM status: running") && said.contains("web"), "{said}");
    end(zvmm);
}

#[test]
#[ignore = "needs clients of others: cargo xtask test --full clients"]
fn socat_carries_a_console_and_the_control_socket() {
    let zvmm = start(&[]);
    let socat = |name| piped(client("socat").arg("-").arg(format!("UNIX-CONNECT:{}", zvmm.place(name).display())));
    let (mut console, mut keys, mut screen) = socat("com1");
    keys.write_all(b"typed and shown\n").expect("it reads");
    let mut shown = Vec::new();
    while !shown.ends_with(b"typed and shown\n") {
        assert_ne!(screen.read_until(b'\n', &mut shown).expect("the guest echoes"), 0);
    }

    let (mut control, mut commands, mut answers) = socat("qmp");
    let mut next = || -> Value {
        let mut line = String::new();
        answers.read_line(&mut line).expect("an answer");
        serde_json::from_str(&line).expect("a line of JSON")
    };
    assert!(next()["QMP"].is_object());
    for (command, answer) in [("qmp_capabilities", json!({})), ("query-name", json!({"name": "web"}))] {
        commands.write_all(format!("{{\"execute\": \"{command}\"}}\n").as_bytes()).expect("it reads");
        assert_eq!(next(), json!({"return": answer}));
    }
    drop((keys, commands));
    assert!(console.wait().expect("it ends").success() && control.wait().expect("it ends").success());
    end(zvmm);
}

#[test]
#[ignore = "needs clients of others: cargo xtask test --full clients"]
fn cloud_init_gets_its_metadata_from_the_responder_on_com2() {
    let folder = tempfile::TempDir::new().expect("a directory");
    let file = folder.path().join("m.json");
    let metadata = json!({
        "sdc:hostname": "web1",
        "sdc:nics": [{"interface": "net0", "ips": ["10.0.0.5/24"]}],
        "user-script": "#!/bin/sh\n.\n..dots\n  end  \n",
    });
    std::fs::write(&file, metadata.to_string()).expect("a file");
    let (kernel, responder) = (relay(folder.path()), format!("com2=metadata:{}", file.display()));
    let mut zvmm = Zvmm::start(&["--kernel", &kernel.display().to_string(), "--serial", "pty", "--serial", &responder]);
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/life/clients/metadata.py");
    let output = client("python3").arg(script).arg(pty_of(&zvmm)).output().expect("the client runs");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert_eq!(String::from_utf8_lossy(&output.stdout), "all is well\n", "{errors}");
    zvmm.signal(libc::SIGQUIT);
    assert_eq!(zvmm.status(), Some(130));
}
