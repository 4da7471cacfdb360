//! Network-namespace laboratory.
