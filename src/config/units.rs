//! Durations and sizes as people write them: `"200ms"`, `"10s"`, `"512MiB"`.
//!
//! Two dozen lines serve both better than a crate for each would; a number without a unit is refused.

use std::fmt;
use std::time::Duration;

use super::value::{FromText, Invalid};

/// A span of time, written as a whole number and a unit: `us`, `ms`, `s`, `m`, `h` or `d`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Span(pub(super) Duration);

/// An amount of memory in bytes, written as a whole number and a unit: `B`, `KiB`, `MiB` or `GiB`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Size(pub(super) u64);

/// Units of [`Span`] in microseconds, the largest first.
const SPAN_UNITS: [(&str, u64); 6] = [
    ("d", 86_400_000_000),
    ("h", 3_600_000_000),
    ("m", 60_000_000),
    ("s", 1_000_000),
    ("ms", 1_000),
    ("us", 1),
];

/// Units of [`Size`] in bytes, the largest first.
const SIZE_UNITS: [(&str, u64); 4] = [("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10), ("B", 1)];

impl FromText for Span {
    const EXPECTED: &'static str = "a duration with a unit, such as \"200ms\", \"10s\" or \"5m\"";

    fn from_text(text: &str) -> Result<Self, Invalid> {
        parse(text, &SPAN_UNITS)
            .map(|micros| Self(Duration::from_micros(micros)))
            .ok_or_else(|| Self::unlike(text))
    }
}

impl FromText for Size {
    const EXPECTED: &'static str = "a size with a unit, such as \"64KiB\", \"512MiB\" or \"2GiB\"";

    fn from_text(text: &str) -> Result<Self, Invalid> {
        parse(text, &SIZE_UNITS).map(Self).ok_or_else(|| Self::unlike(text))
    }
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match SIZE_UNITS.iter().find(|(_, factor)| self.0 != 0 && self.0.is_multiple_of(*factor)) {
            Some((name, factor)) => write!(f, "{}{name}", self.0 / factor),
            None => f.write_str("0B"),
        }
    }
}

/// The number before the unit times the unit; `None` if either is missing or the product overflows.
fn parse(text: &str, units: &[(&str, u64)]) -> Option<u64> {
    let text = text.trim();
    let digits_end = text.find(|c: char| !c.is_ascii_digit())?;
    let (digits, unit) = text.split_at(digits_end);
    let (_, factor) = units.iter().find(|(name, _)| *name == unit.trim_start())?;
    digits.parse::<u64>().ok()?.checked_mul(*factor)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_read() {
        for (text, micros) in [
            ("200ms", 200_000),
            ("10s", 10_000_000),
            ("5m", 300_000_000),
            ("1h", 3_600_000_000),
            ("7us", 7),
            ("0s", 0),
        ] {
            assert_eq!(Span::from_text(text), Ok(Span(Duration::from_micros(micros))));
        }
        assert_eq!(Span::from_text("60 s"), Span::from_text("1m"));
    }

    #[test]
    fn sizes_round_trip() {
        for (text, bytes) in [("512MiB", 512 << 20), ("2GiB", 2 << 30), ("1500B", 1500), ("0B", 0)] {
            assert_eq!(Size::from_text(text), Ok(Size(bytes)));
            assert_eq!(Size(bytes).to_string(), text);
        }
    }

    #[test]
    fn a_number_without_a_unit_is_refused() {
        for text in
            ["", "10", "s", "-1s", "1.5s", "10 parsecs", "99999999999999999999s", "18446744073709551615d"]
        {
            assert!(Span::from_text(text).is_err(), "{text}");
        }
        for text in ["512", "512MB", "MiB", "18446744073709551615GiB"] {
            assert!(Size::from_text(text).is_err(), "{text}");
        }
    }
}
