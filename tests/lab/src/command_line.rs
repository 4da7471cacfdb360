//! The laboratory's command line.

use std::path::PathBuf;

use anyhow::{Context as _, Result, bail};

use crate::scenarios::{Context, Offloads};

/// How to use the laboratory.
pub(crate) const USAGE: &str = "\
usage: lab list                                      names all scenarios
       lab run [NAME…] [--offloads on|off|both] [--long]
                                                     runs those whose name contains a NAME, or all
       lab demo [--seconds 30]                       shows a steady load being replayed
       lab measure [NAME…] [--seconds 5] [--offloads on|off] [--json FILE]
                                                     fidelity, CPU, memory and latency under fixed loads
Root only. The programs are those beside `lab`, or LAB_TCPCOPY and LAB_INTERCEPT.
Logs of failed scenarios go to target/lab-logs, or LAB_LOGS.";

/// What to do.
#[derive(Debug)]
pub(crate) enum Command {
    /// Explain the command line.
    Help,
    /// Name all scenarios.
    List,
    /// Run scenarios.
    Run {
        /// Parts of names; empty: all.
        names: Vec<String>,
        /// Instead of each scenario's own.
        offloads: Option<Offloads>,
        /// Long loads.
        long: bool,
    },
    /// Become another program, as on a kernel without netfilter's netlink.
    WithoutNetfilter {
        /// The program and its arguments.
        command: Vec<String>,
    },
    /// Run one scenario in this process.
    One {
        /// Its whole name.
        name: String,
        /// How.
        context: Context,
    },
    /// Show a steady load.
    Demo {
        /// For how long.
        seconds: u64,
    },
    /// Measure.
    Measure {
        /// Parts of names; empty: all.
        names: Vec<String>,
        /// How long each load is.
        seconds: u64,
        /// Whether veth offloads.
        offloads: bool,
        /// Where to write the figures as JSON.
        json: Option<PathBuf>,
    },
}

/// Parses the arguments after the program's name.
pub(crate) fn parse(arguments: &[String]) -> Result<Command> {
    if let [first, command @ ..] = arguments
        && first == "without-netfilter"
    {
        return Ok(Command::WithoutNetfilter { command: command.to_vec() });
    }
    let Some((words, options)) = split(arguments)? else { return Ok(Command::Help) };
    let option = |name: &str| options.iter().find(|(option, _)| *option == name).map(|(_, value)| *value);
    let allow = |allowed: &[&str]| match options.iter().find(|(option, _)| !allowed.contains(option)) {
        Some((option, _)) => bail!("{option} does not belong here"),
        None => Ok(()),
    };
    let offloads = match option("--offloads") {
        None => None,
        Some("on") => Some(Offloads::On),
        Some("off") => Some(Offloads::Off),
        Some("both") => Some(Offloads::Both),
        Some(other) => bail!("--offloads is on, off or both, not {other}"),
    };
    let seconds = |default| option("--seconds").map_or(Ok(default), str::parse).context("--seconds");
    let mut words = words.into_iter();
    let command = match words.next().as_deref() {
        None => Command::Help,
        Some("list") => allow(&[]).map(|()| Command::List)?,
        Some("run") => {
            allow(&["--offloads", "--long"])?;
            Command::Run { names: words.by_ref().collect(), offloads, long: option("--long").is_some() }
        }
        Some("one") => {
            let scratch = PathBuf::from(option("--scratch").context("--scratch is needed")?);
            let context = Context {
                offloads: offloads == Some(Offloads::On),
                long: option("--long").is_some(),
                scratch,
            };
            Command::One { name: words.next().context("which scenario?")?, context }
        }
        Some("demo") => {
            allow(&["--seconds"])?;
            Command::Demo { seconds: seconds(30)? }
        }
        Some("measure") => {
            allow(&["--seconds", "--offloads", "--json"])?;
            if offloads == Some(Offloads::Both) {
                bail!("lab measure takes --offloads on or off");
            }
            Command::Measure {
                names: words.by_ref().collect(),
                seconds: seconds(5)?,
                offloads: offloads == Some(Offloads::On),
                json: option("--json").map(PathBuf::from),
            }
        }
        Some(other) => bail!("unknown command {other}"),
    };
    match words.next() {
        Some(word) => bail!("{word} does not belong here"),
        None => Ok(command),
    }
}

/// An option and its value, empty if it takes none.
type Given<'a> = (&'a str, &'a str);

/// Tells words from options; `None` asks for help.
fn split(arguments: &[String]) -> Result<Option<(Vec<String>, Vec<Given<'_>>)>> {
    let (mut words, mut options) = (Vec::new(), Vec::new());
    let mut rest = arguments.iter();
    while let Some(argument) = rest.next() {
        match argument.as_str() {
            "--help" | "-h" => return Ok(None),
            "--long" => options.push((argument.as_str(), "")),
            "--offloads" | "--seconds" | "--json" | "--scratch" => {
                let value = rest.next().with_context(|| format!("{argument} needs a value"))?;
                options.push((argument.as_str(), value.as_str()));
            }
            other if other.starts_with('-') => bail!("unknown option {other}"),
            _ => words.push(argument.clone()),
        }
    }
    Ok(Some((words, options)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(line: &str) -> Result<Command> {
        parse(&line.split_whitespace().map(str::to_owned).collect::<Vec<_>>())
    }

    #[test]
    fn commands_are_understood() {
        let run = parsed("run fidelity safety --offloads both --long").unwrap();
        assert!(
            matches!(run, Command::Run { names, offloads: Some(Offloads::Both), long: true } if names.len() == 2)
        );
        assert!(matches!(parsed("demo --seconds 5").unwrap(), Command::Demo { seconds: 5 }));
        assert!(matches!(parsed("").unwrap(), Command::Help));
    }

    #[test]
    fn nonsense_is_refused() {
        for line in ["walk", "run --fast", "run --offloads maybe", "demo --seconds", "demo --long", "list x"]
        {
            assert!(parsed(line).is_err(), "{line}");
        }
    }
}
