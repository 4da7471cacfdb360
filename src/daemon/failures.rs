//! What the boundaries' errors mean for the process: the exit code, and the whole cause in one line.

use std::error::Error;

use super::exit::{Code, Failure};
use crate::capture::CaptureError;
use crate::netfilter::InstallError;
use crate::sys::sink::SinkError;

impl From<CaptureError> for Failure {
    fn from(error: CaptureError) -> Self {
        let code = match &error {
            CaptureError::LongFilter => Code::Config,
            CaptureError::Busy { .. } => Code::Unavailable,
            CaptureError::Permission { .. } => Code::Permission,
            CaptureError::Unsupported { .. }
            | CaptureError::Open { .. }
            | CaptureError::Bind { .. }
            | CaptureError::Configure { .. }
            | CaptureError::Packet { .. }
            | CaptureError::Adopt { .. } => Code::System,
        };
        Self::new(code, with_causes(&error))
    }
}

impl From<SinkError> for Failure {
    fn from(error: SinkError) -> Self {
        let code = match &error {
            SinkError::Permission { .. } => Code::Permission,
            SinkError::InUse { .. } | SinkError::Foreign { .. } => Code::Unavailable,
            SinkError::Name { .. } => Code::Config,
            SinkError::Unsupported { .. } | SinkError::Request { .. } => Code::System,
        };
        Self::new(code, with_causes(&error))
    }
}

impl From<InstallError> for Failure {
    fn from(error: InstallError) -> Self {
        let code = match &error {
            InstallError::Permission => Code::Permission,
            InstallError::Owned { .. } | InstallError::Altered(_) => Code::Unavailable,
            InstallError::Empty => Code::Config,
            InstallError::Socket(_)
            | InstallError::NoNftables
            | InstallError::NoOwnerFlag
            | InstallError::NoQueue
            | InstallError::MissingExpression { .. }
            | InstallError::Refused { .. }
            | InstallError::Send(_)
            | InstallError::Receive(_)
            | InstallError::Unanswered { .. } => Code::System,
        };
        Self::new(code, with_causes(&error))
    }
}

/// The error's message, followed by those of its causes that it does not quote.
pub(super) fn with_causes(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let next = error.to_string();
        if !text.contains(&next) {
            text = format!("{text}: {next}");
        }
        cause = error.source();
    }
    text
}
