//! `keygen`: makes a key for the tunnel.

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use super::exit::{self, Failure};
use crate::config::keys::key_file;
use crate::sys::random;
use crate::tunnel::Secret;

/// Writes a new key to a file that does not exist yet, or to standard output.
pub(super) fn make(file: Option<&Path>) -> Result<(), Failure> {
    let bytes = random::bytes().map_err(|error| {
        Failure::system("cannot get random bytes", &error, "look at the kernel's log (dmesg)")
    })?;
    let Some(path) = file else { return exit::print(&key_file(bytes)) };
    write_new(path, &key_file(bytes)).map_err(|error| {
        Failure::system(format_args!("cannot write a key to {}", path.display()), &error, remedy(&error))
    })?;
    let id = Secret::new(bytes).id();
    exit::print(&format!(
        "{}: a new key, id {id}; copy it to the other hosts, where it has to have mode 0600 too\n",
        path.display()
    ))
}

/// Nothing is overwritten, and nobody else can read the file at any moment.
fn write_new(path: &Path, text: &str) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    let written = file.write_all(text.as_bytes()).and_then(|()| file.sync_all());
    if written.is_err() {
        // Half a key is none.
        let _ = fs::remove_file(path);
    }
    written
}

#[expect(clippy::wildcard_enum_match_arm, reason = "all other kinds have the same remedy")]
fn remedy(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::AlreadyExists => "name a file that does not exist: keys are never overwritten",
        io::ErrorKind::NotFound => "make its directory first: mkdir -m 700 DIRECTORY",
        _ => "name a file in a directory that can be written to",
    }
}
