//! The loads that are measured.

use crate::chain::{keep_alive, short};
use crate::load::{Closer, Connections, Pace, Request};

/// A load that is measured.
#[derive(Clone, Copy, Debug)]
pub(super) struct Case {
    pub(super) name: &'static str,
    pub(super) pace: Pace,
    pub(super) connections: Connections,
    pub(super) request: Request,
}

/// All of them.
pub(super) fn all() -> Vec<Case> {
    let case = |name, pace, connections, request| Case { name, pace, connections, request };
    let small = |name, pace, connections| case(name, pace, connections, Request::Get(100));
    let flood = Connections::Short(50, Closer::Server);
    vec![
        small("keep-alive-200", Pace::Rate(200), keep_alive(10)),
        small("keep-alive-5000", Pace::Rate(5_000), keep_alive(50)),
        small("keep-alive-10000", Pace::Rate(10_000), keep_alive(50)),
        small("keep-alive-flood", Pace::Flood, keep_alive(50)),
        small("short-500", Pace::Rate(500), short()),
        small("short-1000", Pace::Rate(1_000), short()),
        small("short-4000", Pace::Rate(4_000), short()),
        small("short-flood", Pace::Flood, flood),
        case("post-1mb", Pace::Rate(10), keep_alive(8), Request::Post(1 << 20)),
        case("get-1mb", Pace::Rate(20), keep_alive(8), Request::Get(1 << 20)),
        case("get-100kb-short", Pace::Rate(100), short(), Request::Get(100_000)),
    ]
}
