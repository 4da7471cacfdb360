//! The laboratory: hosts as network namespaces, real servers, a load generator, and the scenarios that prove `tcpcopy`
//! and `intercept` on them.
//!
//! It is a black box: it knows the programs by their command lines only. `isolation` puts it into namespaces of its own;
//! `network` builds the hosts; `chain` runs servers and daemons on them; `scenarios` are what must hold.

mod account;
mod chain;
mod command_line;
mod counters;
mod daemon;
mod demo;
mod faults;
mod forge;
mod isolation;
mod leak;
mod load;
mod measure;
mod middlebox;
mod mimic;
mod namespace;
mod network;
mod nginx;
mod observer;
mod pair;
mod processors;
mod records;
mod recovery;
mod relay;
mod runner;
mod scenarios;
mod server;
mod setup;
mod sys;
mod talk;
mod tap;
mod wait;

use std::os::unix::process::CommandExt;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use command_line::Command;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match command_line::parse(&arguments).map(run) {
        Ok(Ok(true)) => ExitCode::SUCCESS,
        Ok(Ok(false)) => ExitCode::FAILURE,
        Ok(Err(error)) => {
            eprintln!("lab: {error:#}");
            ExitCode::FAILURE
        }
        Err(error) => {
            eprintln!("lab: {error:#}\n\n{}", command_line::USAGE);
            ExitCode::from(64)
        }
    }
}

/// Runs a command; `false` is a verdict that something does not hold.
fn run(command: Command) -> Result<bool> {
    let isolated = |work: &dyn Fn() -> Result<bool>| isolation::enter().and_then(|()| work());
    match command {
        Command::Help => println!("{}", command_line::USAGE),
        Command::List => {
            for scenario in scenarios::all() {
                println!("{}", scenario.name);
            }
        }
        Command::WithoutNetfilter { command } => {
            sys::forbid_netfilter()?;
            let (program, arguments) = command.split_first().context("which program?")?;
            return Err(std::process::Command::new(program).args(arguments).exec().into());
        }
        Command::Run(options) => return isolated(&|| runner::run(&options)),
        Command::One { name, context } => return isolated(&|| runner::one(&name, &context)),
        Command::Stray { service, client, seconds, seed } => {
            println!("{} strays made", forge::send(service, client, seed, after(seconds))?);
        }
        Command::Watch { targets, seconds } => return Ok(leak::watch(&targets, after(seconds))? == 0),
        Command::Demo { seconds } => return isolated(&|| demo::run(seconds)),
        Command::Measure(options) => return isolated(&|| measure::run(&options)),
        Command::MeasureHelp => println!("{}", measure::help()),
    }
    Ok(true)
}

fn after(seconds: u64) -> Instant {
    Instant::now() + Duration::from_secs(seconds)
}
