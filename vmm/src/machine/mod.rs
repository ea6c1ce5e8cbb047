//! Assembles memory, chipset, devices and vCPUs from a [`VmConfig`], and drives them together.

mod adapters;
mod address;
mod carried;
mod chipset;
mod collected;
pub(crate) mod disk;
mod frame_link;
mod image;
mod inventory;
mod keyboard;
mod limits;
mod link;
mod resize;
mod stats;
mod tap_link;
mod vcpu_threads;
mod virtio;
pub(crate) mod write_through;

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use arch::cpu::{CpuModel, CpuidOptions, CpuidTemplate, Topology};
use arch::layout::{self, MemoryLayout};
use devices::legacy::power::PowerSink;
use devices::park::Parked;
use devices::virtio::blk::BlkDevice;
use devices::wake::Wake;
use devices_host::ram::{Pages, RamOptions};
use firmware::acpi::build_acpi;
use firmware::smbios::{SmbiosConfig, SystemInfo, build_smbios};

#[doc(hidden)]
pub use self::adapters::EngineDisk;
use self::adapters::PowerEvents;
use self::chipset::Chipset;
pub use self::disk::round_bytes as disk_round_bytes;
use self::image::KernelImage;
use self::inventory::Fixed;
use self::keyboard::Typist;
use self::link::Links;
use self::resize::Resizer;
pub use self::tap_link::TapLink;
use self::vcpu_threads::VcpuThreads;
use self::virtio::{BuildError, Builder, Device, HostDevices};
use crate::config::{HugePages, VmConfig};
use crate::control::inventory::Inventory;
use crate::control::{
    Built, Chord, DiskResize, EventSender, LinkChange, Machine as MachineControl, MachineEvent, SerialPort, Ticket,
    Timed, Watched,
};
use crate::exit::Exit;
use crate::hypervisor::{self, Hypervisor, HypervisorError, Vcpu, VcpuStart, Vm, VmSpec};
use crate::vcpu::{self, Gate, VcpuCounters, VcpuEvent, VcpuIo, VcpuOwner};
use crate::worker::Holder;

/// Why a machine cannot be started: one line for the user, and how the process ends.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The configuration asks for something that cannot be.
    #[error("{0}")]
    Config(String),
    /// The hypervisor.
    #[error("{0}")]
    Hypervisor(#[from] HypervisorError),
    /// The host lacks what a device needs.
    #[error("{0}")]
    HostLacks(String),
    /// A device of the host, or a call.
    #[error("{0}")]
    Host(String),
}

impl StartError {
    /// How the process ends for it.
    pub fn exit(&self) -> Exit {
        match self {
            Self::Config(_) => Exit::Config,
            Self::Hypervisor(HypervisorError::Unavailable(_) | HypervisorError::MissingCapability { .. }) => {
                Exit::HostLacks
            }
            Self::HostLacks(_) => Exit::HostLacks,
            Self::Hypervisor(_) | Self::Host(_) => Exit::HostFailed,
        }
    }
}

impl From<BuildError> for StartError {
    fn from(error: BuildError) -> Self {
        match error {
            BuildError::Config(line) => Self::Config(line),
            other => Self::Host(other.to_string()),
        }
    }
}

/// One guest and everything it runs on.
struct Machine {
    gate: Arc<Gate>,
    vm: Arc<dyn Vm>,
    chipset: Chipset,
    devices: Vec<Device>,
    resizer: Arc<Resizer>,
    links: Arc<Links>,
    /// Whoever presses keys, where there is a keyboard and somebody to ask for it.
    typist: Option<Arc<Typist>>,
    fixed: Option<Box<Fixed>>,
    /// The system's numbers of the vCPUs' threads.
    thread_ids: Vec<AtomicU64>,
    image: KernelImage,
    tables: image::Tables,
    rsdp: u64,
    has_ecam: bool,
    counters: Vec<Arc<VcpuCounters>>,
    events: EventSender,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

/// Builds the machine of a configuration that was checked. Everything that can be refused is, before guest memory
/// exists. The guest waits for [`MachineControl::resume`].
pub fn start(hypervisor: &dyn Hypervisor, config: &VmConfig, events: EventSender) -> Result<Built, StartError> {
    let bad = |error: &dyn std::fmt::Display| StartError::Config(error.to_string());
    let host = hypervisor.capabilities();
    if u32::from(config.cpus.count) > host.max_vcpus {
        let line = format!("cpus: {} has at most {} vCPUs", host.name, host.max_vcpus);
        return Err(StartError::Config(line));
    }
    let cpu_error = |error: &dyn std::fmt::Display| bad(&format_args!("cpus: {error}"));
    let model = config.cpu_model().map_err(|error| cpu_error(&error))?;
    let (layout, image) = boot_image(config, model.phys_bits(host.phys_bits))?;
    let (cpuid, topology) = cpuid(hypervisor, config, model, &layout).map_err(|error| cpu_error(&error))?;
    let mut host_devices = HostDevices::open(config, hypervisor)?;

    let threads = VcpuThreads::start(config.cpus.count, &config.cpus.pin)?;
    let vm = hypervisor.create_vm(&vm_spec(config, &layout))?;
    let cpuid = cpuid.with_tsc(vm.tsc_khz()).map_err(|error| cpu_error(&error))?;
    let vcpus =
        (0..config.cpus.count).map(|id| vm.create_vcpu(id, &cpuid.for_vcpu(id))).collect::<Result<Vec<_>, _>>()?;

    let main: Arc<dyn Wake> = Arc::new(events.clone());
    let gate = Gate::new(vcpus.len());
    let power: Arc<dyn PowerSink> = Arc::new(PowerEvents { events: events.clone(), gate: gate.clone() });
    let acpi = chipset::acpi_config(config, &layout, host, &*vm);
    let chipset = Chipset::build(config, &acpi, &layout, host, &*vm, &power, &main).map_err(BuildError::from)?;
    let mut builder = Builder {
        vm: &*vm,
        chipset: &chipset,
        interfaces: virtio::interfaces(config),
        events: &events,
        devices: Vec::new(),
        resizable: Vec::new(),
        links: Vec::new(),
        frame_links: Vec::new(),
    };
    let interfaces = host_devices.interfaces.take();
    let console = builder.all(config, host_devices, &main)?;
    let frame_links: Vec<_> = builder.frame_links.into_iter().map(|link| link.listen(&main)).collect();
    let (devices, links) = (builder.devices, Arc::new(Links::new(builder.links, interfaces)));
    let resizer = Arc::new(Resizer::new(builder.resizable, events.clone()));

    let acpi_tables = build_acpi(&acpi, layout::ACPI_TABLES);
    let smbios = smbios(config, &cpuid, topology, &layout).map_err(|error| bad(&error))?;
    let tables = acpi_tables.blobs.into_iter().chain(smbios).collect();

    let mut ports: Vec<(&'static str, Arc<dyn SerialPort>)> = Vec::new();
    for (name, uart) in ["com1", "com2", "com3", "com4"].into_iter().zip(&chipset.com) {
        if let Some(uart) = uart {
            ports.push((name, uart.clone()));
        }
    }
    if let Some(console) = console {
        ports.push(("console", console));
    }
    if let Some(debug_port) = &chipset.debug_port {
        ports.push(("debug port", debug_port.clone()));
    }
    let mut timers = chipset.timers.clone();
    timers.push(resizer.clone() as Arc<dyn Timed>);
    // Asked for by clients of the control socket only.
    let typist = chipset.ps2.clone().filter(|_| config.qmp.is_some()).map(|ps2| Arc::new(Typist::new(ps2)));
    timers.extend(typist.clone().map(|typist| typist as Arc<dyn Timed>));
    let fixed = config.qmp.is_some().then(|| Box::new(Fixed::new(config, host.name, &chipset.pci)));
    timers.extend(frame_links.iter().map(|link| link.clone() as Arc<dyn Timed>));
    let mut watches = if links.listen() { vec![links.clone() as Arc<dyn Watched>] } else { Vec::new() };
    watches.extend(frame_links.into_iter().map(|link| link as Arc<dyn Watched>));

    let machine = Arc::new(Machine {
        gate,
        vm,
        chipset,
        devices,
        resizer,
        links,
        typist,
        fixed,
        thread_ids: vcpus.iter().map(|_| AtomicU64::new(0)).collect(),
        image,
        tables,
        rsdp: acpi_tables.rsdp_gpa,
        has_ecam: acpi.ecam.is_some(),
        counters: vcpus.iter().map(|_| Arc::default()).collect(),
        events,
        threads: Mutex::default(),
    });
    let boot = machine.place_image(machine.vm.ram_is_used())?;
    machine.start_vcpus(threads, vcpus, boot, cpuid.vendor());
    Ok(Built { machine, ports, timers, watches })
}

/// Checks that kernel, initrd and command line fit each other and the guest's memory, on a host with `phys_bits` bits of
/// physical address. Reads headers only; the configuration was checked.
///
/// # Errors
/// The first thing that is wrong.
pub fn check_boot(config: &VmConfig, phys_bits: u32) -> Result<(), StartError> {
    boot_image(config, phys_bits.try_into().unwrap_or(u8::MAX)).map(drop)
}

fn boot_image(config: &VmConfig, phys_bits: u8) -> Result<(MemoryLayout, KernelImage), StartError> {
    let split = config.memory.low_split_bytes.unwrap_or(layout::LOW_RAM_END);
    let layout = MemoryLayout::with_split(config.memory.size_bytes, phys_bits, split)
        .map_err(|error| StartError::Config(format!("memory: {error}")))?;
    let image = KernelImage::open(&config.boot, &layout).map_err(StartError::Config)?;
    Ok((layout, image))
}

/// The CPUID table, lacking only what is known once the VM exists.
struct Cpuid {
    host: Vec<arch::cpu::CpuidEntry>,
    model: CpuModel,
    topology: Topology,
    options: CpuidOptions,
}

impl Cpuid {
    fn with_tsc(mut self, tsc_khz: Option<u32>) -> Result<CpuidTemplate, arch::cpu::CpuError> {
        self.options.tsc_khz = tsc_khz;
        CpuidTemplate::new(&self.host, &self.model, &self.topology, &self.options)
    }
}

fn cpuid(
    hypervisor: &dyn Hypervisor,
    config: &VmConfig,
    model: CpuModel,
    layout: &MemoryLayout,
) -> Result<(Cpuid, Topology), String> {
    let host = hypervisor.capabilities();
    let text = |error: arch::cpu::CpuError| error.to_string();
    let wanted = config.cpus.topology();
    let topology = Topology::with(wanted.sockets.into(), wanted.cores.into(), wanted.threads.into()).map_err(text)?;
    let options = CpuidOptions {
        tsc_khz: None,
        apic_timer_hz: host.apic_timer_hz,
        hypervisor: host.hypervisor_leaves,
        x2apic: host.x2apic,
        tsc_deadline: host.tsc_deadline,
        phys_bits: layout.phys_bits(),
    };
    let host = hypervisor.supported_cpuid().map_err(|error| error.to_string())?;
    // Tried here, so that a model this host cannot run is refused before there is guest memory.
    CpuidTemplate::new(&host, &model, &topology, &options).map_err(text)?;
    Ok((Cpuid { host, model, topology, options }, topology))
}

fn vm_spec(config: &VmConfig, layout: &MemoryLayout) -> VmSpec {
    let memory = &config.memory;
    let pages = match memory.huge_pages {
        None => Pages::Transparent,
        Some(HugePages::Size2M) => Pages::Huge2M,
        Some(HugePages::Size1G) => Pages::Huge1G,
    };
    VmSpec {
        name: config.name.clone(),
        ram: layout.ram().iter().map(|range| (range.gpa, range.len)).collect(),
        ram_options: RamOptions {
            shared: memory.shared,
            pages,
            prealloc_threads: if memory.prealloc { config.cpus.count.into() } else { 0 },
            lock: memory.lock,
            numa_node: memory.numa_node,
            dump: false,
        },
    }
}

fn smbios(
    config: &VmConfig,
    cpuid: &CpuidTemplate,
    topology: Topology,
    layout: &MemoryLayout,
) -> Result<image::Tables, firmware::smbios::SmbiosError> {
    let leaf1 = cpuid.for_vcpu(0).into_iter().find(|entry| entry.function == 1).unwrap_or_default();
    let strings = config.smbios.clone();
    let system = SystemInfo {
        manufacturer: strings.manufacturer,
        product: strings.product,
        version: strings.version,
        serial: strings.serial,
        uuid: config.uuid.map(|uuid| uuid.0),
        sku: strings.sku,
        family: strings.family,
    };
    let processor_id = (leaf1.eax, leaf1.edx);
    let config = SmbiosConfig { system, topology, processor_id, ram: layout.ram() };
    Ok(build_smbios(&config, layout::SMBIOS_TABLES)?.blobs)
}

impl Machine {
    fn place_image(&self, reused_memory: bool) -> Result<VcpuStart, StartError> {
        self.image.place(self.vm.ram(), &self.tables, self.rsdp, self.has_ecam, reused_memory).map_err(StartError::Host)
    }

    fn start_vcpus(
        self: &Arc<Self>,
        threads: VcpuThreads,
        vcpus: Vec<Box<dyn Vcpu>>,
        boot: VcpuStart,
        vendor: arch::msr::Vendor,
    ) {
        let mut start = Some(boot);
        let jobs = (0u8..).zip(vcpus).map(|(id, vcpu)| {
            let index = usize::from(id);
            let machine = self.clone();
            let start = start.take().unwrap_or(VcpuStart::WaitForSipi);
            Box::new(move || {
                machine.thread_ids[index].store(hypervisor::thread_id(), Ordering::Relaxed);
                let (ports, memory) = (machine.chipset.ports.clone(), machine.chipset.memory.clone());
                let mut io = VcpuIo::new(ports, memory, vendor, machine.counters[index].clone());
                let owner = Owner { id, machine: &machine };
                vcpu::run(id, vcpu, start, &machine.gate, &owner, &mut io);
            }) as Box<dyn FnOnce() + Send>
        });
        let threads = threads.run(jobs);
        self.threads.lock().unwrap_or_else(PoisonError::into_inner).extend(threads);
    }
}

/// The machine as one of its vCPU threads sees it.
struct Owner<'a> {
    id: u8,
    machine: &'a Machine,
}

impl VcpuOwner for Owner<'_> {
    fn event(&self, event: VcpuEvent) {
        self.machine.events.send(match event {
            VcpuEvent::TripleFault => MachineEvent::TripleFault { vcpu: self.id },
            VcpuEvent::Reset => MachineEvent::GuestReset { source: "hypervisor" },
            VcpuEvent::PowerOff => MachineEvent::GuestPowerOff,
            VcpuEvent::AllHalted => MachineEvent::AllHalted,
            VcpuEvent::Failed(error) => MachineEvent::HostError { what: error.to_string() },
        });
    }

    fn reset(&self, wait: &dyn Fn(&Parked) -> bool) -> Result<VcpuStart, HypervisorError> {
        let machine = self.machine;
        for token in machine.chipset.pci.reset() {
            if !wait(&token) {
                // Stopping: the state no longer matters, nobody will run it.
                return Ok(VcpuStart::WaitForSipi);
            }
        }
        machine.chipset.reset_legacy();
        machine.vm.reset()?;
        let start = machine
            .place_image(true)
            .map_err(|error| HypervisorError::Vcpu { vcpu: self.id, what: format!("reset: {error}") })?;
        Ok(start)
    }

    fn reset_done(&self) {
        self.machine.events.send(MachineEvent::ResetDone);
    }
}

impl MachineControl for Machine {
    fn pause(&self) {
        self.gate.pause();
        for device in &self.devices {
            device.workers.pause(Holder::Machine, Parked::new());
        }
        if let Err(error) = self.vm.pause() {
            log::warn!("the kernel's timers run on in the pause: {error}");
        }
    }

    fn resume(&self) {
        if let Err(error) = self.vm.resume() {
            // No vCPU can run.
            self.events.send(MachineEvent::HostError { what: error.to_string() });
        }
        for device in &self.devices {
            device.workers.resume(Holder::Machine);
        }
        self.gate.resume();
    }

    fn press_power_button(&self) {
        self.chipset.press_power_button();
    }

    fn reset(&self) {
        self.gate.reset();
    }

    fn stop(&self) {
        self.gate.stop();
    }

    fn join(&self) {
        let threads = std::mem::take(&mut *self.threads.lock().unwrap_or_else(PoisonError::into_inner));
        for thread in threads {
            if thread.join().is_err() {
                log::error!("a vCPU thread ended by a panic");
            }
        }
        for device in &self.devices {
            device.workers.join();
        }
        self.resizer.end();
    }

    fn leave(&self, restart: bool) {
        self.vm.leave(restart);
    }

    fn trust_disks(&self) {
        self.devices.iter().filter_map(|device| device.disk.as_ref()).for_each(BlkDevice::go_on);
    }

    fn inject_nmi(&self, vcpu: u8) {
        self.gate.inject_nmi(vcpu.into());
    }

    fn stats(&self) -> serde_json::Value {
        stats::snapshot(&self.counters, &self.devices, self.gate.resets())
    }

    fn inventory(&self) -> Inventory {
        let fixed = self.fixed.as_ref();
        fixed.map(|fixed| fixed.now(&self.thread_ids, &self.devices, &self.chipset.pci)).unwrap_or_default()
    }

    fn press_keys(&self, chord: &Chord) -> Result<(), String> {
        self.typist.as_ref().ok_or("the guest has no keyboard")?.press(chord)
    }

    fn set_link(&self, change: &LinkChange) -> Result<(), String> {
        self.links.set(change)
    }

    fn resize_disk(&self, resize: &DiskResize, ticket: Ticket) {
        self.resizer.begin(resize, ticket);
    }
}
