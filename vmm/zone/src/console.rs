//! A guest's first serial line where it is a socket, as in the kvm brand.

use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use crate::global::Zone;

/// What `vmadm console` connects to.
#[derive(Debug)]
pub struct Console {
    stream: UnixStream,
    said: Vec<u8>,
}

impl Console {
    /// Connects as `vmadm console` does: as soon as there is somebody.
    ///
    /// # Panics
    /// When there is nobody in time.
    #[track_caller]
    pub fn of(zone: &mut Zone) -> Self {
        let (socket, mut stream) = (zone.socket("vm.console"), None);
        zone.until("the console is served", |_| {
            stream = UnixStream::connect(&socket).ok();
            stream.is_some()
        });
        let stream = stream.expect("a connection");
        stream.set_nonblocking(true).expect("a socket");
        Self { stream, said: Vec::new() }
    }

    /// Everything that the guest has said since.
    pub fn text(&mut self) -> String {
        let mut bytes = [0; 4096];
        while let Ok(count @ 1..) = self.stream.read(&mut bytes) {
            self.said.extend_from_slice(&bytes[..count]);
        }
        String::from_utf8_lossy(&self.said).into_owned()
    }

    /// Calls until the guest answers: what is sent before it has set up its port is lost.
    ///
    /// # Panics
    /// When the zone does not run.
    pub fn call(&mut self, zone: &mut Zone) {
        while !self.text().contains('?') {
            self.send(b"?");
            let patience = Instant::now() + Duration::from_millis(100);
            zone.until("an answer", |_| self.text().contains('?') || Instant::now() > patience);
        }
    }

    /// Types something.
    ///
    /// # Panics
    /// When nobody takes it.
    pub fn send(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).expect("the console");
    }

    /// Waits until the guest has said something.
    ///
    /// # Panics
    /// When it does not in time.
    #[track_caller]
    pub fn until(&mut self, zone: &mut Zone, text: &str) {
        zone.until(text, |_| self.text().contains(text));
    }
}
