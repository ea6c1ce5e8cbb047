//! A state as a tree of values, as JSON has it: without text, without names to be copied and sorted, and with long lists
//! that take no memory, so that states cost less than the machines they are of.

use serde::de::value::{Error, MapDeserializer, SeqDeserializer};
use serde::de::{DeserializeOwned, Deserializer, IntoDeserializer, Visitor};
use serde::forward_to_deserialize_any;
use serde::ser::{Error as _, Impossible, Serialize, SerializeSeq, SerializeStruct, SerializeTuple, Serializer};

/// A value.
#[derive(Clone, Debug, PartialEq)]
pub enum Tree {
    Null,
    Flag(bool),
    Unsigned(u64),
    /// Below zero.
    Negative(i64),
    /// A variant without content.
    Name(&'static str),
    List(Vec<Tree>),
    /// A list of one value many times: as long as a hostile list may be, it takes no memory.
    Copies(Box<Tree>, usize),
    Members(Vec<(&'static str, Tree)>),
}

impl Tree {
    pub fn as_unsigned(&self) -> Option<u64> {
        match self {
            Self::Unsigned(number) => Some(*number),
            _ => None,
        }
    }

    /// Whether it is a number or a flag.
    pub fn is_plain(&self) -> bool {
        matches!(self, Self::Flag(_) | Self::Unsigned(_) | Self::Negative(_))
    }
}

/// A number that may be below zero.
pub fn signed(number: i64) -> Tree {
    u64::try_from(number).map_or(Tree::Negative(number), Tree::Unsigned)
}

/// The tree of a state.
///
/// # Panics
/// When the state has what no state has so far: text, floats, maps, variants with content.
pub fn of(state: &impl Serialize) -> Tree {
    state.serialize(ToTree).expect("a state of numbers, flags, lists and structures")
}

/// A state from a tree, if it is one.
pub fn read<S: DeserializeOwned>(tree: Tree) -> Option<S> {
    S::deserialize(tree).ok()
}

struct ToTree;

macro_rules! numbers {
    ($($name:ident: $number:ty => $how:expr),* $(,)?) => {
        $(fn $name(self, number: $number) -> Result<Tree, Error> { Ok($how(number.into())) })*
    };
}

/// What no state holds.
macro_rules! never {
    ($($name:ident($($argument:ty),*) -> $result:ty;)*) => {
        $(fn $name(self, $(_: $argument),*) -> Result<$result, Error> { Err(Error::custom(stringify!($name))) })*
    };
}

impl Serializer for ToTree {
    type Ok = Tree;
    type Error = Error;
    type SerializeSeq = Items;
    type SerializeTuple = Items;
    type SerializeTupleStruct = Impossible<Tree, Error>;
    type SerializeTupleVariant = Impossible<Tree, Error>;
    type SerializeMap = Impossible<Tree, Error>;
    type SerializeStruct = Fields;
    type SerializeStructVariant = Impossible<Tree, Error>;

    numbers! {
        serialize_u8: u8 => Tree::Unsigned,
        serialize_u16: u16 => Tree::Unsigned,
        serialize_u32: u32 => Tree::Unsigned,
        serialize_u64: u64 => Tree::Unsigned,
        serialize_i8: i8 => signed,
        serialize_i16: i16 => signed,
        serialize_i32: i32 => signed,
        serialize_i64: i64 => signed
    }

    never! {
        serialize_f32(f32) -> Tree;
        serialize_f64(f64) -> Tree;
        serialize_char(char) -> Tree;
        serialize_str(&str) -> Tree;
        serialize_bytes(&[u8]) -> Tree;
        serialize_unit() -> Tree;
        serialize_unit_struct(&'static str) -> Tree;
        serialize_tuple_struct(&'static str, usize) -> Impossible<Tree, Error>;
        serialize_tuple_variant(&'static str, u32, &'static str, usize) -> Impossible<Tree, Error>;
        serialize_map(Option<usize>) -> Impossible<Tree, Error>;
        serialize_struct_variant(&'static str, u32, &'static str, usize) -> Impossible<Tree, Error>;
    }

    fn serialize_bool(self, flag: bool) -> Result<Tree, Error> {
        Ok(Tree::Flag(flag))
    }
    fn serialize_none(self) -> Result<Tree, Error> {
        Ok(Tree::Null)
    }
    fn serialize_some<T: ?Sized + Serialize>(self, value: &T) -> Result<Tree, Error> {
        value.serialize(self)
    }
    fn serialize_unit_variant(self, _: &'static str, _: u32, variant: &'static str) -> Result<Tree, Error> {
        Ok(Tree::Name(variant))
    }
    fn serialize_newtype_struct<T: ?Sized + Serialize>(self, _: &'static str, value: &T) -> Result<Tree, Error> {
        value.serialize(self)
    }
    fn serialize_newtype_variant<T: ?Sized + Serialize>(
        self,
        _: &'static str,
        _: u32,
        variant: &'static str,
        _: &T,
    ) -> Result<Tree, Error> {
        Err(Error::custom(variant))
    }
    fn serialize_seq(self, len: Option<usize>) -> Result<Items, Error> {
        Ok(Items(Vec::with_capacity(len.unwrap_or(0))))
    }
    fn serialize_tuple(self, len: usize) -> Result<Items, Error> {
        Ok(Items(Vec::with_capacity(len)))
    }
    fn serialize_struct(self, _: &'static str, len: usize) -> Result<Fields, Error> {
        Ok(Fields(Vec::with_capacity(len)))
    }
}

/// A list that is being written.
struct Items(Vec<Tree>);

impl SerializeSeq for Items {
    type Ok = Tree;
    type Error = Error;
    fn serialize_element<T: ?Sized + Serialize>(&mut self, value: &T) -> Result<(), Error> {
        self.0.push(value.serialize(ToTree)?);
        Ok(())
    }
    fn end(self) -> Result<Tree, Error> {
        Ok(Tree::List(self.0))
    }
}

impl SerializeTuple for Items {
    type Ok = Tree;
    type Error = Error;
    fn serialize_element<T: ?Sized + Serialize>(&mut self, value: &T) -> Result<(), Error> {
        SerializeSeq::serialize_element(self, value)
    }
    fn end(self) -> Result<Tree, Error> {
        SerializeSeq::end(self)
    }
}

/// A structure that is being written.
struct Fields(Vec<(&'static str, Tree)>);

impl SerializeStruct for Fields {
    type Ok = Tree;
    type Error = Error;
    fn serialize_field<T: ?Sized + Serialize>(&mut self, name: &'static str, value: &T) -> Result<(), Error> {
        self.0.push((name, value.serialize(ToTree)?));
        Ok(())
    }
    fn end(self) -> Result<Tree, Error> {
        Ok(Tree::Members(self.0))
    }
}

impl IntoDeserializer<'_> for Tree {
    type Deserializer = Self;
    fn into_deserializer(self) -> Self {
        self
    }
}

impl<'de> Deserializer<'de> for Tree {
    type Error = Error;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match self {
            Self::Null => visitor.visit_unit(),
            Self::Flag(flag) => visitor.visit_bool(flag),
            Self::Unsigned(number) => visitor.visit_u64(number),
            Self::Negative(number) => visitor.visit_i64(number),
            Self::Name(name) => visitor.visit_str(name),
            Self::List(items) => {
                let mut items = SeqDeserializer::new(items.into_iter());
                let value = visitor.visit_seq(&mut items)?;
                items.end().map(|()| value)
            }
            Self::Copies(value, copies) => {
                let mut items = SeqDeserializer::new(std::iter::repeat_n(*value, copies));
                let value = visitor.visit_seq(&mut items)?;
                items.end().map(|()| value)
            }
            Self::Members(members) => {
                let mut members = MapDeserializer::new(members.into_iter());
                let value = visitor.visit_map(&mut members)?;
                members.end().map(|()| value)
            }
        }
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match self {
            Self::Null => visitor.visit_none(),
            value => visitor.visit_some(value),
        }
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        name: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        match self {
            Self::Name(variant) => {
                let variant: serde::de::value::StrDeserializer<'_, Error> = variant.into_deserializer();
                variant.deserialize_enum(name, variants, visitor)
            }
            _ => Err(Error::custom("a name of a variant is expected")),
        }
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(self, _: &'static str, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_newtype_struct(self)
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf unit unit_struct seq tuple
        tuple_struct map struct identifier ignored_any
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::targets::legacy::machine::{Kind, Machine as Legacy};
    use crate::targets::pci_config::machine::{Machine as Bus, Profile};

    /// A state is a tree and back, and the tree has the values that its JSON has.
    fn check<S: Serialize + DeserializeOwned + PartialEq + std::fmt::Debug>(state: &S) {
        assert_eq!(read(of(state)).as_ref(), Some(state));
        assert_eq!(json(of(state)), serde_json::to_value(state).unwrap());
    }

    fn json(tree: Tree) -> serde_json::Value {
        match tree {
            Tree::Null => serde_json::Value::Null,
            Tree::Flag(flag) => flag.into(),
            Tree::Unsigned(number) => number.into(),
            Tree::Negative(number) => number.into(),
            Tree::Name(name) => name.into(),
            Tree::List(items) => items.into_iter().map(json).collect(),
            Tree::Copies(value, copies) => std::iter::repeat_n(json(*value), copies).collect(),
            Tree::Members(members) => members.into_iter().map(|(name, value)| (name, json(value))).collect(),
        }
    }

    #[test]
    fn every_state_is_a_tree_with_the_values_of_its_json() {
        let machine = Legacy::new(Kind { timer_32_bits: true, wide_gpe: true, smi: true });
        machine.uarts[0].push_input(b"typed");
        check(&machine.uarts[0].save());
        check(&machine.cmos.save());
        check(&machine.ps2.save());
        check(&machine.pm.save());
        check(&machine.debug.save());
        check(&machine.post.save());
        check(&machine.smbus.save());
        let bus = Bus::new(Profile::I440fx);
        bus.functions.iter().for_each(|function| check(&function.pci.save()));
        bus.bridges.iter().for_each(|(_, bridge)| check(&bridge.save()));
    }

    #[test]
    fn what_is_no_state_is_refused() {
        assert_eq!(read::<[u8; 2]>(Tree::List(vec![Tree::Unsigned(1); 3])), None, "too long");
        assert_eq!(read::<[u8; 2]>(Tree::List(vec![Tree::Unsigned(1)])), None, "too short");
        let copies = |count| Tree::Copies(Tree::Unsigned(1).into(), count);
        assert_eq!(read::<[u8; 2]>(copies(3)), None, "too long");
        assert_eq!(read::<Vec<u8>>(copies(3)), Some(vec![1; 3]));
        assert_eq!(read::<u8>(Tree::Unsigned(256)), None);
        assert_eq!(read::<u8>(signed(-1)), None);
        assert_eq!(read::<i64>(signed(-1)), Some(-1));
        assert_eq!(read::<bool>(Tree::Unsigned(1)), None);
        assert_eq!(read::<Option<u8>>(Tree::Null), Some(None));
    }
}
