//! The system calls the crates in use do not offer, and the only `unsafe` code of the project.
//!
//! Each submodule wraps one thing of the kernel's in a type that owns its descriptor and cleans up when dropped.
//! Nothing here knows packets, sessions or settings; nothing of this crate is imported.
#![expect(unsafe_code, reason = "system calls and libnftnl expressions; each block states its invariants")]

pub mod capabilities;
pub mod changes;
pub mod drain;
pub mod expr;
pub mod handover;
pub mod links;
pub mod memory;
pub mod mmsg;
pub mod netlink;
pub mod nfnl;
pub mod nfqueue;
pub mod nfset;
pub mod packet;
pub mod policy;
pub mod random;
pub mod raw;
pub mod reverse_path;
pub mod ring;
pub mod route;
pub mod routes;
mod rtnetlink;
pub mod sink;
mod socket;
pub mod trains;
mod tun;

pub use socket::BufferSize;
