//! Structures that are read from JSON objects alone.

/// Implements `Deserialize` for structures that derive it of themselves as `remote`. What serde derives by itself reads the
/// values of a list, too, as those of the fields in their order: a list of documents would be a bad document, and say so of
/// its first field.
macro_rules! only_objects {
    ($($type:ident: $what:literal),* $(,)?) => {$(
        impl<'de> serde::Deserialize<'de> for $type {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                struct Object;
                impl<'de> serde::de::Visitor<'de> for Object {
                    type Value = $type;
                    fn expecting(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                        out.write_str($what)
                    }
                    fn visit_map<M: serde::de::MapAccess<'de>>(self, map: M) -> Result<$type, M::Error> {
                        // The derived one, which comes before the trait's.
                        $type::deserialize(serde::de::value::MapAccessDeserializer::new(map))
                    }
                }
                deserializer.deserialize_map(Object)
            }
        }
    )*};
}
pub(super) use only_objects;
