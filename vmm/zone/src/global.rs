//! The global zone: zoneadmd and the kernel, which start a zone's init and see what its end means, and what vmadm does for both
//! brands.

use std::fs;
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use crate::argv::Properties;
use crate::memory::Memory;
use crate::root::{Brand, Parts, Records, Root};
use crate::{LIMIT, confined, until};

/// A zone that was made for a guest.
pub struct Zone {
    /// Which VMM it is for.
    pub brand: Brand,
    /// Its files.
    pub root: Root,
    /// Its guest.
    pub properties: Properties,
    /// What the zone's log has; of the bhyve brand alone.
    pub log: Records,
    /// How long a step may take.
    pub limit: Duration,
    /// How long it takes to look again: looking costs an emulated machine much of its time.
    pub pause: Duration,
    /// What the program takes before the arguments of the brand.
    words: Vec<String>,
    init: Option<Child>,
    /// How every init has ended, in turn.
    ends: Vec<ExitStatus>,
    /// How many had when the last signal was sent.
    ends_before_signal: usize,
}

/// How `vmadm stop` came to its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stop {
    /// The zone was halted by the end of its init, in time.
    InTime,
    /// Time was up, and the zone was halted by force.
    Forced,
}

impl Zone {
    /// `vmadm create`: a zone that is not booted yet.
    ///
    /// # Panics
    /// When it cannot be made.
    #[must_use]
    pub fn create(brand: Brand, parts: &Parts<'_>, properties: Properties) -> Self {
        Self {
            brand,
            root: Root::new(brand, parts, &properties),
            properties,
            log: Records::default(),
            limit: LIMIT,
            pause: Duration::from_micros(500),
            words: parts.words.to_vec(),
            init: None,
            ends: Vec::new(),
            ends_before_signal: 0,
        }
    }

    /// `zoneadm boot`: what is mounted anew is empty, and init is started.
    ///
    /// # Panics
    /// When it runs, or init cannot be started.
    pub fn boot(&mut self) {
        assert!(self.init.is_none(), "the zone runs");
        if self.brand == Brand::Bhyve {
            let run = self.root.path("/var/run");
            fs::remove_dir_all(&run).and_then(|()| fs::create_dir(&run)).expect("a folder");
        }
        self.ends.clear();
        self.start_init();
    }

    /// As zhyve and qemu-exec start the VMM: standard input is nothing, and the output goes to the log.
    fn start_init(&mut self) {
        let (argv, log) = match self.brand {
            Brand::Bhyve => (self.properties.bhyve(), None),
            Brand::Kvm => {
                let log = fs::File::options().create(true).append(true).open(self.root.path("/tmp/vm.log"));
                (self.properties.kvm(), Some(log.expect("a log")))
            }
        };
        // The boot hook allows no more, and the kernel has its own limit.
        assert!(argv.len() <= 100, "{} arguments", argv.len());
        let mut command = Command::new(format!("/{}", self.brand.program()));
        command.arg0(&argv[0]).args(&self.words).args(&argv[1..]).env_clear().stdin(Stdio::null());
        match log {
            Some(log) => command.stdout(log.try_clone().expect("a descriptor")).stderr(log),
            None => command.stdout(self.log.stream()).stderr(self.log.stream()),
        };
        let way = self.root.way();
        // SAFETY: makes system calls only.
        unsafe { command.pre_exec(move || confined::enter(&way)) };
        self.init = Some(command.spawn().expect("the program starts in the zone"));
    }

    /// Looks at init as the kernel does: one that ends with 0 is started again where the brand wants that, and any other end
    /// halts the zone. Whether the zone runs.
    ///
    /// # Panics
    /// When init cannot be started again.
    pub fn tend(&mut self) -> bool {
        let Some(init) = &mut self.init else { return false };
        if let Some(end) = init.try_wait().expect("a child") {
            self.ends.push(end);
            self.init = None;
            if self.brand == Brand::Bhyve && end.code() == Some(0) {
                self.start_init();
            }
        }
        self.init.is_some()
    }

    /// How every init since the boot has ended, in turn: its status, or the number of the signal as a negative one.
    #[must_use]
    pub fn ends(&self) -> Vec<i32> {
        let number = |end: &ExitStatus| end.code().or(end.signal().map(|signal| -signal)).expect("an end");
        self.ends.iter().map(number).collect()
    }

    /// How those have ended that had not when the last signal was sent.
    #[must_use]
    pub fn ends_since_signal(&self) -> Vec<i32> {
        self.ends().split_off(self.ends_before_signal)
    }

    /// Waits until something is so, while the zone is looked after.
    ///
    /// # Panics
    /// When it is not in time, with all that the VMM and the guest have said.
    #[track_caller]
    pub fn until(&mut self, what: &str, mut is_so: impl FnMut(&mut Self) -> bool) {
        let end = Instant::now() + self.limit;
        loop {
            let runs = self.tend();
            if is_so(self) {
                return;
            }
            let state = if runs { "runs" } else { "is halted" };
            assert!(Instant::now() < end, "waited for: {what}; the zone {state}; {:?}\n{}", self.ends(), self.said());
            std::thread::sleep(self.pause);
        }
    }

    /// Everything that the VMM and the guest have said, for a message.
    pub fn said(&mut self) -> String {
        let log = fs::read_to_string(self.root.path("/tmp/vm.log")).unwrap_or_default();
        format!("-- console\n{}\n-- log\n{}{log}", self.root.console().to_owned(), self.log.all().concat())
    }

    /// Waits until the guest has said something on its console.
    ///
    /// # Panics
    /// As [`Self::until`].
    #[track_caller]
    pub fn until_console(&mut self, text: &str) {
        self.until(text, |zone| zone.root.console().contains(text));
    }

    /// Waits until the zone is halted by the end of its init.
    ///
    /// # Panics
    /// As [`Self::until`].
    #[track_caller]
    pub fn until_halted(&mut self) {
        self.until("the zone is halted", |zone| zone.init.is_none());
    }

    /// Process id of init.
    ///
    /// # Panics
    /// When the zone does not run.
    #[must_use]
    pub fn init_pid(&self) -> i32 {
        let init = self.init.as_ref().expect("the zone runs");
        i32::try_from(init.id()).expect("a process id")
    }

    /// Sends a signal to the VMM that is the zone's init. As it has one process id from the boot to the halt, however often it is
    /// executed again, it is never sent to a process that has ended: stopped first, it is one that lives.
    ///
    /// # Panics
    /// When it cannot be sent.
    pub fn signal(&mut self, signal: i32) {
        while self.tend() {
            let pid = self.init_pid();
            if hold(pid) {
                self.ends_before_signal = self.ends.len();
                // SAFETY: the child is not yet waited for, so the id is its own.
                unsafe {
                    assert_eq!(libc::kill(pid, signal), 0);
                    assert_eq!(libc::kill(pid, libc::SIGCONT), 0);
                }
                return;
            }
        }
    }

    /// `vmadm stop` of the bhyve brand: the power button by SIGTERM, then waiting for the end of init, and in the end by force.
    pub fn stop(&mut self, time_out: Duration) -> Stop {
        self.signal(libc::SIGTERM);
        self.wait_for_end(time_out)
    }

    /// Waits for the end of init as whoever stops a zone does.
    pub fn wait_for_end(&mut self, time_out: Duration) -> Stop {
        if self.runs_for(time_out) {
            self.halt();
            return Stop::Forced;
        }
        Stop::InTime
    }

    /// Looks after the zone for so long, and no longer than it runs; whether it still does.
    pub fn runs_for(&mut self, time: Duration) -> bool {
        let end = Instant::now() + time;
        while self.tend() {
            if Instant::now() >= end {
                return true;
            }
            std::thread::sleep(self.pause);
        }
        false
    }

    /// `zoneadm halt`: nobody in the zone hears of it.
    ///
    /// # Panics
    /// When init cannot be killed.
    pub fn halt(&mut self) {
        if let Some(mut init) = self.init.take() {
            init.kill().expect("a process");
            self.ends.push(init.wait().expect("a process"));
        }
    }

    /// Names of the sockets in the zone's `/tmp`, and of what else is there.
    ///
    /// # Panics
    /// When it cannot be read.
    #[must_use]
    pub fn sockets_and_files(&self) -> (Vec<String>, Vec<String>) {
        use std::os::unix::fs::FileTypeExt as _;
        let is_socket = |name: &String| {
            let metadata = fs::symlink_metadata(self.root.path("/tmp").join(name)).expect("a file");
            metadata.file_type().is_socket()
        };
        self.root.names("/tmp").into_iter().partition(is_socket)
    }

    /// How many descriptors the VMM has, and the names of its threads.
    ///
    /// # Panics
    /// When it does not run.
    #[must_use]
    pub fn belongings(&self) -> (usize, Vec<String>) {
        let names = |folder: &str| -> Vec<String> {
            let entries = fs::read_dir(format!("/proc/{}/{folder}", self.init_pid())).expect("a process");
            entries.map(|entry| entry.expect("an entry").path().display().to_string()).collect()
        };
        let thread = |path: &String| fs::read_to_string(format!("{path}/comm")).unwrap_or_default().trim().to_owned();
        let mut threads: Vec<String> = names("task").iter().map(thread).collect();
        threads.sort();
        (names("fd").len(), threads)
    }

    /// Waits until every thread of the VMM has given up new privileges and all system calls that it does not need.
    ///
    /// # Panics
    /// When it does not come so far.
    #[track_caller]
    pub fn until_confined(&mut self) {
        self.until("every thread is confined", |zone| {
            let threads = fs::read_dir(format!("/proc/{}/task", zone.init_pid())).expect("a process");
            let mut statuses =
                threads.map(|thread| fs::read_to_string(thread.expect("a thread").path().join("status")));
            statuses.all(|status| {
                let status = status.expect("a thread's status");
                ["Seccomp:\t2\n", "NoNewPrivs:\t1\n"].iter().all(|line| status.contains(line))
            })
        });
    }

    /// Memory of the VMM.
    ///
    /// # Panics
    /// When it does not run.
    #[must_use]
    pub fn memory(&self) -> Memory {
        Memory::of(self.init_pid().unsigned_abs()).expect("a process")
    }

    /// Where a socket of the zone is.
    #[must_use]
    pub fn socket(&self, name: &str) -> PathBuf {
        self.root.path("/tmp").join(name)
    }
}

impl Drop for Zone {
    fn drop(&mut self) {
        if std::thread::panicking() {
            // What went wrong is often that the guest is gone.
            let now = Instant::now();
            while self.tend() && now.elapsed() < Duration::from_secs(1) {
                std::thread::sleep(self.pause);
            }
            eprintln!("the zone's ends: {:?}\n{}", self.ends(), self.said());
        }
        self.halt();
    }
}

/// How long a process is given to stop. One that destroys a VM waits for a thread of the kernel's, which stops as well: it has to
/// go on for that.
const HOLD_TRY: Duration = Duration::from_millis(200);

/// Stops a process that was started here; whether it had not ended before.
fn hold(pid: i32) -> bool {
    let mut held = false;
    until("the process has stopped or ended", || {
        // SAFETY: the child is not yet waited for, so the id is its own.
        assert_eq!(unsafe { libc::kill(pid, libc::SIGSTOP) }, 0);
        let tried = Instant::now();
        while tried.elapsed() < HOLD_TRY {
            let stat = fs::read_to_string(format!("/proc/{pid}/stat")).expect("a process");
            match stat.rsplit(") ").next().and_then(|rest| rest.chars().next()) {
                Some('T') => {
                    held = true;
                    return true;
                }
                Some('Z') => return true,
                _ => std::thread::sleep(Duration::from_micros(200)),
            }
        }
        // SAFETY: as above.
        assert_eq!(unsafe { libc::kill(pid, libc::SIGCONT) }, 0);
        false
    });
    held
}
