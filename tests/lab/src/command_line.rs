//! The laboratory's command line.

use std::net::{IpAddr, SocketAddr};
use std::num::NonZero;
use std::path::PathBuf;

use anyhow::{Context as _, Result, bail};

use crate::measure;
use crate::runner;
use crate::scenarios::{Context, Offloads};

/// How to use the laboratory.
pub(crate) const USAGE: &str = "\
usage: lab list                                      names all scenarios
       lab run [NAME…] [--offloads on|off|both] [--long] [--jobs 1] [--seed N]
                                                     runs those whose name contains a NAME, or all; so many at a
                                                     time, but those that measure alone; a seed gives the
                                                     same random packets again
       lab demo [--seconds 30]                       shows a steady load being replayed
       lab measure [NAME…] [--seconds 5] [--repeat 1] [--json FILE] …
                                                     what replay costs under fixed loads; see lab measure --help
       lab stray SERVICE CLIENT [--seconds 30] [--seed N]
                                                     on a target: sends what no client may see, from SERVICE to CLIENT
       lab watch TARGET… [--seconds 30]              on a client: fails if it sees packets of a TARGET or about one
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
    Run(runner::Options),
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
    /// Send strays on this very host.
    Stray {
        /// Where they come from.
        service: SocketAddr,
        /// Where they go.
        client: IpAddr,
        /// For how long.
        seconds: u64,
        /// What they are made from.
        seed: u64,
    },
    /// Watch this very host for leaks.
    Watch {
        /// The addresses that must not be seen.
        targets: Vec<IpAddr>,
        /// For how long.
        seconds: u64,
    },
    /// Measure.
    Measure(measure::Options),
    /// Explain what is measured.
    MeasureHelp,
}

/// Parses the arguments after the program's name.
pub(crate) fn parse(arguments: &[String]) -> Result<Command> {
    if let [first, command @ ..] = arguments
        && first == "without-netfilter"
    {
        return Ok(Command::WithoutNetfilter { command: command.to_vec() });
    }
    let Some((words, given)) = split(arguments)? else {
        let measure = arguments.first().is_some_and(|first| first == "measure");
        return Ok(if measure { Command::MeasureHelp } else { Command::Help });
    };
    let (offloads, long) = (given.offloads()?, given.has("--long"));
    let mut words = words.into_iter();
    let command = match words.next().as_deref() {
        None => Command::Help,
        Some("list") => given.allow(&[]).map(|()| Command::List)?,
        Some("run") => {
            given.allow(&["--offloads", "--long", "--jobs", "--seed"])?;
            let (jobs, seed) = (given.positive("--jobs")?, given.seed()?);
            Command::Run(runner::Options { names: words.by_ref().collect(), offloads, long, jobs, seed })
        }
        Some("one") => {
            let scratch = PathBuf::from(given.get("--scratch").context("--scratch is needed")?);
            let seed = given.seed()?.unwrap_or_default();
            let context = Context { offloads: offloads == Some(Offloads::On), long, seed, scratch };
            Command::One { name: words.next().context("which scenario?")?, context }
        }
        Some("demo") => {
            given.allow(&["--seconds"])?;
            Command::Demo { seconds: given.seconds(30)? }
        }
        Some("stray") => {
            given.allow(&["--seconds", "--seed"])?;
            let service = words.next().context("from which SERVICE?")?.parse().context("SERVICE")?;
            let client = words.next().context("to which CLIENT?")?.parse().context("CLIENT")?;
            let seed = given.seed()?.unwrap_or_default();
            Command::Stray { service, client, seconds: given.seconds(30)?, seed }
        }
        Some("watch") => {
            given.allow(&["--seconds"])?;
            let targets = words.by_ref().map(|word| word.parse().context("TARGET")).collect::<Result<_>>()?;
            Command::Watch { targets, seconds: given.seconds(30)? }
        }
        Some("measure") => Command::Measure(to_measure(words.by_ref().collect(), &given)?),
        Some(other) => bail!("unknown command {other}"),
    };
    match words.next() {
        Some(word) => bail!("{word} does not belong here"),
        None => Ok(command),
    }
}

fn to_measure(names: Vec<String>, given: &Given<'_>) -> Result<measure::Options> {
    let (switches, values) = (
        ["--apart", "--mirror", "--mixed", "--packet", "--syscalls"],
        ["--seconds", "--repeat", "--offloads", "--original", "--json"],
    );
    given.allow(&[&switches[..], &values].concat())?;
    let offloads = given.offloads()?;
    if offloads == Some(Offloads::Both) {
        bail!("lab measure takes --offloads on or off");
    }
    let original = |paths: &str| {
        let (tcpcopy, intercept) = paths.split_once(',').context("--original takes TCPCOPY,INTERCEPT")?;
        anyhow::Ok(measure::Original { tcpcopy: tcpcopy.into(), intercept: intercept.into() })
    };
    Ok(measure::Options {
        names,
        seconds: given.seconds(5)?,
        repeat: given.positive("--repeat")?.get(),
        offloads: offloads == Some(Offloads::On),
        original: given.get("--original").map(original).transpose()?,
        mixed: given.has("--mixed"),
        packet: given.has("--packet"),
        apart: given.has("--apart"),
        mirror: given.has("--mirror"),
        syscalls: given.has("--syscalls"),
        json: given.get("--json").map(PathBuf::from),
    })
}

/// The options that were given, with their values, empty if they take none.
struct Given<'a>(Vec<(&'a str, &'a str)>);

impl Given<'_> {
    fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(option, _)| *option == name).map(|(_, value)| *value)
    }

    fn has(&self, name: &str) -> bool {
        self.get(name).is_some()
    }

    /// Fails if there is another one than these.
    fn allow(&self, allowed: &[&str]) -> Result<()> {
        match self.0.iter().find(|(option, _)| !allowed.contains(option)) {
            Some((option, _)) => bail!("{option} does not belong here"),
            None => Ok(()),
        }
    }

    fn offloads(&self) -> Result<Option<Offloads>> {
        Ok(match self.get("--offloads") {
            None => None,
            Some("on") => Some(Offloads::On),
            Some("off") => Some(Offloads::Off),
            Some("both") => Some(Offloads::Both),
            Some(other) => bail!("--offloads is on, off or both, not {other}"),
        })
    }

    /// A number from 1 on; 1 unless given.
    fn positive(&self, option: &'static str) -> Result<NonZero<usize>> {
        self.get(option).map_or(Ok(NonZero::<usize>::MIN), str::parse).context(option)
    }

    fn seed(&self) -> Result<Option<u64>> {
        self.get("--seed").map(str::parse).transpose().context("--seed")
    }

    fn seconds(&self, default: u64) -> Result<u64> {
        self.get("--seconds").map_or(Ok(default), str::parse).context("--seconds")
    }
}

/// Tells words from options; `None` asks for help.
fn split(arguments: &[String]) -> Result<Option<(Vec<String>, Given<'_>)>> {
    let (mut words, mut options) = (Vec::new(), Vec::new());
    let mut rest = arguments.iter();
    while let Some(argument) = rest.next() {
        match argument.as_str() {
            "--help" | "-h" => return Ok(None),
            "--apart" | "--long" | "--mirror" | "--mixed" | "--packet" | "--syscalls" => {
                options.push((argument.as_str(), ""));
            }
            "--offloads" | "--seconds" | "--json" | "--scratch" | "--repeat" | "--original" | "--jobs"
            | "--seed" => {
                let value = rest.next().with_context(|| format!("{argument} needs a value"))?;
                options.push((argument.as_str(), value.as_str()));
            }
            other if other.starts_with('-') => bail!("unknown option {other}"),
            _ => words.push(argument.clone()),
        }
    }
    Ok(Some((words, Given(options))))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(line: &str) -> Result<Command> {
        parse(&line.split_whitespace().map(str::to_owned).collect::<Vec<_>>())
    }

    #[test]
    fn commands_are_understood() {
        let run = parsed("run fidelity safety --offloads both --long --jobs 2").unwrap();
        let Command::Run(options) = run else { panic!("{run:?}") };
        assert_eq!((options.names.len(), options.offloads), (2, Some(Offloads::Both)));
        assert!(options.long && options.jobs.get() == 2);
        assert!(matches!(parsed("demo --seconds 5").unwrap(), Command::Demo { seconds: 5 }));
        assert!(matches!(parsed("").unwrap(), Command::Help));
        assert!(matches!(parsed("stray [fd00::1]:80 fd00::2").unwrap(), Command::Stray { seconds: 30, .. }));
        assert!(
            matches!(parsed("watch 10.0.0.1 fd00::1").unwrap(), Command::Watch { targets, .. } if targets.len() == 2)
        );
        assert!(matches!(parsed("measure --help").unwrap(), Command::MeasureHelp));
        let measure =
            parsed("measure short --repeat 3 --original /c/tcpcopy,/c/intercept --mirror --apart").unwrap();
        let Command::Measure(options) = measure else { panic!("{measure:?}") };
        assert_eq!((options.names.len(), options.seconds, options.repeat), (1, 5, 3));
        assert_eq!(options.original.unwrap().intercept, PathBuf::from("/c/intercept"));
        assert!(options.mirror && !options.syscalls && !options.offloads);
    }

    #[test]
    fn nonsense_is_refused() {
        for line in [
            "walk",
            "run --fast",
            "run --offloads maybe",
            "run --jobs 0",
            "stray 10.0.0.1:80",
            "watch here",
            "demo --seconds",
            "demo --long",
            "list x",
            "measure --repeat 0",
            "measure --original /c/tcpcopy",
            "measure --long",
            "run --mirror",
        ] {
            assert!(parsed(line).is_err(), "{line}");
        }
    }
}
