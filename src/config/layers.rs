//! The layers a setting can come from, and what is said when one of them is wrong.
//!
//! Defaults, then a file, then the environment, then the command line: the last one that names a key
//! wins. `figment` merges them and remembers where each value came from.

use std::fmt::Write as _;
use std::io;
use std::path::{Path, PathBuf};

use figment::error::{Actual, Kind as Fault};
use figment::providers::{Format, Toml};
use figment::value::{Dict, Map, Value};
use figment::{Figment, Metadata, Profile, Provider, Source};
use serde::de::DeserializeOwned;

use super::ConfigError;
use super::key::{Key, Program};

/// Where a value was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Origin {
    /// Nowhere: it is the program's default.
    Default,
    /// In this file.
    File(PathBuf),
    /// In an environment variable.
    Environment,
    /// As an option.
    CommandLine,
}

/// The parts that a run of the program takes its settings from.
#[derive(Debug, Default)]
pub(super) struct Inputs<'a> {
    /// The file named by `--config`; it must exist.
    pub file: Option<&'a Path>,
    /// The file that is read if it exists.
    pub default_file: Option<&'a Path>,
    /// The environment.
    pub environment: Vec<(String, String)>,
    /// The options given, with their texts.
    pub options: Vec<(&'static Key, String)>,
}

/// All layers, merged.
#[derive(Debug)]
pub(super) struct Layers {
    program: &'static Program,
    figment: Figment,
    file: Option<PathBuf>,
    /// What is odd but no reason not to run.
    pub warnings: Vec<String>,
}

impl Layers {
    /// Reads the layers and refuses keys that nobody knows.
    pub(super) fn read(program: &'static Program, inputs: &Inputs<'_>) -> Result<Self, ConfigError> {
        let mut figment = Figment::new().merge(Layer { origin: Origin::Default, dict: defaults(program)? });
        let file = match (inputs.file, inputs.default_file) {
            (Some(path), _) => Some((path, read_file(path)?)),
            (None, Some(path)) => read_optional(path)?.map(|text| (path, text)),
            (None, None) => None,
        };
        let found = file.as_ref().map(|(path, _)| (*path).to_owned());
        if let Some((path, text)) = file {
            let dict = parse(path, &text)?;
            refuse_unknown(program, path, &dict)?;
            figment = figment.merge(Layer { origin: Origin::File(path.to_owned()), dict });
        }
        let (dict, warnings) = environment(program, &inputs.environment);
        figment = figment.merge(Layer { origin: Origin::Environment, dict });
        let dict = command_line(&inputs.options);
        figment = figment.merge(Layer { origin: Origin::CommandLine, dict });
        Ok(Self { program, figment, file: found, warnings })
    }

    /// The merged values as a `T`.
    pub(super) fn extract<T: DeserializeOwned>(&self) -> Result<T, ConfigError> {
        self.figment.extract::<T>().map_err(|error| {
            // The items of a list have numbers in the path; their key is what the user wrote.
            let names: Vec<_> =
                error.path.iter().filter(|part| part.parse::<usize>().is_err()).cloned().collect();
            let key = names.join(".");
            let origin = error.metadata.as_ref().map_or(Origin::Default, origin);
            self.wrong(&key, &origin, &fault_text(&error.kind))
        })
    }

    /// The error for a value that is well formed and cannot be, said of the key it was given in.
    pub(super) fn refuse(&self, key: &str, message: &str) -> ConfigError {
        let origin = self.figment.find_metadata(key).map_or(Origin::Default, origin);
        self.wrong(key, &origin, message)
    }

    /// The effective values and where each comes from, in the form of the file.
    pub(super) fn print(&self) -> String {
        let mut lines = Vec::new();
        for key in self.program.keys {
            let value = self.figment.find_value(key.name).unwrap_or_else(|_| Value::from(""));
            let origin = self.figment.find_metadata(key.name).map_or(Origin::Default, origin);
            lines.push((format!("{} = {}", key.name, key.literal(&value)), self.place(key.name, &origin)));
        }
        let width =
            lines.iter().map(|(setting, _)| setting.len()).filter(|width| *width <= 40).max().unwrap_or(0);
        lines.into_iter().fold(String::new(), |mut text, (setting, place)| {
            let _ = writeln!(text, "{setting:width$}  # {place}");
            text
        })
    }

    fn wrong(&self, key: &str, origin: &Origin, message: &str) -> ConfigError {
        // What is missing is missing from the file if there is one, else from the command line.
        let blamed = match (origin, &self.file) {
            (Origin::Default, Some(path)) => &Origin::File(path.clone()),
            (Origin::Default | Origin::File(_) | Origin::Environment | Origin::CommandLine, _) => origin,
        };
        let known = self.program.keys.iter().find(|known| known.name == key);
        let key = match (blamed, known) {
            (Origin::CommandLine | Origin::Default, Some(known)) => known.option_text(),
            (Origin::Environment, Some(known)) => known.variable(self.program.env_prefix),
            (Origin::File(path), _) => format!("{}: {key}", path.display()),
            (Origin::Default | Origin::Environment | Origin::CommandLine, None) => key.to_owned(),
        };
        let message = format!("{key}: {message}");
        if matches!(blamed, Origin::CommandLine | Origin::Default) {
            ConfigError::usage(self.program.name, &message)
        } else {
            ConfigError::Value(message)
        }
    }

    fn place(&self, key: &str, origin: &Origin) -> String {
        match origin {
            Origin::Default => "default".to_owned(),
            Origin::File(path) => path.display().to_string(),
            Origin::Environment => self
                .program
                .keys
                .iter()
                .find(|known| known.name == key)
                .map_or_else(|| "environment".to_owned(), |known| known.variable(self.program.env_prefix)),
            Origin::CommandLine => "command line".to_owned(),
        }
    }
}

/// One layer, as figment wants it.
struct Layer {
    origin: Origin,
    dict: Dict,
}

impl Provider for Layer {
    fn metadata(&self) -> Metadata {
        match &self.origin {
            Origin::Default => Metadata::named("default"),
            Origin::File(path) => Metadata::from("file", path.as_path()),
            Origin::Environment => Metadata::named("environment"),
            Origin::CommandLine => Metadata::named("command line"),
        }
    }

    fn data(&self) -> Result<Map<Profile, Dict>, figment::Error> {
        Ok(Map::from([(Profile::Default, self.dict.clone())]))
    }
}

/// The inverse of [`Layer::metadata`].
fn origin(metadata: &Metadata) -> Origin {
    match (&metadata.source, metadata.name.as_ref()) {
        (Some(Source::File(path)), _) => Origin::File(path.clone()),
        (_, "environment") => Origin::Environment,
        (_, "command line") => Origin::CommandLine,
        (_, _) => Origin::Default,
    }
}

fn defaults(program: &Program) -> Result<Dict, ConfigError> {
    let text = program.keys.iter().fold(String::new(), |mut text, key| {
        let _ = writeln!(text, "{} = {}", key.name, key.default);
        text
    });
    parse(Path::new("built-in defaults"), &text)
}

/// The settings among the variables, and a warning for each variable that looks like one and is none.
///
/// An unknown variable is no error: Kubernetes gives every pod variables named after services
/// (`TCPCOPY_SERVICE_HOST`), which the operator of this program has no say in.
fn environment(program: &'static Program, variables: &[(String, String)]) -> (Dict, Vec<String>) {
    let mut dict = Dict::new();
    let mut warnings = Vec::new();
    for (variable, text) in variables.iter().filter(|(variable, _)| variable.starts_with(program.env_prefix))
    {
        match program.keys.iter().find(|key| key.variable(program.env_prefix) == *variable) {
            Some(key) => key.insert(&mut dict, key.value(text)),
            None => warnings
                .push(format!("environment variable {variable} sets nothing that {} knows", program.name)),
        }
    }
    (dict, warnings)
}

fn command_line(options: &[(&'static Key, String)]) -> Dict {
    let mut dict = Dict::new();
    for (key, text) in options {
        key.insert(&mut dict, key.value(text));
    }
    dict
}

fn read_file(path: &Path) -> Result<String, ConfigError> {
    std::fs::read_to_string(path).map_err(|source| ConfigError::Read { path: path.to_owned(), source })
}

fn read_optional(path: &Path) -> Result<Option<String>, ConfigError> {
    match read_file(path) {
        Ok(text) => Ok(Some(text)),
        Err(ConfigError::Read { source, .. }) if source.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

fn parse(path: &Path, text: &str) -> Result<Dict, ConfigError> {
    <Toml as Format>::from_str(text).map_err(|error| {
        let offset = error.span().map_or(0, |span| span.start);
        let line = text.bytes().take(offset).filter(|byte| *byte == b'\n').count() + 1;
        let message = error.message().lines().collect::<Vec<_>>().join("; ");
        ConfigError::Syntax { path: path.to_owned(), line, message }
    })
}

/// Refuses the first key in `dict` that is not in the table.
fn refuse_unknown(program: &Program, path: &Path, dict: &Dict) -> Result<(), ConfigError> {
    let mut names = Vec::new();
    collect_names(program, "", dict, &mut names);
    let known = |name: &String| program.keys.iter().any(|key| key.name == name);
    match names.into_iter().find(|name| !known(name)) {
        None => Ok(()),
        Some(key) => {
            let hint = match nearest(program, &key) {
                Some(name) => format!("did you mean '{name}'?"),
                None => format!("see {}(8) for the keys there are", program.name),
            };
            Err(ConfigError::UnknownKey { path: path.to_owned(), key, hint })
        }
    }
}

/// The full names of the keys in `dict`; a table that no key begins with counts as one.
fn collect_names(program: &Program, prefix: &str, dict: &Dict, names: &mut Vec<String>) {
    for (key, value) in dict {
        let name = format!("{prefix}{key}");
        let table = format!("{name}.");
        let is_table = program.keys.iter().any(|known| known.name.starts_with(&table));
        if !is_table {
            names.push(name);
        } else if let Value::Dict(_, inner) = value {
            collect_names(program, &table, inner, names);
        }
        // Else it is a value where a table belongs: reading the settings says so.
    }
}

/// The known key that `name` most likely stands for.
fn nearest<'a>(program: &'a Program, name: &str) -> Option<&'a str> {
    let written = name.replace('_', "-").to_ascii_lowercase();
    let last = |full: &str| full.rsplit('.').next().unwrap_or_default().to_owned();
    let similarity = |key: &Key| {
        let whole = strsim::jaro_winkler(&written, key.name);
        whole.max(strsim::jaro_winkler(&last(&written), &last(key.name)))
    };
    let best = program.keys.iter().max_by(|a, b| similarity(a).total_cmp(&similarity(b)))?;
    (similarity(best) > 0.8).then_some(best.name)
}

/// What figment found wrong, in the words of this program.
#[expect(clippy::wildcard_enum_match_arm, reason = "figment's own text serves the kinds no key can lead to")]
fn fault_text(fault: &Fault) -> String {
    match fault {
        Fault::Message(message) => message.clone(),
        Fault::InvalidType(found, expected) | Fault::InvalidValue(found, expected) => {
            format!("expected {expected}, found {}", actual_text(found))
        }
        other => other.to_string(),
    }
}

#[expect(clippy::wildcard_enum_match_arm, reason = "figment's own text serves the types TOML does not have")]
fn actual_text(actual: &Actual) -> String {
    match actual {
        Actual::Bool(flag) => flag.to_string(),
        Actual::Unsigned(number) => number.to_string(),
        Actual::Signed(number) => number.to_string(),
        Actual::Float(number) => number.to_string(),
        Actual::Str(text) => format!("{text:?}"),
        Actual::Seq => "a list".to_owned(),
        Actual::Map => "a table".to_owned(),
        other => other.to_string(),
    }
}
