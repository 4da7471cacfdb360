//! The keys of the tunnel: files that hold one each.
//!
//! A file is TOML: `key`, 64 hexadecimal digits, and perhaps `clients`, the prefixes that a tcpcopy with this key
//! may claim on an intercept. Messages never show what a file holds.

use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use figment::value::{Dict, Value};

use super::value::{FromText, Invalid};
use super::{ConfigError, files};
use crate::tunnel::{SECRET_BYTES, Secret};
use crate::wire::Prefix;

/// The most keys; each costs one comparison for a connection that comes.
const MOST_KEYS: usize = 256;
/// The largest file, in bytes.
const MOST_BYTES: u64 = 64 << 10;
/// What the names of credentials (systemd.exec(5), `LoadCredential=keys:DIRECTORY`) begin with.
const CREDENTIAL: &str = "keys_";

/// A key as it was given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TunnelKey {
    /// The name of its file.
    pub name: String,
    /// The key.
    pub secret: Secret,
    /// The replayed clients that a tcpcopy with this key may claim; `None` is any.
    pub clients: Option<Vec<Prefix>>,
}

/// The file that holds a new key of these random bytes.
pub fn key_file(bytes: [u8; SECRET_BYTES]) -> String {
    let digits = bytes.iter().fold(String::new(), |mut digits, byte| {
        let _ = write!(digits, "{byte:02x}");
        digits
    });
    format!(
        "# A key of the tunnel between tcpcopy and intercept, id {}. Who has it can claim responses: keep it secret.\n\
         key = \"{digits}\"\n",
        Secret::new(bytes).id()
    )
}

/// Where the keys are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum KeysAt {
    /// Among the service's credentials if it has any, and else in the usual directory: nowhere if there is none.
    Auto,
    /// In this file or directory.
    Path(PathBuf),
}

impl FromText for KeysAt {
    const EXPECTED: &'static str = "a file, a directory or \"auto\"";

    fn from_text(text: &str) -> Result<Self, Invalid> {
        match text {
            "" => Err(Self::unlike(text)),
            "auto" => Ok(Self::Auto),
            path => Ok(Self::Path(path.into())),
        }
    }
}

/// Reads the keys, in the order of their names. There are none only with [`KeysAt::Auto`].
pub(super) fn load(
    at: &KeysAt,
    credentials: Option<&Path>,
    usual: Option<&Path>,
) -> Result<Vec<TunnelKey>, ConfigError> {
    let keys = match at {
        // A path that is no directory holds none: it was not asked for. The usual one is the credentials' source, and
        // closed to the service.
        KeysAt::Auto => match (credentials, usual) {
            (Some(given), _) if given.is_dir() => read_directory(given, true)?,
            (None, Some(usual)) if usual.is_dir() => read_directory(usual, false)?,
            (Some(_) | None, _) => Vec::new(),
        },
        KeysAt::Path(path) if path.is_dir() => read_directory(path, false)?,
        KeysAt::Path(path) => vec![read(path, String::new(), false)?],
    };
    match at {
        KeysAt::Path(path) if keys.is_empty() => {
            Err(wrong(path, "there is no key in it; make one with `tcpcopy keygen FILE`"))
        }
        KeysAt::Auto | KeysAt::Path(_) => refuse_twice(&keys).map(|()| keys),
    }
}

fn refuse_twice(keys: &[TunnelKey]) -> Result<(), ConfigError> {
    if keys.len() > MOST_KEYS {
        return Err(ConfigError::Value(format!("there are more than {MOST_KEYS} keys; take old ones away")));
    }
    for (index, key) in keys.iter().enumerate() {
        if let Some(other) = keys.iter().skip(index + 1).find(|other| other.secret.id() == key.secret.id()) {
            let (one, other) = (&key.name, &other.name);
            return Err(ConfigError::Value(format!("keys {one} and {other} are the same; take one away")));
        }
    }
    Ok(())
}

fn read_directory(directory: &Path, credentials: bool) -> Result<Vec<TunnelKey>, ConfigError> {
    let failed = |source| unreadable(directory, &source);
    let mut keys = Vec::new();
    for entry in fs::read_dir(directory).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        let name = entry.file_name().to_string_lossy().into_owned();
        let name = match (credentials, name.strip_prefix(CREDENTIAL)) {
            (true, Some(name)) => name.to_owned(),
            // What an editor leaves behind.
            (false, _) if !name.starts_with('.') && !name.ends_with('~') => name,
            (true, None) | (false, _) => continue,
        };
        keys.push(read(&entry.path(), name, credentials)?);
    }
    keys.sort_by(|one, other| one.name.cmp(&other.name));
    Ok(keys)
}

fn read(path: &Path, name: String, credential: bool) -> Result<TunnelKey, ConfigError> {
    let failed = |source| unreadable(path, &source);
    let file = File::open(path).map_err(failed)?;
    let metadata = file.metadata().map_err(failed)?;
    if !metadata.is_file() || metadata.len() > MOST_BYTES {
        return Err(wrong(path, "it is no file with a key; take it away or name another"));
    }
    let mode = metadata.permissions().mode() & 0o777;
    // A credential's is the service manager's business.
    if !credential && mode & 0o077 != 0 {
        return Err(wrong(path, &format!("its mode {mode:04o} lets others at the key; `chmod 600` it")));
    }
    let mut text = String::new();
    match file.take(MOST_BYTES).read_to_string(&mut text) {
        Err(error) if error.kind() == io::ErrorKind::InvalidData => {
            return Err(wrong(path, "it is no text; make a key with `tcpcopy keygen FILE`"));
        }
        outcome => outcome.map_err(failed)?,
    };
    understand(&files::parse(path, &text)?, name).map_err(|message| wrong(path, &message))
}

fn unreadable(path: &Path, error: &io::Error) -> ConfigError {
    wrong(
        path,
        &format!("cannot read the tunnel's key: {error}; name a file or directory that is there in `keys`"),
    )
}

fn understand(dict: &Dict, name: String) -> Result<TunnelKey, String> {
    if let Some(key) = dict.keys().find(|key| !["key", "clients"].contains(&key.as_str())) {
        return Err(format!("unknown key '{key}'; there are `key` and `clients`"));
    }
    let digits = dict.get("key").and_then(Value::as_str);
    let bytes = digits.and_then(from_hex).ok_or("`key` is not 64 hexadecimal digits in quotes")?;
    if bytes == [0; SECRET_BYTES] {
        return Err("`key` is zero; make one with `tcpcopy keygen FILE`".to_owned());
    }
    let clients = match dict.get("clients") {
        None => None,
        Some(value) => {
            let expected = "`clients` is a list of prefixes such as [\"10.99.0.0/24\"]";
            let items = value.as_array().ok_or(expected)?;
            let prefix = |item: &Value| {
                item.as_str()
                    .ok_or(expected.to_owned())?
                    .parse()
                    .map_err(|error| format!("`clients`: {error}"))
            };
            Some(items.iter().map(prefix).collect::<Result<Vec<Prefix>, String>>()?)
        }
    };
    Ok(TunnelKey { name, secret: Secret::new(bytes), clients })
}

fn from_hex(digits: &str) -> Option<[u8; SECRET_BYTES]> {
    let digits = digits.as_bytes();
    if digits.len() != 2 * SECRET_BYTES {
        return None;
    }
    let mut bytes = [0; SECRET_BYTES];
    for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
        for digit in pair {
            let value = char::from(*digit).to_digit(16)?;
            *byte = *byte << 4 | u8::try_from(value).ok()?;
        }
    }
    Some(bytes)
}

fn wrong(path: &Path, message: &str) -> ConfigError {
    ConfigError::Value(format!("{}: {message}", path.display()))
}

#[cfg(test)]
mod tests {
    use std::fs::OpenOptions;
    use std::io::Write;
    use std::os::unix::fs::OpenOptionsExt;

    use super::*;

    /// A directory of the test's own.
    struct Directory(PathBuf);

    impl Directory {
        fn new(name: &str) -> Self {
            let path = std::env::temp_dir().join(format!("tcpcopy-keys-{}-{name}", std::process::id()));
            fs::create_dir_all(&path).expect("temporary directory");
            Self(path)
        }

        fn write(&self, name: &str, mode: u32, text: &str) -> PathBuf {
            let path = self.0.join(name);
            let mut file = OpenOptions::new()
                .write(true)
                .create(true)
                .truncate(true)
                .mode(mode)
                .open(&path)
                .expect("file");
            file.set_permissions(fs::Permissions::from_mode(mode)).expect("mode");
            file.write_all(text.as_bytes()).expect("written");
            path
        }

        fn auto(&self, credentials: Option<&Directory>) -> Result<Vec<TunnelKey>, String> {
            load(&KeysAt::Auto, credentials.map(|other| other.0.as_path()), Some(&self.0))
                .map_err(|e| e.to_string())
        }
    }

    impl Drop for Directory {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    fn names(keys: &[TunnelKey]) -> Vec<&str> {
        keys.iter().map(|key| key.name.as_str()).collect()
    }

    #[test]
    fn what_is_made_is_read() {
        let directory = Directory::new("made");
        let path = directory.write("one", 0o600, &key_file([0xa5; 32]));
        let keys = load(&KeysAt::Path(path), None, None).expect("valid");
        assert_eq!(keys[0].secret, Secret::new([0xa5; 32]));
        assert_eq!((keys.len(), keys[0].clients.clone()), (1, None));
    }

    #[test]
    fn a_directory_is_read_in_the_order_of_names() {
        let directory = Directory::new("order");
        directory.write("2026-02", 0o600, &key_file([2; 32]));
        directory.write("2026-10", 0o400, &key_file([3; 32]));
        let limited = key_file([1; 32]) + "clients = ['10.99.0.x', 'fd00::/64']\n";
        directory.write("2025-11", 0o600, &limited);
        directory.write(".hidden", 0o644, "nonsense");
        directory.write("2026-02~", 0o644, "nonsense");
        let keys = directory.auto(None).expect("valid");
        assert_eq!(names(&keys), ["2025-11", "2026-02", "2026-10"]);
        assert_eq!(keys[0].clients.as_ref().map(Vec::len), Some(2));
    }

    #[test]
    fn credentials_come_first_and_have_any_mode() {
        let (usual, given) = (Directory::new("usual"), Directory::new("given"));
        usual.write("own", 0o600, &key_file([1; 32]));
        given.write("other", 0o444, "no key");
        assert_eq!(names(&usual.auto(Some(&given)).expect("valid")), [""; 0]);
        let gone = load(&KeysAt::Auto, Some(Path::new("/nonexistent")), Some(&usual.0)).expect("valid");
        assert_eq!(gone, []);
        given.write("keys_new", 0o440, &key_file([2; 32]));
        assert_eq!(names(&usual.auto(Some(&given)).expect("valid")), ["new"]);
        let none = load(&KeysAt::Auto, None, Some(Path::new("/nonexistent/keys"))).expect("valid");
        assert_eq!(none, []);
    }

    #[test]
    fn faults_are_named_and_keys_are_not_shown() {
        let good = key_file([7; 32]);
        let digits = "07".repeat(32);
        for (mode, text, message) in [
            (0o640, good.clone(), "mode 0640"),
            (0o604, good.clone(), "mode 0604"),
            (0o600, format!("key = \"{}\"\n", &digits[1..]), "64 hexadecimal digits"),
            (0o600, format!("key = \"{}g\"\n", &digits[1..]), "64 hexadecimal digits"),
            (0o600, format!("key = {digits}\n"), "line 1"),
            (0o600, format!("key = \"{}\"\n", "0".repeat(64)), "zero"),
            (0o600, String::new(), "64 hexadecimal digits"),
            (0o600, format!("{good}client = []\n"), "unknown key 'client'"),
            (0o600, format!("{good}clients = 'all'\n"), "list of prefixes"),
            (0o600, format!("{good}clients = ['10.0.0.300']\n"), "not an address"),
        ] {
            let directory = Directory::new("faults");
            directory.write("bad", mode, &text);
            let error = directory.auto(None).expect_err(message);
            assert!(error.contains(message) && error.contains("/bad: "), "{message}: {error}");
            assert!(!error.contains("070707"), "{error}");
        }
        let directory = Directory::new("twice");
        directory.write("a", 0o600, &good);
        directory.write("b", 0o600, &good);
        assert!(directory.auto(None).expect_err("twice").contains("keys a and b are the same"));
        let empty = Directory::new("empty");
        assert_eq!(empty.auto(None), Ok(Vec::new()));
        let asked = load(&KeysAt::Path(empty.0.clone()), None, None);
        assert!(asked.expect_err("none").to_string().contains("there is no key in it"));
    }
}
