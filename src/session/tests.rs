//! The session against scripted clients and targets.
