//! What bhyvectl does from the global zone to the VM of a process that lives elsewhere: another process of the machine opens
//! the VM by its name and asks the kernel. The VMM's process hears of it by its vCPUs, or not at all.
//!
//! Whoever plays the operator connects to a socket and writes a line `NAME WORD`; the answer is `ok` or why not.

use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::Arc;

use devices_host::sys::{IoctlArg, OpenFlags, Sys as _};
use devices_host::thread;
use zerocopy::IntoBytes as _;
use zvmm::hypervisor::bhyve::abi::{
    VM_INJECT_NMI, VM_SUSPEND, VM_SUSPEND_POWEROFF, VM_SUSPEND_RESET, vm_nmi, vm_suspend,
};

use crate::{DoubleSys, Host, Zone};

/// Listens for operators from now on, in a thread of its own, as long as the process lives.
///
/// # Errors
/// When there can be no socket, or no thread.
pub fn serve(host: &Arc<Host>, socket: &Path) -> std::io::Result<()> {
    // One of a process that was cut off.
    let _ = std::fs::remove_file(socket);
    let (listener, host) = (UnixListener::bind(socket)?, host.clone());
    thread::spawn("bhyvectl", &[], move || {
        for operator in listener.incoming().flatten() {
            // One that goes away has heard enough.
            let _ = answer(&host, &operator);
        }
    })
    .map(drop)
}

fn answer(host: &Arc<Host>, operator: &UnixStream) -> std::io::Result<()> {
    let mut operator_reads = operator;
    for line in BufReader::new(operator).lines() {
        let said = ask(host, &line?).map_or_else(|why| why, |()| "ok".to_owned());
        writeln!(operator_reads, "{said}")?;
    }
    Ok(())
}

/// Does what a line says: `NAME inject-nmi`, `NAME force-reset`, `NAME force-poweroff`.
///
/// # Errors
/// Why it is not done.
pub fn ask(host: &Arc<Host>, line: &str) -> Result<(), String> {
    let (name, word) = line.split_once(' ').ok_or_else(|| format!("'{line}' is no NAME WORD"))?;
    let operator = DoubleSys::new(host, Zone::global());
    let vm = operator.open(&format!("/dev/vmm/{name}"), OpenFlags::READ_WRITE).map_err(|errno| format!("{errno:?}"))?;
    let ask = |request, bytes: &mut [u8]| {
        // SAFETY: each request below goes with the structure that it takes, which has no pointers.
        let result = unsafe { operator.ioctl(vm, request, IoctlArg::Buffer(bytes)) };
        result.map(drop).map_err(|errno| format!("{errno:?}"))
    };
    let suspend = |how| ask(VM_SUSPEND, vm_suspend { how, source: -1 }.as_mut_bytes());
    let done = match word {
        "inject-nmi" => ask(VM_INJECT_NMI, vm_nmi { cpuid: 0 }.as_mut_bytes()),
        "force-reset" => suspend(VM_SUSPEND_RESET),
        "force-poweroff" => suspend(VM_SUSPEND_POWEROFF),
        _ => Err(format!("'{word}' is unknown")),
    };
    operator.close(vm);
    done
}
