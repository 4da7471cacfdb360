//! The processes: sockets, threads and logs around the sans-IO parts.

pub mod link;
pub mod pipe;
