//! A worker's thread while its link takes nothing and does not tell when it does.

use std::os::unix::net::UnixDatagram;
use std::time::{Duration, Instant};

use devices::virtio::testing::{RecordingInterrupt, guest_ram};

use super::*;

/// Wants to send, and never can.
struct Blocked(Arc<AtomicUsize>);

impl VirtioWorker<GuestRam> for Blocked {
    fn queues(&self) -> &[u16] {
        &[0]
    }

    fn start(&mut self, _mem: &GuestRam, _queue: u16, _state: QueueState, _activation: &WorkerActivation) {}

    fn step(&mut self, _mem: &GuestRam) -> Step {
        self.0.fetch_add(1, Ordering::Relaxed);
        Step { want_writable: true, ..Step::default() }
    }

    fn begin_stop(&mut self, _mem: &GuestRam) {}

    fn poll_stopped(&mut self, _mem: &GuestRam, _abandon: bool) -> bool {
        true
    }

    fn take_state(&mut self, _queue: u16) -> Option<QueueState> {
        Some(QueueState::default())
    }
}

#[test]
fn a_full_link_is_tried_again_and_again_but_not_without_a_pause() {
    // A datagram socket is always writable.
    let (socket, _other) = UnixDatagram::pair().unwrap();
    let (steps, link) = (Arc::new(AtomicUsize::new(0)), Arc::new(LinkFd::new(socket.as_raw_fd())));
    link.set_full(true);
    let spec = WorkerSpec {
        name: "blocked".into(),
        worker: Box::new(Blocked(steps.clone())),
        wake: Arc::new(Event::new().unwrap()),
        backend_fd: Some(BackendFd::Link(link.clone())),
        counters: Vec::new(),
        poll_ns: 0,
    };
    let workers = DeviceWorkers::spawn(&guest_ram(0x1000), Rings::default(), vec![spec]).unwrap();
    let interrupt = RecordingInterrupt::new();
    workers.start(Activation { features: 0, legacy: true, queues: vec![(0, QueueState::default())], interrupt });
    let (start, first) = (Instant::now(), steps.load(Ordering::Relaxed));
    while steps.load(Ordering::Relaxed) < first + 20 {
        assert!(start.elapsed() < Duration::from_secs(60), "it is not tried again");
        std::thread::sleep(Duration::from_millis(1));
    }
    // However slow the machine, no two steps are closer than the pause.
    let most = start.elapsed().as_nanos() / u128::from(FULL_LINK_NS) + 3;
    let tried = steps.load(Ordering::Relaxed) - first;
    assert!((tried as u128) <= most, "{tried} times in {:?}", start.elapsed());
    // A link that is not full is believed.
    link.set_full(false);
    let before = steps.load(Ordering::Relaxed);
    while steps.load(Ordering::Relaxed) < before + 10_000 {
        assert!(start.elapsed() < Duration::from_secs(60), "it is not tried at once");
    }
    workers.join();
}
