//! Writes what shells complete after `tcpcopy` and `intercept`, made from their command lines:
//! `completions DIRECTORY`. The names of the files are the ones that the shells look for.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, bail};
use clap_complete::{Shell, generate_to};
use tcpcopy::config::{command, intercept, tcpcopy as online};

fn main() -> anyhow::Result<()> {
    let Some(directory) = std::env::args_os().nth(1).map(PathBuf::from) else {
        bail!("usage: completions DIRECTORY");
    };
    fs::create_dir_all(&directory).with_context(|| format!("cannot make {}", directory.display()))?;
    for program in [&online::PROGRAM, &intercept::PROGRAM] {
        for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
            generate_to(shell, &mut command(program), program.name, &directory)
                .with_context(|| format!("cannot write the {shell} completions of {}", program.name))?;
        }
    }
    Ok(())
}
