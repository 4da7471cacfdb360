//! tcpcopy: replays live TCP sessions from a production server to a test server.
//!
//! A packet's way through this crate, on the **online** host (`tcpcopy`):
//!
//! | step | module |
//! |---|---|
//! | nft rules duplicate a client's packet into a sink device and queue the copy | [`netfilter`] |
//! | a worker receives a batch of copies and has the kernel drop them | [`capture`], [`sys`] |
//! | bytes become a checked packet | [`wire`] |
//! | the packet finds its session(s) | [`replayer`] |
//! | the session reassembles, gates, and speaks TCP to the target | [`session`] |
//! | segments leave from a raw socket | [`sys`] |
//!
//! and of a response, on the **assistant** host or the target (`intercept`) and back:
//!
//! | step | module |
//! |---|---|
//! | nft rules queue what the target sent to a replayed client, and drop it | [`netfilter`] |
//! | a worker receives its header | [`capture`], [`sys`] |
//! | and finds who claimed the flow | [`router`] |
//! | its header travels to the claimer | [`tunnel`] |
//! | the session takes it as the peer's segment | [`replayer`], [`session`] |
//!
//! Embedded, the online host queues the responses itself: they go from [`capture`] to [`replayer`] at once.
//!
//! [`daemon`] holds the loops that drive all of this, [`config`] the command line and settings,
//! [`doctor`] the checks made before start.
//!
//! Imports point one way, and `tests/layout.rs` enforces it:
//!
//! ```text
//! daemon                   -> all below
//! doctor                   -> config, netfilter, capture, sys
//! netfilter, capture       -> sys, wire
//! config                   -> session, tunnel, wire
//! replayer                 -> session, wire
//! session, router, tunnel  -> wire
//! ```
//!
//! `wire`, `session`, `replayer`, `router` and `tunnel` do no I/O and read no clock: `now` comes in.

pub mod capture;
pub mod config;
pub mod daemon;
pub mod doctor;
pub mod netfilter;
pub mod replayer;
pub mod router;
pub mod session;
pub mod sys;
pub mod tunnel;
pub mod wire;
