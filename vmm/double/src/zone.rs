//! The zone a process lives in: which device nodes it has, and what it may do.

use std::collections::BTreeSet;

/// A privilege that the interfaces ask for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Privilege {
    /// `sys_config`: sizing the reservoir.
    SysConfig,
    /// `proc_lock_memory`: locking memory.
    ProcLockMemory,
    /// `net_rawaccess`: data links.
    NetRawAccess,
    /// Being user 0: destroying VMs by name, opening the nodes.
    Root,
}

/// A zone, as far as a VMM can tell.
#[derive(Clone, Debug)]
pub struct Zone {
    /// Its id; 0 is the global zone.
    pub id: u32,
    /// Device nodes that exist in it: paths, or beginnings of paths with a `*` at the end.
    pub nodes: Vec<String>,
    /// What its processes may do.
    pub privileges: BTreeSet<Privilege>,
}

impl Zone {
    /// The global zone: every node and every privilege.
    #[must_use]
    pub fn global() -> Self {
        use Privilege::{NetRawAccess, ProcLockMemory, Root, SysConfig};
        Self {
            id: 0,
            nodes: vec!["/dev/*".to_owned()],
            privileges: [SysConfig, ProcLockMemory, NetRawAccess, Root].into(),
        }
    }

    /// A zone of the bhyve brand: `/dev/vmm*`, viona and the data links, and no `sys_config`.
    #[must_use]
    pub fn bhyve(id: u32) -> Self {
        let nodes = ["/dev/vmm*", "/dev/viona", "/dev/dld", "/dev/net/*", "/dev/zvol/rdsk/*", "/dev/zconsole"];
        Self {
            id,
            nodes: nodes.map(str::to_owned).into(),
            privileges: [Privilege::ProcLockMemory, Privilege::NetRawAccess, Privilege::Root].into(),
        }
    }

    /// A zone of the kvm brand: `/dev/kvm` and the data links.
    #[must_use]
    pub fn kvm(id: u32) -> Self {
        let nodes = ["/dev/kvm", "/dev/vnd/*", "/dev/dld", "/dev/net/*", "/dev/zvol/rdsk/*", "/dev/zconsole"];
        Self { nodes: nodes.map(str::to_owned).into(), ..Self::bhyve(id) }
    }

    /// The same zone without a privilege.
    #[must_use]
    pub fn without(mut self, privilege: Privilege) -> Self {
        self.privileges.remove(&privilege);
        self
    }

    /// Whether it is the global zone.
    #[must_use]
    pub fn is_global(&self) -> bool {
        self.id == 0
    }

    /// Whether its processes may do that.
    #[must_use]
    pub fn may(&self, privilege: Privilege) -> bool {
        self.privileges.contains(&privilege)
    }

    /// Whether a device node exists in it.
    #[must_use]
    pub fn has_node(&self, path: &str) -> bool {
        self.nodes.iter().any(|node| match node.strip_suffix('*') {
            Some(start) => path.starts_with(start),
            None => path == node,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_brand_s_zone_has_its_own_nodes_only() {
        let bhyve = Zone::bhyve(3);
        assert!(bhyve.has_node("/dev/vmmctl") && bhyve.has_node("/dev/vmm/guest") && bhyve.has_node("/dev/viona"));
        assert!(!bhyve.has_node("/dev/kvm") && !bhyve.has_node("/dev/poll") && !bhyve.has_node("/dev/viona2"));
        assert!(Zone::kvm(3).has_node("/dev/kvm") && !Zone::kvm(3).has_node("/dev/vmmctl"));
        assert!(Zone::global().has_node("/dev/kvm") && Zone::global().is_global() && !bhyve.is_global());
        assert!(!bhyve.may(Privilege::SysConfig) && bhyve.may(Privilege::Root));
        assert!(!bhyve.without(Privilege::Root).may(Privilege::Root));
    }
}
