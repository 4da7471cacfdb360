//! Protocols in which the server speaks first, or both sides speak when they like: SMTP, WebSocket, a chat.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Result, ensure};

use super::{Context, Offloads, Scenario};
use crate::network::Family;
use crate::observer::hash;
use crate::pair::{Pair, Site};

/// Debian's: its modules are not those of another Python that may come first on the path.
const PYTHON: &str = "/usr/bin/python3";
/// The port of all of them.
const PORT: u16 = 7000;
/// Where the mails are.
const MAILS: &str = "mails";

/// A protocol: its server, its client, and what the server has in the end.
#[derive(Clone, Copy)]
struct Protocol {
    name: &'static str,
    server: fn(&Site<'_>) -> Result<Command>,
    client: &'static str,
    /// One line for each message.
    received: fn(&Site<'_>) -> Result<String>,
}

const SMTP: Protocol = Protocol {
    name: "smtp",
    server: |site| Ok(mail_server(site)),
    client: include_str!("../../software/smtp_client.py"),
    received: mails,
};
const WEBSOCKET: Protocol = Protocol {
    name: "websocket",
    server: |site| python_server(site, include_str!("../../software/websocket_server.py"), &[]),
    client: include_str!("../../software/websocket_client.py"),
    received: said,
};
const ROOM: Protocol = Protocol {
    name: "chat",
    server: |site| python_server(site, include_str!("../../software/chat_server.py"), &["room"]),
    client: include_str!("../../software/chat_client.py"),
    received: said,
};
const ALONE: Protocol = Protocol {
    server: |site| python_server(site, include_str!("../../software/chat_server.py"), &["alone"]),
    ..ROOM
};

pub(super) fn scenarios() -> Vec<Scenario> {
    // The client's connections and what it says on each; how many messages that makes.
    let talks: [(&str, Protocol, Family, &'static [&'static str], usize); 7] = [
        ("smtp/mails-v4", SMTP, Family::V4, &["6", "15"], 90),
        ("smtp/mails-v6", SMTP, Family::V6, &["6", "15"], 90),
        ("websocket/echo-v4", WEBSOCKET, Family::V4, &["5", "20", "plain"], 105),
        ("websocket/echo-v6", WEBSOCKET, Family::V6, &["5", "20", "plain"], 105),
        ("websocket/deflate", WEBSOCKET, Family::V4, &["5", "20", "deflate"], 105),
        ("chat/alone", ALONE, Family::V4, &["6", "40"], 246),
        ("chat/room", ROOM, Family::V4, &["6", "40"], 246),
    ];
    let scenario = |(name, protocol, family, arguments, messages)| {
        Scenario::new(name, Offloads::On, move |context| {
            talked(context, &protocol, family, arguments, messages)
        })
    };
    talks.into_iter().map(scenario).collect()
}

fn talked(
    context: &Context,
    protocol: &Protocol,
    family: Family,
    arguments: &[&str],
    messages: usize,
) -> Result<String> {
    let mut pair = Pair::start(context, family, (protocol.name, PORT), protocol.server)?;
    let (address, port) = (pair.service()?.ip().to_string(), PORT.to_string());
    let script = context.scratch.join("client.py");
    fs::write(&script, protocol.client)?;
    pair.run(PYTHON, &[&[&*script.to_string_lossy(), &address, &port], arguments].concat())?;
    let received = pair.expect_same("what the servers received", protocol.received)?;
    let count = received.lines().count();
    ensure!(count == messages, "{count} messages, not {messages}");
    pair.finish()?;
    Ok(format!("{count} messages equal"))
}

/// A script with the port, the server's directory and further arguments.
fn python_server(site: &Site<'_>, text: &str, arguments: &[&str]) -> Result<Command> {
    let script = site.directory.join("server.py");
    fs::write(&script, text)?;
    let mut command = site.on.command(PYTHON);
    command.arg(script).arg(PORT.to_string()).arg(site.directory).args(arguments);
    Ok(command)
}

fn mail_server(site: &Site<'_>) -> Command {
    let mut command = site.on.command("aiosmtpd");
    // It listens on the addresses of one family.
    let any = match site.family {
        Family::V4 => "0.0.0.0",
        Family::V6 => "::0",
    };
    command.args(["-n", "-l", &format!("{any}:{PORT}"), "-c", "aiosmtpd.handlers.Mailbox"]);
    command.arg(site.directory.join(MAILS));
    command
}

/// The mails, in the order of their hashes: without the line that names the client's port.
fn mails(site: &Site<'_>) -> Result<String> {
    let directory = site.directory.join(MAILS).join("new");
    let mut mails = Vec::new();
    for mail in files(&directory)? {
        let mail = fs::read_to_string(mail)?;
        let lines: Vec<&str> = mail.lines().filter(|line| !line.starts_with("X-Peer: ")).collect();
        let id = lines.iter().find(|line| line.starts_with("Message-ID")).copied().unwrap_or_default();
        mails.push(format!("{id} {:016x} {} lines", hash(lines.join("\n").as_bytes()), lines.len()));
    }
    mails.sort();
    Ok(mails.join("\n"))
}

/// What each client said, in order.
fn said(site: &Site<'_>) -> Result<String> {
    let mut all = String::new();
    for file in files(site.directory)? {
        if file.extension().is_some_and(|extension| extension == "said") {
            let name = file.file_stem().unwrap_or_default().to_string_lossy().into_owned();
            all.extend(fs::read_to_string(file)?.lines().map(|line| format!("{name} {line}\n")));
        }
    }
    Ok(all)
}

fn files(directory: &Path) -> Result<Vec<std::path::PathBuf>> {
    let mut files: Vec<_> = fs::read_dir(directory)?.map(|entry| Ok(entry?.path())).collect::<Result<_>>()?;
    files.sort();
    Ok(files)
}
