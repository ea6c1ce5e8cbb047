use super::*;

/// The file of the arguments `bhyve`, `-H`, `SYSbhyve-7`.
const WORDS: [u32; 22] = [
    0x0101_0000,
    0,
    1,
    0x44,
    0x50,
    0x0a,
    0x6268_7976,
    0x655f_6172,
    0x6773_0000,
    0x11,
    3,
    5,
    0x6268_7976,
    0x6500_0000,
    2,
    0x2d48_0000,
    0x0a,
    0x5359_5362,
    0x6879_7665,
    0x2d37_0000,
    0,
    0,
];

fn bytes() -> Vec<u8> {
    WORDS.iter().flat_map(|word| word.to_be_bytes()).collect()
}

/// The file of any arguments.
fn encode(args: &[&[u8]]) -> Vec<u8> {
    let mut pair: Vec<u8> = Vec::new();
    let word = |out: &mut Vec<u8>, number: usize| out.extend((number as u32).to_be_bytes());
    let opaque = |out: &mut Vec<u8>, text: &[u8]| {
        out.extend(text);
        out.resize(out.len().next_multiple_of(4), 0);
    };
    word(&mut pair, NAME.len());
    opaque(&mut pair, NAME);
    word(&mut pair, 17);
    word(&mut pair, args.len());
    for arg in args {
        word(&mut pair, arg.len());
        opaque(&mut pair, arg);
    }
    let mut file = vec![1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1];
    word(&mut file, pair.len() + 8);
    word(&mut file, 32 + (8 * args.len() + args.iter().map(|arg| arg.len() + 1).sum::<usize>()).next_multiple_of(8));
    file.extend(pair);
    file.extend([0; 8]);
    file
}

#[test]
fn the_known_file_reads_as_its_three_arguments() {
    assert_eq!(bytes().len(), 88);
    assert_eq!(decode(&bytes()), Ok(["bhyve", "-H", "SYSbhyve-7"].map(str::to_owned).to_vec()));
    assert_eq!(encode(&[b"bhyve", b"-H", b"SYSbhyve-7"]), bytes());
}

#[test]
fn a_file_that_is_cut_off_at_any_byte_is_refused() {
    let bytes = bytes();
    for len in 0..bytes.len() {
        let error = decode(&bytes[..len]).unwrap_err();
        assert!(matches!(error, CmdFileError::Short(at, _) if at == len), "{len}: {error}");
    }
}

#[test]
fn a_byte_that_is_not_text_of_an_argument_can_have_no_other_value() {
    let good = bytes();
    let texts = [48..53, 60..62, 68..78];
    for at in (0..good.len()).filter(|at| !texts.iter().any(|text| text.contains(at))) {
        for value in 0..=255 {
            let mut bad = good.clone();
            bad[at] = value;
            // Either byte order of the writer: everything else is in that of the network.
            let fine = value == good[at] || (at == 1 && value == 0);
            assert_eq!(decode(&bad).is_ok(), fine, "byte {at} = {value}: {:?}", decode(&bad));
        }
    }
}

#[test]
fn every_length_that_lies_is_refused_without_looking_beyond_the_file() {
    let good = bytes();
    for at in [12, 16, 20, 40, 44, 56, 64] {
        let right = u32::from_be_bytes(good[at..at + 4].try_into().unwrap());
        for wrong in (0..200).chain([0x7fff_ffff, 0x8000_0000, u32::MAX - 3, u32::MAX]).filter(|wrong| *wrong != right)
        {
            let mut bad = good.clone();
            bad[at..at + 4].copy_from_slice(&wrong.to_be_bytes());
            assert!(decode(&bad).is_err(), "{wrong} in place of {right} at {at}");
        }
    }
}

#[test]
fn arguments_of_every_length_are_read_and_what_is_no_text_is_not() {
    for len in 0..9 {
        let text = "x".repeat(len);
        assert_eq!(decode(&encode(&[text.as_bytes()])), Ok(vec![text]));
    }
    assert_eq!(decode(&encode(&["é, ß".as_bytes()])), Ok(vec!["é, ß".to_owned()]));
    assert_eq!(decode(&encode(&[b"a", b"\xff"])), Err(CmdFileError::Text(1)));
    assert_eq!(decode(&encode(&[b"a\0"])), Err(CmdFileError::Text(0)));
    let mut more = encode(&[b"a"]);
    more.push(0);
    assert_eq!(decode(&more), Err(CmdFileError::Long(1)));
}

#[test]
fn a_hundred_arguments_are_read_and_one_more_or_none_are_not() {
    assert_eq!(decode(&encode(&[b"a".as_slice(); 100])).map(|args| args.len()), Ok(100));
    assert_eq!(decode(&encode(&[b"a".as_slice(); 101])), Err(CmdFileError::Count(101)));
    assert_eq!(decode(&encode(&[])), Err(CmdFileError::Count(0)));
}
