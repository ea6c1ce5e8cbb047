//! illumos' error numbers (`usr/src/uts/common/sys/errno.h`), with the words users know them by.

use std::fmt;
use std::io;

/// An error number of illumos, whatever system the process runs on.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Errno(pub i32);

macro_rules! errnos {
    ($($name:ident $number:literal $kind:ident $words:literal,)*) => {
        impl Errno {
            $(#[doc = concat!($words, ".")] pub const $name: Self = Self($number);)*

            /// Every number with a name here.
            pub const ALL: &'static [Self] = &[$(Self::$name),*];

            /// Its name, as in the manual.
            #[must_use]
            pub fn name(self) -> Option<&'static str> {
                match self { $(Self::$name => Some(stringify!($name)),)* _ => None }
            }

            /// What it means, as strerror(3C) puts it.
            #[must_use]
            pub fn words(self) -> &'static str {
                match self { $(Self::$name => $words,)* _ => "unknown error" }
            }

            fn kind(self) -> io::ErrorKind {
                match self { $(Self::$name => io::ErrorKind::$kind,)* _ => io::ErrorKind::Other }
            }
        }
    };
}

errnos! {
    EPERM 1 PermissionDenied "Not owner",
    ENOENT 2 NotFound "No such file or directory",
    ESRCH 3 Other "No such process",
    EINTR 4 Interrupted "Interrupted system call",
    EIO 5 Other "I/O error",
    ENXIO 6 Other "No such device or address",
    E2BIG 7 ArgumentListTooLong "Arg list too long",
    EBADF 9 Other "Bad file number",
    EAGAIN 11 WouldBlock "Resource temporarily unavailable",
    ENOMEM 12 OutOfMemory "Not enough space",
    EACCES 13 PermissionDenied "Permission denied",
    EFAULT 14 Other "Bad address",
    EBUSY 16 ResourceBusy "Device busy",
    EEXIST 17 AlreadyExists "File exists",
    ENODEV 19 Other "No such device",
    EINVAL 22 InvalidInput "Invalid argument",
    EMFILE 24 Other "Too many open files",
    ENOTTY 25 Unsupported "Inappropriate ioctl for device",
    EFBIG 27 FileTooLarge "File too large",
    ENOSPC 28 StorageFull "No space left on device",
    EROFS 30 ReadOnlyFilesystem "Read-only file system",
    ERANGE 34 Other "Result too large",
    ECANCELED 47 Other "Operation canceled",
    ENOTSUP 48 Unsupported "Operation not supported",
    ENOSR 63 Other "Out of streams resources",
    EPROTO 71 Other "Protocol error",
    ENAMETOOLONG 78 InvalidFilename "File name too long",
    EOVERFLOW 79 Other "Value too large for defined data type",
    EALREADY 149 Other "Operation already in progress",
    ETIMEDOUT 145 TimedOut "Connection timed out",
}

impl Errno {
    /// The same error as the standard library knows it. The words survive; on illumos the number does too.
    #[must_use]
    pub fn to_io_error(self) -> io::Error {
        crate::os::illumos_error(self.0, self.kind(), self.to_string())
    }
}

impl fmt::Debug for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.name() {
            Some(name) => f.write_str(name),
            None => write!(f, "errno {}", self.0),
        }
    }
}

/// The words, for messages; a number without words is given as it is.
impl fmt::Display for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.name() {
            Some(_) => f.write_str(self.words()),
            None => write!(f, "error {}", self.0),
        }
    }
}

impl std::error::Error for Errno {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_number_has_one_name_and_its_words_are_what_a_message_shows() {
        let mut numbers: Vec<i32> = Errno::ALL.iter().map(|errno| errno.0).collect();
        numbers.sort_unstable();
        let count = numbers.len();
        numbers.dedup();
        assert_eq!(numbers.len(), count);
        for &errno in Errno::ALL {
            assert!(errno.to_io_error().to_string().contains(errno.words()), "{errno:?}");
        }
        assert_eq!(format!("{:?} {}", Errno::EALREADY, Errno(999)), "EALREADY error 999");
    }
}
