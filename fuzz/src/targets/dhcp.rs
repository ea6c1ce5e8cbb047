//! A network card's own DHCP server: one frame of a guest's, and what it answers.
//!
//! ```text
//! byte 0     bits 0..3 name servers, 3 a gateway, 4 an own server address, 5 lengths made to fit the frame
//! byte 1     bytes of the host name
//! byte 2..4  identification of the next IP packet
//! byte 4..   the frame
//! ```
//!
//! Oracles: no panic; a model that was written from the description of the wire alone says which frames are for the
//! responder, which have an answer, and each byte of it; its checksums add up; nothing behind the answer is written; the
//! bytes that a worker looks at first say the same as the whole frame, and those it reads of a long frame too.

use std::fmt::Write as _;
use std::net::Ipv4Addr;

use devices::virtio::net::responder::{
    HEAD_BYTES, Heard, Lease, MAX_ANSWER_BYTES, MAX_REQUEST_BYTES, MOST_DNS_SERVERS, Responder,
};

use crate::oracle::dhcp::{self as model, Expected, sum_of};
use crate::stats;

/// Bytes in front of the frame.
const KNOBS: usize = 4;
/// What stands where nothing is to be written.
const UNTOUCHED: u8 = 0xa5;

struct Input {
    lease: Lease,
    next_ip_id: u16,
    frame: Vec<u8>,
}

impl Input {
    fn read(data: &[u8]) -> Self {
        let at = |index: usize| data.get(index).copied().unwrap_or(0);
        let mut lease = Lease::new(Ipv4Addr::new(10, 1, 2, 3), Ipv4Addr::new(255, 255, 0, 0));
        lease.dns_ips = (0..at(0) & 7).take(MOST_DNS_SERVERS).map(|n| Ipv4Addr::new(9, 9, 9, n)).collect();
        lease.gateway_ip = (at(0) & 8 != 0).then_some(Ipv4Addr::new(10, 1, 0, 1));
        if at(0) & 16 != 0 {
            lease.server_ip = Ipv4Addr::new(10, 1, 0, 2);
        }
        lease.hostname = "n".repeat(at(1).into());
        let mut frame = data.get(KNOBS..).unwrap_or_default().to_vec();
        if at(0) & 32 != 0 {
            fit_lengths(&mut frame);
        }
        Self { lease, next_ip_id: u16::from_be_bytes([at(2), at(3)]), frame }
    }
}

/// Makes packet and segment end with the frame: few inputs would get further once one of them was cut or made longer.
fn fit_lengths(frame: &mut [u8]) {
    let Some(header) = frame.get(14).map(|byte| usize::from(byte & 15) * 4) else { return };
    let packet = frame.len() - 14;
    for (at, bytes) in [(16, Some(packet)), (14 + header + 4, packet.checked_sub(header))] {
        if let (Some(field), Some(Ok(bytes))) = (frame.get_mut(at..at + 2), bytes.map(u16::try_from)) {
            field.copy_from_slice(&bytes.to_be_bytes());
        }
    }
}

/// Hears one frame.
///
/// # Panics
/// On a finding.
pub fn run(data: &[u8]) {
    let Input { lease, next_ip_id, frame } = Input::read(data);
    stats::operations(1);
    let responder = Responder::new(&lease).expect("a lease that fits");
    let expected = model::answer(&lease, next_ip_id, &frame);

    let head = &frame[..frame.len().min(HEAD_BYTES)];
    assert_eq!(
        responder.concerns(head),
        !matches!(expected, Expected::Passed),
        "whose frame it is, by its first bytes"
    );
    let read = &frame[..frame.len().min(MAX_REQUEST_BYTES)];
    for frame in [&frame, read] {
        let (mut answer, mut ip_id) = ([UNTOUCHED; MAX_ANSWER_BYTES], next_ip_id);
        let heard = responder.hear(frame, &mut ip_id, &mut answer);
        // Only a worker's own copy is cut, and what was cut off may have been what an answer took.
        let expected = model::answer(&lease, next_ip_id, frame);
        judge(heard, &answer, &expected);
        let packets = u16::from(matches!(&expected, Expected::Answer(answer) if answer.len() > 42));
        assert_eq!(ip_id, next_ip_id.wrapping_add(packets), "the number of the next packet");
    }
}

fn judge(heard: Heard, answer: &[u8], expected: &Expected) {
    let len = match (heard, expected) {
        (Heard::Passed, Expected::Passed) | (Heard::Swallowed, Expected::Swallowed) => 0,
        (Heard::Answered { len_bytes }, Expected::Answer(wanted)) => {
            let mut told = answer[..len_bytes].to_vec();
            if len_bytes > 42 {
                assert_eq!(sum_of(&told[14..34]), 0xffff, "the IP header's checksum");
                let pseudo = [&told[26..34], &[0, 17, 2, 44], &told[34..]].concat();
                assert_eq!(sum_of(&pseudo), 0xffff, "UDP's checksum");
                assert_ne!(told[40..42], [0, 0], "UDP's checksum is given");
                // The model knows no checksums.
                told[24..26].fill(0);
                told[40..42].fill(0);
            }
            assert_eq!(&told, wanted);
            len_bytes
        }
        _ => panic!("{heard:?}, and expected was {expected:?}"),
    };
    assert!(answer[len..].iter().all(|byte| *byte == UNTOUCHED), "more is written than the answer");
}

/// What the input means.
#[must_use]
pub fn explain(data: &[u8]) -> String {
    let Input { lease, next_ip_id, frame } = Input::read(data);
    let mut text = format!("{lease:?}, IP identification {next_ip_id}\na frame of {} bytes:\n", frame.len());
    for (index, line) in frame.chunks(16).enumerate() {
        let hex: String = line.iter().map(|byte| format!(" {byte:02x}")).collect();
        let _ = writeln!(text, "  {:04x} {hex}", index * 16);
    }
    let expected = match model::answer(&lease, next_ip_id, &frame) {
        Expected::Passed => "for somebody else".to_owned(),
        Expected::Swallowed => "for the responder, without an answer".to_owned(),
        Expected::Answer(answer) if answer.len() == 42 => "an ARP request, which is answered".to_owned(),
        Expected::Answer(answer) => format!("answered with a message of type {}", answer[284]),
    };
    let _ = writeln!(text, "expected: {expected}");
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A DISCOVER as short as it may be, behind knobs for everything.
    fn discover() -> Vec<u8> {
        let mut frame = vec![2; 12];
        frame.extend([8, 0, 0x45, 0, 0, 0, 0, 0, 0, 0, 64, 17, 0, 0, 0, 0, 0, 0, 255, 255, 255, 255]);
        frame.extend([0, 68, 0, 67, 0, 0, 0, 0, 1]);
        frame.resize(14 + 28 + 236, 0);
        frame.extend([99, 130, 83, 99, 53, 1, 1]);
        [&[0x3c, 4, 0xff, 0xff], frame.as_slice()].concat()
    }

    #[test]
    fn lengths_are_made_to_fit_and_the_frame_is_answered() {
        run(&discover());
        assert!(explain(&discover()).contains("answered with a message of type 2"));
        let cut = &discover()[..200];
        run(cut);
        assert!(explain(cut).contains("without an answer"));
    }

    #[test]
    #[should_panic(expected = "left == right")]
    fn a_wrong_byte_is_found() {
        let Input { lease, next_ip_id, frame } = Input::read(&discover());
        let mut answer = [UNTOUCHED; MAX_ANSWER_BYTES];
        let heard = Responder::new(&lease).unwrap().hear(&frame, &mut next_ip_id.clone(), &mut answer);
        // Sums stay right where two bytes change places that are two apart.
        answer.swap(59, 61);
        judge(heard, &answer, &model::answer(&lease, next_ip_id, &frame));
    }

    #[test]
    #[should_panic(expected = "UDP's checksum")]
    fn a_wrong_checksum_is_found() {
        let Input { lease, next_ip_id, frame } = Input::read(&discover());
        let mut answer = [UNTOUCHED; MAX_ANSWER_BYTES];
        let heard = Responder::new(&lease).unwrap().hear(&frame, &mut next_ip_id.clone(), &mut answer);
        answer[41] ^= 1;
        judge(heard, &answer, &model::answer(&lease, next_ip_id, &frame));
    }
}
