//! The configuration's files: the main one, and the drop-ins beside it that override it piece by piece.

use std::collections::HashMap;
use std::ffi::OsString;
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};

use figment::providers::{Format, Toml};
use figment::value::{Dict, Value};
use toml_edit::{ImDocument, TableLike};

use super::ConfigError;
use super::key::{Key, Program};

/// One file, whose keys are all known.
#[derive(Debug)]
pub(super) struct ConfigFile {
    /// Where it is.
    pub path: PathBuf,
    /// What it sets.
    pub dict: Dict,
    /// On which line each key is, counted from 1; the keys in full, with their table.
    pub lines: HashMap<String, usize>,
}

/// Reads `main` and its drop-ins: the files `*.toml` in the directory of its name with `.d` at the end, in lexical
/// order. The main file must be there if it is `required`; the directory need not.
pub(super) fn read(program: &Program, main: &Path, required: bool) -> Result<Vec<ConfigFile>, ConfigError> {
    let mut files = Vec::new();
    match read_text(main) {
        Ok(text) => files.push(understand(program, main, &text)?),
        Err(ConfigError::Read { source, .. }) if !required && source.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    for path in drop_ins(main)? {
        files.push(understand(program, &path, &read_text(&path)?)?);
    }
    Ok(files)
}

/// Parses settings of the program's own making, such as its defaults.
pub(super) fn parse(path: &Path, text: &str) -> Result<Dict, ConfigError> {
    <Toml as Format>::from_str(text).map_err(|error| {
        let message = error.message().lines().collect::<Vec<_>>().join("; ");
        ConfigError::Syntax { path: path.to_owned(), line: line_of(text, error.span()), message }
    })
}

fn read_text(path: &Path) -> Result<String, ConfigError> {
    std::fs::read_to_string(path).map_err(|source| ConfigError::Read { path: path.to_owned(), source })
}

/// The paths of the drop-ins of `main`. Hidden files, such as an editor's, are none.
fn drop_ins(main: &Path) -> Result<Vec<PathBuf>, ConfigError> {
    let mut directory = OsString::from(main);
    directory.push(".d");
    let directory = PathBuf::from(directory);
    let failed = |source| ConfigError::Read { path: directory.clone(), source };
    let entries = match std::fs::read_dir(&directory) {
        Ok(entries) => entries,
        // A main file that is no regular one, such as /dev/null, has none either.
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(failed(error)),
    };
    let mut paths = Vec::new();
    for entry in entries {
        let path = entry.map_err(failed)?.path();
        let hidden = path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"."));
        if !hidden && path.extension().is_some_and(|extension| extension == "toml") {
            paths.push(path);
        }
    }
    paths.sort();
    Ok(paths)
}

fn understand(program: &Program, path: &Path, text: &str) -> Result<ConfigFile, ConfigError> {
    let dict = parse(path, text)?;
    let mut lines = HashMap::new();
    // What figment's parser has read is read by this one too: they are the same.
    if let Ok(document) = ImDocument::parse(text) {
        note_lines(text, "", document.as_table(), &mut lines);
    }
    refuse_unknown(program, path, &dict, &lines)?;
    Ok(ConfigFile { path: path.to_owned(), dict, lines })
}

fn note_lines(text: &str, prefix: &str, table: &dyn TableLike, lines: &mut HashMap<String, usize>) {
    for (name, item) in table.iter() {
        let full = format!("{prefix}{name}");
        let span = table.key(name).and_then(toml_edit::Key::span);
        lines.insert(full.clone(), line_of(text, span));
        if let Some(inner) = item.as_table_like() {
            note_lines(text, &format!("{full}."), inner, lines);
        }
    }
}

/// The line a span begins on, counted from 1.
fn line_of(text: &str, span: Option<Range<usize>>) -> usize {
    let offset = span.map_or(0, |span| span.start);
    text.bytes().take(offset).filter(|byte| *byte == b'\n').count() + 1
}

/// Refuses the first key that is not in the table of keys.
fn refuse_unknown(
    program: &Program,
    path: &Path,
    dict: &Dict,
    lines: &HashMap<String, usize>,
) -> Result<(), ConfigError> {
    let mut names = Vec::new();
    collect_names(program, "", dict, &mut names);
    let line = |name: &String| lines.get(name).copied().unwrap_or(1);
    let unknown = names.into_iter().filter(|name| !program.keys.iter().any(|key| key.name == name));
    match unknown.min_by_key(line) {
        None => Ok(()),
        Some(key) => {
            let hint = match nearest(program, &key) {
                Some(name) => format!("did you mean '{name}'?"),
                None => format!("see {}(8) for the keys there are", program.name),
            };
            Err(ConfigError::UnknownKey { path: path.to_owned(), line: line(&key), key, hint })
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
