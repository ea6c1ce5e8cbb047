//! Passwords on the command line: bhyve's is given that of its display so, and every user of the host can read the
//! arguments of every process.

use super::os;

/// What comes before one.
const BEFORE: &[u8] = b"password=";

/// Takes the passwords out of the arguments that the system shows of this process, once they have been read. As far as the
/// system lets a process do so: illumos keeps the first 80 characters of a command line to itself.
pub fn wipe(has_secret: bool) {
    if has_secret {
        os::each_argument(&mut blank);
    }
}

/// Whether there is something to take out of an argument.
pub fn is_in(argument: &[u8]) -> bool {
    argument.windows(BEFORE.len()).any(|window| window == BEFORE)
}

/// Writes over the passwords of one argument, each of which ends with a comma or with the argument.
fn blank(argument: &mut [u8]) {
    let mut at = 0;
    while let Some(rest) = argument.get_mut(at..) {
        let Some(start) = rest.windows(BEFORE.len()).position(|window| window == BEFORE) else { return };
        let password = &mut rest[start + BEFORE.len()..];
        let len = password.iter().position(|byte| *byte == b',').unwrap_or(password.len());
        password[..len].fill(b'x');
        at += start + BEFORE.len() + len;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_password_of_an_argument_is_written_over_and_nothing_else() {
        for (before, after) in [
            ("30:0,fbuf,password=secret,vga=off", "30:0,fbuf,password=xxxxxx,vga=off"),
            ("password=a,b,password=cd", "password=x,b,password=xx"),
            ("password=", "password="),
            ("no secret", "no secret"),
            ("password", "password"),
        ] {
            let mut bytes = before.as_bytes().to_vec();
            blank(&mut bytes);
            assert_eq!(String::from_utf8_lossy(&bytes), after);
            assert_eq!(is_in(before.as_bytes()), before.contains("password="));
        }
    }
}
