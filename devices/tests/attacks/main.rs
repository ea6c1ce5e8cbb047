//! What hostile guests have done to other device models, one test an attack, each through the virtual guest driver and,
//! where it concerns rings, against both ring formats. `docs/security.md` says which test answers which attack.
//!
//! After each attack the device must still do its work: see [`rig::Disk::revive`] and its like.

mod backend;
mod console;
mod disk;
mod lifecycle;
mod net;
mod rig;
mod ring;
mod rng;
mod table;
