//! A terminal of the host as the outer end of a serial line: the console of a zone, or a real serial port.

use std::fs::{File, OpenOptions};
use std::io::{self, IsTerminal};
use std::mem::MaybeUninit;
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use devices_host::thread::BlockedSignals;

/// Opens the device for reading and writing, neither of which blocks, and has every byte pass as it is.
///
/// What its settings were is not restored: whoever is at its other end is there for the guest, and the next one who opens
/// it makes its own.
///
/// # Errors
/// What the system says.
pub(super) fn open(path: &Path) -> io::Result<(File, File)> {
    let flags = libc::O_NONBLOCK | libc::O_NOCTTY;
    let device = OpenOptions::new().read(true).write(true).custom_flags(flags).open(path)?;
    if device.is_terminal() {
        make_raw(&device)?;
    }
    Ok((device.try_clone()?, device))
}

fn make_raw(device: &File) -> io::Result<()> {
    let mut settings = MaybeUninit::<libc::termios>::uninit();
    // SAFETY: the call fills the whole structure where it succeeds.
    let mut settings = unsafe {
        check(libc::tcgetattr(device.as_raw_fd(), settings.as_mut_ptr()))?;
        settings.assume_init()
    };
    settings.c_iflag = 0;
    settings.c_oflag &= !libc::OPOST;
    settings.c_lflag &= !(libc::ECHO | libc::ECHONL | libc::ICANON | libc::ISIG | libc::IEXTEN);
    // CLOCAL: a line without a modem never hangs up.
    settings.c_cflag = settings.c_cflag & !(libc::CSIZE | libc::PARENB) | libc::CS8 | libc::CLOCAL | libc::CREAD;
    settings.c_cc[libc::VMIN] = 1;
    settings.c_cc[libc::VTIME] = 0;
    // A process in the background is stopped for changing its own terminal, unless it blocks SIGTTOU.
    let _blocked = BlockedSignals::all()?;
    // SAFETY: the settings are valid.
    check(unsafe { libc::tcsetattr(device.as_raw_fd(), libc::TCSANOW, &settings) })
}

fn check(result: libc::c_int) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use devices_host::poll::{PollFd, poll};
    use devices_host::tty::Pty;
    use std::io::{Read, Write};

    #[test]
    fn every_byte_passes_a_terminal_both_ways_as_it_is() {
        let pty = Pty::open().unwrap();
        let path = pty.path().to_owned();
        let (mut far, near) = pty.into_parts();
        // As a console is before anybody made it raw.
        let mut settings = MaybeUninit::<libc::termios>::uninit();
        // SAFETY: as in `make_raw`.
        unsafe {
            check(libc::tcgetattr(near.as_raw_fd(), settings.as_mut_ptr())).unwrap();
            let mut cooked = settings.assume_init();
            cooked.c_iflag |= libc::ICRNL | libc::IXON;
            cooked.c_oflag |= libc::OPOST | libc::ONLCR;
            cooked.c_lflag |= libc::ICANON | libc::ECHO | libc::ISIG;
            check(libc::tcsetattr(near.as_raw_fd(), libc::TCSANOW, &cooked)).unwrap();
        }
        let (mut input, mut output) = open(&path).unwrap();
        assert_eq!(input.read(&mut [0; 8]).unwrap_err().kind(), io::ErrorKind::WouldBlock);
        let bytes: Vec<u8> = (0..=255).collect();
        output.write_all(&bytes).unwrap();
        assert_eq!(read(&mut far, 256), bytes);
        far.write_all(&bytes).unwrap();
        assert_eq!(read(&mut input, 256), bytes);
        assert_eq!(far.read(&mut [0; 8]).unwrap_err().kind(), io::ErrorKind::WouldBlock, "nothing was echoed");
    }

    fn read(from: &mut File, count: usize) -> Vec<u8> {
        let mut bytes = vec![0; count];
        let mut got = 0;
        while got < count {
            let mut fds = [PollFd::new(from.as_raw_fd()).readable(true)];
            poll(&mut fds, Some(60_000_000_000)).unwrap();
            got += from.read(&mut bytes[got..]).unwrap();
        }
        bytes
    }
}
