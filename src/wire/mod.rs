//! Bytes and the types they stand for. (The packet types come from another branch of this work.)

pub mod prefix;
