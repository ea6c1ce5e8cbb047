//! The operations of a program.

/// One operation. `a`, `b`, `c` and `v` are what its bytes said; [`play`](super::play) gives them their meaning, which
/// depends on the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Op {
    /// What happens.
    pub code: Code,
    /// Small operands.
    pub a: u8,
    /// See `a`.
    pub b: u8,
    /// See `a`.
    pub c: u8,
    /// A value.
    pub v: u32,
}

macro_rules! codes {
    ($($(#[$doc:meta])* $name:ident = $weight:literal, $register_weight:literal),* $(,)?) => {
        /// What an operation does.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Code {
            $($(#[$doc])* $name,)*
        }

        /// Every code as often as a program for a device has it.
        pub const REQUESTS: &[Code] = &table::<{ 0 $(+ $weight)* }>(&[$((Code::$name, $weight)),*]);
        /// Every code as often as a program for a transport has it.
        pub const REGISTERS: &[Code] = &table::<{ 0 $(+ $register_weight)* }>(&[$((Code::$name, $register_weight)),*]);
    };
}

const fn table<const COUNT: usize>(weights: &[(Code, usize)]) -> [Code; COUNT] {
    let mut table = [Code::Request; COUNT];
    let (mut at, mut row) = (0, 0);
    while row < weights.len() {
        let mut left = weights[row].1;
        while left > 0 {
            table[at] = weights[row].0;
            at += 1;
            left -= 1;
        }
        row += 1;
    }
    table
}

codes! {
    /// A request the device's driver would make, valid but for what `c` spoils.
    Request = 16, 4,
    /// A chain of descriptors from a palette of good and bad values.
    Chain = 5, 0,
    /// A head is made available, whatever it stands for.
    Offer = 3, 0,
    /// The available index moves without entries.
    Jump = 1, 0,
    /// What was placed is shown; the device is kicked where it asks for that.
    Publish = 3, 1,
    /// A kick of any queue, width and way.
    Kick = 2, 4,
    /// Workers that are awake take some steps, perhaps after some time.
    Run = 4, 2,
    /// The disk completes the k-th request it holds, or fails it.
    Complete = 5, 2,
    /// The driver takes used buffers back.
    Collect = 4, 1,
    /// A field of the common configuration is written.
    Write = 4, 14,
    /// A field of it is read.
    Read = 1, 4,
    /// Any access to any BAR.
    Access = 2, 5,
    /// An access to configuration space, or the moves of one that place a BAR.
    Config = 1, 5,
    /// A device status is written.
    Status = 2, 8,
    /// The driver sets the device up (again).
    SetUp = 2, 4,
    /// A queue is reset on its own, and perhaps enabled again.
    ResetQueue = 2, 4,
    /// The machine is paused and goes on.
    Pause = 1, 1,
    /// The machine is saved and goes on in another process.
    Save = 1, 2,
    /// The guest rewrites a word of a ring.
    Rewrite = 3, 0,
    /// The host changes the device.
    Change = 1, 2,
    /// Something arrives from the other end, or it stalls, breaks or recovers.
    End = 3, 1,
    /// The driver says which interrupts it wants.
    Wish = 2, 0,
    /// The MSI-X table or its masks are written.
    Vector = 2, 5,
    /// Second fetches are altered with something else.
    Flip = 1, 0,
    /// The disk holds, refuses, or has no room.
    Disk = 2, 1,
    /// The configuration-access capability is used.
    Window = 1, 4,
    /// A legacy register is written or read.
    Legacy = 2, 8,
    /// The function goes back to its power-on state.
    PowerOn = 1, 1,
}

impl Op {
    /// Any eight bytes are one, by a table of codes.
    #[must_use]
    pub fn decode(record: [u8; 8], table: &[Code]) -> Self {
        let [code, a, b, c, v @ ..] = record;
        Self { code: table[usize::from(code) % table.len()], a, b, c, v: u32::from_le_bytes(v) }
    }

    /// Bytes that [`decode`](Self::decode) as this operation; `None` where programs of this table have no such code.
    #[must_use]
    pub fn encode(&self, table: &[Code]) -> Option<[u8; 8]> {
        let code = u8::try_from(table.iter().position(|code| *code == self.code)?).ok()?;
        let [v0, v1, v2, v3] = self.v.to_le_bytes();
        Some([code, self.a, self.b, self.c, v0, v1, v2, v3])
    }
}

/// Numbers that are on some edge.
#[must_use]
pub fn edge(v: u32) -> u64 {
    const EDGES: [u64; 24] = [
        0,
        1,
        2,
        3,
        4,
        7,
        8,
        15,
        16,
        17,
        31,
        64,
        127,
        128,
        255,
        256,
        511,
        512,
        0x7fff,
        0x8000,
        0xffff,
        0x1_0000,
        0x8000_0000,
        0xffff_ffff,
    ];
    match v & 3 {
        0 => u64::from(v >> 2),
        1 => u64::from(v >> 2 & 0xff),
        _ => EDGES[(v >> 2) as usize % EDGES.len()],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_operation_that_is_encoded_decodes_to_the_same() {
        for table in [REQUESTS, REGISTERS] {
            for code in 0..table.len() as u8 {
                let op = Op::decode([code, 1, 2, 3, 4, 5, 6, 7], table);
                let bytes = op.encode(table).unwrap();
                assert_eq!(Op::decode(bytes, table), op);
            }
        }
        let chain = Op { code: Code::Chain, a: 0, b: 0, c: 0, v: 0 };
        assert!(chain.encode(REQUESTS).is_some() && chain.encode(REGISTERS).is_none());
    }
}
