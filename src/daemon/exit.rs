//! How a program ends: an exit code from `sysexits.h` and one line that says why.

use std::fmt;
use std::io::{self, Write};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;

use super::{logging, message_id, notify};
use crate::config::ConfigError;
use crate::doctor::{Check, Finding};

/// The exit codes in use, with the numbers of `sysexits.h`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub(super) enum Code {
    /// The command line is wrong (`EX_USAGE`).
    Usage = 64,
    /// Something that is needed is not there or taken: a port, a queue (`EX_UNAVAILABLE`).
    Unavailable = 69,
    /// The program is at fault (`EX_SOFTWARE`).
    Software = 70,
    /// The system cannot do what is needed (`EX_OSERR`).
    System = 71,
    /// A privilege is missing (`EX_NOPERM`).
    Permission = 77,
    /// The configuration is wrong (`EX_CONFIG`).
    Config = 78,
}

/// Why a program ends before its time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Failure {
    /// What the process exits with.
    pub(super) code: Code,
    /// One line: what failed, on what, and what to do.
    pub(super) message: String,
    /// What the system said, if it was the system.
    pub(super) errno: Option<u32>,
}

impl Failure {
    /// A failure with this code and message. Line breaks in the message become blanks.
    pub(super) fn new(code: Code, message: impl fmt::Display) -> Self {
        let message = message.to_string();
        Self { code, message: message.split_whitespace().collect::<Vec<_>>().join(" "), errno: None }
    }

    /// A failure of the system, with the code that the kind of error calls for.
    ///
    /// `what` says what was attempted and `remedy` what to do if it is nothing as plain as a lack of privilege.
    #[expect(clippy::wildcard_enum_match_arm, reason = "all other kinds are the system's")]
    pub(super) fn system(what: impl fmt::Display, error: &io::Error, remedy: impl fmt::Display) -> Self {
        let failure = match error.kind() {
            io::ErrorKind::PermissionDenied => Self::new(
                Code::Permission,
                format!("{what}: {error}; run it as root or with the capabilities it needs"),
            ),
            io::ErrorKind::AddrInUse | io::ErrorKind::AddrNotAvailable => {
                Self::new(Code::Unavailable, format!("{what}: {error}; {remedy}"))
            }
            _ => Self::new(Code::System, format!("{what}: {error}; {remedy}")),
        };
        let errno = error.raw_os_error().and_then(|errno| u32::try_from(errno).ok());
        Self { errno, ..failure }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Failure {}

impl From<ConfigError> for Failure {
    fn from(error: ConfigError) -> Self {
        Self::new(if error.is_usage() { Code::Usage } else { Code::Config }, error)
    }
}

impl From<Finding> for Failure {
    fn from(finding: Finding) -> Self {
        let code = match finding.check {
            Check::Capabilities => Code::Permission,
            Check::Nfnetlink | Check::NfnetlinkQueue | Check::NfTables => Code::System,
            Check::Ports
            | Check::OnlineAddress
            | Check::Target
            | Check::Pool
            | Check::ListenAddress
            | Check::Redirects => Code::Config,
        };
        Self::new(code, finding)
    }
}

/// Runs a program's body and turns what comes of it into the exit code; says why it failed, in the journal or on
/// standard error, and to the service manager.
///
/// A panic is a fault of the program: its own message is followed by exit code 70.
pub(super) fn run(program: &'static str, body: impl FnOnce() -> Result<(), Failure>) -> ExitCode {
    match catch_unwind(AssertUnwindSafe(body)) {
        Ok(Ok(())) => ExitCode::SUCCESS,
        Ok(Err(failure)) => {
            notify::failed(&failure);
            report(program, &failure);
            ExitCode::from(failure.code as u8)
        }
        Err(_) => ExitCode::from(Code::Software as u8),
    }
}

/// Prints a text that was asked for. A reader who has had enough (`--help | head -1`) is no failure.
pub(super) fn print(text: &str) -> Result<(), Failure> {
    let mut stdout = io::stdout().lock();
    match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(Failure::system("cannot write to standard output", &error, "check where it is redirected to"))
        }
        Ok(()) | Err(_) => Ok(()),
    }
}

fn report(program: &'static str, failure: &Failure) {
    // A configuration that is wrong says nothing of the log either.
    logging::init_for_failures(program);
    if logging::goes_to_journal() {
        let exit_code = failure.code as u8;
        tracing::error!(MESSAGE_ID = message_id::FAILED, exit_code, errno = failure.errno, "{failure}");
        return;
    }
    // The journal strips this and stores the line with the priority it names (sd-daemon(3)).
    let priority = if logging::stderr_is_journal() { "<3>" } else { "" };
    // If standard error is gone as well, the exit code is all that is left to say it with.
    let _ = writeln!(io::stderr(), "{priority}{program}: {failure}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_those_of_sysexits() {
        let codes =
            [Code::Usage, Code::Unavailable, Code::Software, Code::System, Code::Permission, Code::Config];
        assert_eq!(codes.map(|code| code as u8), [64, 69, 70, 71, 77, 78]);
    }

    #[test]
    fn messages_are_one_line() {
        assert_eq!(Failure::new(Code::Software, "two\n  lines").message, "two lines");
    }

    #[test]
    fn system_errors_choose_their_code() {
        let failure = |kind| Failure::system("cannot bind", &io::Error::from(kind), "choose another").code;
        assert_eq!(failure(io::ErrorKind::PermissionDenied), Code::Permission);
        assert_eq!(failure(io::ErrorKind::AddrInUse), Code::Unavailable);
        assert_eq!(failure(io::ErrorKind::OutOfMemory), Code::System);
    }
}
