//! `zhyve.cmd`: the command line as the boot hook of the bhyve brand leaves it in the zone.
//!
//! It is one packed name-value list of libnvpair in XDR form (RFC 4506) with exactly one pair: the string array
//! `bhyve_args`, the program's name first. Every length is checked against the bytes there are and against each other.

use super::MOST_ARGUMENTS;

const NAME: &[u8] = b"bhyve_args";

/// The encoding, and the kind of its writer: XDR; big or little endian.
const XDR: u8 = 1;
const NV_VERSION: u32 = 0;
const NV_UNIQUE_NAME: u32 = 1;
const DATA_TYPE_STRING_ARRAY: u32 = 17;

/// Where the pair starts.
const PAIR: usize = 12;

/// Why a `zhyve.cmd` cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CmdFileError {
    /// It ends too early.
    #[error("it ends after {0} bytes, inside {1}")]
    Short(usize, &'static str),
    /// A field has a value that it cannot have.
    #[error("{what} is {found}, not {right}")]
    Field {
        /// The field.
        what: &'static str,
        /// What it is.
        found: u32,
        /// What it has to be.
        right: u32,
    },
    /// It names something else.
    #[error("its pair is not called bhyve_args")]
    Name,
    /// More arguments than the boot hook passes, or none.
    #[error("{0} arguments are not possible; there are 1 to {MOST_ARGUMENTS}")]
    Count(u32),
    /// An argument is no text.
    #[error("argument {0} is not UTF-8 text without NUL")]
    Text(usize),
    /// The bytes that fill up a string are not zero.
    #[error("the bytes behind {0} are not zero")]
    Padding(&'static str),
    /// Something follows the end of the list.
    #[error("{0} bytes follow its end")]
    Long(usize),
}

/// Reads the arguments, the program's name first.
///
/// # Errors
/// The first thing that is wrong; nothing outside `bytes` is looked at, and nothing larger than it is allocated.
pub fn decode(bytes: &[u8]) -> Result<Vec<String>, CmdFileError> {
    let mut xdr = Xdr { bytes, at: 0 };
    let header = xdr.word("the header")?.to_be_bytes();
    let field =
        |what, found, right| if found == right { Ok(()) } else { Err(CmdFileError::Field { what, found, right }) };
    field("the encoding", header[0].into(), XDR.into())?;
    if header[1] > 1 {
        return Err(CmdFileError::Field { what: "the byte order", found: header[1].into(), right: 1 });
    }
    field("the reserved part of the header", u16::from_be_bytes([header[2], header[3]]).into(), 0)?;
    field("the version", xdr.word("the version")?, NV_VERSION)?;
    field("the flags", xdr.word("the flags")?, NV_UNIQUE_NAME)?;

    let encoded = xdr.word("the size of the pair")?;
    let decoded = xdr.word("the decoded size of the pair")?;
    let name_len = xdr.word("the length of the name")?;
    field("the length of the name", name_len, NAME.len() as u32)?;
    if xdr.opaque(NAME.len(), "the name")? != NAME {
        return Err(CmdFileError::Name);
    }
    field("the type", xdr.word("the type")?, DATA_TYPE_STRING_ARRAY)?;
    let count = xdr.word("the number of arguments")?;
    let number = usize::try_from(count).ok().filter(|number| (1..=MOST_ARGUMENTS).contains(number));
    let number = number.ok_or(CmdFileError::Count(count))?;

    let mut args = Vec::with_capacity(number);
    let mut text_bytes = 0;
    for index in 0..number {
        let len = xdr.word("the length of an argument")?;
        let len = usize::try_from(len).unwrap_or(usize::MAX);
        let text = xdr.opaque(len, "an argument")?;
        text_bytes += len + 1;
        let text = std::str::from_utf8(text).ok().filter(|text| !text.contains('\0'));
        args.push(text.ok_or(CmdFileError::Text(index))?.to_owned());
    }
    field("the size of the pair", encoded, small(xdr.at - PAIR))?;
    // The pair as libnvpair keeps it in memory: head and name, then pointers and strings, each rounded up to 8 bytes.
    let kept = (16 + NAME.len() + 1).next_multiple_of(8) + (8 * number + text_bytes).next_multiple_of(8);
    field("the decoded size of the pair", decoded, small(kept))?;
    field("the end of the list", xdr.word("the end of the list")?, 0)?;
    field("the end of the list", xdr.word("the end of the list")?, 0)?;
    match bytes.len() - xdr.at {
        0 => Ok(args),
        more => Err(CmdFileError::Long(more)),
    }
}

fn small(number: usize) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}

struct Xdr<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Xdr<'a> {
    fn take(&mut self, count: usize, what: &'static str) -> Result<&'a [u8], CmdFileError> {
        let end = self.at.checked_add(count);
        let taken = end.and_then(|end| self.bytes.get(self.at..end));
        let taken = taken.ok_or(CmdFileError::Short(self.bytes.len(), what))?;
        self.at += count;
        Ok(taken)
    }

    fn word(&mut self, what: &'static str) -> Result<u32, CmdFileError> {
        let bytes = self.take(4, what)?;
        Ok(bytes.iter().fold(0, |word, byte| word << 8 | u32::from(*byte)))
    }

    /// Bytes of a known number, filled up with zeroes to whole words (RFC 4506 §4.9).
    fn opaque(&mut self, len: usize, what: &'static str) -> Result<&'a [u8], CmdFileError> {
        let bytes = self.take(len, what)?;
        let padding = self.take(len.wrapping_neg() % 4, what)?;
        if padding.iter().any(|byte| *byte != 0) {
            return Err(CmdFileError::Padding(what));
        }
        Ok(bytes)
    }
}

#[cfg(test)]
#[path = "cmdfile_tests.rs"]
mod tests;
