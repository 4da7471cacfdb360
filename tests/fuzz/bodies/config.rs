//! Command lines and files.

use std::ffi::OsString;
use std::fmt::Debug;
use std::fs;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};

use tcpcopy::config::{Action, ConfigError, intercept, tcpcopy as online};

/// The first line says which program; arguments follow, one a line, up to an empty line, then a file.
///
/// What is refused is refused in one line, and what is taken is the same when its printed form is read back.
pub(crate) fn run(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let (head, file) = text.split_once("\n\n").unwrap_or((&text, ""));
    let mut lines = head.lines();
    let program = lines.next().unwrap_or_default();
    // Other files than the one given are not the input's.
    let arguments: Vec<&str> = lines.filter(|line| !line.starts_with("--conf")).collect();
    if program.starts_with('i') {
        check("intercept", intercept::Settings::load, &arguments, file);
    } else {
        check("tcpcopy", online::Settings::load, &arguments, file);
    }
}

fn check<S: Debug + PartialEq>(
    name: &str,
    load: fn(Vec<OsString>) -> Result<Action<S>, ConfigError>,
    arguments: &[&str],
    file: &str,
) {
    let scratch = Scratch::new();
    let with = |more: &[&str], file: &str| {
        fs::write(&scratch.0, file).expect("scratch file");
        let path = scratch.0.as_os_str().to_owned();
        let mut all = vec![OsString::from(name), OsString::from("--config"), path];
        all.extend(more.iter().map(OsString::from));
        load(all)
    };
    let settings = match with(arguments, file) {
        Ok(Action::Run(settings)) => settings,
        Ok(_) => return,
        Err(error) => {
            let message = error.to_string();
            assert!(!message.trim().is_empty() && message.lines().count() == 1, "{message:?}");
            return;
        }
    };
    let mut print = arguments.to_vec();
    print.insert(0, "--print-config");
    let Ok(Action::Print(printed)) = with(&print, file) else { panic!("settings that cannot be printed") };
    match with(&[], &printed) {
        Ok(Action::Run(again)) => assert_eq!(again, settings, "{printed}"),
        Ok(_) => panic!("no settings in {printed}"),
        Err(error) => panic!("{error} in {printed}"),
    }
}

/// A file that is removed in the end. Tests of one process have one each.
struct Scratch(PathBuf);

impl Scratch {
    fn new() -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        Self(std::env::temp_dir().join(format!("tcpcopy-fuzz-{}-{number}.toml", std::process::id())))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}
