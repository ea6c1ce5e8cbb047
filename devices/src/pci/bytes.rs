//! Little-endian register bytes: what every access of any width and alignment comes down to.

/// The value of up to 8 little-endian bytes.
pub(crate) fn get(data: &[u8]) -> u64 {
    data.iter().take(8).rev().fold(0, |value, byte| value << 8 | u64::from(*byte))
}

/// Fills `data` with the little-endian bytes of `value`, zero beyond the eighth.
pub(crate) fn put(data: &mut [u8], value: u64) {
    let mut bytes = value.to_le_bytes().into_iter();
    data.fill_with(|| bytes.next().unwrap_or(0));
}

/// Copies from `image` at `offset`; bytes beyond its end become `missing`.
pub(crate) fn copy_at(image: &[u8], offset: u64, data: &mut [u8], missing: u8) {
    let from = usize::try_from(offset).ok().and_then(|offset| image.get(offset..)).unwrap_or(&[]);
    let mut from = from.iter();
    data.fill_with(|| from.next().copied().unwrap_or(missing));
}

/// Splits `start .. start + data.len()` at dword borders.
pub(crate) fn dwords(start: u64, len: usize) -> impl Iterator<Item = (u64, std::ops::Range<usize>)> {
    let mut done = 0usize;
    std::iter::from_fn(move || {
        let left = len.checked_sub(done).filter(|left| *left > 0)?;
        let at = start.checked_add(u64::try_from(done).ok()?)?;
        let room = 4usize.wrapping_sub(usize::try_from(at & 3).ok()?);
        let end = done.checked_add(left.min(room))?;
        let range = done..end;
        done = end;
        Some((at, range))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_and_bytes_are_little_endian_at_every_width() {
        let mut data = [0; 4];
        put(&mut data, 0x1122_3344_5566_7788);
        assert_eq!(data, [0x88, 0x77, 0x66, 0x55]);
        assert_eq!(get(&data), 0x5566_7788);
        assert_eq!(get(&[1; 12]), 0x0101_0101_0101_0101);
        assert_eq!(get(&[]), 0);
    }

    #[test]
    fn an_access_is_split_where_a_dword_ends() {
        let parts: Vec<_> = dwords(0x1e, 8).collect();
        assert_eq!(parts, [(0x1e, 0..2), (0x20, 2..6), (0x24, 6..8)]);
        assert_eq!(dwords(4, 4).count(), 1);
        assert_eq!(dwords(4, 0).count(), 0);
    }
}
