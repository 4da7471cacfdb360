//! Placeholder until the branch with the data path is merged, whose file of this name replaces it.

use std::process::ExitCode;

use super::exit::{self, Code, Failure};
use crate::config::Action;
use crate::config::intercept::Settings;
use crate::{daemon::logging, doctor};

/// The program `intercept`.
pub fn main() -> ExitCode {
    exit::run("intercept", || match Settings::load(std::env::args_os())? {
        Action::Print(text) => exit::print(&text),
        Action::RemoveRules => Err(Failure::new(Code::Software, "the data path is not merged")),
        Action::Run(settings) => {
            logging::init(&settings.log).map_err(|error| Failure::new(Code::Software, error))?;
            exit::heed(doctor::assistant(&settings))?;
            Err(Failure::new(Code::Software, "the data path is not merged"))
        }
    })
}
