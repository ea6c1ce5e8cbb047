//! qemu's names of keys, as `sendkey` takes them.

use devices::legacy::ps2::KeyCode;

/// Keys that can be held down at a time.
pub(super) const MAX_KEYS: usize = 16;

/// Names and codes of set 1, in hexadecimal; bit 7 stands for the prefix 0xE0. One text, as a table of names would have to
/// be relocated at every start.
const NAMES: &str = "shift:2a shift_r:36 alt:38 alt_r:b8 altgr:b8 ctrl:1d ctrl_r:9d menu:dd meta_l:db meta_r:dc \
    esc:01 1:02 2:03 3:04 4:05 5:06 6:07 7:08 8:09 9:0a 0:0b minus:0c equal:0d backspace:0e tab:0f \
    q:10 w:11 e:12 r:13 t:14 y:15 u:16 i:17 o:18 p:19 bracket_left:1a bracket_right:1b ret:1c \
    a:1e s:1f d:20 f:21 g:22 h:23 j:24 k:25 l:26 semicolon:27 apostrophe:28 grave_accent:29 backslash:2b \
    z:2c x:2d c:2e v:2f b:30 n:31 m:32 comma:33 dot:34 slash:35 asterisk:37 spc:39 less:56 <:56 \
    caps_lock:3a num_lock:45 scroll_lock:46 f1:3b f2:3c f3:3d f4:3e f5:3f f6:40 f7:41 f8:42 f9:43 f10:44 f11:57 f12:58 \
    kp_divide:b5 kp_multiply:37 kp_subtract:4a kp_add:4e kp_enter:9c kp_decimal:53 \
    kp_0:52 kp_1:4f kp_2:50 kp_3:51 kp_4:4b kp_5:4c kp_6:4d kp_7:47 kp_8:48 kp_9:49 \
    sysrq:54 print:b7 pause:c6 home:c7 up:c8 pgup:c9 left:cb right:cd end:cf down:d0 pgdn:d1 insert:d2 delete:d3";

/// The keys of a text such as `ctrl-alt-delete` or `0x1d-a`, in its order; the error names the wrong one.
pub(super) fn parse(text: &str) -> Result<Vec<KeyCode>, String> {
    let keys = text.split('-').map(key).collect::<Result<Vec<_>, _>>()?;
    if keys.len() > MAX_KEYS {
        return Err(format!("at most {MAX_KEYS} keys can be pressed at a time"));
    }
    Ok(keys)
}

fn key(name: &str) -> Result<KeyCode, String> {
    let by_name = all().find(|(known, _)| *known == name).map(|(_, key)| key);
    let by_code = || u8::from_str_radix(name.strip_prefix("0x")?, 16).ok().filter(|code| *code != 0).map(KeyCode);
    by_name.or_else(by_code).ok_or_else(|| format!("unknown key: '{name}'"))
}

fn all() -> impl Iterator<Item = (&'static str, KeyCode)> {
    NAMES.split_ascii_whitespace().filter_map(|entry| {
        let (name, code) = entry.split_once(':')?;
        Some((name, KeyCode(u8::from_str_radix(code, 16).ok()?)))
    })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    #[test]
    fn keys_are_pressed_in_the_order_in_which_they_are_named() {
        let codes = |text: &str| parse(text).map(|keys| keys.into_iter().map(|key| key.0).collect::<Vec<_>>());
        assert_eq!(codes("shift"), Ok(vec![0x2a]));
        assert_eq!(codes("ctrl-alt-delete"), Ok(vec![0x1d, 0x38, 0xd3]));
        assert_eq!(codes("alt-0xd2"), Ok(vec![0x38, 0xd2]));
        for (text, problem) in [
            ("", "unknown key: ''"),
            ("ctrl-", "unknown key: ''"),
            ("ctrl-hyper", "unknown key: 'hyper'"),
            ("0x", "unknown key: '0x'"),
            ("0x00", "unknown key: '0x00'"),
            ("0x100", "unknown key: '0x100'"),
            ("Shift", "unknown key: 'Shift'"),
        ] {
            assert_eq!(codes(text), Err(problem.to_owned()));
        }
        assert_eq!(codes(&["a"; MAX_KEYS].join("-")).map(|keys| keys.len()), Ok(MAX_KEYS));
        assert!(codes(&["a"; MAX_KEYS + 1].join("-")).is_err());
    }

    #[test]
    fn every_entry_is_a_name_and_a_code_and_no_name_stands_twice() {
        let entries = NAMES.split_ascii_whitespace().count();
        let names: BTreeMap<_, _> = all().collect();
        assert_eq!((names.len(), all().count()), (entries, entries));
        assert!(names.values().all(|key| key.0 & 0x7f != 0));
    }
}
