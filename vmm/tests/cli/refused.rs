//! What the manual says is refused, from outside: each option and device by its name, with the line that the manual has and the
//! status of the brand.

use crate::process::refused_with;

const MANUAL: &str = include_str!("../../../docs/smartos.md");

/// The cells of every row of the manual whose first one is an option.
fn rows() -> impl Iterator<Item = Vec<&'static str>> {
    MANUAL.lines().filter_map(|line| {
        let cells: Vec<&str> = line.strip_prefix("| `-")?.strip_suffix(" |")?.split(" | ").collect();
        (cells.len() == 3).then_some(cells)
    })
}

#[test]
fn what_the_manual_says_is_refused_is_one_line_and_bhyves_status() {
    let mut names = Vec::new();
    for row in rows() {
        let (option, Some(why)) = (row[0].trim_end_matches('`'), row[2].strip_prefix("refused: ")) else { continue };
        let (letter, argument) = option.split_once(' ').map_or((option, ""), |(letter, argument)| (letter, argument));
        let (argument, named) = match argument.split_once(',') {
            // A device of a slot, and one behind the LPC bridge.
            Some(("SLOT", driver)) => (format!("4,{driver},x"), format!("-s 4,{driver}")),
            _ if letter == "l" => (format!("{argument},x"), format!("-l {argument}")),
            _ if letter == "o" => {
                let key = argument.replace('*', "0.x");
                (format!("{key}=y"), format!("-o {key}"))
            }
            _ => (argument.to_owned(), format!("-{letter}")),
        };
        let letter = format!("-{letter}");
        let mut args = vec!["bhyve", &letter, &argument, "vm"];
        args.retain(|arg| !arg.is_empty());
        refused_with(4, &args, &format!("{named}: {why}"));
        names.push(named);
    }
    let wanted =
        ["-s 4,nvme", "-s 4,ahci-hd", "-s 4,passthru", "-s 4,virtio-9p", "-s 4,virtio-scsi", "-s 4,e1000", "-C"];
    assert!(wanted.iter().all(|name| names.iter().any(|other| other == name)), "{names:?}");
}

#[test]
fn what_the_manual_says_is_refused_is_one_line_and_qemus_status() {
    let mut names = Vec::new();
    for row in rows().filter(|row| row[1] == "refused") {
        let (option, why) = (format!("-{}", row[0].trim_end_matches('`')), row[2]);
        let args: Vec<&str> = ["qemu"].into_iter().chain(option.split(' ')).collect();
        refused_with(1, &args, &format!("{}: {why}", args[1]));
        names.push(args[1].to_owned());
    }
    assert!(["-hda", "-cdrom", "-fda", "-daemonize", "-S"].iter().all(|name| names.iter().any(|other| other == name)));
}
