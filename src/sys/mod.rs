//! The system calls the crates in use do not offer, and the only `unsafe` code of the project.
#![expect(unsafe_code, reason = "system calls and libnftnl expressions; each block states its invariants")]

pub mod expr;
pub mod nfnl;
