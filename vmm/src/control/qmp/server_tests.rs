use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::time::Duration;

use serde_json::json;
use tempfile::TempDir;

use super::*;
use crate::control::{Command, DiskResize};

struct Place {
    _dir: TempDir,
    path: PathBuf,
    server: QmpServer,
}

fn place() -> Place {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("qmp");
    let server = QmpServer::new(Listener::bind(&path).unwrap());
    Place { _dir: dir, path, server }
}

impl Place {
    fn connect(&mut self) -> BufReader<UnixStream> {
        let stream = UnixStream::connect(&self.path).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        self.turn();
        BufReader::new(stream)
    }

    fn turn(&mut self) {
        let mut fds = Vec::new();
        self.server.interest(&mut fds);
        poll(&mut fds, Some(0)).unwrap();
        self.server.ready(&fds, &mut act);
    }

    fn answer(&mut self, ticket: u64, result: Result<Value, (ErrorClass, String)>) {
        self.server.answer(Ticket(ticket), result, &mut act);
    }

    fn ask(&mut self, client: &mut BufReader<UnixStream>, text: &str) {
        client.get_mut().write_all(text.as_bytes()).unwrap();
        self.turn();
    }
}

/// A main loop in which pausing works, a disk takes its time (its ticket is the size), and everything else fails.
fn act(order: Order) -> Outcome {
    match order {
        Order::Command(Command::Pause) => Outcome::Now(Ok(json!({})), vec![Event::Stopped]),
        Order::ResizeDisk(DiskResize { size_bytes, .. }) => Outcome::Later(Ticket(size_bytes.unwrap_or_default())),
        _ => Outcome::Now(Err((ErrorClass::GenericError, "no".to_owned())), Vec::new()),
    }
}

fn line(client: &mut BufReader<UnixStream>) -> Value {
    let mut line = String::new();
    client.read_line(&mut line).unwrap();
    if line.is_empty() { Value::Null } else { serde_json::from_str(&line).unwrap() }
}

#[test]
fn a_client_that_does_not_wait_for_the_greeting_is_served() {
    let mut place = place();
    let mut client = place.connect();
    place.ask(&mut client, "{\"execute\":\"qmp_capabilities\",\"id\":0}\n{\"execute\":\"stop\",\"id\":1}\n");
    assert!(line(&mut client)["QMP"].is_object());
    assert_eq!(line(&mut client), json!({"return": {}, "id": 0}));
    assert_eq!(line(&mut client)["event"], "STOP");
    assert_eq!(line(&mut client), json!({"return": {}, "id": 1}));
}

#[test]
fn a_failed_order_is_answered_under_its_id() {
    let mut place = place();
    let mut client = place.connect();
    place.ask(&mut client, "{\"execute\":\"qmp_capabilities\"}{\"execute\":\"cont\",\"id\":\"x\"}");
    line(&mut client);
    line(&mut client);
    assert_eq!(line(&mut client), json!({"error": {"class": "GenericError", "desc": "no"}, "id": "x"}));
}

#[test]
fn events_go_to_every_client_that_has_negotiated() {
    let mut place = place();
    let (mut one, mut two, mut fresh) = (place.connect(), place.connect(), place.connect());
    for client in [&mut one, &mut two] {
        place.ask(client, "{\"execute\":\"qmp_capabilities\"}\n");
        line(client);
        line(client);
    }
    place.ask(&mut one, "{\"execute\":\"stop\"}\n");
    assert_eq!((line(&mut one)["event"].clone(), line(&mut two)["event"].clone()), (json!("STOP"), json!("STOP")));
    assert!(line(&mut fresh)["QMP"].is_object());
    fresh.get_ref().set_nonblocking(true).unwrap();
    assert_eq!(fresh.fill_buf().unwrap_err().kind(), ErrorKind::WouldBlock);
}

#[test]
fn one_client_too_many_is_told_so_and_a_place_becomes_free_again() {
    let mut place = place();
    let mut clients: Vec<_> = (0..MAX_CLIENTS).map(|_| place.connect()).collect();
    let mut refused = place.connect();
    assert_eq!(line(&mut refused)["error"]["desc"], "there are already 8 clients");
    assert_eq!(line(&mut refused), Value::Null);
    clients.pop();
    place.turn();
    let mut next = place.connect();
    assert!(line(&mut next)["QMP"].is_object());
}

#[test]
fn a_client_that_closes_its_sending_side_still_gets_its_answers() {
    let mut place = place();
    let mut client = place.connect();
    client.get_mut().write_all(b"{\"execute\":\"qmp_capabilities\"}").unwrap();
    client.get_ref().shutdown(std::net::Shutdown::Write).unwrap();
    place.turn();
    place.turn();
    line(&mut client);
    assert_eq!(line(&mut client), json!({"return": {}}));
    assert_eq!(line(&mut client), Value::Null);
    assert!(place.server.clients.is_empty());
}

/// As `socat` does at the end of its input. On illumos, where one has to ask whether there is room, what did not fit into the
/// socket was lost.
#[test]
fn a_client_that_closes_its_sending_side_before_it_reads_gets_every_answer() {
    let mut place = place();
    let mut client = place.connect();
    place.ask(&mut client, "{\"execute\":\"qmp_capabilities\"}");
    let mut commands = 0;
    while place.server.clients[0].unsent.len() < FULL / 4 {
        place.ask(&mut client, &"{\"execute\":\"query-version\"}\n".repeat(10));
        commands += 10;
    }
    client.get_ref().shutdown(std::net::Shutdown::Write).unwrap();
    (0..3).for_each(|_| place.turn());
    let reader = std::thread::spawn(move || client.lines().map_while(Result::ok).count());
    place.server.flush(30_000_000_000);
    place.turn();
    assert!(place.server.clients.is_empty());
    // The greeting and the negotiation come first.
    assert_eq!(reader.join().unwrap(), 2 + commands);
}

#[test]
fn a_client_that_never_reads_is_held_back_and_then_let_go() {
    let mut place = place();
    let mut client = place.connect();
    place.ask(&mut client, "{\"execute\":\"qmp_capabilities\"}\n");
    client.get_ref().set_nonblocking(true).unwrap();
    let flood = "{\"execute\":\"query-commands\"}\n".repeat(1000);
    for _ in 0..1000 {
        let _ = client.get_mut().write(flood.as_bytes());
        place.turn();
    }
    let unsent = place.server.clients[0].unsent.len();
    assert!((FULL..2 * TOO_FULL).contains(&unsent), "{unsent}");
    for _ in 0..20_000 {
        place.server.tell(&Event::Stopped);
    }
    place.turn();
    assert!(place.server.clients.is_empty());
}

/// Ten thousand commands by a client that reads nothing until it has sent them all, or cannot send more.
fn flood(place: &mut Place) -> BufReader<UnixStream> {
    let mut client = place.connect();
    place.ask(&mut client, "{\"execute\":\"qmp_capabilities\"}\n");
    client.get_ref().set_nonblocking(true).unwrap();
    client
}

#[test]
fn ten_thousand_commands_before_the_first_answer_is_read_are_answered_one_by_one_and_take_little_memory() {
    const COMMANDS: usize = 10_000;
    let mut place = place();
    let mut client = flood(&mut place);
    let sent: String = (0..COMMANDS).map(|id| format!("{{\"execute\":\"query-version\",\"id\":{id}}}\n")).collect();
    let (mut left, mut answers, mut most) = (sent.as_bytes(), Vec::new(), 0);
    let mut lines = 0;
    let mut piece = vec![0; 1 << 16];
    while lines < COMMANDS + 2 {
        let wrote = client.get_mut().write(left).unwrap_or(0);
        left = &left[wrote..];
        place.turn();
        let kept = &place.server.clients[0];
        most = most.max(kept.unsent.len() + kept.unheard.len());
        // It reads only once it is not heard any more, or has sent all.
        if left.is_empty() || !place.server.clients[0].wants_input() {
            let read = client.get_mut().read(&mut piece).unwrap_or(0);
            lines += piece[..read].iter().filter(|byte| **byte == b'\n').count();
            answers.extend_from_slice(&piece[..read]);
        }
    }
    assert!((FULL..FULL + 16 * 1024).contains(&most), "{most}");
    let lines: Vec<Value> =
        answers.split(|byte| *byte == b'\n').filter_map(|line| serde_json::from_slice(line).ok()).collect();
    let ids: Vec<_> = lines[2..].iter().map(|line| line["id"].as_u64().unwrap()).collect();
    assert_eq!(ids, (0..COMMANDS as u64).collect::<Vec<_>>());
}

#[test]
fn a_client_that_reads_nothing_keeps_no_other_from_being_served() {
    let mut place = place();
    let mut mute = flood(&mut place);
    let commands = "{\"execute\":\"query-commands\"}\n".repeat(1000);
    let mut other = place.connect();
    place.ask(&mut other, "{\"execute\":\"qmp_capabilities\"}\n");
    (0..2).for_each(|_| drop(line(&mut other)));
    for _ in 0..1000 {
        let _ = mute.get_mut().write(commands.as_bytes());
        place.ask(&mut other, "{\"execute\":\"query-version\",\"id\":5}\n");
        assert_eq!(line(&mut other)["id"], 5);
    }
    assert!(place.server.clients[0].unsent.len() >= FULL);
}

#[test]
fn bytes_that_are_no_json_are_answered_line_by_line_and_the_next_command_is_heard() {
    let mut place = place();
    let mut client = place.connect();
    place.ask(&mut client, "{\"execute\":\"qmp_capabilities\"}\n");
    (0..2).for_each(|_| drop(line(&mut client)));
    // Every byte but the line's end, white space and the byte that starts over, as a TLS or RFB client may send them.
    let binary: Vec<u8> = (0x80..0xff).chain(0..0x0a).chain([0x16, 3, 1, 0]).chain(*b"\r\n").collect();
    client.get_mut().write_all(&binary).unwrap();
    place.ask(&mut client, "GET / HTTP/1.1\r\n\r\n{\"execute\":\"stop\",\"id\":\"after\"}\r\n");
    for _ in 0..2 {
        let answer = line(&mut client);
        assert_eq!(answer["error"]["class"], "GenericError", "{answer}");
    }
    assert_eq!(line(&mut client)["event"], "STOP");
    assert_eq!(line(&mut client), json!({"return": {}, "id": "after"}));
}

#[test]
fn an_idle_client_is_never_let_go() {
    let mut place = place();
    let mut idle = place.connect();
    place.ask(&mut idle, "{\"execute\":\"qmp_capabilities\"}\n");
    for _ in 0..200 {
        let mut client = place.connect();
        place.ask(&mut client, "{\"execute\":\"qmp_capabilities\",\"id\":0}\n");
        assert!(line(&mut client)["QMP"].is_object());
        assert_eq!(line(&mut client), json!({"return": {}, "id": 0}));
        drop(client);
        place.turn();
    }
    (0..2).for_each(|_| drop(line(&mut idle)));
    place.ask(&mut idle, "{\"execute\":\"stop\",\"id\":1}\n");
    assert_eq!(line(&mut idle)["event"], "STOP");
    assert_eq!((line(&mut idle)["id"].clone(), place.server.clients.len()), (json!(1), 1));
}

#[test]
fn the_end_waits_for_readers_but_not_for_ever() {
    let mut place = place();
    let mut client = place.connect();
    place.ask(&mut client, "{\"execute\":\"qmp_capabilities\"}\n");
    for _ in 0..10_000 {
        place.server.tell(&Event::Stopped);
    }
    let start_ns = clock::monotonic_ns();
    place.server.flush(50_000_000);
    assert!(clock::monotonic_ns() - start_ns >= 50_000_000);
    let reader = std::thread::spawn(move || client.lines().filter(|line| line.is_ok()).count());
    place.server.flush(5_000_000_000);
    drop(place);
    assert_eq!(reader.join().unwrap(), 10_002);
}

fn resize(ticket: u64) -> String {
    json!({"execute": "block_resize", "arguments": {"device": "d", "size": ticket}, "id": ticket}).to_string()
}

#[test]
fn what_follows_an_order_that_takes_its_time_is_heard_after_its_answer_and_other_clients_are_heard_before() {
    let mut place = place();
    let (mut one, mut two) = (place.connect(), place.connect());
    let (first, second) = (resize(1), resize(2));
    place.ask(&mut one, &format!("{{\"execute\":\"qmp_capabilities\"}}{first}{{\"execute\":\"stop\"}}{second}"));
    // What comes meanwhile stays in the socket, half a message as well.
    place.ask(&mut one, "{\"execute\":\"cont\",\"id\":");
    place.ask(&mut one, "3}");
    place.ask(&mut two, "{\"execute\":\"qmp_capabilities\"}{\"execute\":\"cont\",\"id\":\"two\"}");
    for client in [&mut one, &mut two] {
        assert!(line(client)["QMP"].is_object());
        assert_eq!(line(client), json!({"return": {}}));
    }
    assert_eq!(line(&mut two)["id"], "two");
    one.get_ref().set_nonblocking(true).unwrap();
    assert_eq!(one.fill_buf().unwrap_err().kind(), ErrorKind::WouldBlock);
    one.get_ref().set_nonblocking(false).unwrap();
    place.answer(7, Ok(json!({})));
    place.answer(1, Ok(json!({})));
    assert_eq!(line(&mut one), json!({"return": {}, "id": 1}));
    assert_eq!(line(&mut one)["event"], "STOP");
    assert_eq!(line(&mut one), json!({"return": {}}));
    place.answer(1, Ok(json!({})));
    place.answer(2, Err((ErrorClass::GenericError, "full".to_owned())));
    assert_eq!(line(&mut one), json!({"error": {"class": "GenericError", "desc": "full"}, "id": 2}));
    place.turn();
    assert_eq!(line(&mut one)["id"], 3);
}

#[test]
fn a_client_that_closes_its_sending_side_gets_the_answer_of_an_order_that_takes_its_time() {
    let mut place = place();
    let mut client = place.connect();
    client.get_mut().write_all(format!("{{\"execute\":\"qmp_capabilities\"}}{}", resize(1)).as_bytes()).unwrap();
    client.get_ref().shutdown(std::net::Shutdown::Write).unwrap();
    (0..3).for_each(|_| place.turn());
    assert_eq!(place.server.clients.len(), 1);
    place.answer(1, Ok(json!({})));
    (0..2).for_each(|_| drop(line(&mut client)));
    assert_eq!(line(&mut client), json!({"return": {}, "id": 1}));
    place.turn();
    assert_eq!(line(&mut client), Value::Null);
    assert!(place.server.clients.is_empty());
}

#[test]
fn a_client_that_is_gone_before_its_answer_costs_nothing() {
    let mut place = place();
    let mut client = place.connect();
    place.ask(&mut client, &format!("{{\"execute\":\"qmp_capabilities\"}}{}{}", resize(1), resize(2)));
    drop(client);
    place.turn();
    place.answer(1, Ok(json!({})));
    place.answer(2, Ok(json!({})));
    place.turn();
    assert!(place.server.clients.is_empty());
}
