//! JSON into values and out of them, with little code. serde makes the code of a type once more for each kind of source (text,
//! bytes, `Value`) and of sink, so there is one of each: `read` takes bytes, and `value` goes by bytes. And an object is the
//! only form of a struct: serde_json would take an array as well, with the fields in their order, which nobody here writes.

use std::fmt;

use serde::de::{
    Deserialize, DeserializeSeed, Deserializer, EnumAccess, Error, MapAccess, SeqAccess, VariantAccess, Visitor,
};
use serde::Serialize;
use serde_json::Value;

/// The value that this text is, and nothing after it.
pub fn read<'de, T: Deserialize<'de>>(text: &'de [u8]) -> serde_json::Result<T> {
    let mut json = serde_json::Deserializer::from_slice(text);
    let value = T::deserialize(Objects(&mut json))?;
    json.end()?;
    Ok(value)
}

/// The same as a value of its own kind: what is printed from it has its keys in alphabetical order. Our types have no maps whose
/// keys JSON cannot have, which is all that could fail.
pub fn value<T: Serialize + ?Sized>(of: &T) -> Value {
    serde_json::to_vec(of).and_then(|text| read(&text)).unwrap_or_default()
}

/// A source, or a part of one, that gives a struct from an object only. What it gives has parts of the same kind.
struct Objects<P>(P);

/// Hands the call on with the visitor as it is: scalars have no parts.
macro_rules! scalar {
    ($($method:ident)*) => {$(
        fn $method<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, D::Error> {
            self.0.$method(visitor)
        }
    )*};
}

/// Hands the call on and keeps an eye on the parts.
macro_rules! compound {
    ($($method:ident($($name:ident: $kind:ty),*))*) => {$(
        fn $method<V: Visitor<'de>>(self, $($name: $kind,)* visitor: V) -> Result<V::Value, D::Error> {
            self.0.$method($($name,)* Objects(visitor))
        }
    )*};
}

impl<'de, D: Deserializer<'de>> Deserializer<'de> for Objects<D> {
    type Error = D::Error;

    scalar! {
        deserialize_bool deserialize_i8 deserialize_i16 deserialize_i32 deserialize_i64 deserialize_u8 deserialize_u16
        deserialize_u32 deserialize_u64 deserialize_f32 deserialize_f64 deserialize_char deserialize_str
        deserialize_string deserialize_bytes deserialize_byte_buf deserialize_unit deserialize_identifier
        deserialize_ignored_any
    }

    compound! {
        deserialize_any()
        deserialize_option()
        deserialize_seq()
        deserialize_map()
        deserialize_tuple(length: usize)
        deserialize_unit_struct(name: &'static str)
        deserialize_newtype_struct(name: &'static str)
        deserialize_tuple_struct(name: &'static str, length: usize)
        deserialize_enum(name: &'static str, variants: &'static [&'static str])
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        _fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, D::Error> {
        self.0.deserialize_map(Objects(visitor))
    }
}

/// What JSON has: the rest is refused as serde does.
impl<'de, V: Visitor<'de>> Visitor<'de> for Objects<V> {
    type Value = V::Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.expecting(f)
    }

    fn visit_bool<E: Error>(self, value: bool) -> Result<V::Value, E> {
        self.0.visit_bool(value)
    }

    fn visit_i64<E: Error>(self, value: i64) -> Result<V::Value, E> {
        self.0.visit_i64(value)
    }

    fn visit_u64<E: Error>(self, value: u64) -> Result<V::Value, E> {
        self.0.visit_u64(value)
    }

    fn visit_f64<E: Error>(self, value: f64) -> Result<V::Value, E> {
        self.0.visit_f64(value)
    }

    fn visit_str<E: Error>(self, value: &str) -> Result<V::Value, E> {
        self.0.visit_str(value)
    }

    fn visit_borrowed_str<E: Error>(self, value: &'de str) -> Result<V::Value, E> {
        self.0.visit_borrowed_str(value)
    }

    fn visit_string<E: Error>(self, value: String) -> Result<V::Value, E> {
        self.0.visit_string(value)
    }

    fn visit_unit<E: Error>(self) -> Result<V::Value, E> {
        self.0.visit_unit()
    }

    fn visit_none<E: Error>(self) -> Result<V::Value, E> {
        self.0.visit_none()
    }

    fn visit_some<D: Deserializer<'de>>(self, value: D) -> Result<V::Value, D::Error> {
        self.0.visit_some(Objects(value))
    }

    fn visit_newtype_struct<D: Deserializer<'de>>(self, value: D) -> Result<V::Value, D::Error> {
        self.0.visit_newtype_struct(Objects(value))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, values: A) -> Result<V::Value, A::Error> {
        self.0.visit_seq(Objects(values))
    }

    fn visit_map<A: MapAccess<'de>>(self, values: A) -> Result<V::Value, A::Error> {
        self.0.visit_map(Objects(values))
    }

    fn visit_enum<A: EnumAccess<'de>>(self, value: A) -> Result<V::Value, A::Error> {
        self.0.visit_enum(Objects(value))
    }
}

impl<'de, S: DeserializeSeed<'de>> DeserializeSeed<'de> for Objects<S> {
    type Value = S::Value;

    fn deserialize<D: Deserializer<'de>>(self, value: D) -> Result<S::Value, D::Error> {
        self.0.deserialize(Objects(value))
    }
}

impl<'de, A: SeqAccess<'de>> SeqAccess<'de> for Objects<A> {
    type Error = A::Error;

    fn next_element_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<Option<S::Value>, A::Error> {
        self.0.next_element_seed(Objects(seed))
    }

    fn size_hint(&self) -> Option<usize> {
        self.0.size_hint()
    }
}

impl<'de, A: MapAccess<'de>> MapAccess<'de> for Objects<A> {
    type Error = A::Error;

    /// A key has no parts.
    fn next_key_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<Option<S::Value>, A::Error> {
        self.0.next_key_seed(seed)
    }

    fn next_value_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<S::Value, A::Error> {
        self.0.next_value_seed(Objects(seed))
    }

    fn size_hint(&self) -> Option<usize> {
        self.0.size_hint()
    }
}

impl<'de, A: EnumAccess<'de>> EnumAccess<'de> for Objects<A> {
    type Error = A::Error;
    type Variant = Objects<A::Variant>;

    fn variant_seed<S: DeserializeSeed<'de>>(self, seed: S) -> Result<(S::Value, Self::Variant), A::Error> {
        self.0.variant_seed(seed).map(|(value, variant)| (value, Objects(variant)))
    }
}

impl<'de, A: VariantAccess<'de>> VariantAccess<'de> for Objects<A> {
    type Error = A::Error;

    fn unit_variant(self) -> Result<(), A::Error> {
        self.0.unit_variant()
    }

    fn newtype_variant_seed<S: DeserializeSeed<'de>>(self, seed: S) -> Result<S::Value, A::Error> {
        self.0.newtype_variant_seed(Objects(seed))
    }

    fn tuple_variant<V: Visitor<'de>>(self, length: usize, visitor: V) -> Result<V::Value, A::Error> {
        self.0.tuple_variant(length, Objects(visitor))
    }

    /// As a newtype's one value: `struct_variant` of the source would take an array, too.
    fn struct_variant<V: Visitor<'de>>(
        self,
        _fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, A::Error> {
        self.0.newtype_variant_seed(Fields(visitor))
    }
}

/// Reads the fields of a variant.
struct Fields<V>(V);

impl<'de, V: Visitor<'de>> DeserializeSeed<'de> for Fields<V> {
    type Value = V::Value;

    fn deserialize<D: Deserializer<'de>>(self, value: D) -> Result<V::Value, D::Error> {
        value.deserialize_map(Objects(self.0))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    #[derive(Debug, PartialEq, Serialize, serde::Deserialize)]
    struct Pair {
        first: u32,
        second: Option<String>,
    }

    #[derive(Debug, PartialEq, Serialize, serde::Deserialize)]
    struct Number(u64);

    #[derive(Debug, PartialEq, Serialize, serde::Deserialize)]
    enum Shape {
        Nothing,
        One(Number),
        Two(i32, f64),
        Fields { pair: Pair, flag: bool },
    }

    #[derive(Debug, PartialEq, Serialize, serde::Deserialize)]
    #[serde(tag = "kind")]
    enum Tagged {
        Empty,
        Full { pairs: Vec<Pair> },
    }

    #[derive(Debug, PartialEq, Serialize, serde::Deserialize)]
    struct Whole {
        shapes: Vec<Shape>,
        tagged: Vec<Tagged>,
        by_number: BTreeMap<u32, (u8, Pair)>,
        any: Value,
        none: Option<Pair>,
        unit: (),
    }

    fn pair() -> Pair {
        Pair { first: 1, second: Some("zwei\u{fc}\n".to_owned()) }
    }

    #[test]
    fn what_serde_json_writes_is_read_back() {
        let whole = Whole {
            shapes: vec![
                Shape::Nothing,
                Shape::One(Number(u64::MAX)),
                Shape::Two(-3, 0.5),
                Shape::Fields { pair: pair(), flag: true },
            ],
            tagged: vec![Tagged::Empty, Tagged::Full { pairs: vec![pair(), Pair { first: 2, second: None }] }],
            by_number: BTreeMap::from([(7, (8, pair()))]),
            any: serde_json::json!({ "deep": [1, -2, 0.25, null, true, { "er": "text" }] }),
            none: None,
            unit: (),
        };
        let text = serde_json::to_vec(&whole).unwrap();
        assert_eq!(read::<Whole>(&text).unwrap(), whole);
    }

    #[test]
    fn a_value_has_its_keys_in_order() {
        let shape = Shape::Fields { pair: Pair { first: 7, second: None }, flag: false };
        assert_eq!(value(&shape).to_string(), r#"{"Fields":{"flag":false,"pair":{"first":7,"second":null}}}"#);
        assert_eq!(value(&[0.1, 12.345_678, f64::NAN]).to_string(), "[0.1,12.345678,null]");
    }

    #[test]
    fn an_array_is_no_struct() {
        assert_eq!(serde_json::from_str::<Pair>("[1,null]").unwrap(), Pair { first: 1, second: None });
        let refused = |text: &str| read::<Pair>(text.as_bytes()).unwrap_err().to_string();
        assert_eq!(refused("[1,null]"), "invalid type: sequence, expected struct Pair at line 1 column 0");
        let refused = |text: &str| read::<Shape>(text.as_bytes()).unwrap_err().to_string();
        assert!(refused(r#"{"Fields":[{"first":1},true]}"#).contains("invalid type: sequence"));
        assert!(refused(r#"{"Fields":{"pair":[1,null],"flag":true}}"#).contains("invalid type: sequence"));
    }

    #[test]
    fn what_is_wrong_is_said_where_it_stands() {
        let refused = |text: &str| read::<Pair>(text.as_bytes()).unwrap_err().to_string();
        assert_eq!(refused(r#"{"second":null}"#), "missing field `first` at line 1 column 15");
        assert_eq!(refused(r#"{"first":1} x"#), "trailing characters at line 1 column 13");
        assert!(refused("\"\u{fffd}").contains("EOF"));
        assert!(read::<String>(b"\"\xff\"").is_err());
    }
}
