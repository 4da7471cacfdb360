//! intercept
fn main() {}
