//! Changes of a state as data: one value replaced by another.

use arbitrary::Unstructured;

use super::tree::{self, Tree};

/// Replaces value number `which`, counted over the whole state and wrapped around.
#[derive(Debug)]
pub struct Mutation {
    pub which: u16,
    pub by: By,
}

/// By what.
#[derive(Debug)]
pub enum By {
    Number(u64),
    /// The number with a bit flipped.
    Bit(u8),
    Negative(i64),
    Flag(bool),
    Null,
    /// A list of so many copies of its first value.
    Copies(u16),
    Nothing,
}

impl Mutation {
    pub fn read(input: &mut Unstructured) -> arbitrary::Result<Self> {
        let (which, kind): (u16, u8) = (input.arbitrary()?, input.arbitrary()?);
        let by = match kind % 16 {
            0..=2 => By::Number(input.arbitrary::<u8>()?.into()),
            3..=4 => By::Number(input.arbitrary()?),
            5 => By::Number(u64::MAX >> (input.arbitrary::<u8>()? & 63)),
            6..=9 => By::Bit(input.arbitrary::<u8>()? & 63),
            10 => By::Negative(input.arbitrary()?),
            11 => By::Flag(input.arbitrary()?),
            12 => By::Null,
            13..=14 => By::Copies(copies(input.arbitrary()?)),
            _ => By::Nothing,
        };
        Ok(Self { which, by })
    }

    /// Changes the state.
    pub fn apply(&self, state: &mut Tree) {
        let mut left = usize::from(self.which) % count(state);
        if let Some(value) = nth(state, &mut left) {
            match self.by {
                By::Number(number) => *value = Tree::Unsigned(number),
                By::Bit(bit) => *value = Tree::Unsigned(value.as_unsigned().unwrap_or(0) ^ 1 << bit),
                By::Negative(number) => *value = tree::signed(number),
                By::Flag(flag) => *value = Tree::Flag(flag),
                By::Null => *value = Tree::Null,
                By::Copies(copies) => {
                    let first = match &*value {
                        Tree::List(values) => values.first().cloned().unwrap_or(Tree::Unsigned(0)),
                        Tree::Copies(value, _) => (**value).clone(),
                        other => other.clone(),
                    };
                    // Lists of structures are short: what is refused for its size is refused for less.
                    let copies = if first.is_plain() { copies } else { copies & 0x3f };
                    *value = Tree::Copies(first.into(), copies.into());
                }
                By::Nothing => {}
            }
        }
    }
}

/// Most lists hold 256 values at the most, and one 16384: longer than that few are, as they take longer than all the rest.
fn copies(drawn: u16) -> u16 {
    if drawn >> 11 == 0x1f { drawn & 0x7fff } else { drawn & 0x1ff }
}

/// How many values of a list are counted: with all of them a long list would be all there is.
const COUNTED: usize = 40;

/// Values in a value, itself included, hence one at least.
fn count(value: &Tree) -> usize {
    match value {
        Tree::List(values) => 1 + values.iter().take(COUNTED).map(count).sum::<usize>(),
        Tree::Copies(value, copies) => 1 + count(value) * COUNTED.min(*copies),
        Tree::Members(members) => 1 + members.iter().map(|(_, value)| count(value)).sum::<usize>(),
        _ => 1,
    }
}

fn nth<'v>(value: &'v mut Tree, left: &mut usize) -> Option<&'v mut Tree> {
    if *left == 0 {
        return Some(value);
    }
    let within = count(value);
    if *left >= within {
        *left -= within;
        return None;
    }
    *left -= 1;
    if let Tree::Copies(first, copies) = value {
        *value = Tree::List(vec![(**first).clone(); *copies]);
    }
    match value {
        Tree::List(values) => values.iter_mut().take(COUNTED).find_map(|value| nth(value, left)),
        Tree::Members(members) => members.iter_mut().find_map(|(_, value)| nth(value, left)),
        _ => None,
    }
}
