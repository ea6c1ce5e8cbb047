//! Files as the input describes them: raw bytes, or an ELF or bzImage with a few fields wrong.

use std::fmt::Write as _;

use arbitrary::Unstructured;
use arch::boot::Protocol;

const LOAD: u32 = 1;
const NOTE: u32 = 4;

/// A kernel, what comes with it, and what was asked for.
pub struct Input {
    pub file: Vec<u8>,
    pub cmdline: String,
    /// What the initrd's length is said to be before it is read.
    pub initrd_bytes: Option<u64>,
    /// Its length when it is.
    pub initrd_file_bytes: usize,
    pub wanted: Option<Protocol>,
    pub ecam: bool,
}

impl Input {
    pub fn read(data: &[u8]) -> arbitrary::Result<Self> {
        let mut input = Unstructured::new(data);
        let [kind, flags]: [u8; 2] = input.arbitrary()?;
        let wanted = match flags & 3 {
            0 => Some(Protocol::Pvh),
            1 => Some(Protocol::Linux64),
            _ => None,
        };
        let (initrd_bytes, initrd_file_bytes) = match flags >> 2 & 7 {
            0..=2 => (None, 0),
            3..=5 => {
                let bytes: u16 = input.arbitrary()?;
                (Some(bytes.into()), bytes.into())
            }
            _ => (Some(input.arbitrary::<u64>()? >> (input.arbitrary::<u8>()? & 63)), input.arbitrary::<u16>()?.into()),
        };
        let cmdline = match flags >> 5 & 3 {
            0 => String::new(),
            1 => "x".repeat(input.arbitrary::<u16>()?.into()),
            2 => {
                let len = usize::from(input.arbitrary::<u8>()?).min(input.len());
                String::from_utf8_lossy(input.bytes(len)?).into()
            }
            _ => "console=ttyS0 root=/dev/vda".to_owned(),
        };
        let file = match kind % 8 {
            0..=3 => elf(&mut input)?,
            4..=6 => bzimage(&mut input)?,
            _ => input.take_rest().to_vec(),
        };
        Ok(Self { file, cmdline, initrd_bytes, initrd_file_bytes, wanted, ecam: flags & 0x80 != 0 })
    }

    pub fn explain(&self) -> String {
        let mut text = format!("a file of {} bytes\n", self.file.len());
        for line in self.file.chunks(32).take(32).enumerate() {
            let _ = writeln!(
                text,
                "{:>6x}  {}",
                line.0 * 32,
                line.1.iter().map(|b| format!("{b:02x}")).collect::<String>()
            );
        }
        for (gpa, content, zeroes) in segments(&self.file) {
            let _ = writeln!(text, "a segment at {gpa:#x}: {} bytes, then {zeroes} zeroes", content.len());
        }
        let _ = writeln!(text, "command line of {} bytes: {:.80}", self.cmdline.len(), self.cmdline);
        let _ = writeln!(text, "initrd of {:?} bytes, in its file {}", self.initrd_bytes, self.initrd_file_bytes);
        let _ = writeln!(text, "wanted: {:?}, ecam: {}", self.wanted, self.ecam);
        text
    }
}

/// Segments of a file that was accepted: where they go, their bytes, and how many zeroes follow. Written down from the two
/// formats, for good files only: whatever this makes of a bad one, the loader has refused it.
pub fn segments(file: &[u8]) -> Vec<(u64, &[u8], u64)> {
    let number = |at: usize, width: usize| {
        let mut bytes = [0; 8];
        if let Some(field) = file.get(at..at + width) {
            bytes[..width].copy_from_slice(field);
        }
        u64::from_le_bytes(bytes)
    };
    if file.starts_with(b"\x7fELF") {
        let (table, count) = (number(32, 8) as usize, number(56, 2) as usize);
        let headers = (0..count.min(128)).map(|index| table.saturating_add(index * 56));
        let loaded = headers.filter(|at| *at < file.len() && number(*at, 4) == u64::from(LOAD));
        return loaded
            .filter_map(|at| {
                let [offset, gpa, len, in_memory] = [8, 24, 32, 40].map(|field| number(at + field, 8));
                let content = file.get(offset as usize..offset.checked_add(len)? as usize)?;
                Some((gpa, content, in_memory.saturating_sub(len)))
            })
            .collect();
    }
    if number(0x202, 4) == u64::from(u32::from_le_bytes(*b"HdrS")) {
        let setup = 512 * (1 + if number(0x1f1, 1) == 0 { 4 } else { number(0x1f1, 1) });
        let Some(rest) = file.get(setup as usize..) else { return Vec::new() };
        let code = &rest[..rest.len().min(number(0x1f4, 4) as usize * 16)];
        // The header ends where the jump at 0x200 leads: fields behind it are code.
        let ends = 0x202 + number(0x201, 1) as usize;
        let field = |at: usize, width: usize| if at + width <= ends { number(at, width) } else { 0 };
        let (preferred, alignment) = (field(0x258, 8), field(0x230, 4));
        let relocatable = field(0x234, 1) != 0 && alignment.is_power_of_two();
        let gpa = if relocatable { preferred.checked_next_multiple_of(alignment) } else { Some(preferred) };
        return gpa.map(|gpa| (gpa, code, 0)).into_iter().collect();
    }
    Vec::new()
}

/// Values a field may have wrong.
fn odd(input: &mut Unstructured, right: u64) -> arbitrary::Result<u64> {
    Ok(match input.arbitrary::<u8>()? {
        0..=207 => right,
        208..=223 => right.wrapping_add(input.arbitrary::<i8>()? as u64),
        224..=231 => u64::MAX,
        232..=239 => 0,
        _ => input.arbitrary::<u64>()? >> (input.arbitrary::<u8>()? & 63),
    })
}

/// Around the borders of a RAM of 4 MiB.
fn address(input: &mut Unstructured) -> arbitrary::Result<u64> {
    const BASES: [u64; 8] = [0x10_0000, 0x10_0000, 0x11_0000, 0x20_0000, 0x3f_0000, 0x40_0000, 0xf_0000, 0x1_0000_0000];
    let [base, page]: [u8; 2] = input.arbitrary()?;
    odd(input, BASES[usize::from(base % 8)] + u64::from(page) * 0x100)
}

fn put(file: &mut [u8], at: usize, width: usize, value: u64) {
    if let Some(field) = file.get_mut(at..at + width) {
        field.copy_from_slice(&value.to_le_bytes()[..width]);
    }
}

fn elf(input: &mut Unstructured) -> arbitrary::Result<Vec<u8>> {
    let count = usize::from(input.arbitrary::<u8>()? % 6);
    let mut segments = Vec::new();
    let mut first = None;
    for _ in 0..count {
        let kind = if input.arbitrary::<u8>()? < 200 { LOAD } else { input.arbitrary::<u8>()?.into() };
        let gpa = address(input)?;
        let offset = odd(input, 0x400)?;
        let len = u64::from(input.arbitrary::<u8>()?) * 4;
        let len = odd(input, len)?;
        let extra = u64::from(input.arbitrary::<u8>()?) * 64;
        let extra = odd(input, extra)?;
        first = first.or(Some(gpa));
        segments.push((kind, offset, gpa, len, len.wrapping_add(extra)));
    }
    let entry = odd(input, first.unwrap_or(0x10_0000))?;
    let mut file = vec![0; 0x400];
    file[..8].copy_from_slice(b"\x7fELF\x02\x01\x01\x00");
    for (at, width, right) in
        [(4, 1, 2), (5, 1, 1), (16, 2, 2), (18, 2, 62), (24, 8, entry), (32, 8, 64), (54, 2, 56), (56, 2, 0)]
    {
        let right = if at == 56 { segments.len() as u64 + 1 } else { right };
        put(&mut file, at, width, odd(input, right)?);
    }
    // A note with the PVH entry, at 0x300, or something like it.
    let has_note = input.arbitrary::<bool>()?;
    let note: [(usize, usize, u64); 4] = [(0x300, 4, 4), (0x304, 4, 4), (0x308, 4, 18), (0x30c, 4, 0x006e_6558)];
    for (at, width, right) in note {
        put(&mut file, at, width, odd(input, right)?);
    }
    put(&mut file, 0x310, 8, odd(input, entry)?);
    let note_len = odd(input, 0x18)?;
    segments.push((if has_note { NOTE } else { 0 }, odd(input, 0x300)?, 0, note_len, note_len));
    for (index, (kind, offset, gpa, len, in_memory)) in segments.into_iter().enumerate() {
        let at = 64 + index * 56;
        put(&mut file, at, 4, kind.into());
        for (field, value) in [(8, offset), (24, gpa), (32, len), (40, in_memory)] {
            put(&mut file, at + field, 8, value);
        }
    }
    let content = usize::from(input.arbitrary::<u16>()? & 0xfff);
    file.extend((0..content).map(|at| (at * 13 + 5) as u8));
    Ok(file)
}

fn bzimage(input: &mut Unstructured) -> arbitrary::Result<Vec<u8>> {
    let code = 16 * (33 + usize::from(input.arbitrary::<u8>()?));
    let mut file = vec![0; 1024];
    file.extend((0..code).map(|at| (at * 11 + 1) as u8));
    let preferred = address(input)?;
    for (at, width, right) in [
        (0x1f1, 1, 1),
        (0x1f4, 4, code as u64 / 16),
        (0x1fe, 2, 0xaa55),
        (0x200, 2, 0x6aeb),
        (0x202, 4, u32::from_le_bytes(*b"HdrS").into()),
        (0x206, 2, 0x020f),
        (0x211, 1, 1),
        (0x22c, 4, 0x7fff_ffff),
        (0x230, 4, 0x1000),
        (0x234, 1, 1),
        (0x236, 2, 3),
        (0x238, 4, 2047),
        (0x248, 4, 0),
        (0x24c, 4, 0),
        (0x258, 8, preferred),
        (0x260, 4, 0x8000),
    ] {
        put(&mut file, at, width, odd(input, right)?);
    }
    let cut = usize::from(input.arbitrary::<u8>().unwrap_or(0));
    file.truncate(file.len() - if cut < 0xc0 { 0 } else { (cut & 0x3f) * 64 }.min(file.len()));
    Ok(file)
}
