//! MessagePack between Rust and the scripts (rmp-serde <-> cmsgpack).
//!
//! Traps this module closes: `nil` inside an array ends Lua's view of it, so
//! absent values travel as `false`; cmsgpack refuses `bin`, so bytes travel as
//! `str`; a Lua `false` in a reply is an absent value.

use redis::Value;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use crate::script::ScriptError;

/// An argument that may be absent.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct OrFalse<T>(pub(crate) Option<T>);

impl<T: Serialize> Serialize for OrFalse<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match &self.0 {
            Some(value) => value.serialize(serializer),
            None => serializer.serialize_bool(false),
        }
    }
}

/// A number; whole ones travel as integers, which are shorter.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Number(pub(crate) f64);

impl Serialize for Number {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        crate::lenient::write_number(self.0, serializer)
    }
}

/// Text in a reply, or `false`. Bytes that are no UTF-8 are replaced, as Node
/// does when it reads them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct MaybeText(pub(crate) Option<String>);

impl<'de> Deserialize<'de> for MaybeText {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl de::Visitor<'_> for Visitor {
            type Value = MaybeText;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("text, a number or false")
            }
            fn visit_str<E: de::Error>(self, v: &str) -> Result<MaybeText, E> {
                Ok(MaybeText(Some(v.to_owned())))
            }
            fn visit_bytes<E: de::Error>(self, v: &[u8]) -> Result<MaybeText, E> {
                Ok(MaybeText(Some(String::from_utf8_lossy(v).into_owned())))
            }
            fn visit_bool<E: de::Error>(self, v: bool) -> Result<MaybeText, E> {
                Ok(MaybeText(v.then(|| "true".to_owned())))
            }
            fn visit_i64<E: de::Error>(self, v: i64) -> Result<MaybeText, E> {
                Ok(MaybeText(Some(v.to_string())))
            }
            fn visit_u64<E: de::Error>(self, v: u64) -> Result<MaybeText, E> {
                Ok(MaybeText(Some(v.to_string())))
            }
            fn visit_f64<E: de::Error>(self, v: f64) -> Result<MaybeText, E> {
                Ok(MaybeText(Some(v.to_string())))
            }
            fn visit_unit<E: de::Error>(self) -> Result<MaybeText, E> {
                Ok(MaybeText(None))
            }
        }
        deserializer.deserialize_any(Visitor)
    }
}

/// An array in a reply, or `false`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct MaybeArray<T>(pub(crate) Option<T>);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for MaybeArray<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor<T>(std::marker::PhantomData<T>);
        impl<'de, T: Deserialize<'de>> de::Visitor<'de> for Visitor<T> {
            type Value = MaybeArray<T>;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("an array or false")
            }
            fn visit_bool<E: de::Error>(self, _: bool) -> Result<MaybeArray<T>, E> {
                Ok(MaybeArray(None))
            }
            fn visit_seq<A: de::SeqAccess<'de>>(self, seq: A) -> Result<MaybeArray<T>, A::Error> {
                T::deserialize(de::value::SeqAccessDeserializer::new(seq)).map(|v| MaybeArray(Some(v)))
            }
        }
        deserializer.deserialize_any(Visitor(std::marker::PhantomData))
    }
}

/// One argument of each of many: a list, or one that stands for all.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum OneOrMany<T> {
    /// The same for all.
    One(T),
    /// One each.
    Many(Vec<T>),
}

impl<T: PartialEq> OneOrMany<T> {
    /// Shortens a list of equal values.
    pub(crate) fn of(values: Vec<T>) -> Self {
        let alike = values.windows(2).all(|pair| pair[0] == pair[1]);
        match (alike, values) {
            (true, mut values) if !values.is_empty() => Self::One(values.swap_remove(0)),
            (_, values) => Self::Many(values),
        }
    }
}

impl<T: Serialize> Serialize for OneOrMany<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::One(value) => value.serialize(serializer),
            Self::Many(values) => values.serialize(serializer),
        }
    }
}

/// Text of a reply that is not packed; what is no UTF-8 is replaced, as Node does.
pub(crate) fn text(value: Value) -> Option<String> {
    match value {
        Value::BulkString(bytes) => Some(
            String::from_utf8(bytes)
                .unwrap_or_else(|error| String::from_utf8_lossy(error.as_bytes()).into_owned()),
        ),
        Value::Int(number) => Some(number.to_string()),
        _ => None,
    }
}

/// A list in a reply that is not packed.
pub(crate) fn list(script: &'static str, value: Option<Value>) -> Result<Vec<Value>, ScriptError> {
    match value {
        Some(Value::Array(values)) => Ok(values),
        other => Err(ScriptError::Reply { script, detail: format!("{other:?} is no list") }),
    }
}

/// Packs a script's argument.
pub(crate) fn pack<T: Serialize>(value: &T) -> Result<Vec<u8>, ScriptError> {
    rmp_serde::to_vec(value).map_err(|e| ScriptError::Encoding(e.to_string()))
}

/// Unpacks a script's reply.
pub(crate) fn unpack<T: de::DeserializeOwned>(script: &'static str, bytes: &[u8]) -> Result<T, ScriptError> {
    rmp_serde::from_slice(bytes).map_err(|e| ScriptError::Reply { script, detail: e.to_string() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn absent_arguments_are_false() {
        assert_eq!(pack(&(OrFalse::<&str>(None), OrFalse(Some("x")))).unwrap(), [0x92, 0xc2, 0xa1, b'x']);
    }

    #[test]
    fn false_and_broken_utf8_are_read() {
        let reply: Vec<MaybeText> = unpack("t", &[0x94, 0xc2, 0xa2, 0xff, b'a', 0x07, 0xa1, b'y']).unwrap();
        let texts: Vec<_> = reply.into_iter().map(|t| t.0).collect();
        assert_eq!(texts, [None, Some("\u{fffd}a".into()), Some("7".into()), Some("y".into())]);
    }
}
