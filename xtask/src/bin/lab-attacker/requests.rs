//! Valid requests of each kind of device, one at a time and as many as there is room for.

use std::ops::Range;

use crate::arena::{CHECKED, DATA, TABLES};
use crate::attacks_list::Kind;
use crate::check;
use crate::device::{Device, LIMIT, Trouble, Verdict, block, feature};
use crate::machine::wait;
use crate::queue::{Raw, Used, flag, write_table};

/// Request types of block devices (virtio 1.3 §5.2.6).
pub mod blk {
    pub const IN: u32 = 0;
    pub const OUT: u32 = 1;
    pub const GET_ID: u32 = 8;
    pub const WRITE_ZEROES: u32 = 13;
}

/// Where received frames go.
const RX: usize = DATA + 0x3_0000;
const RX_BUFFERS: usize = 8;
const RX_BYTES: u32 = 1600;

/// The test network: the interface's own address in the lab, and any address for the guest.
const HOST_IP: [u8; 4] = [10, 0, 0, 1];
const GUEST_IP: [u8; 4] = [10, 0, 0, 2];
const GUEST_MAC: [u8; 6] = [0x52, 0x54, 0, 0x12, 0x34, 0x56];

/// Chains that a full load has at most.
const LOAD: u16 = 16;

impl Device<'_> {
    /// Makes one valid request and checks what it did.
    ///
    /// # Errors
    /// When it does not succeed.
    pub fn request(&mut self) -> Verdict {
        // What an attack has left in flight comes back first: its descriptors are needed.
        let target = self.target();
        let settled = wait(LIMIT, || {
            for queue in 0..self.queues.len() as u16 {
                while let Some(used) = self.used(queue) {
                    self.receiving.retain(|(id, _)| queue != 0 || *id != used.id);
                }
            }
            self.queues[usize::from(target)].in_flight == 0
        });
        let left = self.queues[usize::from(target)].in_flight;
        check!(settled, "{left} valid requests never came back; status {:#x}", self.registers.status());
        self.serial += 1;
        match self.kind {
            Kind::Blk => self.write_and_read_back(),
            Kind::Net => self.ask_for_an_address(),
            Kind::Console => self.print(),
            Kind::Rng => self.draw(),
        }
    }

    /// Makes a chain available, notifies and waits for exactly it.
    fn transact(&mut self, queue: u16, buffers: &[(usize, u32, u16)]) -> Verdict<Used> {
        let id = self.post(queue, buffers);
        self.notify(queue);
        let Some(used) = self.wait_used(queue) else {
            return Err(Trouble::Fail(format!("a valid request is not served; status {:#x}", self.registers.status())));
        };
        check!(used.id == id, "{used:?} came back for id {id}");
        Ok(used)
    }

    /// Writes the header of a block request.
    pub fn put_blk_header(&self, at: usize, kind: u32, sector: u64) {
        self.arena.write(at, 4, kind.into());
        self.arena.write(at + 4, 4, 0);
        self.arena.write(at + 8, 8, sector);
    }

    fn write_and_read_back(&mut self) -> Verdict {
        let sector = u64::from(self.serial % 64);
        let content: Vec<u8> =
            (0..512_u32).map(|n| (n.wrapping_mul(7) ^ self.serial.wrapping_mul(0x9e37)) as u8).collect();
        let (header, data, answer) = (block(0), block(0) + 0x1000, block(0) + 0x2000);
        self.put_blk_header(header, blk::OUT, sector);
        self.arena.put(data, &content);
        self.arena.write(answer, 1, 0xff);
        let used = self.transact(0, &[(header, 16, 0), (data, 512, 0), (answer, 1, flag::WRITE)])?;
        let status = self.arena.read(answer, 1);
        check!(status == 0 && used.len == 1, "a write ended with status {status}, {used:?}");

        self.put_blk_header(header, blk::IN, sector);
        self.arena.put(data, &[0; 512]);
        self.arena.write(answer, 1, 0xff);
        let used = self.transact(0, &[(header, 16, 0), (data, 512, flag::WRITE), (answer, 1, flag::WRITE)])?;
        let status = self.arena.read(answer, 1);
        check!(status == 0 && used.len == 513, "a read ended with status {status}, {used:?}");
        check!(self.arena.get(data..data + 512) == content, "sector {sector} does not hold what was written to it");
        Ok(())
    }

    /// Bytes of the header in front of each frame (§5.1.6.1).
    pub fn net_header_bytes(&self) -> usize {
        if self.is_legacy() && self.accepted & feature::NET_MRG_RXBUF == 0 { 10 } else { 12 }
    }

    /// An ARP request for the host's address (RFC 826), behind a header of zeroes.
    fn arp_request(&self) -> Vec<u8> {
        let mut frame = vec![0; self.net_header_bytes()];
        frame.extend([0xff; 6]);
        frame.extend(GUEST_MAC);
        frame.extend([0x08, 0x06, 0, 1, 0x08, 0, 6, 4, 0, 1]);
        frame.extend(GUEST_MAC);
        frame.extend(GUEST_IP);
        frame.extend([0; 6]);
        frame.extend(HOST_IP);
        frame.resize(self.net_header_bytes() + 60, 0);
        frame
    }

    fn ask_for_an_address(&mut self) -> Verdict {
        for at in (0..RX_BUFFERS).map(|n| RX + n * 0x2000) {
            if !self.receiving.iter().any(|(_, place)| *place == at) {
                let id = self.post(0, &[(at, RX_BYTES, flag::WRITE)]);
                self.receiving.push((id, at));
            }
        }
        self.notify(0);
        let frame = self.arp_request();
        self.arena.put(block(0), &frame);
        let used = self.transact(1, &[(block(0), frame.len() as u32, 0)])?;
        check!(used.len == 0, "a frame was sent, and {} bytes were written", used.len);
        // The host may have something else to say first.
        for frames in 0.. {
            let Some(used) = self.wait_used(0) else {
                return Err(Trouble::Fail(format!("no answer to an ARP request; {frames} other frames came")));
            };
            let (header, len) = (self.net_header_bytes(), used.len as usize);
            let buffer = self.receiving.iter().position(|(id, _)| *id == used.id);
            let Some(buffer) = buffer.filter(|_| len >= header + 14 && len <= RX_BYTES as usize) else {
                return Err(Trouble::Fail(format!("a frame was received as {used:?} into {:x?}", self.receiving)));
            };
            let (_, at) = self.receiving.swap_remove(buffer);
            if self.arena.get(at + header + 12..at + len).starts_with(&[0x08, 0x06, 0, 1, 0x08, 0, 6, 4, 0, 2]) {
                break;
            }
            let id = self.post(0, &[(at, RX_BYTES, flag::WRITE)]);
            self.receiving.push((id, at));
            self.notify(0);
        }
        Ok(())
    }

    fn print(&mut self) -> Verdict {
        let text = format!("line {} of the attacker\n", self.serial);
        self.arena.put(block(0), text.as_bytes());
        let used = self.transact(1, &[(block(0), text.len() as u32, 0)])?;
        check!(used.len == 0, "a line was printed, and {} bytes were written", used.len);
        Ok(())
    }

    fn draw(&mut self) -> Verdict {
        let at = block(0);
        self.arena.put(at, &[0; 64]);
        let used = self.transact(0, &[(at, 64, flag::WRITE)])?;
        check!((1..=64).contains(&used.len), "64 random bytes came back as {used:?}");
        check!(self.arena.get(at..at + 64) != [0; 64], "no random bytes were written");
        Ok(())
    }

    /// Fills the target queue with valid requests, without notifying. Returns what the device may write to.
    pub fn load(&mut self) -> Vec<Range<usize>> {
        let mut offered = Vec::new();
        let queue = self.target();
        let each = if self.kind == Kind::Blk { 3 } else { 1 };
        for n in 0..(self.queues[usize::from(queue)].size / each).min(LOAD) {
            let at = block(n.into());
            match self.kind {
                Kind::Blk => {
                    self.put_blk_header(at, blk::IN, u64::from(n) * 8);
                    self.post(queue, &[(at, 16, 0), (at + 0x1000, 0x1000, flag::WRITE), (at + 0x2000, 1, flag::WRITE)]);
                    offered.push(at + 0x1000..at + 0x2001);
                }
                Kind::Net => {
                    let mut frame = self.arp_request();
                    // An EtherType for experiments (IEEE 802): nobody answers.
                    let header = self.net_header_bytes();
                    frame[header + 12..header + 14].copy_from_slice(&[0x88, 0xb5]);
                    frame.resize(header + 1500, 0);
                    self.arena.put(at, &frame);
                    self.post(queue, &[(at, frame.len() as u32, 0)]);
                }
                Kind::Console => {
                    self.arena.put(at, &[b'.'; 0x1000]);
                    self.post(queue, &[(at, 0x1000, 0)]);
                }
                Kind::Rng => {
                    self.post(queue, &[(at, 0x1000, flag::WRITE)]);
                    offered.push(at..at + 0x1000);
                }
            }
        }
        offered
    }

    /// As much work for the target queue as fits, without notifying: requests that take their time.
    pub fn load_heavily(&mut self) {
        const PIECES: usize = 13;
        let (at, large) = (block(0), self.arena.physical(CHECKED));
        match self.kind {
            Kind::Blk if self.accepted & feature::INDIRECT != 0 => {
                // All of them read into the same page, again and again.
                self.put_blk_header(at, blk::IN, 0);
                let piece = |at: usize, len, flags, next| Raw { address: self.arena.physical(at), len, flags, next };
                let mut entries = vec![piece(at, 16, flag::NEXT, 1)];
                entries.extend((2..).take(PIECES).map(|n| piece(at + 0x1000, 0x1000, flag::NEXT | flag::WRITE, n)));
                entries.push(piece(at + 0x2000, 1, flag::WRITE, 0));
                write_table(self.arena, TABLES, &entries, self.packed());
                let table = Raw::one(self.arena.physical(TABLES), 16 * entries.len() as u32, flag::INDIRECT);
                for _ in 0..LOAD {
                    self.post_raw(0, &[table]);
                }
            }
            Kind::Console => {
                for _ in 0..LOAD {
                    self.post_raw(1, &[Raw::one(large, 0x8_0000, 0)]);
                }
            }
            _ => {
                self.load();
            }
        }
    }

    /// Makes one valid chain available without notifying: its first descriptor's place in the table is the next one.
    /// Returns its id and what may be written to.
    pub fn post_valid(&mut self) -> (u16, Vec<Range<usize>>) {
        let (at, queue) = (block(0), self.target());
        match self.kind {
            Kind::Blk => {
                self.put_blk_header(at, blk::IN, 0);
                let data = at + 0x1000;
                let id = self.post(queue, &[(at, 16, 0), (data, 512, flag::WRITE), (data + 0x1000, 1, flag::WRITE)]);
                (id, vec![data..data + 512, data + 0x1000..data + 0x1001])
            }
            Kind::Rng => (self.post(queue, &[(at, 64, flag::WRITE)]), std::iter::once(at..at + 64).collect()),
            Kind::Net => {
                let frame = self.arp_request();
                self.arena.put(at, &frame);
                (self.post(queue, &[(at, frame.len() as u32, 0)]), Vec::new())
            }
            Kind::Console => {
                self.arena.put(at, b"valid\n");
                (self.post(queue, &[(at, 6, 0)]), Vec::new())
            }
        }
    }

    /// What a driver of mergeable receive buffers accepts.
    pub fn mergeable_features(&self) -> u64 {
        self.features() | self.offered & feature::NET_MRG_RXBUF
    }
}
