//! What systemd is to a service: the journal's socket, the notification socket, and who starts and signals it.

use std::cell::RefCell;
use std::fs::{self, File, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::UnixDatagram;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// How long anything may take.
const PATIENCE: Duration = Duration::from_secs(30);
const NOTIFY: &str = "/run/notify";

/// The journal's socket.
pub(crate) struct Journal(Inbox);

/// One entry: fields and their values, in the order they came.
#[derive(Clone, Debug)]
pub(crate) struct Entry(Vec<(String, String)>);

/// The service manager's socket.
pub(crate) struct Manager(Inbox);

/// Datagrams, each of which is looked for once.
struct Inbox {
    socket: UnixDatagram,
    seen: RefCell<Vec<Vec<u8>>>,
}

impl Inbox {
    fn bind(path: &str) -> Self {
        let socket = UnixDatagram::bind(path).expect("a socket below /run");
        // As systemd's: services of every user write to them.
        fs::set_permissions(path, Permissions::from_mode(0o666)).expect("permissions");
        Self { socket, seen: RefCell::default() }
    }

    /// Takes datagrams until one fits, which is returned; those before it are gone.
    #[track_caller]
    fn wait_for<T>(&self, what: &str, fits: impl Fn(&[u8]) -> Option<T>) -> T {
        let deadline = Instant::now() + PATIENCE;
        let mut buffer = vec![0; 1 << 16];
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let received = self.socket.set_read_timeout(Some(left.max(Duration::from_millis(1))));
            let received = received.and_then(|()| self.socket.recv(&mut buffer));
            let seen = || {
                let seen = self.seen.borrow();
                seen.iter()
                    .map(|bytes| String::from_utf8_lossy(bytes).into_owned())
                    .collect::<Vec<_>>()
                    .join("\n")
            };
            let length = received.unwrap_or_else(|error| panic!("{what}: {error}; came:\n{}", seen()));
            let (datagram, _) = buffer.split_at(length);
            self.seen.borrow_mut().push(datagram.to_vec());
            if let Some(found) = fits(datagram) {
                return found;
            }
        }
    }
}

impl Inbox {
    /// Takes what is there, so that the sender does not have to wait for room.
    fn discard(&self) {
        self.socket.set_nonblocking(true).expect("a socket");
        let mut buffer = [0; 1];
        while self.socket.recv(&mut buffer).is_ok() {}
        self.socket.set_nonblocking(false).expect("a socket");
    }
}

impl Journal {
    pub(crate) fn discard(&self) {
        self.0.discard();
    }

    pub(crate) fn listen() -> Self {
        fs::create_dir_all("/run/systemd/journal").expect("a directory below /run");
        Self(Inbox::bind("/run/systemd/journal/socket"))
    }

    /// The next entry with this `MESSAGE_ID`.
    #[track_caller]
    pub(crate) fn wait_for(&self, id: &str) -> Entry {
        self.0
            .wait_for(id, |datagram| Some(Entry::parse(datagram)).filter(|entry| entry.has("MESSAGE_ID", id)))
    }
}

impl Entry {
    /// The native protocol: `NAME=value\n`, or `NAME\n`, eight bytes of length, the value and `\n`.
    fn parse(bytes: &[u8]) -> Self {
        let split = |bytes: &[u8], at: usize| {
            let (head, tail) = bytes.split_at(at);
            (String::from_utf8(head.to_vec()).expect("UTF-8"), tail.split_at(1).1.to_vec())
        };
        let mut fields = Vec::new();
        let mut bytes = bytes.to_vec();
        while let Some(end) = bytes.iter().position(|byte| *byte == b'\n') {
            let (line, rest) = split(&bytes, end);
            if let Some((name, value)) = line.split_once('=') {
                fields.push((name.to_owned(), value.to_owned()));
                bytes = rest;
                continue;
            }
            let (length, rest) = rest.split_at(8);
            let length = u64::from_le_bytes(length.try_into().expect("eight bytes"));
            let (value, rest) = split(rest, usize::try_from(length).expect("short"));
            fields.push((line, value));
            bytes = rest;
        }
        Self(fields)
    }

    pub(crate) fn has(&self, field: &str, value: &str) -> bool {
        self.0.iter().any(|(own, text)| own == field && text == value)
    }

    pub(crate) fn value(&self, field: &str) -> Option<&str> {
        self.0.iter().find(|(own, _)| own == field).map(|(_, text)| text.as_str())
    }
}

impl Manager {
    pub(crate) fn discard(&self) {
        self.0.discard();
    }

    pub(crate) fn listen() -> Self {
        Self(Inbox::bind(NOTIFY))
    }

    /// The next message that has a line which begins so.
    #[track_caller]
    pub(crate) fn wait_for(&self, line: &str) -> String {
        self.0.wait_for(line, |datagram| {
            let text = String::from_utf8(datagram.to_vec()).expect("UTF-8");
            text.lines().any(|own| own.starts_with(line)).then_some(text)
        })
    }
}

/// A running program; killed when dropped.
pub(crate) struct Service(Child);

impl Service {
    pub(crate) fn start(program: &str, arguments: &[&str], environment: &[(&str, &str)]) -> Self {
        // The stream is the journal's, if the variable names it: its contents do not matter.
        let stderr =
            File::create(format!("/run/stderr-{}", arguments.join("").replace('/', "_"))).expect("a file");
        let metadata = stderr.metadata().expect("metadata");
        let child = Command::new(program)
            .args(arguments)
            .env_clear()
            .env("JOURNAL_STREAM", format!("{}:{}", metadata.dev(), metadata.ino()))
            .env("NOTIFY_SOCKET", NOTIFY)
            .envs(environment.iter().copied())
            .stdin(Stdio::null())
            .stderr(stderr)
            .spawn()
            .expect("the program starts");
        Self(child)
    }

    pub(crate) fn pid(&self) -> u32 {
        self.0.id()
    }

    fn signal(&self, name: &str) {
        let status = Command::new("kill").args([name, &self.0.id().to_string()]).status();
        assert!(status.expect("kill runs").success());
    }

    pub(crate) fn reload(&self) {
        self.signal("-HUP");
    }

    /// Ends it as a service manager does; returns the exit code.
    pub(crate) fn stop(self) -> Option<i32> {
        self.signal("-TERM");
        self.wait()
    }

    /// Waits for its end, which comes by itself; returns the exit code.
    pub(crate) fn wait(mut self) -> Option<i32> {
        self.0.wait().expect("a child").code()
    }

    pub(crate) fn kill(mut self) {
        self.0.kill().and_then(|()| self.0.wait()).expect("a child");
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
