//! `zhyve.cmd`: the bhyve brand's command line as a file.
//!
//! ```text
//! byte 0 % 4   0 the rest is the file
//!              1 the file of the rest, an argument a line
//!              2 the same with four bytes changed: bytes 1 and 2 say where, 3 to 6 are what they are combined with
//!              3 the same, cut: bytes 1 and 2 say where
//! ```
//!
//! Oracles: no panic; what is read are the arguments that make this very file by the format's description, which is known
//! here once more, so that nothing in it is passed over; a file of good arguments is read; a refusal is one plain line. What
//! is read goes on as a command line of [`bhyve_argv`](super::bhyve_argv).

use zvmm::config::bhyve::decode_cmd_file;

use super::bhyve_argv;
use crate::judge;
use crate::stats;

/// What the boot hook passes, the program's name included.
const MOST_ARGUMENTS: usize = 100;

struct Input {
    file: Vec<u8>,
    /// What the file was made of, if nothing of it was changed.
    args: Option<Vec<Vec<u8>>>,
}

impl Input {
    fn read(data: &[u8]) -> Self {
        let (kind, rest) = data.split_first().map_or((0, data), |(kind, rest)| (kind % 4, rest));
        let lines = |text: &[u8]| text.split(|byte| *byte == b'\n').map(<[u8]>::to_vec).collect::<Vec<_>>();
        match kind {
            0 => Self { file: rest.to_vec(), args: None },
            1 => Self { file: encode(&lines(rest)), args: Some(lines(rest)) },
            kind => {
                let knobs = if kind == 2 { 6 } else { 2 };
                let (knobs, text) = rest.split_at(rest.len().min(knobs));
                let knob = |index: usize| knobs.get(index).copied().unwrap_or(0);
                let mut file = encode(&lines(text));
                let at = usize::from(u16::from_be_bytes([knob(0), knob(1)])) % file.len();
                if kind == 2 {
                    file.iter_mut().skip(at).zip(2..6).for_each(|(byte, index)| *byte ^= knob(index));
                } else {
                    file.truncate(at);
                }
                Self { file, args: None }
            }
        }
    }
}

/// The file of these arguments: one pair of an XDR name-value list, a string array (RFC 4506 §4.11 and §4.13).
fn encode(args: &[impl AsRef<[u8]>]) -> Vec<u8> {
    const NAME: &[u8] = b"bhyve_args";
    let word = |number: usize| u32::try_from(number).expect("a small number").to_be_bytes();
    let string = |text: &[u8]| {
        let padding = vec![0; text.len().next_multiple_of(4) - text.len()];
        [&word(text.len())[..], text, &padding].concat()
    };
    let strings: Vec<u8> = args.iter().flat_map(|arg| string(arg.as_ref())).collect();
    let texts: usize = args.iter().map(|arg| arg.as_ref().len() + 1).sum();
    let decoded = (16 + NAME.len() + 1).next_multiple_of(8) + (8 * args.len() + texts).next_multiple_of(8);
    [
        &[1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1][..],
        &word(32 + strings.len()),
        &word(decoded),
        &string(NAME),
        &word(17),
        &word(args.len()),
        &strings,
        &[0; 8],
    ]
    .concat()
}

/// Reads a file.
///
/// # Panics
/// On a finding.
pub fn run(data: &[u8]) {
    let Input { file, args } = Input::read(data);
    stats::operations(1);
    let read = decode_cmd_file(&file);
    if let Err(error) = &read {
        judge::message(error);
    }
    if let Some(args) = args {
        let texts: Option<Vec<String>> = args.into_iter().map(|arg| String::from_utf8(arg).ok()).collect();
        let good = texts.filter(|args| args.len() <= MOST_ARGUMENTS && !args.iter().any(|arg| arg.contains('\0')));
        assert_eq!(read.as_ref().ok(), good.as_ref(), "{read:?}");
    }
    let Ok(args) = read else { return };
    judge_reading(&file, &args);
    bhyve_argv::judge_words(&args[1..]);
}

/// The arguments make the file they are from; only who wrote it may have been of either byte order.
fn judge_reading(file: &[u8], args: &[String]) {
    let mut again = encode(args);
    again[1] = file[1] & 1;
    assert!(again == file, "{} is read as {args:?}, whose file is {}", file.escape_ascii(), again.escape_ascii());
}

/// What the file says.
#[must_use]
pub fn explain(data: &[u8]) -> String {
    let Input { file, .. } = Input::read(data);
    format!("a file of {} bytes: {}\n{:?}\n", file.len(), file.escape_ascii(), decode_cmd_file(&file))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_made_of_lines_and_spoilt_and_cut() {
        let file = |data: &[u8]| Input::read(data).file;
        let good = file(b"\x01bhyve\n-H\nvm");
        assert_eq!((good.len(), &good[12..20]), (80, &[0, 0, 0, 60, 0, 0, 0, 72][..]));
        assert_eq!(decode_cmd_file(&good).unwrap(), ["bhyve", "-H", "vm"]);
        let spoilt = file(b"\x02\x00\x0c\x00\x00\x00\x01bhyve\n-H\nvm");
        assert_eq!((&spoilt[..15], spoilt[15], &spoilt[16..]), (&good[..15], good[15] ^ 1, &good[16..]));
        assert_eq!(file(b"\x03\x00\x0dbhyve\n-H\nvm"), good[..13]);
        assert_eq!(file(b"\x00file"), b"file");
    }

    #[test]
    #[should_panic(expected = "is read as")]
    fn something_in_the_file_that_was_passed_over_is_found() {
        let mut file = encode(&["bhyve", "vm"]);
        file.push(0);
        judge_reading(&file, &["bhyve".to_owned(), "vm".to_owned()]);
    }
}
