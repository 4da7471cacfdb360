//! tcpcopy
fn main() {}
