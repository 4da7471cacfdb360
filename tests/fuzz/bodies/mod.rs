//! What each fuzz target does with its input. Shared by `cargo fuzz` (`../targets`) and by the tests (`../main.rs`).
//!
//! An input is a sequence of operations on one public type; each file says what holds after every one of them.
#![allow(dead_code, reason = "each fuzz target uses one of the bodies")]

pub(crate) mod config;
mod ends;
mod input;
pub(crate) mod legacy;
pub(crate) mod netlink;
pub(crate) mod packet;
pub(crate) mod replayer;
pub(crate) mod router;
pub(crate) mod session;
pub(crate) mod tunnel;

/// A body, with its name.
pub(crate) type Named = (&'static str, fn(&[u8]));

pub(crate) const ALL: [Named; 8] = [
    ("config", config::run),
    ("legacy", legacy::run),
    ("netlink", netlink::run),
    ("packet", packet::run),
    ("replayer", replayer::run),
    ("router", router::run),
    ("session", session::run),
    ("tunnel", tunnel::run),
];
