//! Changes of a state as data: one value replaced by another.

use arbitrary::Unstructured;
use serde_json::{Value, json};

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
            13..=14 => By::Copies(input.arbitrary::<u16>()? & 0x7fff),
            _ => By::Nothing,
        };
        Ok(Self { which, by })
    }

    /// Changes the state.
    pub fn apply(&self, state: &mut Value) {
        let mut left = usize::from(self.which) % count(state);
        if let Some(value) = nth(state, &mut left) {
            match self.by {
                By::Number(number) => *value = json!(number),
                By::Bit(bit) => *value = json!(value.as_u64().unwrap_or(0) ^ 1 << bit),
                By::Negative(number) => *value = json!(number),
                By::Flag(flag) => *value = json!(flag),
                By::Null => *value = Value::Null,
                By::Copies(copies) => {
                    let first = match &*value {
                        Value::Array(values) => values.first().cloned().unwrap_or(json!(0)),
                        other => other.clone(),
                    };
                    // Lists of lists grow faster than any state: what is refused for its size is refused for less.
                    let copies = if first.is_number() || first.is_boolean() { copies } else { copies & 0x3f };
                    let total = usize::from(copies) * count(&first);
                    if total <= usize::from(u16::MAX) {
                        *value = Value::Array(vec![first; copies.into()]);
                    }
                }
                By::Nothing => {}
            }
        }
    }
}

/// Values in a value, itself included, hence one at least; a list counts with its first few only, or it would be all there is.
fn count(value: &Value) -> usize {
    match value {
        Value::Array(values) => 1 + values.iter().take(40).map(count).sum::<usize>(),
        Value::Object(members) => 1 + members.values().map(count).sum::<usize>(),
        _ => 1,
    }
}

fn nth<'v>(value: &'v mut Value, left: &mut usize) -> Option<&'v mut Value> {
    if *left == 0 {
        return Some(value);
    }
    *left -= 1;
    match value {
        Value::Array(values) => values.iter_mut().take(40).find_map(|value| nth(value, left)),
        Value::Object(members) => members.values_mut().find_map(|value| nth(value, left)),
        _ => None,
    }
}
