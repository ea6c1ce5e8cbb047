use std::collections::VecDeque;
use std::os::unix::net::UnixStream;
use std::sync::Mutex;

use devices_host::poll::poll;
use tempfile::TempDir;

use super::*;

/// A port whose guest has written `output` and has room for `room` bytes.
#[derive(Default)]
struct Port {
    output: Mutex<VecDeque<u8>>,
    input: Mutex<Vec<u8>>,
    room: Mutex<usize>,
    breaks: Mutex<usize>,
}

impl Port {
    fn guest_writes(&self, bytes: &[u8]) {
        self.output.lock().unwrap().extend(bytes);
    }
    fn make_room(&self, room: usize) {
        *self.room.lock().unwrap() = room;
    }
    fn left(&self) -> usize {
        self.output.lock().unwrap().len()
    }
    fn received(&self) -> Vec<u8> {
        self.input.lock().unwrap().clone()
    }
}

impl SerialPort for Port {
    fn take_output(&self, bytes: &mut [u8]) -> usize {
        let mut output = self.output.lock().unwrap();
        let taken = bytes.len().min(output.len());
        for (to, from) in bytes.iter_mut().zip(output.drain(..taken)) {
            *to = from;
        }
        taken
    }
    fn push_input(&self, bytes: &[u8]) -> usize {
        let mut room = self.room.lock().unwrap();
        let pushed = bytes.len().min(*room);
        *room -= pushed;
        self.input.lock().unwrap().extend(&bytes[..pushed]);
        pushed
    }
    fn push_break(&self) {
        *self.breaks.lock().unwrap() += 1;
    }
}

fn turn(line: &mut Line, now_ns: u64) -> Turn {
    let mut fds = Vec::new();
    line.interest(&mut fds);
    assert_eq!(fds.len(), FDS);
    poll(&mut fds, Some(0)).unwrap();
    line.turn(&fds, now_ns)
}

fn turns(line: &mut Line, count: usize) {
    for _ in 0..count {
        turn(line, 0);
    }
}

/// A line on a socket, as a place in the file system and a port.
fn on_socket() -> (TempDir, Line, Arc<Port>) {
    on_socket_with(|_| ())
}

/// One that shuts out who comes second.
fn on_bhyves_socket() -> (TempDir, Line, Arc<Port>) {
    on_socket_with(End::turns_second_clients_away)
}

fn on_socket_with(set_up: impl FnOnce(&mut End)) -> (TempDir, Line, Arc<Port>) {
    let dir = TempDir::new().unwrap();
    let port = Arc::new(Port::default());
    port.make_room(usize::MAX);
    let mut end = End::socket(Listener::bind(&dir.path().join("s")).unwrap());
    set_up(&mut end);
    (dir, end.join("com1", port.clone()), port)
}

fn connect(dir: &TempDir, line: &mut Line) -> UnixStream {
    let client = UnixStream::connect(dir.path().join("s")).unwrap();
    client.set_nonblocking(true).unwrap();
    turn(line, 0);
    client
}

fn read(stream: &mut impl Read) -> Vec<u8> {
    let mut all = Vec::new();
    let mut bytes = [0; 4096];
    while let Ok(count @ 1..) = stream.read(&mut bytes) {
        all.extend_from_slice(&bytes[..count]);
    }
    all
}

/// A line on a pair of sockets that stand for a terminal: what is typed, and what is shown.
fn on_terminal() -> (UnixStream, Line, Arc<Port>) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    ours.set_nonblocking(true).unwrap();
    theirs.set_nonblocking(true).unwrap();
    let end = OwnedFd::from(theirs);
    let port = Arc::new(Port::default());
    port.make_room(usize::MAX);
    let line = End::terminal(end.try_clone().unwrap().into(), end.into(), false, true).join("com1", port.clone());
    (ours, line, port)
}

#[test]
fn output_without_a_reader_is_thrown_away_and_the_guest_goes_on() {
    for (_dir, mut line, port) in [on_socket(), {
        let port = Arc::new(Port::default());
        (TempDir::new().unwrap(), End::null().join("com2", port.clone()), port)
    }] {
        port.guest_writes(&[b'x'; 20_000]);
        assert!(!turn(&mut line, 0).again);
        assert_eq!((port.left(), line.has_output()), (0, false));
    }
}

#[test]
fn both_directions_of_a_socket_carry_every_byte() {
    let (dir, mut line, port) = on_socket();
    let mut client = connect(&dir, &mut line);
    port.guest_writes(b"login: ");
    client.write_all(b"root\n\x01x").unwrap();
    turn(&mut line, 0);
    assert_eq!((read(&mut client), port.received()), (b"login: ".to_vec(), b"root\n\x01x".to_vec()));
}

/// Whether a client has been disconnected, whatever it was sent before.
fn is_shut_out(client: &mut UnixStream) -> bool {
    loop {
        match client.read(&mut [0; 4096]) {
            Ok(0) => return true,
            Ok(_) => {}
            Err(error) => return error.kind() == ErrorKind::ConnectionReset,
        }
    }
}

#[test]
fn a_second_client_is_shut_out_at_once_and_the_first_does_not_notice() {
    let (dir, mut line, port) = on_bhyves_socket();
    let mut first = connect(&dir, &mut line);
    for _ in 0..3 {
        let mut second = UnixStream::connect(dir.path().join("s")).unwrap();
        second.set_nonblocking(true).unwrap();
        second.write_all(b"not for the guest").unwrap();
        turn(&mut line, 0);
        assert!(is_shut_out(&mut second));
    }
    port.guest_writes(b"hello");
    first.write_all(b"here").unwrap();
    turn(&mut line, 0);
    assert_eq!((read(&mut first), port.received()), (b"hello".to_vec(), b"here".to_vec()));
}

#[test]
fn the_next_client_is_served_when_the_first_has_gone() {
    for (dir, mut line, port) in [on_socket(), on_bhyves_socket()] {
        drop(connect(&dir, &mut line));
        // The line has not looked since: it finds one client gone and another there.
        let mut second = connect(&dir, &mut line);
        port.guest_writes(b"hello");
        turn(&mut line, 0);
        assert_eq!(read(&mut second), b"hello");
    }
}

#[test]
fn a_second_client_waits_for_the_first_one_to_go_where_it_is_not_shut_out() {
    let (dir, mut line, port) = on_socket();
    let first = connect(&dir, &mut line);
    let mut second = connect(&dir, &mut line);
    second.write_all(b"second").unwrap();
    port.guest_writes(b"for the first");
    turns(&mut line, 2);
    assert_eq!(port.received(), b"");
    drop(first);
    turns(&mut line, 2);
    port.guest_writes(b"hello");
    turn(&mut line, 0);
    assert_eq!((read(&mut second), port.received()), (b"hello".to_vec(), b"second".to_vec()));
}

#[test]
fn a_client_that_comes_again_between_the_poll_and_the_turn_is_served() {
    let (dir, mut line, port) = on_bhyves_socket();
    let first = connect(&dir, &mut line);
    let mut second = UnixStream::connect(dir.path().join("s")).unwrap();
    second.set_nonblocking(true).unwrap();
    let mut fds = Vec::new();
    line.interest(&mut fds);
    poll(&mut fds, Some(0)).unwrap();
    assert!(fds[0].is_readable() && !fds[2].is_hung_up());
    drop(first);
    line.turn(&fds, 0);
    port.guest_writes(b"hello");
    turn(&mut line, 0);
    assert_eq!(read(&mut second), b"hello");
}

#[test]
fn what_the_guest_wrote_while_nobody_was_there_is_not_kept_for_the_next_client() {
    let (dir, mut line, port) = on_socket();
    port.guest_writes(b"early");
    turn(&mut line, 0);
    let first = connect(&dir, &mut line);
    port.guest_writes(&vec![b'x'; 1_000_000]);
    turns(&mut line, 50);
    assert!(line.has_output(), "it does not read");
    drop(first);
    turns(&mut line, 100);
    let mut second = connect(&dir, &mut line);
    port.guest_writes(b"now");
    turn(&mut line, 0);
    assert_eq!((read(&mut second), port.left()), (b"now".to_vec(), 0));
}

#[test]
fn what_a_client_wrote_before_it_left_still_reaches_a_slow_guest() {
    let (dir, mut line, port) = on_socket();
    port.make_room(3);
    let mut client = connect(&dir, &mut line);
    client.write_all(&[b'a'; 5000]).unwrap();
    drop(client);
    turns(&mut line, 3);
    let mut next = connect(&dir, &mut line);
    next.write_all(b"b").unwrap();
    port.make_room(usize::MAX);
    turns(&mut line, 3);
    let received = port.received();
    assert_eq!((received.len(), received.last()), (5001, Some(&b'b')));
}

#[test]
fn a_client_that_closes_its_sending_side_is_gone_and_what_it_sent_is_the_guests() {
    let (dir, mut line, port) = on_socket();
    let mut client = connect(&dir, &mut line);
    client.write_all(b"ls\n").unwrap();
    client.shutdown(std::net::Shutdown::Write).unwrap();
    turns(&mut line, 2);
    assert!(is_shut_out(&mut client));
    assert_eq!(port.received(), b"ls\n");
    let mut next = connect(&dir, &mut line);
    port.guest_writes(b"file\n");
    turn(&mut line, 0);
    assert_eq!(read(&mut next), b"file\n");
}

#[test]
fn a_client_sends_no_faster_than_the_guest_reads() {
    let (dir, mut line, port) = on_socket();
    port.make_room(100);
    let mut client = connect(&dir, &mut line);
    let mut sent = 0;
    while let Ok(count) = client.write(&[b'a'; 4096]) {
        sent += count;
        turns(&mut line, 3);
    }
    assert!(sent > 0 && line.to_guest.len() <= 1024, "the rest waits in the socket");
    port.make_room(usize::MAX);
    while port.received().len() < sent {
        turn(&mut line, 0);
    }
    assert_eq!(port.received().len(), sent);
}

#[test]
fn a_slow_reader_holds_the_guest_back_and_loses_nothing() {
    let (dir, mut line, port) = on_socket();
    let mut client = connect(&dir, &mut line);
    let written: Vec<u8> = (0..2_000_000_u32).map(|i| i as u8).collect();
    port.guest_writes(&written);
    let mut received = Vec::new();
    turns(&mut line, 50);
    assert!(port.left() > 0 && line.to_peer.len() == PENDING);
    while received.len() < written.len() {
        received.extend(read(&mut client));
        turn(&mut line, 0);
    }
    assert_eq!(received, written);
}

#[test]
fn a_reader_that_stops_for_a_second_is_absent_until_it_reads_again() {
    let (dir, mut line, port) = on_socket();
    let mut client = connect(&dir, &mut line);
    port.guest_writes(&vec![b'a'; 2_000_000]);
    turns(&mut line, 50);
    let deadline_ns = line.deadline_ns().unwrap();
    assert_eq!(deadline_ns, PATIENCE_NS);
    turn(&mut line, deadline_ns - 1);
    assert!(port.left() > 0);
    while turn(&mut line, deadline_ns).again {}
    assert_eq!((port.left(), line.deadline_ns()), (0, None));
    let (kept, dropped) = (line.to_peer.len(), line.dropped_bytes as usize);
    let received = read(&mut client).len();
    assert_eq!(received + kept + dropped, 2_000_000);
    port.guest_writes(b"!");
    turn(&mut line, deadline_ns);
    assert_eq!((line.stalled, read(&mut client).last()), (false, Some(&b'!')));
}

#[test]
fn one_turn_does_not_last_as_long_as_the_guest_writes() {
    let (_dir, mut line, port) = on_socket();
    port.guest_writes(&vec![0; 1_000_000]);
    assert!(turn(&mut line, 0).again);
    assert!(port.left() > 0);
}

#[test]
fn the_terminal_is_left_with_control_a_x_even_while_the_guest_reads_nothing() {
    let (mut user, mut line, port) = on_terminal();
    port.make_room(0);
    for _ in 0..200 {
        user.write_all(&[b'a'; 1024]).unwrap();
        assert!(!turn(&mut line, 0).leave);
    }
    assert_eq!(line.to_guest.len(), PENDING);
    user.write_all(b"\x01x").unwrap();
    assert!(turn(&mut line, 0).leave);
}

#[test]
fn words_typed_on_the_terminal_do_not_reach_the_guest() {
    let (mut user, mut line, port) = on_terminal();
    user.write_all(b"a\x01b\x01hc\x01\x01").unwrap();
    turn(&mut line, 0);
    assert_eq!((port.received(), *port.breaks.lock().unwrap()), (b"ac\x01".to_vec(), 1));
    assert_eq!(read(&mut user), HELP.as_bytes());
}

#[test]
fn a_closed_input_leaves_the_output_working_and_nothing_spins() {
    let (user, mut line, port) = on_terminal();
    user.shutdown(std::net::Shutdown::Write).unwrap();
    turn(&mut line, 0);
    let mut fds = Vec::new();
    line.interest(&mut fds);
    assert_eq!(poll(&mut fds, Some(0)).unwrap(), 0);
    port.guest_writes(b"still here");
    turn(&mut line, 0);
    assert_eq!(read(&mut &user), b"still here");
    drop(user);
    turn(&mut line, 0);
    fds.clear();
    line.interest(&mut fds);
    assert_eq!(poll(&mut fds, Some(0)).unwrap(), 0);
}

#[test]
fn an_output_that_can_block_is_written_only_when_it_has_room() {
    let (mut reader, writer) = std::io::pipe().unwrap();
    let input = File::open("/dev/null").unwrap();
    let port = Arc::new(Port::default());
    let mut line = End::terminal(input, OwnedFd::from(writer).into(), true, false).join("com1", port.clone());
    port.guest_writes(&vec![b'x'; 300_000]);
    // The pipe holds 64 KiB: a blocking write beyond that would hang this test.
    turns(&mut line, 2000);
    assert!(port.left() > 0 && line.has_output());
    let mut bytes = [0; 100];
    reader.read_exact(&mut bytes).unwrap();
    assert_eq!(bytes, [b'x'; 100]);
}

#[test]
fn a_full_file_system_loses_output_and_nothing_else() {
    let file = std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    let port = Arc::new(Port::default());
    let mut line = End::file(file).join("com1", port.clone());
    port.guest_writes(b"lost");
    turn(&mut line, 0);
    assert_eq!((port.left(), line.has_output(), line.failing), (0, false, true));
}

/// A line that the metadata responder answers.
fn on_metadata(value: &str) -> (Line, Arc<Port>) {
    let port = Arc::new(Port::default());
    let metadata = [("a".to_owned(), value.as_bytes().to_vec())].into();
    (End::metadata(Responder::new(metadata)).join("com2", port.clone()), port)
}

#[test]
fn the_metadata_responder_answers_a_guest_in_one_turn_and_waits_for_nothing_of_the_host() {
    let (mut line, port) = on_metadata("one");
    port.make_room(usize::MAX);
    port.guest_writes(b"\nGET a\nKEYS\n");
    assert!(!turn(&mut line, 0).again);
    assert_eq!(port.received(), b"invalid command\nSUCCESS\none\n.\nSUCCESS\na\n.\n");
    let mut fds = Vec::new();
    line.interest(&mut fds);
    assert_eq!((poll(&mut fds, Some(0)).unwrap(), line.deadline_ns(), line.has_output()), (0, None, false));
}

#[test]
fn a_guest_that_reads_slowly_gets_every_answer_whole() {
    let value = "v".repeat(3000);
    let (mut line, port) = on_metadata(&value);
    port.guest_writes(&b"GET a\n".repeat(200));
    let expected = format!("SUCCESS\n{value}\n.\n").repeat(200);
    while port.received().len() < expected.len() {
        port.make_room(37);
        turn(&mut line, 0);
    }
    assert!(port.received() == expected.as_bytes());
}

#[test]
fn a_guest_that_asks_and_never_reads_is_held_back_and_nothing_grows_or_spins() {
    let (mut line, port) = on_metadata("one");
    port.guest_writes(&b"GET a\n".repeat(100_000));
    while turn(&mut line, 0).again {}
    let left = port.left();
    assert!(left > 500_000 && line.to_peer.len() <= 256);
    assert_eq!((turn(&mut line, 0).again, port.left()), (false, left));
    assert_eq!(line.deadline_ns(), None);
    port.make_room(usize::MAX);
    while turn(&mut line, 0).again {}
    assert_eq!((port.left(), port.received().len()), (0, 100_000 * b"SUCCESS\none\n.\n".len()));
}

#[test]
fn a_reset_guest_is_not_taken_at_its_half_word_and_gets_no_old_answer() {
    let (mut line, port) = on_metadata("one");
    port.guest_writes(b"KEYS\nGET ");
    turn(&mut line, 0);
    line.guest_was_reset();
    port.make_room(usize::MAX);
    port.guest_writes(b"\n");
    turn(&mut line, 0);
    assert_eq!(port.received(), b"invalid command\n");
}
