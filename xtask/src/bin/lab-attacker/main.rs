//! The guest-side attacker: PID 1 of a guest without virtio drivers. It attacks every virtio device from there, over each
//! interface and ring format that it offers, and what else the machine has at its ports. After every attack the device
//! must reset and serve a valid request.
//!
//! Verdicts are lines on the console, see [`attacks_list`]; what to make of them is xtask's to decide.

mod arena;
mod attacks;
#[path = "../../lab/attacks.rs"]
mod attacks_list;
mod device;
mod machine;
mod pci;
mod queue;
mod registers;
mod requests;

use std::ffi::CStr;

use anyhow::{Context as _, ensure};
use arena::Arena;
use attacks_list::{Attack, ERROR, Kind, MachineAttack, OVER, VERDICT, WAYS, Way};
use device::{Device, Trouble, Verdict, kind_of};
use pci::Function;

/// After so many attacks that left the same device dead, the others would only wait for it.
const HOPELESS: u32 = 2;

fn main() {
    // Where init ends the kernel panics and starts again; a defect of this program is told once.
    std::panic::set_hook(Box::new(|info| {
        println!("{ERROR} {info}\n{OVER}");
        power_off();
    }));
    if let Err(error) = run() {
        println!("{ERROR} {error:#}");
    }
    println!("{OVER}");
    power_off();
}

fn run() -> anyhow::Result<()> {
    mount(c"proc", c"/proc")?;
    mount(c"sysfs", c"/sys")?;
    mount(c"devtmpfs", c"/dev")?;
    std::fs::write("/proc/sys/kernel/printk", "1").context("cannot silence the kernel")?;
    machine::open_ports()?;
    let mut arena = Arena::new()?;
    let functions = Function::all()?;
    for kind in Kind::ALL {
        let Some(function) = functions.iter().find(|function| kind_of(function) == Some(kind)) else { continue };
        let mut ways = Vec::new();
        for way in Way::ALL {
            match Device::open(function, kind, way, &mut arena) {
                Ok(None) => {}
                Ok(Some(mut device)) => {
                    ways.push(way.to_string());
                    attack(&mut device);
                }
                // The others are attacked all the same.
                Err(error) => println!("{ERROR} {kind}/{way}: {error:#}"),
            }
        }
        println!("{WAYS} {kind} {}", ways.join(" "));
    }
    attack_machine(&functions, &mut arena)
}

/// All attacks on one device over one way.
fn attack(device: &mut Device) {
    let (kind, way) = (device.kind, device.way);
    let mut wedged = 0;
    for attack in Attack::ALL.iter().filter(|attack| attack.applies(kind, way)) {
        if wedged == HOPELESS {
            return;
        }
        let result = attacks::run(device, *attack);
        let recovered = device.recover();
        wedged += u32::from(matches!(recovered, Err(Trouble::Wedged(_))));
        say(&device.name(), attack.name(), result.and(recovered));
    }
}

/// The attacks on the rest of the machine: it is alive when a virtio device works, and when this program still speaks.
fn attack_machine(functions: &[Function], arena: &mut Arena) -> anyhow::Result<()> {
    let found = functions.iter().find_map(|function| Some((function, kind_of(function)?)));
    let (function, kind) = found.context("there is no virtio device")?;
    let device = Device::open(function, kind, Way::Split, arena)?;
    let mut device = device.context("the device has no modern interface any more")?;
    for attack in MachineAttack::ALL {
        let result = attacks::ports::run(functions, *attack);
        say("machine", attack.name(), result.and(device.recover()));
    }
    Ok(())
}

fn say(device: &str, attack: &str, verdict: Verdict) {
    match verdict {
        Ok(()) => println!("{VERDICT} {device} {attack} PASS"),
        Err(trouble) => println!("{VERDICT} {device} {attack} {trouble}"),
    }
}

fn mount(what: &CStr, place: &CStr) -> anyhow::Result<()> {
    // SAFETY: three strings that end, and no data.
    let result = unsafe { libc::mount(what.as_ptr(), place.as_ptr(), what.as_ptr(), 0, std::ptr::null()) };
    ensure!(result == 0, "cannot mount {what:?}: {}", std::io::Error::last_os_error());
    Ok(())
}

fn power_off() -> ! {
    // SAFETY: ends this machine; nothing is open that has to be written.
    unsafe { libc::reboot(libc::LINUX_REBOOT_CMD_POWER_OFF) };
    // PID 1 must not end: the kernel would panic, and say less.
    loop {
        machine::sleep_ms(1000);
    }
}
