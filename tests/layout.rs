//! The structure of the source, as `src/lib.rs` describes it: which module may import which, where
//! `unsafe` may be, what the modules without I/O may not touch, and how long a file may be.

use std::fs;
use std::path::{Path, PathBuf};

/// Each top-level module and the ones it may import. `daemon` may import all.
const ARROWS: [(&str, &[&str]); 12] = [
    ("wire", &[]),
    ("sys", &[]),
    ("session", &["wire"]),
    ("replayer", &["session", "wire"]),
    ("router", &["wire"]),
    ("tunnel", &["wire"]),
    ("netfilter", &["sys", "wire"]),
    ("capture", &["sys", "wire"]),
    ("config", &["session", "tunnel", "wire"]),
    ("doctor", &["sys", "netfilter", "capture", "config", "wire"]),
    (
        "daemon",
        &[
            "wire",
            "sys",
            "session",
            "replayer",
            "router",
            "tunnel",
            "netfilter",
            "capture",
            "config",
            "doctor",
        ],
    ),
    ("bin", &["daemon"]),
];

/// The modules that do no I/O and read no clock.
const SANS_IO: [&str; 5] = ["wire", "session", "replayer", "router", "tunnel"];

/// What they may not name.
const FORBIDDEN: [&str; 29] = [
    "Instant",
    "SystemTime",
    "std::thread",
    "std::fs",
    "std::env",
    "std::process",
    "std::os",
    "Mutex",
    "RwLock",
    "Condvar",
    "mpsc::",
    "TcpStream",
    "TcpListener",
    "UdpSocket",
    "UnixStream",
    "UnixDatagram",
    "thread_local!",
    "println!",
    "eprintln!",
    "mio::",
    "socket2::",
    "libc::",
    "nfq::",
    "nftnl",
    "mnl::",
    "signal_hook",
    "rand::rng",
    "getrandom",
    "RandomState",
];

/// But for these: a hash table's seed, as every `HashMap` has one, decides nothing that can be seen.
const EXCEPTIONS: [(&str, &str); 1] = [("wire/index.rs", "RandomState")];

const MOST_LINES: usize = 600;

/// A source file of the library or a binary.
struct Source {
    path: PathBuf,
    /// The top-level module it belongs to; empty for `lib.rs`.
    module: String,
    text: String,
    /// The text without comments and the contents of literals.
    code: String,
}

fn sources() -> Vec<Source> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    collect(&root, &mut files);
    assert!(files.len() > 10, "found {} files only", files.len());
    files.iter().map(|path| read(&root, path)).collect()
}

fn read(root: &Path, path: &Path) -> Source {
    let text = fs::read_to_string(path).expect("source file");
    let relative = path.strip_prefix(root).expect("below src");
    let first = Path::new(relative.iter().next().expect("a name")).with_extension("");
    let module = if relative == Path::new("lib.rs") { PathBuf::new() } else { first };
    Source {
        path: relative.to_owned(),
        module: module.to_string_lossy().into_owned(),
        code: strip(&text),
        text,
    }
}

fn collect(directory: &Path, files: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(directory).expect("source directory") {
        let path = entry.expect("directory entry").path();
        if path.is_dir() {
            collect(&path, files);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
}

/// What the library depends on, by this lock file.
fn locked(file: &str) -> Vec<String> {
    let text = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(file)).expect("a lock file");
    let package = text.split("[[package]]").find(|package| package.contains("\nname = \"tcpcopy\"\n"));
    let (_, list) = package.and_then(|package| package.split_once("dependencies = [")).expect("dependencies");
    let (list, _) = list.split_once(']').expect("a list");
    // Where a lock file has several versions of a crate, the name is followed by one.
    list.split('"').skip(1).step_by(2).filter_map(|name| name.split(' ').next()).map(str::to_owned).collect()
}

/// Takes comments and the contents of string and character literals out; line breaks stay.
fn strip(text: &str) -> String {
    let mut code = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        let skip = if rest.starts_with("//") {
            rest.find('\n').unwrap_or(rest.len())
        } else if rest.starts_with("/*") {
            rest.find("*/").map_or(rest.len(), |end| end + 2)
        } else if let Some(hashes) = raw_string(&code, rest) {
            let close = format!("\"{}", "#".repeat(hashes));
            let body = hashes + 2;
            rest[body..].find(&close).map_or(rest.len(), |end| body + end + close.len())
        } else if first == '"' {
            quoted(rest, '"')
        } else if first == '\'' && is_character(rest) {
            quoted(rest, '\'')
        } else {
            code.push(first);
            rest = &rest[first.len_utf8()..];
            continue;
        };
        code.extend(rest[..skip].chars().filter(|c| *c == '\n'));
        code.push(' ');
        rest = &rest[skip..];
    }
    code
}

/// The number of `#` of the raw string that begins here, if one does.
fn raw_string(before: &str, rest: &str) -> Option<usize> {
    let after = rest.strip_prefix('r')?;
    if before.ends_with(|c: char| c.is_alphanumeric() && c != 'b' || c == '_') {
        return None;
    }
    let hashes = after.len() - after.trim_start_matches('#').len();
    after[hashes..].starts_with('"').then_some(hashes)
}

/// Whether a character literal begins here, and not a lifetime.
fn is_character(rest: &str) -> bool {
    let mut characters = rest.chars().skip(1);
    characters.next() == Some('\\') || characters.next() == Some('\'')
}

/// The length of the literal that begins here, with both its quotes.
fn quoted(rest: &str, quote: char) -> usize {
    let mut escaped = false;
    for (index, character) in rest.char_indices().skip(1) {
        match character {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            _ if character == quote => return index + character.len_utf8(),
            _ => {}
        }
    }
    rest.len()
}

/// The top-level modules that a file names by `crate::…` or `tcpcopy::…` (in the binaries).
fn imports(source: &Source) -> Vec<String> {
    let root = if source.module == "bin" { "tcpcopy::" } else { "crate::" };
    let mut modules = Vec::new();
    for (index, _) in source.code.match_indices(root) {
        let before = source.code[..index].chars().next_back();
        if before.is_some_and(|c| c.is_alphanumeric() || c == '_' || c == ':') {
            continue;
        }
        let path = &source.code[index + root.len()..];
        match path.strip_prefix('{') {
            Some(group) => modules.extend(group_heads(group)),
            None => modules.push(head(path)),
        }
    }
    modules.retain(|module| !module.is_empty());
    modules
}

/// The first segments of the paths in `{a::b, c::{d, e}}`, the opening brace left out.
fn group_heads(group: &str) -> Vec<String> {
    let mut depth = 0;
    let mut heads = Vec::new();
    let mut at_start = true;
    for (index, character) in group.char_indices() {
        match character {
            '{' => depth += 1,
            '}' if depth == 0 => break,
            '}' => depth -= 1,
            ',' if depth == 0 => at_start = true,
            _ if at_start && !character.is_whitespace() => {
                heads.push(head(&group[index..]));
                at_start = false;
            }
            _ => {}
        }
    }
    heads
}

fn head(path: &str) -> String {
    path.trim_start().chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect()
}

/// The lines of `code` that hold `word` as a word of its own.
fn lines_with(code: &str, word: &str) -> Vec<usize> {
    let joins = |c: Option<char>| c.is_some_and(|c| c.is_alphanumeric() || c == '_');
    let alone = |line: &str| {
        line.match_indices(word).any(|(index, _)| {
            let ends_open = word.ends_with(|c: char| c.is_alphanumeric());
            let continues = ends_open && joins(line[index + word.len()..].chars().next());
            !(joins(line[..index].chars().next_back()) || continues)
        })
    };
    code.lines().enumerate().filter(|(_, line)| alone(line)).map(|(index, _)| index + 1).collect()
}

#[test]
fn imports_follow_the_arrows() {
    let mut faults = Vec::new();
    for source in sources().iter().filter(|source| !source.module.is_empty()) {
        let Some((_, allowed)) = ARROWS.iter().find(|(module, _)| *module == source.module) else {
            faults.push(format!(
                "{}: module '{}' has no arrows in this test",
                source.path.display(),
                source.module
            ));
            continue;
        };
        for import in imports(source) {
            let is_module = ARROWS.iter().any(|(module, _)| *module == import);
            if is_module && import != source.module && !allowed.contains(&import.as_str()) {
                faults.push(format!("{}: {} may not import {import}", source.path.display(), source.module));
            }
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

#[test]
fn unsafe_code_is_in_sys_only() {
    let mut faults = Vec::new();
    for source in sources().iter().filter(|source| source.module != "sys") {
        for line in lines_with(&source.code, "unsafe") {
            faults.push(format!("{}:{line}: unsafe outside src/sys", source.path.display()));
        }
        if source.code.contains("(unsafe_code") {
            faults.push(format!("{}: lifts the lint on unsafe code", source.path.display()));
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

#[test]
fn modules_without_io_touch_no_clock_socket_or_environment() {
    let mut faults = Vec::new();
    for source in sources().iter().filter(|source| SANS_IO.contains(&source.module.as_str())) {
        let excepted =
            |word: &&str| EXCEPTIONS.iter().any(|(file, but)| source.path.ends_with(file) && word == but);
        for word in FORBIDDEN.into_iter().filter(|word| !excepted(word)) {
            for line in lines_with(&source.code, word) {
                faults.push(format!("{}:{line}: {word} in a module that does no I/O", source.path.display()));
            }
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

#[test]
fn files_are_short_and_say_what_they_are_for() {
    let mut faults = Vec::new();
    for source in sources() {
        let lines = source.text.lines().count();
        if lines > MOST_LINES {
            faults.push(format!("{}: {lines} lines, at most {MOST_LINES}", source.path.display()));
        }
        if !source.text.starts_with("//!") {
            faults.push(format!("{}: does not begin with its documentation (//!)", source.path.display()));
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

#[test]
fn the_reader_of_sources_sees_code_only() {
    let text = "use crate::{wire::Seq, sys::{a, b}};\n// unsafe\nlet a = \"unsafe \\\" unsafe\"; /* unsafe\n */ let c = 'u';\n\
                fn f<'a>(x: &'a str) -> r#type { r#\"unsafe\"#; '\\''; mine::crate_like; crate::session::x() }";
    let code = strip(text);
    assert_eq!(lines_with(&code, "unsafe"), Vec::<usize>::new(), "{code}");
    assert_eq!(code.lines().count(), text.lines().count(), "{code}");
    let source = Source { path: PathBuf::new(), module: "config".to_owned(), text: String::new(), code };
    assert_eq!(imports(&source), ["wire", "sys", "session"]);
    assert_eq!(lines_with("let x = Instant::now(); MyInstant", "Instant"), [1]);
    assert_eq!(lines_with("MyInstant Instants", "Instant"), Vec::<usize>::new());
}

/// The fuzz targets are a workspace of their own, which nothing here builds.
#[test]
fn the_fuzz_targets_are_locked_to_the_same_crates() {
    let (ours, theirs) = (locked("Cargo.lock"), locked("tests/fuzz/Cargo.lock"));
    assert!(ours.len() > 10, "{ours:?}");
    let missing: Vec<_> = ours.iter().filter(|name| !theirs.contains(name)).collect();
    let odd: Vec<_> = theirs.iter().filter(|name| !ours.contains(name)).collect();
    let mend = "run cargo metadata in tests/fuzz";
    // Those for tests alone are not among the fuzz targets' crates.
    let manifest =
        fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("Cargo.toml")).expect("Cargo.toml");
    let (_, tests) = manifest.split_once("[dev-dependencies]").expect("dependencies of tests");
    let needed: Vec<_> =
        missing.into_iter().filter(|name| !tests.contains(&format!("\n{name} = "))).collect();
    assert!(needed.is_empty() && odd.is_empty(), "missing: {needed:?}, odd: {odd:?}; {mend}");
}
