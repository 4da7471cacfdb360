//! The program `tcpcopy`; see the library.

use std::process::ExitCode;

fn main() -> ExitCode {
    tcpcopy::daemon::tcpcopy::main()
}
