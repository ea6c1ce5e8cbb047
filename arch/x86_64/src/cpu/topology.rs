//! Sockets, cores and threads, and how APIC ids encode them.

use super::CpuError;

/// Most vCPUs of a guest: APIC ids are 8 bits, 0xFF is the broadcast id and 0xFE stays free.
pub const MAX_VCPUS: u32 = 254;

/// The CPU topology a guest sees. The APIC id of vCPU *n* is *n* on every backend, so only shapes whose ids come out
/// dense can exist; [`Topology::with`] refuses the others and names one that fits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Topology {
    sockets: u8,
    cores: u8,
    threads: u8,
}

impl Topology {
    /// One socket of `vcpus` cores with one thread each: fits every count.
    ///
    /// # Errors
    /// 0 vCPUs or more than [`MAX_VCPUS`].
    pub fn new(vcpus: u32) -> Result<Self, CpuError> {
        Self::with(1, vcpus, 1)
    }

    /// `sockets` of `cores` of `threads`.
    ///
    /// # Errors
    /// A zero, more than [`MAX_VCPUS`] in total, or a shape that would leave gaps in the APIC ids: the id holds thread,
    /// core and socket in fields of whole bits (Intel SDM vol. 3 §9.9.1), so a field that is not the topmost one must be
    /// used up to a power of two.
    pub fn with(sockets: u32, cores: u32, threads: u32) -> Result<Self, CpuError> {
        let total = u64::from(sockets) * u64::from(cores) * u64::from(threads);
        if total == 0 || total > u64::from(MAX_VCPUS) {
            return Err(CpuError::VcpuCount(total));
        }
        let threads_dense = threads.is_power_of_two() || (cores == 1 && sockets == 1);
        let cores_dense = cores.is_power_of_two() || sockets == 1;
        if !threads_dense || !cores_dense {
            let (fit_cores, fit_threads) =
                if threads.is_power_of_two() { (sockets * cores, threads) } else { (sockets * cores * threads, 1) };
            return Err(CpuError::SparseApicIds { sockets, cores, threads, fit_cores, fit_threads });
        }
        // All three are factors of a number below 255.
        Ok(Self { sockets: sockets as u8, cores: cores as u8, threads: threads as u8 })
    }

    /// Sockets (packages).
    pub fn sockets(&self) -> u8 {
        self.sockets
    }

    /// Cores in a socket.
    pub fn cores(&self) -> u8 {
        self.cores
    }

    /// Threads in a core.
    pub fn threads(&self) -> u8 {
        self.threads
    }

    /// vCPUs in total.
    pub fn vcpus(&self) -> u8 {
        self.sockets * self.cores * self.threads
    }

    /// vCPUs in a socket.
    pub fn vcpus_per_socket(&self) -> u8 {
        self.cores * self.threads
    }

    /// APIC id bits below the core number.
    pub fn thread_bits(&self) -> u32 {
        bits_for(self.threads)
    }

    /// APIC id bits below the socket number.
    pub fn socket_shift(&self) -> u32 {
        self.thread_bits() + bits_for(self.cores)
    }
}

/// Bits that number `count` things.
fn bits_for(count: u8) -> u32 {
    u32::from(count).next_power_of_two().trailing_zeros()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn counts_no_guest_can_have_are_refused() {
        assert_eq!(
            Topology::new(0).unwrap_err().to_string(),
            "a guest cannot have 0 vCPUs: the number must be between 1 and 254"
        );
        assert_eq!(
            Topology::new(255).unwrap_err().to_string(),
            "a guest cannot have 255 vCPUs: the number must be between 1 and 254"
        );
        assert!(Topology::with(u32::MAX, u32::MAX, 1).is_err());
    }

    #[test]
    fn a_shape_with_gaps_in_its_apic_ids_is_refused_with_one_that_fits() {
        assert_eq!(
            Topology::with(2, 3, 2).unwrap_err().to_string(),
            "a topology of 2 sockets, 3 cores, 2 threads leaves gaps in the APIC ids: use 1 socket, 6 cores, 2 threads"
        );
        assert_eq!(
            Topology::with(1, 2, 3).unwrap_err().to_string(),
            "a topology of 1 sockets, 2 cores, 3 threads leaves gaps in the APIC ids: use 1 socket, 6 cores, 1 threads"
        );
    }

    proptest! {
        #[test]
        fn accepted_shapes_give_vcpu_n_the_apic_id_n(sockets in 1u32..20, cores in 1u32..64, threads in 1u32..5) {
            match Topology::with(sockets, cores, threads) {
                Ok(topology) => {
                    let mut next = 0;
                    for socket in 0..sockets {
                        for core in 0..cores {
                            for thread in 0..threads {
                                let id = socket << topology.socket_shift() | core << topology.thread_bits() | thread;
                                prop_assert_eq!(id, next);
                                next += 1;
                            }
                        }
                    }
                }
                Err(CpuError::SparseApicIds { fit_cores, fit_threads, .. }) => {
                    let fit = Topology::with(1, fit_cores, fit_threads).unwrap();
                    prop_assert_eq!(u32::from(fit.vcpus()), sockets * cores * threads);
                }
                Err(CpuError::VcpuCount(total)) => prop_assert!(total > 254),
                Err(other) => prop_assert!(false, "{other}"),
            }
        }
    }
}
