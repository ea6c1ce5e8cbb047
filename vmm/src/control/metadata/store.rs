//! What the responder serves: keys and values, as many bytes as it started with or [`MAX_BYTES`].

use crate::config::{Metadata, is_metadata_key};

/// The most bytes that a guest's own keys make the store grow to.
const MAX_BYTES: usize = 1 << 20;

/// What an entry takes besides its key and value, about.
const ENTRY_BYTES: usize = 64;

/// The name space of what the host says: a guest reads it, and neither lists nor changes it.
const READ_ONLY: &str = "sdc:";

/// Keys and values, and what they take.
#[derive(Debug)]
pub(super) struct Store {
    entries: Metadata,
    bytes: usize,
}

fn bytes_of(key: &str, value: &[u8]) -> usize {
    key.len().saturating_add(value.len()).saturating_add(ENTRY_BYTES)
}

impl Store {
    pub(super) fn new(entries: Metadata) -> Self {
        let bytes = entries.iter().map(|(key, value)| bytes_of(key, value)).sum();
        Self { entries, bytes }
    }

    pub(super) fn get(&self, key: &str) -> Option<&[u8]> {
        self.entries.get(key).map(Vec::as_slice)
    }

    /// The keys that are listed, one a line, in the order of their bytes.
    pub(super) fn keys(&self) -> String {
        let listed: Vec<&str> = self.entries.keys().map(String::as_str).filter(|key| !is_read_only(key)).collect();
        listed.join("\n")
    }

    /// Sets a value.
    ///
    /// # Errors
    /// One line; nothing has changed then.
    pub(super) fn put(&mut self, key: &str, value: Vec<u8>) -> Result<(), &'static str> {
        if !is_metadata_key(key) {
            return Err("this is not a key");
        }
        if is_read_only(key) {
            return Err("keys that begin with sdc: cannot be changed");
        }
        let before = self.entries.get(key).map_or(0, |old| bytes_of(key, old));
        let bytes = self.bytes.saturating_sub(before).saturating_add(bytes_of(key, &value));
        if bytes > MAX_BYTES && bytes > self.bytes {
            return Err("there is no room for more");
        }
        self.bytes = bytes;
        self.entries.insert(key.to_owned(), value);
        Ok(())
    }

    /// Removes a key, if it is there.
    ///
    /// # Errors
    /// One line; nothing has changed then.
    pub(super) fn delete(&mut self, key: &str) -> Result<(), &'static str> {
        if is_read_only(key) {
            return Err("keys that begin with sdc: cannot be changed");
        }
        if let Some(value) = self.entries.remove(key) {
            self.bytes = self.bytes.saturating_sub(bytes_of(key, &value));
        }
        Ok(())
    }

    /// Bytes it takes, about.
    #[cfg(test)]
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }
}

fn is_read_only(key: &str) -> bool {
    key.starts_with(READ_ONLY)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn store() -> Store {
        let entries = [("b", "2"), ("a", "1"), ("sdc:uuid", "u"), ("root_pw", "p")];
        Store::new(entries.into_iter().map(|(key, value)| (key.to_owned(), value.as_bytes().to_vec())).collect())
    }

    #[test]
    fn the_hosts_own_keys_are_read_and_neither_listed_nor_changed() {
        let mut store = store();
        assert_eq!((store.get("sdc:uuid"), store.keys().as_str()), (Some(&b"u"[..]), "a\nb\nroot_pw"));
        assert!(store.put("sdc:uuid", b"v".to_vec()).is_err() && store.put("sdc:x", b"v".to_vec()).is_err());
        assert!(store.put("sdc:uuid", Vec::new()).is_err() && store.delete("sdc:uuid").is_err());
        assert_eq!((store.get("sdc:uuid"), store.get("sdc:x")), (Some(&b"u"[..]), None));
    }

    #[test]
    fn a_key_is_set_replaced_and_removed() {
        let mut store = store();
        let before = store.bytes();
        store.put("c", b"3".to_vec()).unwrap();
        store.put("c", b"33".to_vec()).unwrap();
        assert_eq!((store.get("c"), store.bytes()), (Some(&b"33"[..]), before + bytes_of("c", b"33")));
        store.delete("c").unwrap();
        assert_eq!((store.get("c"), store.bytes()), (None, before));
        for key in ["", " c", "c\n", "c\0"] {
            assert!(store.put(key, b"3".to_vec()).is_err(), "{key:?}");
        }
    }

    #[test]
    fn a_guest_fills_the_store_to_its_limit_and_no_further_and_can_make_room_again() {
        let mut store = store();
        let mut count = 0;
        while store.put(&format!("k{count}"), vec![b'v'; 1000]).is_ok() {
            count += 1;
        }
        assert!(count > 900 && store.bytes() <= MAX_BYTES);
        assert!(store.put("k0", vec![b'v'; 3000]).is_err());
        store.put("k0", vec![b'w'; 1000]).unwrap();
        store.delete("k1").unwrap();
        store.put("again", vec![b'v'; 900]).unwrap();
    }

    #[test]
    fn a_store_that_began_too_large_only_shrinks() {
        let mut store = Store::new([("big".to_owned(), vec![0; MAX_BYTES + 10])].into());
        assert!(store.put("a", b"1".to_vec()).is_err());
        store.put("big", vec![0; MAX_BYTES + 9]).unwrap();
        store.put("big", b"small".to_vec()).unwrap();
        store.put("a", b"1".to_vec()).unwrap();
    }
}
