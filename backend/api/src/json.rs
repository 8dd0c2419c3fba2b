//! A JSON reader for programs whose size counts: the browser's bundles.
//!
//! `serde_json::from_str` compiles the parser into every type, and, because JSON's arrays may stand for structs, two ways
//! to read each. Here the text becomes a [`Tree`] first ([`parse`]), by code that exists once; what is compiled for a type
//! is only which of its fields is meant. Structs are read from objects alone.

mod parse;

use parse::tree;
use serde::{
    Deserializer,
    de::{
        self, DeserializeOwned, DeserializeSeed, EnumAccess, MapAccess, SeqAccess, Unexpected, VariantAccess, Visitor,
    },
    forward_to_deserialize_any,
};
use std::{fmt, vec};

/// Reads a value of type `T` from JSON.
///
/// # Errors
/// The text is not JSON, or does not fit the type.
pub fn read<T: DeserializeOwned>(text: &str) -> Result<T, Error> {
    T::deserialize(tree(text)?)
}

/// Why JSON could not be read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Error(String);

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Error {}

impl de::Error for Error {
    fn custom<T: fmt::Display>(message: T) -> Self {
        Self(message.to_string())
    }

    fn invalid_type(found: Unexpected<'_>, expected: &dyn de::Expected) -> Self {
        Self(format!("invalid type: {}, expected {expected}", name(found)))
    }

    fn invalid_value(found: Unexpected<'_>, expected: &dyn de::Expected) -> Self {
        Self(format!("invalid value: {}, expected {expected}", name(found)))
    }
}

/// `Unexpected` has words of its own, with the code that writes any float.
fn name(found: Unexpected<'_>) -> String {
    match found {
        Unexpected::Unit => "null".into(),
        Unexpected::Bool(value) => format!("boolean `{value}`"),
        Unexpected::Unsigned(value) => format!("integer `{value}`"),
        Unexpected::Signed(value) => format!("integer `{value}`"),
        Unexpected::Float(_) => "floating point number".into(),
        Unexpected::Str(value) => format!("string {value:?}"),
        Unexpected::Seq => "sequence".into(),
        Unexpected::Map => "map".into(),
        _ => "something else".into(),
    }
}

/// Any JSON value, with its object's members in their order.
#[derive(Debug, Clone, PartialEq)]
enum Tree {
    Null,
    Bool(bool),
    Unsigned(u64),
    Signed(i64),
    Float(f64),
    Text(String),
    List(Vec<Tree>),
    Object(Vec<(String, Tree)>),
}

impl Tree {
    #[cold]
    fn unexpected(&self, visitor: &dyn de::Expected) -> Error {
        let found = match self {
            Self::Null => Unexpected::Unit,
            Self::Bool(value) => Unexpected::Bool(*value),
            Self::Unsigned(value) => Unexpected::Unsigned(*value),
            Self::Signed(value) => Unexpected::Signed(*value),
            Self::Float(value) => Unexpected::Float(*value),
            Self::Text(value) => Unexpected::Str(value),
            Self::List(_) => Unexpected::Seq,
            Self::Object(_) => Unexpected::Map,
        };
        de::Error::invalid_type(found, visitor)
    }

    fn number<'de, V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match self {
            Self::Unsigned(value) => visitor.visit_u64(value),
            Self::Signed(value) => visitor.visit_i64(value),
            Self::Float(value) => visitor.visit_f64(value),
            other => Err(other.unexpected(&visitor)),
        }
    }

    fn text<'de, V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match self {
            Self::Text(value) => visitor.visit_string(value),
            other => Err(other.unexpected(&visitor)),
        }
    }

    fn list<'de, V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match self {
            Self::List(list) => {
                let mut items = Items(list.into_iter());
                let value = visitor.visit_seq(&mut items)?;
                match items.0.len() {
                    0 => Ok(value),
                    left => Err(de::Error::custom(format_args!("a list has {left} items too many"))),
                }
            }
            other => Err(other.unexpected(&visitor)),
        }
    }

    fn object<'de, V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match self {
            Self::Object(members) => visitor.visit_map(Members { rest: members.into_iter(), value: Self::Null }),
            other => Err(other.unexpected(&visitor)),
        }
    }
}

/// `deserialize_…` methods that want one kind of value.
macro_rules! expect {
    ($($kind:ident: $($method:ident)+;)+) => {$($(
        fn $method<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
            self.$kind(visitor)
        }
    )+)+};
}

impl<'de> Deserializer<'de> for Tree {
    type Error = Error;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match self {
            Self::Null => visitor.visit_unit(),
            Self::Bool(value) => visitor.visit_bool(value),
            Self::Unsigned(_) | Self::Signed(_) | Self::Float(_) => self.number(visitor),
            Self::Text(_) => self.text(visitor),
            Self::List(_) => self.list(visitor),
            Self::Object(_) => self.object(visitor),
        }
    }

    fn deserialize_bool<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match self {
            Self::Bool(value) => visitor.visit_bool(value),
            other => Err(other.unexpected(&visitor)),
        }
    }

    expect! {
        number: deserialize_u8 deserialize_u16 deserialize_u32 deserialize_u64 deserialize_i8 deserialize_i16
            deserialize_i32 deserialize_i64 deserialize_f32 deserialize_f64;
        text: deserialize_str deserialize_string deserialize_char deserialize_identifier;
        list: deserialize_seq;
        object: deserialize_map;
    }

    fn deserialize_tuple<V: Visitor<'de>>(self, _len: usize, visitor: V) -> Result<V::Value, Error> {
        self.list(visitor)
    }

    fn deserialize_tuple_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        _len: usize,
        visitor: V,
    ) -> Result<V::Value, Error> {
        self.list(visitor)
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        _fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        self.object(visitor)
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match self {
            Self::Null => visitor.visit_none(),
            some => visitor.visit_some(some),
        }
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(self, _name: &'static str, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _name: &'static str,
        _variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        let (name, content) = match self {
            Self::Text(name) => (name, None),
            Self::Object(mut members) if members.len() == 1 => match members.pop() {
                Some((name, content)) => (name, Some(content)),
                None => return Err(Self::Object(members).unexpected(&visitor)),
            },
            other => return Err(other.unexpected(&visitor)),
        };
        visitor.visit_enum(Variant { name, content })
    }

    fn deserialize_ignored_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_unit()
    }

    forward_to_deserialize_any! {
        i128 u128 bytes byte_buf unit unit_struct
    }
}

struct Items(vec::IntoIter<Tree>);

impl<'de> SeqAccess<'de> for Items {
    type Error = Error;

    fn next_element_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<Option<T::Value>, Error> {
        self.0.next().map(|item| seed.deserialize(item)).transpose()
    }

    fn size_hint(&self) -> Option<usize> {
        Some(self.0.len())
    }
}

struct Members {
    rest: vec::IntoIter<(String, Tree)>,
    /// Of the member whose name was read last.
    value: Tree,
}

impl<'de> MapAccess<'de> for Members {
    type Error = Error;

    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, Error> {
        let Some((name, value)) = self.rest.next() else { return Ok(None) };
        self.value = value;
        seed.deserialize(Tree::Text(name)).map(Some)
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, Error> {
        seed.deserialize(std::mem::replace(&mut self.value, Tree::Null))
    }
}

/// `"name"` or `{"name": content}`.
struct Variant {
    name: String,
    content: Option<Tree>,
}

impl<'de> EnumAccess<'de> for Variant {
    type Error = Error;
    type Variant = Content;

    fn variant_seed<V: DeserializeSeed<'de>>(self, seed: V) -> Result<(V::Value, Content), Error> {
        Ok((seed.deserialize(Tree::Text(self.name))?, Content(self.content)))
    }
}

struct Content(Option<Tree>);

impl Content {
    fn some(self) -> Result<Tree, Error> {
        self.0.ok_or_else(|| de::Error::custom("a variant lacks its content"))
    }
}

impl<'de> VariantAccess<'de> for Content {
    type Error = Error;

    fn unit_variant(self) -> Result<(), Error> {
        match self.0 {
            None | Some(Tree::Null) => Ok(()),
            Some(_) => Err(de::Error::custom("a variant has content that it should not have")),
        }
    }

    fn newtype_variant_seed<T: DeserializeSeed<'de>>(self, seed: T) -> Result<T::Value, Error> {
        seed.deserialize(self.some()?)
    }

    fn tuple_variant<V: Visitor<'de>>(self, _len: usize, visitor: V) -> Result<V::Value, Error> {
        self.some()?.list(visitor)
    }

    fn struct_variant<V: Visitor<'de>>(self, _fields: &'static [&'static str], visitor: V) -> Result<V::Value, Error> {
        self.some()?.object(visitor)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)] // tests panic on purpose
    use super::*;
    use serde::Deserialize;
    use std::collections::BTreeMap;

    #[derive(Debug, PartialEq, Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Everything {
        small: u32,
        wide: u64,
        negative: i32,
        real: f32,
        whole_real: f64,
        yes: bool,
        text: String,
        none: Option<u32>,
        some: Option<String>,
        list: Vec<[f32; 2]>,
        pair: (u32, String),
        map: BTreeMap<String, u32>,
        #[serde(default)]
        absent: Vec<u32>,
        wrapped: Wrapped,
        kinds: Vec<Kind>,
    }

    #[derive(Debug, PartialEq, Deserialize)]
    struct Wrapped(u32);

    #[derive(Debug, PartialEq, Deserialize)]
    #[serde(rename_all = "snake_case")]
    enum Kind {
        Plain,
        Named { at: u32 },
        New(f32),
        Two(u32, u32),
    }

    const EVERYTHING: &str = r#"{"small":7,"wide":18446744073709551615,"negative":-3,"real":0.1,"wholeReal":2,
        "yes":true,"text":"a \"b\" \u00e9 \ud83d\ude00","none":null,"some":"x","list":[[1,2.5],[-1e-3,4]],"pair":[1,"b"],
        "map":{"a":1,"b":2},"unknown":{"deep":[1,{"a":null}]},"wrapped":5,
        "kinds":["plain",{"named":{"at":4}},{"new":1.5},{"two":[1,2]}]}"#;

    #[test]
    fn every_kind_of_value_is_what_serde_json_reads() {
        let ours: Everything = read(EVERYTHING).unwrap();
        assert_eq!(ours, serde_json::from_str(EVERYTHING).unwrap());
        assert_eq!(ours.wide, u64::MAX);
        assert_eq!(ours.kinds[1], Kind::Named { at: 4 });
    }

    #[test]
    fn what_does_not_fit_says_what_and_where() {
        let error = |text: &str| read::<Everything>(text).unwrap_err().to_string();
        assert!(error("{\"small\":").contains("line 1"), "{}", error("{\"small\":"));
        assert!(error(r#"{"small":"7"}"#).contains("invalid type: string \"7\", expected u32"));
        assert!(error(r#"{"small":-1}"#).contains("invalid value"));
        assert!(error(r#"{"small":1}"#).contains("missing field `wide`"));
        assert!(error("[1,2]").contains("invalid type: sequence"));
        assert!(read::<[u32; 2]>("[1,2,3]").unwrap_err().to_string().contains("1 items too many"));
        assert!(read::<[u32; 2]>("[1]").is_err());
        assert!(read::<Kind>(r#""nothing""#).unwrap_err().to_string().contains("unknown variant"));
        assert!(read::<Kind>(r#"{"plain":1}"#).is_err());
        assert!(read::<Kind>(r#""new""#).is_err());
        assert!(read::<u32>("1 2").is_err());
    }
}
