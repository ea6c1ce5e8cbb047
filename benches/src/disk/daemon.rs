//! The same file behind `qemu-storage-daemon`, which exports it as a vhost-user block device: a process of its own serves
//! the driver's queue, in shared guest memory and with the same two events.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::FileExt as _;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use devices::GuestRam;
use devices_host::Event;
use devices_host::ram::{RamOptions, allocate};
use vhost::vhost_user::Frontend;
use vhost::{VhostBackend as _, VhostUserMemoryRegionInfo, VringConfigData};
use vm_memory::{GuestAddress, GuestMemoryBackend as _};

use super::guest::Guest;
use super::{Driver, Load, Times};
use crate::threads::on_worker_cpu;

/// A running daemon with its driver.
pub struct Daemon {
    guest: Guest,
    /// The queue is served for as long as this is open.
    _front: Frontend,
    process: Process,
}

impl Daemon {
    /// Starts one on a file, on the worker's CPU, with an I/O thread and `aio=io_uring`; no queue of it is polled longer
    /// than it does by default.
    ///
    /// # Errors
    /// `NotFound` where there is no such program; when it cannot serve the file, or a request moves something else than the
    /// file has then.
    pub fn start(program: &Path, path: &Path, load: &Load, halt_poll: Duration) -> io::Result<Self> {
        let mut process = on_worker_cpu(|| Process::start(program, path, load))??;
        let mem = allocate(&Driver::memory(load), &RamOptions { shared: true, ..RamOptions::default() })
            .map_err(io::Error::other)?;
        let file = File::open(path)?;
        let kick = Arc::new(Event::new()?);
        let guest = Guest::new(mem.clone(), load, file.metadata()?.len(), kick.clone(), halt_poll)?;
        let front = Frontend::from_stream(process.connect()?, 1);
        serve(&front, &mem, &guest, &kick).map_err(io::Error::other)?;
        let mut daemon = Self { guest, _front: front, process };
        let (mut moved, mut on_disk) = (vec![0; load.bytes], vec![0; load.bytes]);
        let offset_bytes = daemon.guest.move_first(&mut moved);
        make_blocking(&daemon.guest.interrupt())?;
        file.read_exact_at(&mut on_disk, offset_bytes)?;
        if moved == on_disk { Ok(daemon) } else { Err(io::Error::other("the daemon moved something else")) }
    }

    /// Has requests done for `time`.
    pub fn run(&mut self, time: Duration) -> Times {
        self.guest.run(time)
    }

    /// CPU time of the whole process so far.
    ///
    /// # Errors
    /// When it has ended.
    pub fn cpu_ns(&self) -> io::Result<u64> {
        self.process.cpu_ns()
    }
}

/// Hands the queue over, in the order of the vhost-user protocol's start of a ring. Without `PROTOCOL_FEATURES` a ring is
/// enabled from its start.
fn serve(front: &Frontend, mem: &GuestRam, guest: &Guest, kick: &Event) -> vhost::Result<()> {
    front.set_owner()?;
    let offered = front.get_features()?;
    if Driver::FEATURES & !offered != 0 {
        return Err(vhost::Error::InvalidOperation);
    }
    front.set_features(Driver::FEATURES)?;
    let regions = mem.iter().map(VhostUserMemoryRegionInfo::from_guest_region);
    front.set_mem_table(&regions.collect::<vhost::Result<Vec<_>>>()?)?;
    let queue = guest.queue();
    // The protocol names rings by the front end's own addresses.
    let here =
        |addr| mem.get_host_address(GuestAddress(addr)).map(|at| at as u64).map_err(|_| vhost::Error::InvalidQueue);
    front.set_vring_num(0, queue.size)?;
    front.set_vring_base(0, queue.next_avail)?;
    front.set_vring_addr(
        0,
        &VringConfigData {
            queue_max_size: queue.size,
            queue_size: queue.size,
            flags: 0,
            desc_table_addr: here(queue.desc_table)?,
            used_ring_addr: here(queue.used_ring)?,
            avail_ring_addr: here(queue.avail_ring)?,
            log_addr: None,
        },
    )?;
    front.set_vring_call(0, guest.interrupt().event_fd())?;
    front.set_vring_kick(0, kick.event_fd())
}

/// The daemon has made the events it was handed non-blocking, for both sides: a driver that waits would not sleep.
fn make_blocking(event: &Event) -> io::Result<()> {
    // SAFETY: takes numbers only; an event has no other flag.
    match unsafe { libc::fcntl(event.as_raw_fd(), libc::F_SETFL, 0) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// The daemon's process and its socket; both end with this.
struct Process {
    child: Child,
    socket: PathBuf,
}

impl Process {
    fn start(program: &Path, path: &Path, load: &Load) -> io::Result<Self> {
        let socket = std::env::temp_dir().join(format!("disk-file-{}.sock", std::process::id()));
        // A comma in a value is written twice.
        let value = |path: &Path| path.display().to_string().replace(',', ",,");
        // The file is locked by the stacks of the same run.
        let switch = |on| if on { "on" } else { "off" };
        let (direct, read_only, writable) = (switch(load.direct), switch(!load.writes), switch(load.writes));
        let mut command = Command::new(program);
        command
            .args(["--object", "iothread,id=io0", "--blockdev"])
            .arg(format!(
                "driver=file,node-name=disk0,filename={},read-only={read_only},locking=off,aio=io_uring,cache.direct={direct}",
                value(path)
            ))
            .arg("--export")
            .arg(format!(
                "type=vhost-user-blk,id=export0,node-name=disk0,writable={writable},iothread=io0,addr.type=unix,addr.path={}",
                value(&socket)
            ))
            .stdin(Stdio::null());
        // SAFETY: between fork and exec only a system call is made, which takes numbers. It ends the daemon with a bench
        // that panicked.
        unsafe {
            command.pre_exec(|| match libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) {
                0 => Ok(()),
                _ => Err(io::Error::last_os_error()),
            })
        };
        Ok(Self { child: command.spawn()?, socket })
    }

    /// Waits until it listens.
    fn connect(&mut self) -> io::Result<UnixStream> {
        let end = Instant::now() + Duration::from_secs(5);
        loop {
            match UnixStream::connect(&self.socket) {
                Err(error) if Instant::now() < end => match self.child.try_wait()? {
                    Some(status) => return Err(io::Error::other(format!("the daemon ended: {status}: {error}"))),
                    None => std::thread::sleep(Duration::from_millis(1)),
                },
                result => return result,
            }
        }
    }

    fn cpu_ns(&self) -> io::Result<u64> {
        let mut clock = 0;
        // SAFETY: the clock lives through the call.
        let error = unsafe { libc::clock_getcpuclockid(self.child.id() as libc::pid_t, &raw mut clock) };
        if error != 0 {
            return Err(io::Error::from_raw_os_error(error));
        }
        let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
        // SAFETY: the time lives through the call.
        match unsafe { libc::clock_gettime(clock, &raw mut time) } {
            0 => Ok(time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64),
            _ => Err(io::Error::last_os_error()),
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = std::fs::remove_file(&self.socket);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_that_is_not_there_is_not_found() {
        let load = Load { depth: 1, bytes: 4096, piece_bytes: 4096, random: true, writes: false, direct: false };
        let error = Daemon::start(Path::new("/no/such/daemon"), Path::new("/dev/null"), &load, Duration::ZERO);
        assert_eq!(error.err().map(|error| error.kind()), Some(io::ErrorKind::NotFound));
    }

    #[test]
    fn a_program_that_serves_nothing_is_no_daemon() {
        let load = Load { depth: 1, bytes: 4096, piece_bytes: 4096, random: true, writes: false, direct: false };
        let error = Daemon::start(Path::new("true"), Path::new("/dev/null"), &load, Duration::ZERO).err();
        assert!(error.is_some_and(|error| error.to_string().starts_with("the daemon ended: exit status: 0")));
    }
}
