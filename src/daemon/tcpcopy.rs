//! Placeholder until the branch with the data path is merged, whose file of this name replaces it.

use std::process::ExitCode;

use super::exit::{self, Code, Failure};
use crate::config::Action;
use crate::config::tcpcopy::Settings;
use crate::{daemon::logging, doctor};

/// The program `tcpcopy`.
pub fn main() -> ExitCode {
    exit::run("tcpcopy", || match Settings::load(std::env::args_os())? {
        Action::Print(text) => exit::print(&text),
        Action::RemoveRules => Err(Failure::new(Code::Usage, "the rules go away when tcpcopy ends")),
        Action::Run(settings) => {
            logging::init(&settings.log).map_err(|error| Failure::new(Code::Software, error))?;
            exit::heed(doctor::online(&settings))?;
            Err(Failure::new(Code::Software, "the data path is not merged"))
        }
    })
}
