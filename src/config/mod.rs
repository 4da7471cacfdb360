//! From a command line, an environment and a file to settings that are valid.
//!
//! [`tcpcopy::Settings::load`] and [`intercept::Settings::load`] are all a program needs. A setting can be
//! made, from the weakest to the strongest, by
//!
//! 1. the default in the table of keys,
//! 2. `/etc/tcpcopy/tcpcopy.toml` or `/etc/tcpcopy/intercept.toml`, or the file that `--config` names,
//! 3. the drop-ins of that file: `*.toml` in the directory of its name with `.d` at the end, in lexical order,
//! 4. an environment variable, `TCPCOPY_*` or `INTERCEPT_*`,
//! 5. an option.
//!
//! The raw values are private; what comes out of here is checked, singly and together, and needs no
//! later look. This module does no network I/O: whether addresses exist is the business of
//! [`doctor`](crate::doctor). It imports [`wire`](crate::wire), [`session`](crate::session) for the
//! choices that are a session's, and [`tunnel`](crate::tunnel) for its keys.

mod command_line;
mod common;
mod endpoint;
mod files;
pub mod intercept;
pub mod key;
pub mod keys;
mod layers;
pub mod tcpcopy;
mod units;
mod value;

use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;

pub use command_line::command;
pub use common::{CaptureSource, DEFAULT_USER, RulesBy};

use key::Program;
use layers::{Inputs, Layers};
use value::choice;

/// What a command line asks a program to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action<S> {
    /// To run with these settings.
    Run(S),
    /// To print this text on standard output and end with success.
    Print(String),
    /// To put the netfilter rules of these settings in force and end (`intercept rules load`).
    LoadRules(S),
    /// To print the rules of these settings and end (`intercept rules show`).
    ShowRules(S),
    /// To take its netfilter rules away (`intercept rules remove`), from the tables of this name.
    RemoveRules(String),
    /// To make a key for the tunnel (`keygen`), in this file or on standard output.
    MakeKey(Option<PathBuf>),
}

/// What is to be done with the rules of the settings.
type RulesAction<S> = fn(S) -> Action<S>;

/// Why there are no settings. Each message is one line that says what, where, and what to do.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The command line is wrong.
    #[error("{0}")]
    Usage(String),
    /// A value in a file or in the environment is wrong, or does not go with another one.
    #[error("{0}")]
    Value(String),
    /// A file has a key that does not exist.
    #[error("{}: line {line}: unknown key '{key}'; {hint}", path.display())]
    UnknownKey {
        /// The file.
        path: PathBuf,
        /// The line, counted from 1.
        line: usize,
        /// The key with its table.
        key: String,
        /// The key that was probably meant, or where to look.
        hint: String,
    },
    /// A file is not TOML.
    #[error("{}: line {line}: {message}", path.display())]
    Syntax {
        /// The file.
        path: PathBuf,
        /// The line, counted from 1.
        line: usize,
        /// What the parser expected there.
        message: String,
    },
    /// A file cannot be read.
    #[error("{}: cannot read the configuration: {source}; check the path given to --config and its permissions", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
}

impl ConfigError {
    /// Whether the command line is to blame, and not a file or the environment.
    pub fn is_usage(&self) -> bool {
        match self {
            Self::Usage(_) => true,
            Self::Value(_) | Self::UnknownKey { .. } | Self::Syntax { .. } | Self::Read { .. } => false,
        }
    }

    fn usage(program: &str, message: &str) -> Self {
        Self::Usage(format!("{message}; try '{program} --help'"))
    }
}

/// How much is logged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum LogLevel {
    /// What stops the program.
    Error,
    /// What an operator should act on.
    Warn,
    /// The life of the program.
    Info,
    /// The life of each session.
    Debug,
    /// Each packet.
    Trace,
}

choice! {
    LogLevel { Error = "error", Warn = "warn", Info = "info", Debug = "debug", Trace = "trace", }
    expected "\"error\", \"warn\", \"info\", \"debug\" or \"trace\""
}

/// What logging needs to know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogSettings {
    /// The name of the program, by which the journal knows it.
    pub program: &'static str,
    /// How much is logged.
    pub level: LogLevel,
}

/// What surrounds a run of a program; tests make their own.
struct Surroundings<'a> {
    environment: Vec<(String, String)>,
    default_file: &'a Path,
}

impl Surroundings<'_> {
    /// The process's own environment and the file of the installed program.
    fn of_process(program: &'static Program) -> Self {
        let texts = std::env::vars_os()
            .filter_map(|(name, text)| Some((name.into_string().ok()?, text.into_string().ok()?)));
        Self { environment: texts.collect(), default_file: Path::new(program.default_file) }
    }
}

/// The steps that both programs share: `R` holds the values, each valid by itself, and `settle` makes
/// settings of them, which are valid together.
fn load<R: DeserializeOwned, S>(
    program: &'static Program,
    arguments: impl IntoIterator<Item = OsString>,
    surroundings: Surroundings<'_>,
    settle: impl FnOnce(&Layers, R) -> Result<S, ConfigError>,
) -> Result<Action<S>, ConfigError> {
    let (options, rules_action): (_, Option<RulesAction<S>>) = match command_line::read(program, arguments)? {
        command_line::Request::Show(text) => return Ok(Action::Print(text)),
        command_line::Request::RemoveRules(options) => {
            return table_to_remove(program, options, surroundings).map(Action::RemoveRules);
        }
        command_line::Request::MakeKey(file) => return Ok(Action::MakeKey(file)),
        command_line::Request::LoadRules(options) => (options, Some(Action::LoadRules)),
        command_line::Request::ShowRules(options) => (options, Some(Action::ShowRules)),
        command_line::Request::Settings(options) => (options, None),
    };
    let inputs = Inputs {
        file: options.file.as_deref(),
        default_file: Some(surroundings.default_file),
        environment: surroundings.environment,
        options: options.settings,
        rules_only: rules_action.is_some(),
    };
    let layers = Layers::read(program, &inputs)?;
    let raw = layers.extract::<R>()?;
    if options.print {
        return Ok(Action::Print(layers.print()));
    }
    let settings = settle(&layers, raw)?;
    if options.check {
        return Ok(Action::Print("the configuration is valid\n".to_owned()));
    }
    Ok(rules_action.unwrap_or(Action::Run)(settings))
}

/// The table that `rules remove` is about: the option names it, or the configuration, of which nothing else is checked.
///
/// With the option no configuration is read, so that one that cannot be read keeps no rules in force.
fn table_to_remove(
    program: &'static Program,
    options: command_line::Options,
    surroundings: Surroundings<'_>,
) -> Result<String, ConfigError> {
    #[derive(serde::Deserialize)]
    struct Raw {
        table: value::Text<endpoint::Table>,
        port: value::Number<1, 65_535>,
    }

    let is_named = !options.settings.is_empty();
    let inputs = Inputs {
        file: options.file.as_deref().filter(|_| !is_named),
        default_file: Some(surroundings.default_file).filter(|_| !is_named),
        environment: if is_named { Vec::new() } else { surroundings.environment },
        options: options.settings,
        rules_only: true,
    };
    match Layers::read(program, &inputs).and_then(|layers| layers.extract::<Raw>()) {
        Ok(raw) => Ok(intercept::table_name(raw.table.0, raw.port.to())),
        Err(error) if is_named => Err(error),
        Err(error) => Err(ConfigError::Value(format!(
            "{error}; to remove the rules all the same, name their table, as in '{} rules remove --table intercept'",
            program.name
        ))),
    }
}

#[cfg(test)]
mod intercept_tests;
#[cfg(test)]
mod tests;
