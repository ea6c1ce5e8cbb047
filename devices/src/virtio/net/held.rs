//! Buffers of the receive queue that were popped and wait for a frame.

use std::collections::VecDeque;

use vm_memory::GuestMemory;

use crate::virtio::queue::{Chain, ChainError};

/// Chains popped and not used yet, oldest first.
#[derive(Default)]
pub(super) struct Held {
    chains: VecDeque<Chain>,
    /// Their writable bytes together.
    bytes: u64,
}

/// Where a frame that comes now lands.
pub(super) struct Place {
    /// In the guest ranges listed for it, and beyond them in our own buffer; else all of it there.
    pub direct: bool,
    /// How long it may be.
    pub capacity: usize,
    /// Bytes that the ranges have.
    pub room: usize,
}

impl Held {
    pub fn is_empty(&self) -> bool {
        self.chains.is_empty()
    }

    /// What all of them have room for.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    pub fn first(&self) -> Option<&Chain> {
        self.chains.front()
    }

    pub fn iter(&self) -> impl Iterator<Item = &Chain> {
        self.chains.iter()
    }

    pub fn push(&mut self, chain: Chain) {
        self.bytes = self.bytes.saturating_add(chain.writable_bytes());
        self.chains.push_back(chain);
    }

    /// The next one to be used.
    #[inline(always)]
    pub fn take_first(&mut self) -> Option<Chain> {
        let chain = self.chains.pop_front()?;
        self.bytes = self.bytes.saturating_sub(chain.writable_bytes());
        Some(chain)
    }

    /// The next one to be unpopped.
    pub fn take_last(&mut self) -> Option<Chain> {
        let chain = self.chains.pop_back()?;
        self.bytes = self.bytes.saturating_sub(chain.writable_bytes());
        Some(chain)
    }

    /// How many of them so many bytes take.
    pub fn spanned_by(&self, bytes: u64) -> u16 {
        let (mut spanned, mut chains) = (0u64, 0u16);
        for chain in &self.chains {
            spanned = spanned.saturating_add(chain.writable_bytes());
            chains = chains.saturating_add(1);
            if spanned >= bytes {
                break;
            }
        }
        chains
    }

    /// Writes `data` at `offset` into the writable parts, one after the other.
    pub fn write<M: GuestMemory>(&self, mem: &M, mut offset: u64, mut data: &[u8]) -> Result<(), ChainError> {
        for chain in &self.chains {
            if data.is_empty() {
                break;
            }
            let mut writer = chain.writer(mem);
            let skip = offset.min(writer.remaining());
            offset = offset.saturating_sub(skip);
            writer.skip(skip)?;
            let here = usize::try_from(writer.remaining()).unwrap_or(usize::MAX).min(data.len());
            let (now, later) = data.split_at_checked(here).unwrap_or((data, &[]));
            writer.write(now)?;
            data = later;
        }
        match data.len() {
            0 => Ok(()),
            left => Err(ChainError::Short { wanted: left as u64, left: 0 }),
        }
    }

    /// Forgets all of them.
    pub fn abandon(&mut self) {
        self.chains.drain(..).for_each(Chain::abandon);
        self.bytes = 0;
    }
}
