//! Random bytes from the kernel.

use std::io;

use crate::check;

/// Fills `bytes` from the kernel's generator. It may block for a moment early in the boot of the host, never later.
/// It opens no device node (the illumos zone has no `/dev/urandom`).
///
/// # Errors
/// What getrandom(2) says: only that it is refused (a sandbox) or absent.
pub fn fill(bytes: &mut [u8]) -> io::Result<()> {
    // The kernel answers up to 256 bytes whole, without a signal in between (getrandom(2)); illumos refuses longer
    // requests than 1024 bytes in some modes.
    for chunk in bytes.chunks_mut(256) {
        let mut filled = 0;
        while filled < chunk.len() {
            let rest = &mut chunk[filled..];
            // SAFETY: pointer and length describe one writable slice.
            let got = unsafe { libc::getrandom(rest.as_mut_ptr().cast(), rest.len(), 0) };
            match check(got) {
                Ok(got) => filled += usize::try_from(got).unwrap_or(0),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_part_of_a_large_buffer_is_filled() {
        let mut bytes = vec![0; 10_001];
        fill(&mut bytes).unwrap();
        // 16 zero bytes in a row come up once in 2^128 tries.
        assert!(bytes.chunks(16).filter(|chunk| chunk.len() == 16).all(|chunk| chunk.iter().any(|&byte| byte != 0)));
        assert_ne!(bytes[..16], bytes[16..32]);
    }
}
