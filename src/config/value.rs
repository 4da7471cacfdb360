//! The building blocks of raw values: how one text becomes one checked value, wherever it was written.
//!
//! A type says with [`FromText`] what it looks like and how it is read; serde's part follows from that, so
//! a file, an environment variable and the command line take the same forms and give the same messages.

use std::fmt;
use std::marker::PhantomData;

use serde::de::{Deserialize, Deserializer, Error, SeqAccess, Visitor};

/// Why a text is not a valid value: one sentence that says what was expected.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub(super) struct Invalid(pub String);

/// A value that is written as text.
pub(super) trait FromText: Sized {
    /// What such a text looks like, to follow the word "expected".
    const EXPECTED: &'static str;

    /// Reads the value.
    fn from_text(text: &str) -> Result<Self, Invalid>;

    /// The error for a text that looks nothing like [`EXPECTED`](Self::EXPECTED).
    fn unlike(text: &str) -> Invalid {
        Invalid(format!("expected {}, found {text:?}", Self::EXPECTED))
    }
}

/// A text in the file that becomes a `T`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Text<T>(pub T);

/// One text with commas, or a list of texts, that become several `T`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct List<T>(pub Vec<T>);

/// A whole number within bounds, both inclusive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Number<const LEAST: u64, const MOST: u64>(pub u64);

/// A whole number within bounds, or `"auto"`: the program chooses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct AutoOr<const LEAST: u64, const MOST: u64>(pub Option<u64>);

impl<'de, T: FromText> Deserialize<'de> for Text<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Reader<T>(PhantomData<T>);

        impl<T: FromText> Visitor<'_> for Reader<T> {
            type Value = Text<T>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(T::EXPECTED)
            }

            fn visit_str<E: Error>(self, text: &str) -> Result<Text<T>, E> {
                T::from_text(text).map(Text).map_err(E::custom)
            }
        }

        deserializer.deserialize_str(Reader(PhantomData))
    }
}

impl<'de, T: FromText> Deserialize<'de> for List<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Reader<T>(PhantomData<T>);

        impl<'de, T: FromText> Visitor<'de> for Reader<T> {
            type Value = List<T>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}, or a list of such", T::EXPECTED)
            }

            fn visit_str<E: Error>(self, text: &str) -> Result<List<T>, E> {
                let items = text.split(',').map(|item| T::from_text(item.trim()));
                items.collect::<Result<_, _>>().map(List).map_err(E::custom)
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<List<T>, A::Error> {
                let mut list = Vec::new();
                while let Some(Text(item)) = items.next_element()? {
                    list.push(item);
                }
                Ok(List(list))
            }
        }

        deserializer.deserialize_any(Reader(PhantomData))
    }
}

/// Reads a number within bounds; with `auto`, the word as well.
struct NumberReader {
    least: u64,
    most: u64,
    auto: bool,
}

impl Visitor<'_> for NumberReader {
    type Value = Option<u64>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a whole number from {} to {}", self.least, self.most)?;
        if self.auto { f.write_str(" or \"auto\"") } else { Ok(()) }
    }

    fn visit_u64<E: Error>(self, number: u64) -> Result<Option<u64>, E> {
        if (self.least..=self.most).contains(&number) {
            return Ok(Some(number));
        }
        Err(E::invalid_value(serde::de::Unexpected::Unsigned(number), &self))
    }

    fn visit_i64<E: Error>(self, number: i64) -> Result<Option<u64>, E> {
        match u64::try_from(number) {
            Ok(number) => self.visit_u64(number),
            Err(_) => Err(E::invalid_value(serde::de::Unexpected::Signed(number), &self)),
        }
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<Option<u64>, E> {
        if self.auto && text == "auto" {
            return Ok(None);
        }
        Err(E::invalid_type(serde::de::Unexpected::Str(text), &self))
    }
}

impl<'de, const LEAST: u64, const MOST: u64> Deserialize<'de> for Number<LEAST, MOST> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let reader = NumberReader { least: LEAST, most: MOST, auto: false };
        let number = deserializer.deserialize_any(reader)?;
        Ok(Self(number.expect("the reader gives None for the word \"auto\" only, which is not allowed here")))
    }
}

impl<'de, const LEAST: u64, const MOST: u64> Deserialize<'de> for AutoOr<LEAST, MOST> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(NumberReader { least: LEAST, most: MOST, auto: true }).map(Self)
    }
}

impl<const LEAST: u64, const MOST: u64> Number<LEAST, MOST> {
    /// The number in the type it is used in, which the bounds fit.
    pub(super) fn to<T: TryFrom<u64>>(self) -> T {
        T::try_from(self.0).ok().expect("the bounds of the key fit the type of the setting")
    }
}

impl<const LEAST: u64, const MOST: u64> AutoOr<LEAST, MOST> {
    /// The number, or what the program chooses for `"auto"`, brought within the bounds.
    pub(super) fn or<T: TryFrom<u64>>(self, chosen: u64) -> T {
        Number::<LEAST, MOST>(self.0.unwrap_or_else(|| chosen.clamp(LEAST, MOST))).to()
    }
}

/// Says which words of the configuration stand for the variants of an enum.
macro_rules! choice {
    ($name:ident { $($variant:ident = $word:literal,)+ } expected $expected:literal) => {
        impl $crate::config::value::FromText for $name {
            const EXPECTED: &'static str = $expected;

            fn from_text(text: &str) -> Result<Self, $crate::config::value::Invalid> {
                match text {
                    $($word => Ok(Self::$variant),)+
                    _ => Err(Self::unlike(text)),
                }
            }
        }
    };
}

pub(super) use choice;
