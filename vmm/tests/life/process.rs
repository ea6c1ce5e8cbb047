//! A running process, and the two ends of its terminal.

use std::fs::File;
use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use devices_host::poll::{PollFd, poll};
use devices_host::tty::Pty;
use tempfile::TempDir;

/// No step needs a tenth of it.
pub const LIMIT: Duration = Duration::from_secs(20);

/// Says `!`, then echoes what it receives on COM1, but for: `R` resets the machine; `T` has the processor shut down by
/// triple fault; `P` tells a panic; `O` turns the machine off; `W` answers `w` and turns it off when the power button is
/// pressed; `F` has it write `F` without end.
///
/// The instructions mean the same in 32-bit and 64-bit mode. Ports are those of the profile `i440fx`.
const GUEST: &[u8] = &[
    0x66, 0xba, 0xf8, 0x03, // mov dx, 0x3f8
    0xb0, b'!', // mov al, '!'
    0xee, // out dx, al
    // wait:
    0x66, 0xba, 0xfd, 0x03, // mov dx, 0x3fd
    0xec, // in al, dx
    0xa8, 0x01, // test al, 1
    0x75, 0x0b, // jnz got
    0xb9, 0x00, 0x01, 0x00, 0x00, // mov ecx, 0x100
    0xff, 0xc9, // dec ecx
    0x75, 0xfc, // jnz -4
    0xeb, 0xec, // jmp wait
    // got:
    0x66, 0xba, 0xf8, 0x03, // mov dx, 0x3f8
    0xec, // in al, dx
    0x3c, b'R', // cmp al, 'R'
    0x74, 0x28, // je reset
    0x3c, b'T', // cmp al, 'T'
    0x74, 0x2d, // je triple
    0x3c, b'P', // cmp al, 'P'
    0x74, 0x2b, // je panic
    0x3c, b'O', // cmp al, 'O'
    0x74, 0x30, // je off
    0x3c, b'W', // cmp al, 'W'
    0x74, 0x38, // je button
    0x88, 0xc3, // mov bl, al
    // send:
    0x66, 0xba, 0xfd, 0x03, // mov dx, 0x3fd
    0xec, // in al, dx
    0xa8, 0x20, // test al, 0x20
    0x74, 0xf7, // jz send
    0x66, 0xba, 0xf8, 0x03, // mov dx, 0x3f8
    0x88, 0xd8, // mov al, bl
    0xee, // out dx, al
    0x3c, b'F', // cmp al, 'F'
    0x74, 0xec, // je send
    0xeb, 0xbb, // jmp wait
    // reset:
    0x66, 0xba, 0xf9, 0x0c, // mov dx, 0xcf9
    0xb0, 0x06, // mov al, 6
    0xee, // out dx, al
    0xeb, 0xfe, // jmp $
    // triple: there is no interrupt table yet
    0x0f, 0x0b, // ud2
    // panic:
    0x66, 0xba, 0x05, 0x05, // mov dx, 0x505
    0xb0, 0x01, // mov al, 1
    0xee, // out dx, al
    0xeb, 0xa7, // jmp wait
    // off: sleep type 0, sleep enable
    0x66, 0xba, 0x04, 0x06, // mov dx, 0x604
    0x66, 0xb8, 0x00, 0x20, // mov ax, 0x2000
    0x66, 0xef, // out dx, ax
    0xeb, 0xfe, // jmp $
    // button: power button enable
    0x66, 0xba, 0x02, 0x06, // mov dx, 0x602
    0x66, 0xb8, 0x00, 0x01, // mov ax, 0x100
    0x66, 0xef, // out dx, ax
    0x66, 0xba, 0xf8, 0x03, // mov dx, 0x3f8
    0xb0, b'w', // mov al, 'w'
    0xee, // out dx, al
    // pressed: power button status
    0x66, 0xba, 0x00, 0x06, // mov dx, 0x600
    0x66, 0xed, // in ax, dx
    0xf6, 0xc4, 0x01, // test ah, 1
    0x74, 0xf5, // jz pressed
    0xeb, 0xd6, // jmp off
];

/// Where the guest is loaded.
const ADDRESS: u64 = 0x10_0000;

/// A guest's instructions as an ELF file of one segment (System V ABI, ELF-64 object file format).
pub fn elf(guest: &[u8]) -> Vec<u8> {
    let mut file = Vec::new();
    file.extend_from_slice(b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0");
    for half in [2_u16, 62] {
        file.extend_from_slice(&half.to_le_bytes());
    }
    file.extend_from_slice(&1_u32.to_le_bytes());
    for word in [ADDRESS, 64, 0] {
        file.extend_from_slice(&word.to_le_bytes());
    }
    file.extend_from_slice(&0_u32.to_le_bytes());
    for half in [64_u16, 56, 1, 64, 0, 0] {
        file.extend_from_slice(&half.to_le_bytes());
    }
    for half in [1_u32, 5] {
        file.extend_from_slice(&half.to_le_bytes());
    }
    let length = guest.len() as u64;
    for word in [0x1000, ADDRESS, ADDRESS, length, length, 0x1000] {
        file.extend_from_slice(&word.to_le_bytes());
    }
    file.resize(0x1000, 0);
    file.extend_from_slice(guest);
    file
}

/// Whether these tests cannot run here, with the reason printed.
///
/// # Panics
/// When they were meant to run: a test that cannot run must not look like one that passed.
pub fn skip() -> bool {
    let Err(error) = File::options().read(true).write(true).open("/dev/kvm") else { return false };
    assert!(std::env::var_os("ZVMM_GUESTS").is_none(), "/dev/kvm does not open: {error}");
    println!("SKIP: /dev/kvm does not open: {error}");
    true
}

/// Where the process's stderr goes, in its own directory.
const ERRORS: &str = "stderr";

/// Waits until something is so.
#[track_caller]
pub fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let end = Instant::now() + LIMIT;
    while !is_so() {
        assert!(Instant::now() < end, "{what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Runs the program to its end on arguments that it should refuse, in a process prepared between fork and exec: system
/// calls only.
pub fn refuse(prepare: fn() -> io::Result<()>, args: &[&str]) -> Output {
    let place = place();
    let mut command = command(&place, args);
    // SAFETY: what tests pass makes system calls only, as it must between fork and exec.
    unsafe { command.pre_exec(prepare) };
    command.stdin(Stdio::null()).output().expect("the binary runs")
}

/// A directory with the guest in it.
fn place() -> TempDir {
    let place = TempDir::new().expect("a directory");
    std::fs::write(place.path().join("guest"), elf(GUEST)).expect("a file");
    place
}

fn command(place: &TempDir, args: &[&str]) -> Command {
    let mut all = vec!["run", "--sandbox", "strict"];
    for (option, value) in [("--memory", "32M"), ("--kernel", "@guest")] {
        if !args.contains(&option) {
            all.extend([option, value]);
        }
    }
    all.extend(args);
    plain_command(place, &all)
}

fn plain_command(place: &TempDir, args: &[&str]) -> Command {
    let prefix = format!("{}/", place.path().display());
    let mut command = Command::new(env!("CARGO_BIN_EXE_zvmm"));
    command.args(args.iter().map(|arg| arg.replace('@', &prefix)));
    command
}

/// The process, killed at the latest when this is dropped.
#[derive(Debug)]
pub struct Zvmm {
    child: Child,
    place: TempDir,
}

impl Zvmm {
    /// Starts it with the echoing guest; `@name` in an argument stands for a path in its own directory.
    pub fn start(args: &[&str]) -> Self {
        Self::spawn(|place| command(place, args), Stdio::null)
    }

    /// Starts it in bhyve's place, with bhyve's options; the guest is `@guest`.
    pub fn start_as_bhyve(args: &[&str]) -> Self {
        Self::spawn(|place| plain_command(place, &[&["bhyve"], args].concat()), Stdio::null)
    }

    /// Starts it on a terminal.
    pub fn start_on(terminal: &Terminal, args: &[&str]) -> Self {
        Self::spawn(|place| command(place, args), || terminal.theirs.try_clone().expect("a descriptor").into())
    }

    fn spawn(command: impl FnOnce(&TempDir) -> Command, stdio: impl Fn() -> Stdio) -> Self {
        let place = place();
        let errors = File::create(place.path().join(ERRORS)).expect("a file");
        let mut command = command(&place);
        let child = command.stdin(stdio()).stdout(stdio()).stderr(errors).spawn().expect("the binary runs");
        Self { child, place }
    }

    /// What it has said on stderr.
    pub fn errors(&self) -> String {
        std::fs::read_to_string(self.place(ERRORS)).expect("a file")
    }

    /// Its process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// A path in the process's own directory.
    pub fn place(&self, name: &str) -> PathBuf {
        self.place.path().join(name)
    }

    /// Sends a signal, and waits until it is taken: two that wait together are one (signal(7)).
    pub fn signal(&self, signal: i32) {
        let pid = i32::try_from(self.child.id()).expect("a process id");
        // SAFETY: the child is not yet waited for, so the id is its own.
        assert_eq!(unsafe { libc::kill(pid, signal) }, 0);
        until("the signal is taken", || {
            let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("a process");
            let field = |name| status.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default().trim();
            let pending = u64::from_str_radix(field("ShdPnd:"), 16).expect("a set of signals");
            field("State:").starts_with('Z') || pending & 1 << (signal - 1) == 0
        });
    }

    /// Waits for the end; the exit status.
    #[track_caller]
    pub fn status(&mut self) -> Option<i32> {
        let until = Instant::now() + LIMIT;
        while Instant::now() < until {
            if let Some(status) = self.child.try_wait().expect("a child to wait for") {
                return status.code();
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        panic!("the process does not end");
    }
}

impl Drop for Zvmm {
    fn drop(&mut self) {
        // An error means that it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Connects to a socket as soon as it is there.
pub fn connect(path: &Path) -> UnixStream {
    let until = Instant::now() + LIMIT;
    loop {
        match UnixStream::connect(path) {
            Ok(stream) => {
                stream.set_read_timeout(Some(LIMIT)).expect("a socket");
                return stream;
            }
            Err(error) => assert!(Instant::now() < until, "{}: {error}", path.display()),
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Sends bytes and reads until the expected ones have come back at the end of the stream so far.
#[track_caller]
pub fn talk(stream: &mut UnixStream, send: &[u8], expect: &[u8]) {
    let mut sender = stream.try_clone().expect("a descriptor");
    std::thread::scope(|scope| {
        scope.spawn(move || sender.write_all(send));
        let mut received = Vec::new();
        while !received.ends_with(expect) {
            let mut bytes = [0; 4096];
            match stream.read(&mut bytes) {
                Ok(count @ 1..) => received.extend_from_slice(&bytes[..count]),
                end => panic!("{end:?} after {:?}", String::from_utf8_lossy(&received)),
            }
        }
    });
}

/// A terminal with our side as its user.
pub struct Terminal {
    ours: File,
    theirs: OwnedFd,
    /// Where a program that was not started on it finds it.
    pub path: PathBuf,
    before: libc::termios,
}

impl Terminal {
    /// A terminal as a shell leaves it to a program.
    pub fn open() -> Self {
        let pty = Pty::open().expect("a terminal");
        let path = pty.path().to_owned();
        let (ours, theirs) = pty.into_parts();
        let mut before = settings(&theirs);
        before.c_iflag |= libc::ICRNL | libc::IXON;
        before.c_lflag |= libc::ICANON | libc::ECHO | libc::ISIG;
        before.c_oflag |= libc::OPOST | libc::ONLCR;
        // SAFETY: the settings are valid.
        assert_eq!(unsafe { libc::tcsetattr(theirs.as_raw_fd(), libc::TCSANOW, &before) }, 0);
        let before = settings(&theirs);
        Self { ours, theirs, path, before }
    }

    /// Whether every key goes to the program at once.
    pub fn is_raw(&self) -> bool {
        settings(&self.theirs).c_lflag & (libc::ICANON | libc::ECHO | libc::ISIG) == 0
    }

    /// Whether the settings are those it was opened with.
    pub fn is_as_before(&self) -> bool {
        let now = settings(&self.theirs);
        let flags = |s: &libc::termios| (s.c_iflag, s.c_oflag, s.c_cflag, s.c_lflag, s.c_cc);
        flags(&now) == flags(&self.before)
    }

    /// Types.
    pub fn send(&mut self, keys: &[u8]) {
        self.ours.write_all(keys).expect("a terminal");
    }

    /// Reads until the text has been shown.
    #[track_caller]
    pub fn expect(&mut self, text: &[u8]) {
        let until = Instant::now() + LIMIT;
        let mut shown = Vec::new();
        while !shown.windows(text.len()).any(|window| window == text) {
            assert!(Instant::now() < until, "shown: {:?}", String::from_utf8_lossy(&shown));
            let mut fds = [PollFd::new(self.ours.as_raw_fd()).readable(true)];
            poll(&mut fds, Some(100_000_000)).expect("a descriptor");
            let mut bytes = [0; 4096];
            match self.ours.read(&mut bytes) {
                Ok(count) => shown.extend_from_slice(&bytes[..count]),
                Err(error) => assert_eq!(error.kind(), ErrorKind::WouldBlock),
            }
        }
    }
}

fn settings(terminal: &OwnedFd) -> libc::termios {
    let mut settings = std::mem::MaybeUninit::uninit();
    // SAFETY: the call fills the structure where it succeeds, which the assertion makes sure of.
    unsafe {
        assert_eq!(libc::tcgetattr(terminal.as_raw_fd(), settings.as_mut_ptr()), 0);
        settings.assume_init()
    }
}
