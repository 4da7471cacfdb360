//! Where log events go: the journal with their fields when systemd started the program, else standard
//! error, coloured on a terminal.

use std::fmt;
use std::io::{self, IsTerminal};
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::sync::atomic::{AtomicBool, Ordering};

use tracing::field::{Field, Visit};
use tracing::level_filters::LevelFilter;
use tracing_journald::{Priority, PriorityMappings};
use tracing_subscriber::field::{RecordFields, VisitOutput};
use tracing_subscriber::fmt::FormatFields;
use tracing_subscriber::fmt::format::{DefaultVisitor, Writer};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::{SubscriberInitExt, TryInitError};
use tracing_subscriber::{Layer, Registry, reload};

use crate::config::{LogLevel, LogSettings};

/// The field that says which event it is (see [`message_id`](super::message_id)): for machines only.
const MESSAGE_ID: &str = "MESSAGE_ID";

/// Events go to the journal, with their fields.
static TO_JOURNAL: AtomicBool = AtomicBool::new(false);

/// How much is logged, for as long as the process runs.
#[derive(Debug)]
pub(super) struct Level(reload::Handle<LevelFilter, Registry>);

impl Level {
    /// Logs as much as `level` says from now on.
    pub(super) fn set(&self, level: LogLevel) {
        if let Err(error) = self.0.reload(filter(level)) {
            tracing::error!(%error, "the log level stays as it is");
        }
    }
}

/// Sends the events of this process to the journal or to standard error from now on.
///
/// A journal that cannot be reached is no reason not to run: standard error serves, and the event that
/// says so is the first one there.
///
/// # Errors
///
/// When the process has a subscriber already.
pub(super) fn init(settings: &LogSettings) -> Result<Level, TryInitError> {
    let (filter, handle) = reload::Layer::new(filter(settings.level));
    let mut refused = None;
    if stderr_is_journal() {
        match tracing_journald::layer() {
            Ok(layer) => {
                let layer = layer
                    .with_syslog_identifier(settings.program.to_owned())
                    .with_field_prefix(None)
                    .with_priority_mappings(priorities());
                tracing_subscriber::registry().with(layer.with_filter(filter)).try_init()?;
                TO_JOURNAL.store(true, Ordering::Relaxed);
                return Ok(Level(handle));
            }
            Err(error) => refused = Some(error),
        }
    }
    let layer = tracing_subscriber::fmt::layer()
        .fmt_fields(Fields)
        .with_writer(io::stderr)
        .with_ansi(wants_colour())
        .with_target(false);
    tracing_subscriber::registry().with(layer.with_filter(filter)).try_init()?;
    if let Some(error) = refused {
        tracing::warn!(%error, "the journal cannot be reached, logging to standard error");
    }
    Ok(Level(handle))
}

/// Sends the events of this process to the journal, if systemd started it and nothing was said of them yet.
pub(super) fn init_for_failures(program: &'static str) {
    if stderr_is_journal() {
        // Whatever is in the way: there is standard error.
        let _ = init(&LogSettings { program, level: LogLevel::Error });
    }
}

/// Whether events go to the journal with their fields.
pub(super) fn goes_to_journal() -> bool {
    TO_JOURNAL.load(Ordering::Relaxed)
}

/// Of the journal's priorities, `info` is what an operator need not look at, and `notice` is not in use.
fn priorities() -> PriorityMappings {
    PriorityMappings {
        info: Priority::Informational,
        debug: Priority::Debug,
        trace: Priority::Debug,
        ..PriorityMappings::new()
    }
}

/// Fields as they are usually written, but for [`MESSAGE_ID`].
struct Fields;

impl<'w> FormatFields<'w> for Fields {
    fn format_fields<R: RecordFields>(&self, writer: Writer<'w>, fields: R) -> fmt::Result {
        let mut visitor = WithoutId(DefaultVisitor::new(writer, true));
        fields.record(&mut visitor);
        visitor.0.finish()
    }
}

struct WithoutId<'w>(DefaultVisitor<'w>);

impl Visit for WithoutId<'_> {
    fn record_str(&mut self, field: &Field, value: &str) {
        if field.name() != MESSAGE_ID {
            self.0.record_str(field, value);
        }
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.0.record_debug(field, value);
    }
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
