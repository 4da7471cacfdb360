//! The command line: options made from the table of keys, errors in one line.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::builder::styling::Styles;
use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{Arg, ArgAction, ArgMatches, Command};

use super::ConfigError;
use super::key::{Key, Kind, Program};

/// What the user asked for.
#[derive(Debug)]
pub(super) enum Request {
    /// To see a text: the help or the version.
    Show(String),
    /// To put the rules in force that these options make, and end.
    LoadRules(Options),
    /// To print the rules that these options make, and end.
    ShowRules(Options),
    /// To take the rules away, from the table that these options name.
    RemoveRules(Options),
    /// To make a key, in this file.
    MakeKey(Option<PathBuf>),
    /// To use these options.
    Settings(Options),
}

/// The options given.
#[derive(Debug, Default)]
pub(super) struct Options {
    /// `--config`.
    pub file: Option<PathBuf>,
    /// `--print-config`.
    pub print: bool,
    /// `--check-config`.
    pub check: bool,
    /// The settings made, as texts; each key at most once.
    pub settings: Vec<(&'static Key, String)>,
}

/// The key that names the table of rules.
pub(super) const TABLE: &str = "table";

/// Reads the command line; `arguments` begins with the name of the program.
pub(super) fn read(
    program: &'static Program,
    arguments: impl IntoIterator<Item = OsString>,
) -> Result<Request, ConfigError> {
    let error = match command(program).try_get_matches_from(arguments) {
        Ok(matches) => return Ok(request(program, &matches)),
        Err(error) => error,
    };
    if matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion) {
        return Ok(Request::Show(error.render().to_string()));
    }
    Err(ConfigError::usage(program.name, &complaint(program, &error)))
}

/// The command line as clap knows it; the manual pages are tested against it.
pub fn command(program: &'static Program) -> Command {
    let mut command = Command::new(program.name)
        .about(program.about)
        .version(env!("CARGO_PKG_VERSION"))
        .after_help(program.examples)
        .styles(Styles::plain())
        .disable_version_flag(true)
        .disable_help_subcommand(true)
        .args_override_self(true)
        .next_line_help(true)
        .args(program.keys.iter().map(argument));
    command = command
        .arg(config(program))
        .arg(flag("print-config", "Show the settings in effect and where each comes from, and exit"))
        .arg(flag("check-config", "Check the settings and exit: 0 if they are valid, 64 or 78 if not"))
        .arg(
            Arg::new("version")
                .short('V')
                .short_alias('v')
                .long("version")
                .action(ArgAction::Version)
                .help("Print version"),
        );
    command = command.args_conflicts_with_subcommands(true).subcommand(
        Command::new("keygen").about("Make a key for the tunnel").arg(
            Arg::new("file")
                .value_name("FILE")
                .value_parser(clap::value_parser!(PathBuf))
                .help("A file that does not exist yet; without, the key is printed"),
        ),
    );
    if program.keeps_rules {
        command = command.subcommand(
            Command::new("rules")
                .about("Work with the netfilter rules, which stay when the program ends")
                .subcommand_required(true)
                .disable_help_subcommand(true)
                .subcommand(
                    Command::new("load")
                        .about("Put the rules in force, closed: responses are dropped until the program runs")
                        .arg(config(program)),
                )
                .subcommand(
                    Command::new("show")
                        .about("Print both layers of the configuration, and the commands that add and remove them")
                        .arg(config(program)),
                )
                .subcommand(
                    Command::new("remove")
                        .about("Take the rules away: responses are no longer dropped")
                        .arg(config(program))
                        .args(program.keys.iter().filter(|key| key.name == TABLE).map(|key| {
                            argument(key).help("Table to remove; without, the configuration names it")
                        })),
                ),
        );
    }
    command
}

fn config(program: &'static Program) -> Arg {
    Arg::new("config")
        .long("config")
        .value_name("FILE")
        .value_parser(clap::value_parser!(PathBuf))
        .help(format!("Read this file instead of {}", program.default_file))
}

fn flag(name: &'static str, help: &'static str) -> Arg {
    Arg::new(name).long(name).action(ArgAction::SetTrue).help(help)
}

fn argument(key: &'static Key) -> Arg {
    let default = match (key.kind, key.default) {
        (Kind::Flag, _) | (_, "[]") => String::new(),
        (_, default) => format!(" [default: {}]", default.trim_matches('"')),
    };
    let argument = Arg::new(key.name)
        .long(key.option)
        .value_name(key.value_name)
        .help(format!("{}{default}", key.help))
        .action(if key.kind == Kind::List { ArgAction::Append } else { ArgAction::Set });
    let argument = match key.short {
        Some(short) => argument.short(short),
        None => argument,
    };
    match key.kind {
        Kind::Flag => argument
            .num_args(0..=1)
            .require_equals(true)
            .default_missing_value("true")
            .hide_possible_values(true),
        Kind::Number | Kind::Hex | Kind::Text | Kind::List => argument,
    }
}

fn request(program: &'static Program, matches: &ArgMatches) -> Request {
    if let Some(keygen) = matches.subcommand_matches("keygen") {
        return Request::MakeKey(keygen.get_one("file").cloned());
    }
    if let Some(("rules", matches)) = matches.subcommand() {
        let file = |matches: &ArgMatches| matches.get_one::<PathBuf>("config").cloned();
        // clap requires one of them.
        return match matches.subcommand() {
            Some(("remove", remove)) => {
                let table = program.keys.iter().find(|key| key.name == TABLE);
                let named = table.and_then(|key| Some((key, remove.get_one::<String>(key.name)?.to_owned())));
                let settings = named.into_iter().collect();
                Request::RemoveRules(Options { file: file(remove), settings, ..Options::default() })
            }
            Some(("show", show)) => Request::ShowRules(Options { file: file(show), ..Options::default() }),
            load => Request::LoadRules(Options {
                file: load.and_then(|(_, load)| file(load)),
                ..Options::default()
            }),
        };
    }
    let text = |key: &Key| {
        let texts: Vec<_> = matches.get_many::<String>(key.name)?.map(String::as_str).collect();
        Some(texts.join(","))
    };
    Request::Settings(Options {
        file: matches.get_one::<PathBuf>("config").cloned(),
        print: matches.get_flag("print-config"),
        check: matches.get_flag("check-config"),
        settings: program.keys.iter().filter_map(|key| Some((key, text(key)?))).collect(),
    })
}

/// What is wrong with the command line, in one line.
#[expect(clippy::wildcard_enum_match_arm, reason = "clap's own first line serves the kinds that are rare")]
fn complaint(program: &Program, error: &clap::Error) -> String {
    let context = |kind| error.get(kind).map(context_text);
    let argument = context(ContextKind::InvalidArg).unwrap_or_default();
    match error.kind() {
        ErrorKind::UnknownArgument => {
            unknown_argument(program, &argument, context(ContextKind::SuggestedArg))
        }
        ErrorKind::InvalidSubcommand => {
            let name = context(ContextKind::InvalidSubcommand).unwrap_or_default();
            format!("there is no command '{name}'")
        }
        ErrorKind::MissingSubcommand | ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => {
            "'rules' needs to be told what to do with them: 'rules load', 'rules show' or 'rules remove'"
                .to_owned()
        }
        ErrorKind::InvalidValue
            if context(ContextKind::InvalidValue).is_none_or(|value| value.is_empty()) =>
        {
            format!("option '{argument}' needs a value")
        }
        ErrorKind::TooManyValues => format!("option '{argument}' takes no value"),
        _ => {
            let text = error.render().to_string();
            text.lines().next().unwrap_or_default().trim_start_matches("error: ").to_owned()
        }
    }
}

fn unknown_argument(program: &Program, argument: &str, suggestion: Option<String>) -> String {
    if !argument.starts_with('-') {
        return format!("unexpected argument '{argument}'");
    }
    let letter = argument.strip_prefix('-').and_then(|rest| rest.chars().next());
    if let Some((letter, advice)) = program.c_options.iter().find(|(known, _)| Some(*known) == letter) {
        return format!("option '-{letter}' of the C {} does not exist here: {advice}", program.name);
    }
    match suggestion {
        Some(suggestion) => format!("unknown option '{argument}', did you mean '{suggestion}'?"),
        None => format!("unknown option '{argument}'"),
    }
}

fn context_text(value: &ContextValue) -> String {
    if let ContextValue::Strings(texts) = value { texts.join(" ") } else { value.to_string() }
}
