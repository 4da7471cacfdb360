//! Where log events go: the journal with their fields when systemd started the program, else standard
//! error, coloured on a terminal.

use std::io::{self, IsTerminal};
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;

use tracing::level_filters::LevelFilter;
use tracing_subscriber::Layer;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::{SubscriberInitExt, TryInitError};

use crate::config::{LogLevel, LogSettings};

/// Sends the events of this process to the journal or to standard error from now on.
///
/// A journal that cannot be reached is no reason not to run: standard error serves, and the event that
/// says so is the first one there.
///
/// # Errors
///
/// When the process has a subscriber already.
pub(super) fn init(settings: &LogSettings) -> Result<(), TryInitError> {
    let filter = filter(settings.level);
    let mut refused = None;
    if stderr_is_journal() {
        match tracing_journald::layer() {
            Ok(layer) => {
                let layer = layer.with_syslog_identifier(settings.program.to_owned()).with_field_prefix(None);
                return tracing_subscriber::registry().with(layer.with_filter(filter)).try_init();
            }
            Err(error) => refused = Some(error),
        }
    }
    let layer =
        tracing_subscriber::fmt::layer().with_writer(io::stderr).with_ansi(wants_colour()).with_target(false);
    tracing_subscriber::registry().with(layer.with_filter(filter)).try_init()?;
    if let Some(error) = refused {
        tracing::warn!(%error, "the journal cannot be reached, logging to standard error");
    }
    Ok(())
}

/// Whether standard error is a stream of the journal's, as `JOURNAL_STREAM` says (systemd.exec(5)).
///
/// The variable alone is not enough: children inherit it, and their output may be redirected.
pub(super) fn stderr_is_journal() -> bool {
    let Some(stream) = std::env::var_os("JOURNAL_STREAM").and_then(|stream| stream.into_string().ok()) else {
        return false;
    };
    let identity = || -> io::Result<(u64, u64)> {
        let metadata = std::fs::File::from(io::stderr().as_fd().try_clone_to_owned()?).metadata()?;
        Ok((metadata.dev(), metadata.ino()))
    };
    parse_stream(&stream).is_some_and(|stream| identity().is_ok_and(|stderr| stderr == stream))
}

/// The device and inode numbers in `JOURNAL_STREAM`.
fn parse_stream(text: &str) -> Option<(u64, u64)> {
    let (device, inode) = text.split_once(':')?;
    Some((device.parse().ok()?, inode.parse().ok()?))
}

/// A terminal gets colours unless the user does not want any (no-color.org).
fn wants_colour() -> bool {
    io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|text| text.is_empty())
}

fn filter(level: LogLevel) -> LevelFilter {
    match level {
        LogLevel::Error => LevelFilter::ERROR,
        LogLevel::Warn => LevelFilter::WARN,
        LogLevel::Info => LevelFilter::INFO,
        LogLevel::Debug => LevelFilter::DEBUG,
        LogLevel::Trace => LevelFilter::TRACE,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_journal_stream_is_device_and_inode() {
        assert_eq!(parse_stream("8:12345"), Some((8, 12345)));
        for text in ["", "8", "8:", ":1", "a:b", "1:2:3"] {
            assert_eq!(parse_stream(text), None, "{text}");
        }
    }
}
