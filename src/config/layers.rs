//! The layers a setting can come from, and what is said when one of them is wrong.
//!
//! Defaults, then the file, then its drop-ins, then the environment, then the command line: the last one that
//! names a key wins; lists are not added up. `figment` merges them and remembers where each value came from.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use figment::error::{Actual, Kind as Fault};
use figment::value::{Dict, Map, Value};
use figment::{Figment, Metadata, Profile, Provider, Source};
use serde::de::DeserializeOwned;

use super::ConfigError;
use super::files::{self, ConfigFile};
use super::key::{Key, Program};
use super::keys::{self, KeysAt, TunnelKey};

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
    /// Nothing but the rules is wanted.
    pub rules_only: bool,
}

/// All layers, merged.
#[derive(Debug)]
pub(super) struct Layers {
    program: &'static Program,
    figment: Figment,
    files: Vec<ConfigFile>,
    /// Where the service manager put credentials.
    credentials: Option<PathBuf>,
    /// Where keys are if nothing else is said: beside the file that is read if no other is named.
    usual_keys: Option<PathBuf>,
    /// Nothing but the rules is wanted: there will be no tunnel.
    pub rules_only: bool,
    /// What is odd but no reason not to run.
    pub warnings: Vec<String>,
}

impl Layers {
    /// Reads the layers and refuses keys that nobody knows.
    pub(super) fn read(program: &'static Program, inputs: &Inputs<'_>) -> Result<Self, ConfigError> {
        let mut figment = Figment::new().merge(Layer { origin: Origin::Default, dict: defaults(program)? });
        let files = match (inputs.file, inputs.default_file) {
            (Some(path), _) => files::read(program, path, true)?,
            (None, Some(path)) => files::read(program, path, false)?,
            (None, None) => Vec::new(),
        };
        for file in &files {
            let origin = Origin::File(file.path.clone());
            figment = figment.merge(Layer { origin, dict: file.dict.clone() });
        }
        let (dict, warnings) = environment(program, &inputs.environment);
        figment = figment.merge(Layer { origin: Origin::Environment, dict });
        let dict = command_line(&inputs.options);
        figment = figment.merge(Layer { origin: Origin::CommandLine, dict });
        let variable = |name: &str| inputs.environment.iter().find(|(known, _)| known == name);
        let credentials = variable("CREDENTIALS_DIRECTORY").map(|(_, path)| PathBuf::from(path));
        let usual_keys = inputs.default_file.map(|file| file.with_file_name("keys"));
        Ok(Self { program, figment, files, credentials, usual_keys, rules_only: inputs.rules_only, warnings })
    }

    /// The tunnel's keys. Rules do without: at boot, nothing about a key may keep them out.
    pub(super) fn keys(&self, at: &KeysAt) -> Result<Vec<TunnelKey>, ConfigError> {
        if self.rules_only {
            return Ok(Vec::new());
        }
        keys::load(at, self.credentials.as_deref(), self.usual_keys.as_deref())
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
        let blamed = match (origin, self.files.first()) {
            (Origin::Default, Some(file)) => &Origin::File(file.path.clone()),
            (Origin::Default | Origin::File(_) | Origin::Environment | Origin::CommandLine, _) => origin,
        };
        let known = self.program.keys.iter().find(|known| known.name == key);
        let key = match (blamed, known) {
            (Origin::CommandLine | Origin::Default, Some(known)) => known.option_text(),
            (Origin::Environment, Some(known)) => known.variable(self.program.env_prefix),
            (Origin::File(path), _) => match self.line(path, key) {
                Some(line) => format!("{}: line {line}: {key}", path.display()),
                None => format!("{}: {key}", path.display()),
            },
            (Origin::Default | Origin::Environment | Origin::CommandLine, None) => key.to_owned(),
        };
        let message = format!("{key}: {message}");
        if matches!(blamed, Origin::CommandLine | Origin::Default) {
            ConfigError::usage(self.program.name, &message)
        } else {
            ConfigError::Value(message)
        }
    }

    /// The line of `key` in a file; none if it is not there.
    fn line(&self, path: &Path, key: &str) -> Option<usize> {
        self.files.iter().find(|file| file.path == path)?.lines.get(key).copied()
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
    files::parse(Path::new("built-in defaults"), &text)
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
