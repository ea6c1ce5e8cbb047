//! Parameters of an instance, from the options to the kernel.

use zvmm::hypervisor::LinkOptions;
use zvmm_double::viona::Config;

use super::rig::*;

fn refusal(host: &Host1, options: &LinkOptions) -> Option<String> {
    let (_hypervisor, vm) = host.vm();
    Card::with(&vm, &*host.sys, options, false).err().map(|error| error.to_string())
}

fn options(copies: Option<bool>, pad: Option<u16>) -> LinkOptions {
    LinkOptions { tx_copy_data: copies, tx_header_pad: pad, ..LinkOptions::new(1) }
}

#[test]
fn parameters_that_are_given_reach_the_kernel_and_a_card_works_with_them() {
    let host = host(Config::default(), Vec::new());
    {
        let (_hypervisor, vm) = host.vm();
        let mut card = Card::with(&vm, &*host.sys, &options(Some(false), Some(32)), false).unwrap();
        assert_eq!(host.params(), ("net0".to_owned(), false, 32));
        card.drive(card.offered() & !(1 << 24) | VERSION_1);
        card.send(&frame(OTHER, 1));
        assert_eq!(sent(&host.far), frame(OTHER, 1));
        card.reset();
    }
    assert_eq!(host.broken(), [""; 0]);
}

#[test]
fn one_parameter_leaves_the_other_as_it_is() {
    for (given, now) in [
        (options(None, Some(256)), ("net0".to_owned(), true, 256)),
        (options(Some(false), None), ("net0".to_owned(), false, 0)),
        (options(None, None), ("net0".to_owned(), true, 0)),
    ] {
        let host = host(Config::default(), Vec::new());
        let (_hypervisor, vm) = host.vm();
        let _card = Card::with(&vm, &*host.sys, &given, false).unwrap();
        assert_eq!(host.params(), now);
    }
}

#[test]
fn what_the_kernel_does_not_take_is_refused_by_a_line_in_its_words() {
    let new = || host(Config::default(), Vec::new());
    let line = refusal(&new(), &options(Some(true), Some(257))).unwrap();
    assert_eq!(line, "link net0: viona refuses tx_header_pad: value out of range");
    let old = host(Config { params: false, ..Config::default() }, Vec::new());
    let lacks = "(it lacks VNA_IOC_SET_PARAMS): use a newer platform, or leave it out";
    let line = refusal(&old, &options(Some(true), None)).unwrap();
    assert_eq!(line, format!("link net0: viona has no tx_copy_data {lacks}"));
    assert_eq!(refusal(&old, &options(None, None)), None, "nothing is asked of it");
    let silent = failing(Config::default(), &["VNA_IOC_SET_PARAMS:1:EFAULT"]);
    let line = refusal(&silent, &options(Some(true), Some(1))).unwrap();
    assert_eq!(line, "link net0: tx_copy_data and tx_header_pad: VNA_IOC_SET_PARAMS: Bad address");
    // That they are set it has said already: what they are now is a line of the log.
    let forgetful = failing(Config::default(), &["VNA_IOC_GET_PARAMS:1:EFAULT"]);
    assert_eq!(refusal(&forgetful, &options(Some(true), None)), None);
}
