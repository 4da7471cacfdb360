//! The start, as far as both programs begin alike.

use std::io;

use super::exit::{Code, Failure};
use super::logging::{self, Level};
use crate::config::LogSettings;
use crate::doctor::{Finding, Severity};
use crate::sys::memory;

/// What comes before a program's own work: the allocator, logging, then what is odd about its settings and this host.
/// The first error among the findings is why the program cannot start.
pub(super) fn begin(
    log: &LogSettings,
    warnings: &[String],
    examine: impl FnOnce() -> Vec<Finding>,
) -> Result<Level, Failure> {
    // No thread but this one runs yet.
    memory::configure();
    let level = logging::init(log).map_err(|error| Failure::new(Code::Software, error))?;
    judge(warnings, examine())?;
    Ok(level)
}

/// Logs what is odd. The first error among the findings is a failure.
pub(super) fn judge(warnings: &[String], findings: Vec<Finding>) -> Result<(), Failure> {
    for warning in warnings {
        tracing::warn!("{warning}");
    }
    for finding in findings {
        match finding.severity {
            Severity::Error => return Err(finding.into()),
            Severity::Warning => {
                tracing::warn!(check = ?finding.check, remedy = %finding.remedy, "{}", finding.what);
            }
        }
    }
    Ok(())
}

/// The failure to do `what` while things are set up.
pub(super) fn cannot(what: &str) -> impl FnOnce(io::Error) -> Failure {
    move |error| {
        Failure::system(
            format_args!("cannot {what}"),
            &error,
            "look at the limits of this process (ulimit -a)",
        )
    }
}
