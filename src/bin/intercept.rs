//! The program `intercept`; see the library.

use std::process::ExitCode;

fn main() -> ExitCode {
    tcpcopy::daemon::intercept::main()
}
