//! PostgreSQL on both sides: afterwards the tables have the same checksums.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result, ensure};

use super::{Context, Offloads, Scenario};
use crate::namespace::run;
use crate::network::Family;
use crate::pair::{Pair, Site};

const PORT: u16 = 5432;
/// Where Debian has the server's programs.
const PROGRAMS: &str = "/usr/lib/postgresql/15/bin";
/// The user the server insists on; it may own a data directory.
const USER: &str = "postgres";
/// Where one database cluster is made, to be copied.
const TEMPLATE: &str = "postgres-template";
/// What a line of the 20 MB says, about 100 bytes.
const LINES: usize = 200_000;

type Work = fn(&Context, &mut Pair, &[&str]) -> Result<()>;

/// Checksums of pgbench's tables. The balances are sums, so the order of the transactions does not matter; `mtime` does.
const PGBENCH: &str = "
    select 'accounts', count(*), sum(abalance), sum(hashtext(a::text)::bigint) from pgbench_accounts a;
    select 'branches', count(*), sum(hashtext(b::text)::bigint) from pgbench_branches b;
    select 'tellers', count(*), sum(hashtext(t::text)::bigint) from pgbench_tellers t;
    select 'history', count(*), sum(hashtext((tid, bid, aid, delta)::text)::bigint) from pgbench_history;";
/// Checksum of the copied table.
const COPIED: &str = "select count(*), sum(hashtext(line)::bigint), sum(length(line)) from copied;";

pub(super) fn scenarios() -> Vec<Scenario> {
    let loads: [(&str, Family, Work, &'static [&'static str], &'static str); 5] = [
        ("pgbench-simple-v4", Family::V4, pgbench, &["-M", "simple", "-c", "4", "-t", "60"], PGBENCH),
        ("pgbench-simple-v6", Family::V6, pgbench, &["-M", "simple", "-c", "4", "-t", "60"], PGBENCH),
        ("pgbench-prepared", Family::V4, pgbench, &["-M", "prepared", "-c", "4", "-t", "60"], PGBENCH),
        ("pgbench-connect", Family::V4, pgbench, &["-M", "extended", "-c", "2", "-t", "15", "-C"], PGBENCH),
        ("copy-20mb", Family::V4, copy, &[], COPIED),
    ];
    let scenario = |(name, family, work, options, sums): (&str, _, Work, &'static [&'static str], _)| {
        Scenario::new(format!("postgres/{name}"), Offloads::On, move |context| {
            let mut pair = Pair::start(context, family, ("postgres", PORT), launch)?;
            work(context, &mut pair, options)?;
            let said = pair.expect_same("the checksums", |site| ask(site, sums))?;
            pair.finish()?;
            Ok(said.trim().replace('\n', ", "))
        })
    };
    loads.into_iter().map(scenario).collect()
}

/// A program of PostgreSQL as its user, on the host of `command`.
fn program(command: &mut Command, name: &str) {
    command.args(["--reuid", USER, "--regid", USER, "--clear-groups", "--"]);
    command.arg(format!("{PROGRAMS}/{name}"));
}

fn launch(site: &Site<'_>) -> Result<Command> {
    let scratch = site.directory.parent().context("the scratch directory")?;
    let template = scratch.join(TEMPLATE);
    if !template.exists() {
        make_template(&template)?;
    }
    run(Command::new("cp").arg("-a").arg(&template).arg(site.directory.join("data")), None)?;
    run(Command::new("install").args(["-d", "-o", USER, &site.path("socket")]), None)?;
    let mut command = site.on.command("setpriv");
    program(&mut command, "postgres");
    command.args(["-D", &site.path("data"), "-p", &PORT.to_string(), "-k", &site.path("socket")]);
    for setting in ["listen_addresses=*", "fsync=off", "synchronous_commit=off", "shared_buffers=32MB"] {
        command.args(["-c", setting]);
    }
    Ok(command)
}

/// Makes a database cluster that trusts everybody.
fn make_template(template: &Path) -> Result<()> {
    run(Command::new("install").args(["-d", "-m", "700", "-o", USER]).arg(template), None)?;
    let mut command = Command::new("setpriv");
    program(&mut command, "initdb");
    command.args(["--auth", "trust", "--no-sync", "--locale", "C.UTF-8", "-D"]).arg(template);
    run(&mut command, None)?;
    let mut file = OpenOptions::new().append(true).open(template.join("pg_hba.conf"))?;
    Ok(file.write_all(b"host all all all trust\n")?)
}

/// Asks by the UNIX socket: nothing that is captured. A table that is not there yet is an answer too.
fn ask(site: &Site<'_>, question: &str) -> Result<String> {
    let (psql, socket, port) = (format!("{PROGRAMS}/psql"), site.path("socket"), PORT.to_string());
    // psql says what is wrong on standard error, and goes on.
    site.output(&psql, &["-h", &socket, "-p", &port, "-U", USER, "-X", "-A", "-t", "-c", question]).or_else(
        |error| {
            let said = format!("{error:#}");
            if said.contains("does not exist") { Ok(said) } else { Err(error) }
        },
    )
}

/// Makes the tables and runs transactions of the kind of TPC-B, all over the network.
fn pgbench(context: &Context, pair: &mut Pair, options: &[&str]) -> Result<()> {
    let (address, port) = (pair.service()?.ip().to_string(), PORT.to_string());
    let pgbench = format!("{PROGRAMS}/pgbench");
    let common = ["-h", &address, "-p", &port, "-U", USER];
    pair.run(&pgbench, &[&common[..], &["-i", "-q", "-s", "1", USER]].concat())?;
    let seed = ["--random-seed", "7", "-n"];
    // Else the target may still make what the transactions need.
    pair.expect_same("the tables made", |site| ask(site, PGBENCH))?;
    let rounds = if context.long { 20 } else { 1 };
    (0..rounds)
        .try_for_each(|_| pair.run(&pgbench, &[&common[..], &seed, options, &[USER]].concat()).map(drop))
}

/// Sends a table of 20 MB, and has it sent back.
fn copy(context: &Context, pair: &mut Pair, _options: &[&str]) -> Result<()> {
    let (address, port) = (pair.service()?.ip().to_string(), PORT.to_string());
    let file = context.scratch.join("lines.txt");
    let lines: String = (0..LINES).map(line).collect();
    ensure!(lines.len() >= 20_000_000, "only {} bytes", lines.len());
    fs::write(&file, &lines)?;
    let back = context.scratch.join("back.txt");
    let (load, unload) = (
        format!("\\copy copied from '{}'", file.display()),
        format!("\\copy copied to '{}'", back.display()),
    );
    let psql = format!("{PROGRAMS}/psql");
    let mut arguments = vec!["-h", &address, "-p", &port, "-U", USER, "-X", "-q", "-v", "ON_ERROR_STOP=1"];
    for command in
        ["create table copied (line text)", &load, &unload, "insert into copied values ('the end')"]
    {
        arguments.extend(["-c", command]);
    }
    pair.run(&psql, &arguments)?;
    ensure!(fs::read_to_string(&back)? == lines, "the online server sent something else back");
    Ok(())
}

fn line(number: usize) -> String {
    let scattered = number.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    format!("{number:09} {scattered:020} {}\n", "abcdefghij".repeat(7))
}
