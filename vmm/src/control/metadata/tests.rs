use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use proptest::prelude::*;

use super::*;

fn responder(entries: &[(&str, &str)]) -> Responder {
    let entries = entries.iter().map(|(key, value)| ((*key).to_owned(), value.as_bytes().to_vec()));
    Responder::new(entries.collect())
}

/// What is answered to these bytes by a responder whose answers are read at once.
fn ask(responder: &mut Responder, bytes: &[u8]) -> String {
    let mut rest = bytes;
    let mut said = Vec::new();
    loop {
        let taken = responder.take(rest);
        rest = &rest[taken..];
        let got = responder.answers().len();
        said.extend_from_slice(responder.answers());
        responder.sent(got);
        if taken == 0 && got == 0 {
            assert!(rest.is_empty(), "it neither takes nor says anything");
            return String::from_utf8(said).unwrap();
        }
    }
}

/// A guest's tool of version 1, which reads line by line.
fn get_v1(responder: &mut Responder, request: &str) -> Result<String, String> {
    let said = ask(responder, format!("{request}\n").as_bytes());
    let mut lines = said.strip_suffix('\n').expect("a line").split('\n');
    let head = lines.next().unwrap_or_default();
    if head != "SUCCESS" {
        assert_eq!(lines.next(), None, "{said}");
        return Err(head.to_owned());
    }
    let mut value: Vec<&str> = Vec::new();
    for line in &mut lines {
        if line == "." {
            assert_eq!(lines.next(), None, "{said}");
            return Ok(value.join("\n"));
        }
        value.push(line.strip_prefix('.').unwrap_or(line));
    }
    panic!("no end: {said}");
}

fn crc(bytes: &[u8]) -> u32 {
    let mut crc = u32::MAX;
    for byte in bytes {
        crc ^= u32::from(*byte);
        (0..8).for_each(|_| crc = (crc >> 1) ^ (0xedb8_8320 & (crc & 1).wrapping_neg()));
    }
    !crc
}

fn framed(id: &str, command: &str, payload: Option<&str>) -> String {
    let payload = payload.map(|payload| format!(" {}", BASE64_STANDARD.encode(payload))).unwrap_or_default();
    let body = format!("{id} {command}{payload}");
    format!("V2 {} {:08x} {body}\n", body.len(), crc(body.as_bytes()))
}

/// A guest's tool of version 2: the code and payload of the one answer, all of its frame checked.
fn request_v2(responder: &mut Responder, command: &str, payload: Option<&str>) -> (String, String) {
    let said = ask(responder, framed("0badcafe", command, payload).as_bytes());
    let words: Vec<&str> = said.strip_suffix('\n').expect("a line").split(' ').collect();
    let body = words[3..].join(" ");
    assert_eq!(words[..3], ["V2", &body.len().to_string(), &format!("{:08x}", crc(body.as_bytes()))], "{said}");
    assert_eq!(words[3], "0badcafe");
    let payload = words.get(5).map(|payload| BASE64_STANDARD.decode(payload).expect("base64")).unwrap_or_default();
    assert!(words.len() == 5 || (words.len() == 6 && !payload.is_empty()), "{said}");
    (words[4].to_owned(), String::from_utf8(payload).unwrap())
}

fn put(responder: &mut Responder, key: &str, value: &str) -> (String, String) {
    let payload = [key, value].map(|text| BASE64_STANDARD.encode(text)).join(" ");
    request_v2(responder, "PUT", Some(&payload))
}

fn ok(payload: &str) -> (String, String) {
    ("SUCCESS".to_owned(), payload.to_owned())
}

#[test]
fn a_conversation_in_both_versions_byte_for_byte() {
    let mut responder = responder(&[("a", "one"), ("b", ".\n..two\nthree"), ("empty", ""), ("sdc:nics", "[]")]);
    for (request, answer) in [
        ("\n", "invalid command\n"),
        ("GET a\n", "SUCCESS\none\n.\n"),
        ("GET b\n", "SUCCESS\n..\n...two\nthree\n.\n"),
        ("GET empty\n", "SUCCESS\n\n.\n"),
        ("GET sdc:nics\n", "SUCCESS\n[]\n.\n"),
        ("GET c\n", "NOTFOUND\n"),
        ("KEYS\n", "SUCCESS\na\nb\nempty\n.\n"),
        ("NEGOTIATE V2\n", "V2_OK\n"),
        ("V2 25 cad51e5d dc4fae17 GET c2RjOm5pY3M=\n", "V2 21 265ae1d8 dc4fae17 SUCCESS W10=\n"),
        ("V2 24 ee31e985 0000000c DELETE YSBrZXk=\n", "V2 21 b2c50551 0000000c SUCCESS T0s=\n"),
        ("V2 41 ee9e3f3e 0000000b PUT WVNCclpYaz0gWVNCMllXeDFaUW89\n", "V2 21 2fcae427 0000000b SUCCESS T0s=\n"),
        ("GET a key\n", "SUCCESS\na value\n\n.\n"),
        ("V2 25 251f42f6 0000000d GET bm90aGluZw==\n", "V2 17 7f003d57 0000000d NOTFOUND\n"),
        ("GET a\n", "SUCCESS\none\n.\n"),
    ] {
        assert_eq!(ask(&mut responder, request.as_bytes()), answer, "{request}");
    }
}

#[test]
fn what_is_no_command_is_told_apart_as_the_agent_does() {
    let mut responder = responder(&[("a", "one")]);
    for (request, answer) in [
        ("\r\n", "invalid command\n"),
        ("   \n", "invalid command\n"),
        (" GET a\n", "invalid command\n"),
        ("GET\n", "invalid command\n"),
        ("GET  \n", "invalid command\n"),
        ("NEGOTIATE\n", "invalid command\n"),
        ("NEGOTIATE V3\n", "FAILURE\n"),
        ("get a\n", "FAILURE\n"),
        ("PUT a b\n", "FAILURE\n"),
        ("DELETE a\n", "FAILURE\n"),
        ("Debian GNU/Linux 12 ttyS1\n", "FAILURE\n"),
        ("GET a\r\n", "SUCCESS\none\n.\n"),
        ("GET \u{1}\n", "NOTFOUND\n"),
        ("V2\n", ""),
        ("V2 nonsense\n", ""),
        ("V2 13 fe14e7ce 0000000a KEYS\n", ""),
        ("V2 14 fe14e7cf 0000000a KEYS\n", ""),
        ("V2 13 fe14e7cf 0000000a KEYS\r\n", "V2 21 "),
    ] {
        let said = ask(&mut responder, request.as_bytes());
        let same = if answer.ends_with(' ') { said.len() > answer.len() } else { said == answer };
        assert!(same, "{request:?}: {said:?}");
    }
    assert_eq!(ask(&mut responder, b"GET \xff\xfe\n"), "NOTFOUND\n");
    assert_eq!(ask(&mut responder, b"\0\n"), "FAILURE\n");
}

#[test]
fn a_tool_of_version_1_gets_every_value_as_it_is() {
    let values = ["", "x", ".", "..", "\n", ".\n.", "a\n\n.b\n", "SUCCESS", "é ü", "#!/bin/sh\necho hi\n"];
    for value in values {
        let mut responder = responder(&[("key with blanks", value)]);
        assert_eq!(get_v1(&mut responder, "GET key with blanks").as_deref(), Ok(value));
    }
    let mut none = responder(&[("sdc:uuid", "1")]);
    assert_eq!(get_v1(&mut none, "KEYS"), Ok(String::new()));
    assert_eq!(get_v1(&mut none, "GET x"), Err("NOTFOUND".to_owned()));
}

#[test]
fn a_tool_of_version_2_reads_lists_puts_and_deletes() {
    let mut responder = responder(&[("user-script", "#!/bin/sh\n"), ("sdc:uuid", "1234")]);
    let responder = &mut responder;
    assert_eq!(request_v2(responder, "GET", Some("user-script")), ok("#!/bin/sh\n"));
    assert_eq!(request_v2(responder, "GET", Some("sdc:uuid")), ok("1234"));
    assert_eq!(put(responder, "root_pw", "s3cret\n.\n"), ok("OK"));
    assert_eq!(request_v2(responder, "GET", Some(" root_pw\n")), ok("s3cret\n.\n"));
    assert_eq!(request_v2(responder, "KEYS", None), ok("root_pw\nuser-script"));
    assert_eq!(request_v2(responder, "DELETE", Some("root_pw")), ok("OK"));
    assert_eq!(request_v2(responder, "GET", Some("root_pw")), ("NOTFOUND".to_owned(), String::new()));
    assert_eq!(request_v2(responder, "DELETE", Some("user-script")), ok("OK"));
    assert_eq!(request_v2(responder, "DELETE", Some("user-script")), ok("OK"), "it need not exist");
    assert_eq!(request_v2(responder, "KEYS", None), ok(""));
}

#[test]
fn what_cannot_be_done_is_a_failure_with_a_reason_and_changes_nothing() {
    let mut responder = responder(&[("a", "1"), ("sdc:uuid", "1234")]);
    let responder = &mut responder;
    let key = BASE64_STANDARD.encode("b");
    for (command, payload) in [
        ("GET", None),
        ("GET", Some(" ")),
        ("DELETE", None),
        ("DELETE", Some("sdc:uuid")),
        ("PUT", None),
        ("PUT", Some("!!! !!!")),
        ("PUT", Some(&*format!("{key} {key} {key}"))),
        ("PUT", Some(&*format!("{key}  {key}"))),
        ("NEGOTIATE", Some("V2")),
        ("V2", Some("a")),
        ("get", Some("a")),
    ] {
        let (code, reason) = request_v2(responder, command, payload);
        assert!(code == "FAILURE" && !reason.is_empty(), "{command} {payload:?}: {code}");
    }
    for (key, value) in [("sdc:uuid", "x"), ("sdc:new", "x"), ("", "x"), ("two\nlines", "x"), ("empty", "")] {
        assert_eq!(put(responder, key, value).0, "FAILURE", "{key:?}");
    }
    let body = "0badcafe GET a=b";
    let said = ask(responder, format!("V2 {} {:08x} {body}\n", body.len(), crc(body.as_bytes())).as_bytes());
    assert!(said.contains(" FAILURE "), "{said}");
    assert_eq!((request_v2(responder, "KEYS", None), get_v1(responder, "GET sdc:uuid")), (ok("a"), Ok("1234".into())));
}

#[test]
fn a_value_of_a_hundred_kilobytes_goes_in_and_comes_out_in_both_versions() {
    let mut responder = responder(&[]);
    let value = ".line\n".repeat(20_000);
    assert_eq!(put(&mut responder, "big", &value), ok("OK"));
    assert_eq!(request_v2(&mut responder, "GET", Some("big")), ok(&value));
    assert_eq!(get_v1(&mut responder, "GET big"), Ok(value));
}

#[test]
fn a_line_without_end_is_not_kept_and_is_answered_when_it_ends() {
    let mut responder = responder(&[("a", "1")]);
    for _ in 0..64 {
        assert_eq!(ask(&mut responder, &[b'x'; 16 * 1024]), "");
        assert!(responder.line.capacity() <= 2 * MAX_LINE);
    }
    assert!(responder.line.capacity() <= HEAD);
    assert_eq!(ask(&mut responder, b"\nGET a\n"), "invalid command\nSUCCESS\n1\n.\n");
    let longest = format!("GET {}", "k".repeat(MAX_LINE - 4));
    assert_eq!(ask(&mut responder, format!("{longest}\n{longest}k\n").as_bytes()), "NOTFOUND\ninvalid command\n");
}

#[test]
fn a_frame_that_is_too_long_is_refused_with_its_identifier() {
    let mut responder = responder(&[]);
    let (code, reason) = put(&mut responder, "big", &"x".repeat(MAX_LINE));
    assert_eq!((code.as_str(), reason.as_str()), ("FAILURE", "the request is too long"));
    assert_eq!(ask(&mut responder, format!("V2 {}\n", "x".repeat(MAX_LINE)).as_bytes()), "");
    assert_eq!(get_v1(&mut responder, "KEYS"), Ok(String::new()));
}

#[test]
fn a_guest_that_reads_no_answers_is_not_heard_until_it_does() {
    let value = "v".repeat(10_000);
    let mut responder = responder(&[("a", &value)]);
    let requests = b"GET a\n".repeat(1000);
    let taken = responder.take(&requests);
    assert_eq!(responder.take(&requests[taken..]), 0);
    let unread = responder.answers.len();
    assert!(unread > UNREAD && unread < UNREAD + 11_000, "{unread}");
    let said = ask(&mut responder, &requests[taken..]);
    assert_eq!(said.len(), 10_011 * 1000);
    assert_eq!((responder.answers.capacity(), responder.line.capacity()), (0, 0), "nothing is held for later");
}

#[test]
fn a_guest_that_begins_anew_finds_neither_half_a_request_nor_old_answers_and_its_keys() {
    let mut responder = responder(&[("a", "1")]);
    assert_eq!(put(&mut responder, "b", "2"), ok("OK"));
    responder.take(b"KEYS\nGET a");
    responder.restart();
    assert_eq!(ask(&mut responder, b"\nGET b\n"), "invalid command\nSUCCESS\n2\n.\n");
    assert_eq!(ask(&mut responder, &[b'x'; MAX_LINE + 1]), "");
    responder.restart();
    assert_eq!(ask(&mut responder, b"GET a\n"), "SUCCESS\n1\n.\n");
}

/// Words of the protocol among any bytes, so that more than "invalid command" is reached.
fn anything() -> impl Strategy<Value = Vec<u8>> {
    let commands = prop::sample::select(vec!["GET", "KEYS", "PUT", "DELETE", "NEGOTIATE", "V2", "X"]);
    let payloads = prop::option::of("[ab:= .\n]{0,6}|sdc:a|YQ== Yg==|YQ== ");
    prop_oneof![
        prop::collection::vec(any::<u8>(), 0..300),
        (commands, payloads).prop_map(|(command, payload)| framed("1234abcd", command, payload.as_deref()).into()),
        (any::<prop::sample::Index>(), any::<u8>()).prop_map(|(index, bit)| {
            let mut frame = framed("00000000", "GET", Some("a")).into_bytes();
            let index = index.index(frame.len());
            frame[index] ^= 1 << (bit & 7);
            frame
        }),
        prop::sample::select(vec![&b"\n"[..], b"GET a\n", b"GET a", b"KEYS\n", b"NEGOTIATE V2\n", b"V2 ", b"\r\n"])
            .prop_map(<[u8]>::to_vec),
        (1usize..40_000).prop_map(|len| vec![b'y'; len]),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn no_bytes_in_no_pieces_make_it_panic_grow_or_answer_otherwise(
        parts in prop::collection::vec(anything(), 0..40),
        cuts in prop::collection::vec((1usize..5000, 1usize..3000), 1..40),
    ) {
        let bytes = parts.concat();
        let mut whole = responder(&[("a", "1\n.\n"), ("sdc:a", "2")]);
        let expected = ask_lossy(&mut whole, &bytes, &[(usize::MAX, usize::MAX)]);
        let mut pieces = responder(&[("a", "1\n.\n"), ("sdc:a", "2")]);
        prop_assert_eq!(ask_lossy(&mut pieces, &bytes, &cuts), expected);
    }
}

/// Gives bytes and reads answers in pieces of these sizes, in turn; all that was answered.
fn ask_lossy(responder: &mut Responder, bytes: &[u8], cuts: &[(usize, usize)]) -> Vec<u8> {
    let (mut rest, mut said) = (bytes, Vec::new());
    for (give, read) in cuts.iter().cycle() {
        let before = (rest.len(), said.len());
        rest = &rest[responder.take(&rest[..rest.len().min(*give)])..];
        let got = responder.answers().len().min(*read);
        said.extend_from_slice(&responder.answers()[..got]);
        responder.sent(got);
        // The largest answer is the whole store, with a dot for each byte or in base64, and its head.
        assert!(responder.answers.len() <= UNREAD + 2 * responder.store.bytes() + 64);
        assert!(responder.line.capacity() <= 2 * MAX_LINE && responder.store.bytes() <= 2 * MAX_LINE);
        if rest.is_empty() && responder.answers().is_empty() {
            break;
        }
        assert!(before != (rest.len(), said.len()), "it neither takes nor says anything");
    }
    said
}
