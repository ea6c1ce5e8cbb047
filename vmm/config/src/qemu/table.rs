//! Every option of the kvm brand's qemu (0.14 as SmartOS has it), and what becomes of it here.

/// One option a line: its name, what its argument is called (`-` for none), what becomes of it, and how or why.
///
/// One text, as a table of references would have to be written at every start of a process that never reads it.
const TABLE: &str = "\
m|SIZE|implemented|guest memory in MiB, or with K, M, G or T; all of it is touched and locked
name|NAME[,process=…]|implemented|name in logs and on the control socket
uuid|UUID|implemented|SMBIOS type 1
cpu|MODEL[,±FEATURE…]|implemented|qemu64 and kvm64 are x86-64-v2, the lowest baseline there is a name for; host; no other model
smp|N[,sockets=,cores=,threads=,maxcpus=]|implemented|vCPUs; each a socket of its own unless grouped, as with qemu
M|MACHINE|implemented|pc, in any of its versions: a 440FX with a PIIX3
machine|MACHINE|implemented|as -M
drive|KEY=VALUE…|implemented|a raw disk with if=virtio, or if=none for -device virtio-blk-pci; other kinds are refused
device|DRIVER[,KEY=VALUE…]|implemented|virtio-net-pci and virtio-blk-pci; others are refused
net|nic|vnic|none[,KEY=VALUE…]|implemented|a virtio card, a link of the host, and what a guest is told by DHCP; others are refused
netdev|vnic,id=ID[,KEY=VALUE…]|implemented|a link of the host for -device virtio-net-pci,netdev=ID
chardev|BACKEND,id=ID[,KEY=VALUE…]|implemented|socket (unix, server), file, tty, pty, stdio and null
serial|DEVICE|implemented|COM1 to COM4: chardev:ID, unix:PATH,server, file:PATH, /dev/TERMINAL, pty, stdio, null, none
qmp|DEVICE|implemented|chardev:ID or unix:PATH,server
mon|chardev=ID[,mode=…]|implemented|mode=control as -qmp; readline (HMP) is not built yet
debugcon|DEVICE|implemented|the debug port 0xe9, on what -serial takes
pidfile|FILE|implemented|has the process id while the process runs
smbios|type=1,KEY=VALUE…|implemented|SMBIOS type 1; type=0 is firmware's and not built yet
kernel|FILE|implemented|bzImage or ELF kernel
initrd|FILE|implemented|initial RAM disk
append|TEXT|implemented|kernel command line
sandbox|on|off[,KEY=allow|deny…]|implemented|what the process gives up (docs/sandbox.md): on is strict whatever the keys say; off
no-reboot|-|implemented|a reset by the guest ends the process, with exit status 0
nodefaults|-|implemented|no serial port and no graphics card unless given
nographic|-|implemented|COM1 on stdio unless -serial is given
boot|[order=LETTERS][,once=LETTERS][,menu=on|off]|not built yet|needs firmware; without, -kernel says what boots
vga|std|cirrus|vmware|qxl|xenfb|none|not built yet|keeps its PCI slot (2), so that no other device moves
vnc|DISPLAY|not built yet|display
spice|KEY=VALUE…|not built yet|display
usb|-|not built yet|PIIX3's USB controller, which is for the tablet of the display
usbdevice|DEVICE|not built yet|tablet, mouse, keyboard and the like; disks and network cards are refused
monitor|DEVICE|not built yet|HMP; none and null are ignored
parallel|DEVICE|not built yet|the parallel port; none and null are ignored
bios|FILE|not built yet|firmware
L|DIR|not built yet|where firmware is looked for
option-rom|FILE|not built yet|firmware
sdl|-|not built yet|display
curses|-|not built yet|display
g|WxH[xDEPTH]|not built yet|display
full-screen|-|not built yet|display
k|LANGUAGE|ignored|the keyboard of a display, which there is not
no-frame|-|ignored|there is no display
alt-grab|-|ignored|there is no display
ctrl-grab|-|ignored|there is no display
no-quit|-|ignored|there is no display
portrait|-|ignored|there is no display
show-cursor|-|ignored|there is no display
enable-kvm|-|ignored|a guest always runs on the hypervisor
enable-nesting|-|ignored|-cpu host,+svm asks for nested guests
no-hpet|-|ignored|there is no HPET
rtc|[base=][,clock=][,driftfix=]|ignored|the clock is the host's, in UTC; base=localtime and dates are refused
balloon|none|ignored|there is none; balloon=virtio is refused
mem-prealloc|-|ignored|memory is touched before the guest starts anyway
nodefconfig|-|ignored|no configuration file is read anyway
no-fd-bootchk|-|ignored|there are no floppy disks
no-kvm-pit-reinjection|-|ignored|what becomes of missed ticks is the hypervisor's matter
rtc-td-hack|-|ignored|what becomes of missed ticks is the hypervisor's matter
tdf|-|ignored|what becomes of missed ticks is the hypervisor's matter
win2k-hack|-|ignored|there are no IDE disks
hdachs|C,H,S[,T]|ignored|there are no IDE disks
kvm-shadow-memory|MEGABYTES|ignored|there is no shadow paging
tb-size|N|ignored|nothing is translated
singlestep|-|ignored|nothing is translated
clock|METHODS|ignored|timers are the host's
echr|CHARACTER|ignored|the escape character is Ctrl-A
d|ITEMS|ignored|what is logged is not chosen by it
trace|-|ignored|probes are zvmm's own
watchdog-action|ACTION|ignored|there is no watchdog
hda|FILE|refused|IDE disks are not built; use -drive file=FILE,if=virtio
hdb|FILE|refused|IDE disks are not built; use -drive file=FILE,if=virtio
hdc|FILE|refused|IDE disks are not built; use -drive file=FILE,if=virtio
hdd|FILE|refused|IDE disks are not built; use -drive file=FILE,if=virtio
cdrom|FILE|refused|CD-ROM drives are not built; use -drive file=FILE,if=virtio,readonly=on
fda|FILE|refused|floppy disks are not built; use -drive file=FILE,if=virtio
fdb|FILE|refused|floppy disks are not built; use -drive file=FILE,if=virtio
sd|FILE|refused|SD cards are not built; use -drive file=FILE,if=virtio
mtdblock|FILE|refused|flash memory is not built
pflash|FILE|refused|flash memory is not built
snapshot|-|refused|temporary copies of disks are not built; take a snapshot of the file system
numa|NODE|refused|NUMA nodes of the guest are not built
set|GROUP.ID.ARG=VALUE|refused|settings of devices go with their -device or -drive
global|DRIVER.PROPERTY=VALUE|refused|settings of devices go with their -device or -drive
readconfig|FILE|refused|configuration files of qemu are not read; zvmm run --config reads its own
writeconfig|FILE|refused|configuration files of qemu are not written; zvmm explain qemu prints zvmm's own
mem-path|DIR|refused|memory in files is not built; zvmm run has --hugepages
soundhw|CARDS|refused|sound cards are not built
audio-help|-|refused|sound cards are not built
fsdev|KEY=VALUE…|refused|shared folders are not built
virtfs|KEY=VALUE…|refused|shared folders are not built
virtioconsole|DEVICE|refused|virtio-console is not built for this command line; use -serial
bt|KEY=VALUE…|refused|Bluetooth is not built
watchdog|MODEL|refused|watchdogs are not built
acpitable|KEY=VALUE…|refused|tables of one's own are not built
no-acpi|-|refused|a guest always has ACPI: it powers off by it
tftp|DIR|refused|user networks are not built; use -net vnic
bootp|FILE|refused|user networks are not built; use -net vnic
redir|RULE|refused|user networks are not built; use -net vnic
smb|DIR|refused|user networks are not built; use -net vnic
S|-|refused|a guest starts at once; stop it on the control socket
gdb|DEVICE|refused|a debugger's stub is not built
s|-|refused|a debugger's stub is not built
no-shutdown|-|refused|the process ends when the guest powers off: the zone halts by it
loadvm|TAG|refused|saved guests are not built
incoming|PORT|refused|migration is not built
daemonize|-|refused|nothing forks here; the zone's first process is the VMM
chroot|DIR|refused|the zone is the jail
runas|USER|refused|the zone is the jail
localtime|-|refused|the guest's clock in local time is not built: it is in UTC
startdate|DATE|refused|a clock of one's own is not built: it is the host's, in UTC
icount|N|refused|counted instructions are not built
no-kvm|-|refused|there is no way to run a guest but the hypervisor
no-kvm-irqchip|-|refused|interrupt controllers are always the hypervisor's
no-kvm-pit|-|refused|the timer is always the hypervisor's
nvram|FILE|refused|no PC has it
prom-env|VARIABLE=VALUE|refused|no PC has it
semihosting|-|refused|no PC has it
old-param|-|refused|no PC has it
xen-domid|ID|refused|there is no Xen here
xen-create|-|refused|there is no Xen here
xen-attach|-|refused|there is no Xen here
h|-|refused|this is zvmm in qemu's place: 'zvmm --help' helps, and docs/smartos.md has the options
help|-|refused|this is zvmm in qemu's place: 'zvmm --help' helps, and docs/smartos.md has the options
version|-|refused|this is zvmm in qemu's place: 'zvmm --version' says which
";

/// What becomes of an option.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Status {
    /// It does here what it does in qemu.
    Implemented,
    /// It changes nothing, and that is right.
    Ignored,
    /// A display or firmware that is not there yet; the guest runs without.
    NotBuilt,
    /// There is no guest with it.
    Refused,
}

impl Status {
    /// What tables call it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Implemented => "implemented",
            Self::Ignored => "ignored",
            Self::NotBuilt => "not built yet",
            Self::Refused => "refused",
        }
    }
}

/// An option of qemu.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct QemuOption {
    /// Its name, without the dash.
    pub name: &'static str,
    /// What its argument is; `None` where it takes none.
    pub argument: Option<&'static str>,
    /// What becomes of it.
    pub status: Status,
    /// How it is meant here, or why it has no effect or is refused.
    pub about: &'static str,
}

/// Every option, in the order of the documentation.
pub fn options() -> impl Iterator<Item = QemuOption> {
    TABLE.lines().filter_map(read)
}

/// The option of a name, without the dash.
pub(super) fn find(name: &str) -> Option<QemuOption> {
    options().find(|option| option.name == name)
}

fn read(line: &'static str) -> Option<QemuOption> {
    // The argument's name may have bars of its own, nothing else has.
    let (name, rest) = line.split_once('|')?;
    let (rest, about) = rest.rsplit_once('|')?;
    let (argument, status) = rest.rsplit_once('|')?;
    let known = [Status::Implemented, Status::Ignored, Status::NotBuilt, Status::Refused];
    let status = known.into_iter().find(|known| known.name() == status)?;
    Some(QemuOption { name, argument: Some(argument).filter(|name| *name != "-"), status, about })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_line_of_the_table_is_an_option_of_its_own() {
        let names: Vec<&str> = options().map(|option| option.name).collect();
        assert_eq!(names.len(), TABLE.lines().count(), "a line that does not read");
        for (index, name) in names.iter().enumerate() {
            assert!(!names[..index].contains(name), "{name} is there twice");
        }
    }

    #[test]
    fn an_argument_with_bars_in_it_is_read_whole() {
        let vga = find("vga").unwrap();
        assert_eq!(vga.argument, Some("std|cirrus|vmware|qxl|xenfb|none"));
        assert_eq!((vga.status, find("nodefaults").unwrap().argument), (Status::NotBuilt, None));
    }
}
