use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::*;
use crate::config::OnReset;
use crate::control::inbox::EventSender;
use crate::control::{DiskResize, LinkChange, MachineEvent, SerialPort};

type Start = Box<dyn FnOnce(&EventSender) + Send>;

/// A guest that does one thing when it starts.
struct Guest {
    on_start: Mutex<Option<Start>>,
    sender: EventSender,
    orders: Mutex<Vec<&'static str>>,
    unanswered: Mutex<Option<Ticket>>,
}

impl Guest {
    fn order(&self, order: &'static str) {
        self.orders.lock().unwrap().push(order);
    }
}

impl Machine for Guest {
    fn pause(&self) {
        self.order("pause");
    }
    fn resume(&self) {
        self.order("resume");
        if let Some(start) = self.on_start.lock().unwrap().take() {
            start(&self.sender);
        }
    }
    fn press_power_button(&self) {
        self.order("press");
        self.sender.send(MachineEvent::GuestPowerOff);
    }
    fn reset(&self) {
        self.order("reset");
        self.sender.send(MachineEvent::ResetDone);
        self.sender.send(MachineEvent::GuestPowerOff);
    }
    fn stop(&self) {
        self.order("stop");
    }
    fn join(&self) {
        self.order("join");
        if let Some(ticket) = self.unanswered.lock().unwrap().take() {
            self.sender.answer(ticket, Err("the guest has ended".to_owned()));
        }
    }
    fn leave(&self, restart: bool) {
        self.order(if restart { "leave for the next" } else { "leave" });
    }
    fn inject_nmi(&self, _vcpu: u8) {}
    fn stats(&self) -> serde_json::Value {
        json!({})
    }
    fn set_link(&self, change: &LinkChange) -> Result<(), String> {
        self.order(if change.up { "plug" } else { "pull" });
        if change.name == "net0" { Ok(()) } else { Err(format!("Device '{}' not found", change.name)) }
    }
    /// Takes a moment, or until the end where the disk is called so.
    fn resize_disk(&self, resize: &DiskResize, ticket: Ticket) {
        self.order("resize");
        let sender = self.sender.clone();
        if resize.disk == "endless" {
            *self.unanswered.lock().unwrap() = Some(ticket);
            return;
        }
        std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(20));
            sender.answer(ticket, Ok(()));
        });
    }
}

fn run(
    on_start: impl FnOnce(&EventSender) + Send + 'static,
    timers: Vec<Arc<dyn Timed>>,
    lines: Lines,
) -> (Exit, Vec<&'static str>) {
    run_with(Policy::default(), on_start, timers, lines, None)
}

fn run_with(
    policy: Policy,
    on_start: impl FnOnce(&EventSender) + Send + 'static,
    timers: Vec<Arc<dyn Timed>>,
    lines: Lines,
    qmp: Option<QmpServer>,
) -> (Exit, Vec<&'static str>) {
    run_watching(policy, on_start, timers, lines, qmp, Vec::new())
}

fn run_watching(
    policy: Policy,
    on_start: impl FnOnce(&EventSender) + Send + 'static,
    timers: Vec<Arc<dyn Timed>>,
    lines: Lines,
    qmp: Option<QmpServer>,
    watches: Vec<Arc<dyn Watched>>,
) -> (Exit, Vec<&'static str>) {
    let inbox = Inbox::new().unwrap();
    let machine = Arc::new(Guest {
        on_start: Mutex::new(Some(Box::new(on_start))),
        sender: inbox.sender(),
        orders: Mutex::default(),
        unanswered: Mutex::default(),
    });
    let built = Built { machine: machine.clone(), ports: Vec::new(), timers, watches };
    let exit = MainLoop::new(inbox, policy, 1, built, lines, qmp).run();
    let orders = machine.orders.lock().unwrap().clone();
    (exit, orders)
}

/// Ends the guest when its event has come for the third time.
struct Third {
    event: devices_host::Event,
    times: AtomicU64,
    sender: Mutex<Option<EventSender>>,
}

impl AsRawFd for Third {
    fn as_raw_fd(&self) -> std::os::fd::RawFd {
        self.event.as_raw_fd()
    }
}

impl Watched for Third {
    fn ready(&self) {
        self.event.clear();
        match self.times.fetch_add(1, Ordering::Relaxed) {
            2 => self.sender.lock().unwrap().as_ref().unwrap().send(MachineEvent::GuestPowerOff),
            _ => self.event.wake(),
        }
    }
}

#[test]
fn what_devices_watch_of_the_host_is_looked_at_when_it_is_ready_and_only_then() {
    let (event, times, sender) = (devices_host::Event::new().unwrap(), AtomicU64::new(0), Mutex::default());
    let watch = Arc::new(Third { event, times, sender });
    let quiet = Arc::new(Third {
        event: devices_host::Event::new().unwrap(),
        times: AtomicU64::new(0),
        sender: Mutex::default(),
    });
    let dir = tempfile::TempDir::new().unwrap();
    // Clients' descriptors come behind those of watches.
    let server = QmpServer::new(crate::control::Listener::bind(&dir.path().join("qmp")).unwrap());
    let starter = watch.clone();
    let start = move |events: &EventSender| {
        *starter.sender.lock().unwrap() = Some(events.clone());
        starter.event.wake();
    };
    let watches: Vec<Arc<dyn Watched>> = vec![quiet.clone(), watch.clone()];
    let (exit, _) = run_watching(Policy::default(), start, Vec::new(), Lines::default(), Some(server), watches);
    assert_eq!((exit, watch.times.load(Ordering::Relaxed), quiet.times.load(Ordering::Relaxed)), (Exit::Done, 3, 0));
}

#[test]
fn a_guest_runs_until_it_powers_off_and_its_threads_are_waited_for() {
    let (exit, orders) = run(|events| events.send(MachineEvent::GuestPowerOff), Vec::new(), Lines::default());
    assert_eq!((exit, orders), (Exit::Done, vec!["resume", "stop", "join", "leave"]));
}

#[test]
fn a_report_from_another_thread_wakes_the_loop() {
    let start = |events: &EventSender| {
        let events = events.clone();
        std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(20));
            events.send(MachineEvent::GuestReset { source: "test" });
        });
    };
    let (exit, orders) = run(start, Vec::new(), Lines::default());
    assert_eq!((exit, orders), (Exit::Done, vec!["resume", "reset", "stop", "join", "leave"]));
}

#[test]
fn sigterm_becomes_the_power_button() {
    let start = |events: &EventSender| events.send_signal(crate::control::signals::Signal::Terminate);
    let (exit, orders) = run(start, Vec::new(), Lines::default());
    assert_eq!((exit, orders), (Exit::Done, vec!["resume", "press", "stop", "join", "leave"]));
}

/// Ends the guest at a moment of its own.
struct Alarm {
    at_ns: AtomicU64,
    ticked_ns: AtomicU64,
    sender: Mutex<Option<EventSender>>,
}

impl Timed for Alarm {
    fn deadline_ns(&self) -> Option<u64> {
        Some(self.at_ns.load(Ordering::Relaxed)).filter(|at_ns| *at_ns != 0)
    }
    fn tick(&self, now_ns: u64) {
        self.at_ns.store(0, Ordering::Relaxed);
        self.ticked_ns.store(now_ns, Ordering::Relaxed);
        self.sender.lock().unwrap().as_ref().unwrap().send(MachineEvent::GuestPowerOff);
    }
}

#[test]
fn a_timer_is_ticked_at_its_moment_and_one_set_later_is_seen_after_a_wake() {
    let alarm = Arc::new(Alarm { at_ns: 0.into(), ticked_ns: 0.into(), sender: Mutex::default() });
    let at_ns = clock::monotonic_ns() + 60_000_000;
    let start = {
        let alarm = alarm.clone();
        move |events: &EventSender| {
            *alarm.sender.lock().unwrap() = Some(events.clone());
            let events = events.clone();
            std::thread::spawn(move || {
                std::thread::sleep(Duration::from_millis(20));
                alarm.at_ns.store(at_ns, Ordering::Relaxed);
                devices::wake::Wake::wake(&events);
            });
        }
    };
    run(start, vec![alarm.clone()], Lines::default());
    let late_ns = alarm.ticked_ns.load(Ordering::Relaxed).checked_sub(at_ns).unwrap();
    assert!(late_ns < 500_000_000, "{late_ns}");
}

/// A port whose guest writes one last line and never again.
struct LastWords(Mutex<Vec<u8>>);

impl SerialPort for LastWords {
    fn take_output(&self, bytes: &mut [u8]) -> usize {
        let mut words = self.0.lock().unwrap();
        let count = bytes.len().min(words.len());
        bytes[..count].copy_from_slice(&words[..count]);
        words.drain(..count);
        count
    }
    fn push_input(&self, bytes: &[u8]) -> usize {
        bytes.len()
    }
}

#[test]
fn the_guests_last_words_are_written_before_the_process_ends() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let words = vec![b'w'; 200_000];
    let port = Arc::new(LastWords(Mutex::new(words.clone())));
    let line = crate::control::line::End::file(file.reopen().unwrap()).join("com1", port);
    run(|events| events.send(MachineEvent::GuestPowerOff), Vec::new(), Lines::new(vec![line]));
    assert!(std::fs::read(file.path()).unwrap() == words);
}

/// A guest that has written half a request before its first reset, and the other half of another one after it.
struct HalfWords {
    said: Mutex<Vec<u8>>,
    heard: Mutex<Vec<u8>>,
    looks: AtomicU64,
}

impl SerialPort for HalfWords {
    fn take_output(&self, bytes: &mut [u8]) -> usize {
        self.looks.fetch_add(1, Ordering::Relaxed);
        let said = std::mem::take(&mut *self.said.lock().unwrap());
        bytes[..said.len()].copy_from_slice(&said);
        said.len()
    }
    fn push_input(&self, bytes: &[u8]) -> usize {
        self.heard.lock().unwrap().extend_from_slice(bytes);
        bytes.len()
    }
}

#[test]
fn the_metadata_responder_hears_of_a_reset_of_the_guest() {
    let port = Arc::new(HalfWords { said: Mutex::new(b"GET ".to_vec()), heard: Mutex::default(), looks: 0.into() });
    let metadata = [("a".to_owned(), b"1".to_vec())].into();
    let line = crate::control::line::End::metadata(crate::control::Responder::new(metadata)).join("com2", port.clone());
    let guest = port.clone();
    let start = move |events: &EventSender| {
        let events = events.clone();
        std::thread::spawn(move || {
            let wake_until = |done: &dyn Fn() -> bool| {
                while !done() {
                    devices::wake::Wake::wake(&events);
                    std::thread::yield_now();
                }
            };
            wake_until(&|| guest.said.lock().unwrap().is_empty());
            events.send(MachineEvent::ResetDone);
            // The next look may belong to a turn that has emptied its inbox already.
            let looks = guest.looks.load(Ordering::Relaxed);
            wake_until(&|| guest.looks.load(Ordering::Relaxed) >= looks + 2);
            *guest.said.lock().unwrap() = b"a\n".to_vec();
            wake_until(&|| !guest.heard.lock().unwrap().is_empty());
            events.send(MachineEvent::GuestPowerOff);
        });
    };
    run(start, Vec::new(), Lines::new(vec![line]));
    assert_eq!(*port.heard.lock().unwrap(), b"FAILURE\n", "and not the value of 'a'");
}

#[test]
fn control_a_x_on_the_terminal_ends_the_guest() {
    use std::io::Write;
    let (mut user, theirs) = std::os::unix::net::UnixStream::pair().unwrap();
    let theirs = std::os::fd::OwnedFd::from(theirs);
    let (input, output) = (theirs.try_clone().unwrap().into(), theirs.into());
    let port = Arc::new(LastWords(Mutex::default()));
    let line = crate::control::line::End::terminal(input, output, false, true).join("com1", port);
    let start = move |_: &EventSender| user.write_all(b"\x01x").unwrap();
    let (exit, orders) = run(start, Vec::new(), Lines::new(vec![line]));
    assert_eq!((exit, orders), (Exit::Done, vec!["resume", "stop", "join", "leave"]));
}

#[test]
fn a_client_of_the_control_socket_pauses_resumes_and_ends_the_guest() {
    use std::io::{BufRead, BufReader, Write};
    let dir = tempfile::TempDir::new().unwrap();
    let path = dir.path().join("qmp");
    let server = QmpServer::new(crate::control::Listener::bind(&path).unwrap());
    let client = std::thread::spawn(move || {
        let stream = std::os::unix::net::UnixStream::connect(&path).unwrap();
        let commands = ["qmp_capabilities", "query-status", "stop", "query-status", "cont", "system_powerdown"];
        for command in commands {
            writeln!(&stream, "{{\"execute\":\"{command}\"}}").unwrap();
        }
        let lines = BufReader::new(stream).lines().map_while(Result::ok);
        lines.map(|line| serde_json::from_str(&line).unwrap()).collect::<Vec<serde_json::Value>>()
    });
    let (exit, orders) = run_with(Policy::default(), |_| (), Vec::new(), Lines::default(), Some(server));
    assert_eq!((exit, orders), (Exit::Done, vec!["resume", "pause", "resume", "press", "stop", "join", "leave"]));
    let told: Vec<String> = client
        .join()
        .unwrap()
        .iter()
        .map(|line| {
            let event = line["event"].as_str().map(str::to_owned);
            event.or(line["return"]["status"].as_str().map(str::to_owned)).unwrap_or_else(|| "-".to_owned())
        })
        .collect();
    assert_eq!(told, ["-", "-", "running", "STOP", "-", "paused", "RESUME", "-", "POWERDOWN", "-", "SHUTDOWN"]);
}

#[test]
fn an_order_that_takes_its_time_is_answered_in_its_place_and_at_the_end_of_the_guest_at_the_latest() {
    use std::io::{BufRead, BufReader, Write};
    let dir = tempfile::TempDir::new().unwrap();
    let path = dir.path().join("qmp");
    let server = QmpServer::new(crate::control::Listener::bind(&path).unwrap());
    let client = std::thread::spawn(move || {
        let connect = || std::os::unix::net::UnixStream::connect(&path).unwrap();
        let [one, two] = [connect(), connect()];
        let resize = |disk| format!("{{\"execute\":\"block_resize\",\"arguments\":{{\"device\":\"{disk}\"}}}}");
        write!(&one, "{{\"execute\":\"qmp_capabilities\"}}{}{{\"execute\":\"stop\"}}", resize("disk0")).unwrap();
        write!(&one, "{}{{\"execute\":\"cont\"}}", resize("endless")).unwrap();
        let read = |stream| {
            let lines = BufReader::new(stream).lines().map_while(Result::ok);
            lines.map(|line| serde_json::from_str::<serde_json::Value>(&line).unwrap())
        };
        let mut lines = read(one);
        let first: Vec<_> = lines.by_ref().take(5).collect();
        write!(&two, "{{\"execute\":\"qmp_capabilities\"}}{{\"execute\":\"quit\"}}").unwrap();
        read(two).for_each(drop);
        (first, lines.collect::<Vec<_>>())
    });
    let (exit, orders) = run_with(Policy::default(), |_| (), Vec::new(), Lines::default(), Some(server));
    assert_eq!((exit, orders), (Exit::Done, vec!["resume", "resize", "pause", "resize", "stop", "join", "leave"]));
    let (first, last) = client.join().unwrap();
    assert_eq!(first[2..], [json!({"return": {}}), first[3].clone(), json!({"return": {}})]);
    assert_eq!(first[3]["event"], "STOP");
    let ended = json!({"error": {"class": "GenericError", "desc": "the guest has ended"}});
    assert_eq!((&last[0]["event"], &last[1..]), (&json!("SHUTDOWN"), [ended.clone(), ended].as_slice()));
}

#[test]
fn a_link_is_set_at_once_and_an_unknown_one_is_an_error_of_its_own_class() {
    use std::io::{BufRead, BufReader, Write};
    let dir = tempfile::TempDir::new().unwrap();
    let path = dir.path().join("qmp");
    let server = QmpServer::new(crate::control::Listener::bind(&path).unwrap());
    let client = std::thread::spawn(move || {
        let stream = std::os::unix::net::UnixStream::connect(&path).unwrap();
        write!(&stream, "{{\"execute\":\"qmp_capabilities\"}}").unwrap();
        for (name, up) in [("net0", false), ("net0", true), ("net9", false)] {
            let arguments = json!({"name": name, "up": up});
            write!(&stream, "{}", json!({"execute": "set_link", "arguments": arguments})).unwrap();
        }
        write!(&stream, "{{\"execute\":\"quit\"}}").unwrap();
        let lines = BufReader::new(stream).lines().map_while(Result::ok);
        lines.map(|line| serde_json::from_str::<serde_json::Value>(&line).unwrap()).collect::<Vec<_>>()
    });
    let (exit, orders) = run_with(Policy::default(), |_| (), Vec::new(), Lines::default(), Some(server));
    assert_eq!((exit, orders), (Exit::Done, vec!["resume", "pull", "plug", "pull", "stop", "join", "leave"]));
    let unknown = json!({"error": {"class": "DeviceNotFound", "desc": "Device 'net9' not found"}});
    assert_eq!(client.join().unwrap()[2..5], [json!({"return": {}}), json!({"return": {}}), unknown]);
}

#[test]
fn a_guest_that_is_started_again_is_left_for_the_next_process_and_no_other_is() {
    let end = |restarted, on_reset| {
        let policy = Policy { restarted, on_reset, ..Policy::default() };
        let reset = |sender: &EventSender| sender.send(MachineEvent::GuestReset { source: "test" });
        let (_, orders) = run_with(policy, reset, Vec::new(), Lines::default(), None);
        *orders.last().unwrap()
    };
    assert_eq!(end(true, OnReset::Exit), "leave for the next");
    assert_eq!(end(false, OnReset::Exit), "leave");
    assert_eq!(end(true, OnReset::Restart), "leave", "it powered off in the end");
}
