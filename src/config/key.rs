//! The table of keys: one entry for each setting, from which the options, the environment variables, the
//! defaults, `--print-config` and the check for unknown keys all follow. The sample files and the manual
//! pages are tested against it.

use figment::value::{Dict, Num, Value};

/// A setting that can be made in every layer.
#[derive(Debug)]
pub struct Key {
    /// Its name in the file; a dot separates table and key.
    pub name: &'static str,
    /// The long option, without dashes.
    pub option: &'static str,
    /// The short option, if a C user expects one or it is needed often.
    pub short: Option<char>,
    /// How a text becomes a value of the file's types.
    pub kind: Kind,
    /// What stands for the value in `--help`.
    pub value_name: &'static str,
    /// The default, as it is written in the file.
    pub default: &'static str,
    /// One line for `--help`.
    pub help: &'static str,
}

/// The types of values in the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// `true` or `false`; the option needs no value.
    Flag,
    /// A whole number.
    Number,
    /// A whole number that people read in hexadecimal.
    Hex,
    /// A text.
    Text,
    /// A list of texts; with commas in an option or variable.
    List,
}

/// What one program's configuration is made of.
#[derive(Debug)]
pub struct Program {
    /// The name of the program.
    pub name: &'static str,
    /// One line that says what it does.
    pub about: &'static str,
    /// The file that is read if there is one and no other is named.
    pub default_file: &'static str,
    /// What the environment variables begin with.
    pub env_prefix: &'static str,
    /// Its settings, in the order they are shown.
    pub keys: &'static [Key],
    /// Options of the C program of that name that this one lacks, and what to do instead.
    pub c_options: &'static [(char, &'static str)],
    /// Text after the options in `--help`.
    pub examples: &'static str,
    /// Whether there is the command `rules remove`.
    pub keeps_rules: bool,
}

impl Key {
    /// The environment variable that sets it.
    pub(super) fn variable(&self, prefix: &str) -> String {
        format!("{prefix}{}", self.name.replace(['.', '-'], "_").to_ascii_uppercase())
    }

    /// The option as a user writes it: `-n/--copies`.
    pub(super) fn option_text(&self) -> String {
        match self.short {
            Some(short) => format!("-{short}/--{}", self.option),
            None => format!("--{}", self.option),
        }
    }

    /// Makes of a text, from the environment or an option, what the file would hold.
    ///
    /// A text that is not of the key's kind stays a text; reading the settings then says what is wrong.
    pub(super) fn value(&self, text: &str) -> Value {
        match self.kind {
            Kind::Flag => match text {
                "true" | "yes" | "on" | "1" => Value::from(true),
                "false" | "no" | "off" | "0" => Value::from(false),
                _ => Value::from(text),
            },
            Kind::Number | Kind::Hex => {
                let number = match text.strip_prefix("0x") {
                    Some(digits) => u64::from_str_radix(digits, 16),
                    None => text.parse::<u64>(),
                };
                number.map_or_else(|_| Value::from(text), Value::from)
            }
            Kind::Text => Value::from(text),
            Kind::List => {
                let items: Vec<_> = text
                    .split(',')
                    .filter(|_| !text.trim().is_empty())
                    .map(|item| Value::from(item.trim()))
                    .collect();
                Value::from(items)
            }
        }
    }

    /// Puts `value` under this key's name into `dict`.
    pub(super) fn insert(&self, dict: &mut Dict, value: Value) {
        let Some((table, key)) = self.name.split_once('.') else {
            dict.insert(self.name.to_owned(), value);
            return;
        };
        let entry = dict.entry(table.to_owned()).or_insert_with(|| Value::from(Dict::new()));
        if let Value::Dict(_, table) = entry {
            table.insert(key.to_owned(), value);
        }
    }

    /// A value as it is written in the file.
    pub(super) fn literal(&self, value: &Value) -> String {
        match value {
            Value::String(_, text) => quote(text),
            Value::Char(_, character) => quote(&character.to_string()),
            Value::Bool(_, flag) => flag.to_string(),
            Value::Num(_, number) => self.number_literal(*number),
            Value::Empty(..) | Value::Dict(..) => "{}".to_owned(),
            Value::Array(_, items) => {
                let items: Vec<_> = items.iter().map(|item| self.literal(item)).collect();
                format!("[{}]", items.join(", "))
            }
        }
    }

    fn number_literal(&self, number: Num) -> String {
        let whole = number.to_u128().or_else(|| u128::try_from(number.to_i128()?).ok());
        match (self.kind, whole, number.to_i128(), number.to_f64()) {
            (Kind::Hex, Some(bits), _, _) => format!("{bits:#x}"),
            (_, Some(natural), _, _) => natural.to_string(),
            (_, None, Some(negative), _) => negative.to_string(),
            (_, None, None, real) => real.unwrap_or_default().to_string(),
        }
    }
}

/// A TOML basic string.
fn quote(text: &str) -> String {
    let mut quoted = String::with_capacity(text.len() + 2);
    quoted.push('"');
    for character in text.chars() {
        match character {
            '"' | '\\' => quoted.extend(['\\', character]),
            control if control.is_control() => {
                quoted.extend(format!("\\u{:04x}", u32::from(control)).chars());
            }
            plain => quoted.push(plain),
        }
    }
    quoted.push('"');
    quoted
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strings_are_quoted_as_toml() {
        assert_eq!(quote("a\"b\\c\n"), r#""a\"b\\c\u000a""#);
    }
}
