//! The Rust tool chain that can build `core` and `std` from source, unpacked from Debian packages.
