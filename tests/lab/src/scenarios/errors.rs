//! What goes wrong says so in one line and with the right exit code; what can heal is waited for.

use std::fs;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

use super::{Context, Offloads, Scenario};
use crate::chain::{Chain, Setup, keep_alive, short};
use crate::daemon::{Daemon, Program};
use crate::load::Pace;
use crate::network::{Family, Role};
use crate::wait;

/// How long a program may take to refuse.
const REFUSAL: Duration = Duration::from_secs(2);

/// The page that lists starts that are refused.
const MANUAL: &str = include_str!("../../../../man/tcpcopy-deployment.7");

/// Exit codes of sysexits.h.
mod code {
    /// The command line is wrong.
    pub(super) const USAGE: i32 = 64;
    /// Something that is needed is not there, or taken.
    pub(super) const UNAVAILABLE: i32 = 69;
    /// The operating system lacks something.
    pub(super) const OSERR: i32 = 71;
    /// Not permitted.
    pub(super) const NOPERM: i32 = 77;
    /// The configuration is wrong.
    pub(super) const CONFIG: i32 = 78;
}

pub(super) fn scenarios() -> Vec<Scenario> {
    vec![
        Scenario::new("errors/command-line", Offloads::On, command_line),
        Scenario::new("errors/port-in-use", Offloads::On, port_in_use),
        Scenario::new("errors/address-nobody-has", Offloads::On, address_nobody_has),
        Scenario::new("errors/no-permission", Offloads::On, no_permission),
        Scenario::new("errors/kernel-without-netfilter-netlink", Offloads::On, no_netfilter),
        Scenario::new("errors/intercept-does-not-answer", Offloads::On, intercept_does_not_answer),
    ]
}

/// Wrong command lines.
fn command_line(context: &Context) -> Result<String> {
    let chain = Chain::prepare(Setup::new(context.plan(), Family::V4), &context.scratch)?;
    let both = "-x 80-10.91.2.2:80 -s 10.91.2.3 --insecure";
    let cases = [
        (Program::Tcpcopy, "--no-such-option".to_owned()),
        (Program::Tcpcopy, String::new()),
        (Program::Tcpcopy, "-x 80-10.91.2.2:80".to_owned()),
        (Program::Tcpcopy, "-s 10.91.2.3".to_owned()),
        (Program::Tcpcopy, "-x 80-10.91.2.2 -s 10.91.2.3 --insecure".to_owned()),
        (Program::Tcpcopy, "-x 80-10.91.2.300:80 -s 10.91.2.3 --insecure".to_owned()),
        (Program::Tcpcopy, "-x 99999-10.91.2.2:80 -s 10.91.2.3 --insecure".to_owned()),
        (Program::Tcpcopy, format!("{both} -c 10.99.0.0/99")),
        (Program::Tcpcopy, format!("{both} -c fd99::/64")),
        (Program::Tcpcopy, format!("{both} -n 0")),
        (Program::Tcpcopy, format!("{both} -n 5000")),
        (Program::Tcpcopy, format!("{both} -r 0")),
        (Program::Tcpcopy, format!("{both} -r 101")),
        (Program::Tcpcopy, format!("{both} --workers 0")),
        (Program::Intercept, "--no-such-option".to_owned()),
        (Program::Intercept, "--insecure".to_owned()),
        (Program::Intercept, "--target 10.91.2.2 --insecure".to_owned()),
        (Program::Intercept, "--target 10.91.2.2:80 --insecure --unclaimed maybe".to_owned()),
        (Program::Intercept, "--target 10.91.2.2:80 --insecure -p 99999".to_owned()),
    ];
    let count = cases.len();
    let mut wrong = Vec::new();
    for (program, arguments) in cases {
        let host = if program == Program::Tcpcopy { Role::Online } else { Role::Assistant };
        let outcome = fails(&chain, program, host, &arguments, code::USAGE);
        wrong.extend(outcome.err().map(|error| format!("{error:#}")));
    }
    ensure!(wrong.is_empty(), "{} of {count}: {}", wrong.len(), wrong.join("; "));
    chain.finish()?;
    Ok(format!("{count} wrong command lines refused"))
}

/// Two intercepts on one port.
fn port_in_use(context: &Context) -> Result<String> {
    let mut chain = Chain::prepare(Setup::new(context.plan(), Family::V4), &context.scratch)?;
    chain.start_intercepts()?;
    let arguments = chain.intercept_arguments()?.join(" ");
    let message = fails(&chain, Program::Intercept, Role::Assistant, &arguments, code::UNAVAILABLE)?;
    ensure!(message.contains("36524"), "the message does not name the port: {message}");
    ensure!(chain.intercept(0)?.running()?, "the first intercept ended too");
    chain.finish()?;
    Ok(message)
}

/// intercept is to listen on an address of another host.
fn address_nobody_has(context: &Context) -> Result<String> {
    let chain = Chain::prepare(Setup::new(context.plan(), Family::V4), &context.scratch)?;
    let arguments = "--target 10.91.2.2:80 -b 10.91.2.77 --insecure";
    let message = fails(&chain, Program::Intercept, Role::Assistant, arguments, code::CONFIG)?;
    ensure!(message.contains("10.91.2.77"), "the message does not name the address: {message}");
    chain.finish()?;
    Ok(message)
}

/// Neither program runs without the capabilities it needs.
fn no_permission(context: &Context) -> Result<String> {
    // A key is for the user who starts the programs, and here that is another one.
    let setup = Setup { keyed: false, ..Setup::new(context.plan(), Family::V4) };
    let chain = Chain::prepare(setup, &context.scratch)?;
    let (tcpcopy, intercept) = (chain.tcpcopy_arguments(0)?, chain.intercept_arguments()?);
    let mut messages = Vec::new();
    for (program, role, arguments) in
        [(Program::Tcpcopy, Role::Online, tcpcopy), (Program::Intercept, Role::Assistant, intercept)]
    {
        // Where an ordinary user can reach it.
        let copy = chain.scratch().join(format!("{}-for-all", program.name()));
        fs::copy(program.path()?, &copy)?;
        let user = ["--reuid=65534", "--regid=65534", "--clear-groups", "--inh-caps=-all", "--"];
        let mut all: Vec<String> = user.iter().map(|&word| word.to_owned()).collect();
        all.push(copy.display().to_string());
        all.extend(arguments);
        let on = chain.network().host(role, 0)?.namespace();
        let name = format!("{}-unprivileged", program.name());
        let mut daemon = Daemon::run("setpriv".as_ref(), &name, on, &all, chain.scratch())?;
        let what = format!("{} without privileges", program.name());
        messages.push(judge(&mut daemon, &what, code::NOPERM)?);
    }
    chain.finish()?;
    Ok(messages.join(" | "))
}

/// The kernel has no netfilter netlink, and so no queues: its sockets are refused as such a kernel does.
fn no_netfilter(context: &Context) -> Result<String> {
    let chain = Chain::prepare(Setup::new(context.plan(), Family::V4), &context.scratch)?;
    let (tcpcopy, intercept) = (chain.tcpcopy_arguments(0)?, chain.intercept_arguments()?);
    let mut messages = Vec::new();
    for (program, role, arguments) in
        [(Program::Tcpcopy, Role::Online, tcpcopy), (Program::Intercept, Role::Assistant, intercept)]
    {
        let mut all = vec!["without-netfilter".to_owned(), program.path()?.display().to_string()];
        all.extend(arguments);
        let on = chain.network().host(role, 0)?.namespace();
        let name = format!("{}-without-netfilter", program.name());
        let mut daemon = Daemon::run(&std::env::current_exe()?, &name, on, &all, chain.scratch())?;
        let what = format!("{} on a kernel without netfilter netlink", program.name());
        let message = judge(&mut daemon, &what, code::OSERR)?;
        // tests/service looks at the other starts that are refused.
        let row = format!(".It {} no netfilter in the kernel\n{}\n", code::OSERR, reason(&message));
        ensure!(MANUAL.contains(&row), "tcpcopy-deployment(7) does not say: {row}");
        messages.push(message);
    }
    chain.finish()?;
    Ok(messages.join(" | "))
}

/// tcpcopy starts before intercept: production is not touched, and replay begins once intercept is there.
fn intercept_does_not_answer(context: &Context) -> Result<String> {
    let mut chain = Chain::prepare(Setup::new(context.plan(), Family::V4), &context.scratch)?;
    chain.launch_tcpcopies()?;
    wait::until(Duration::from_secs(10), "tcpcopy says that intercept does not answer", || {
        let tcpcopy = chain.tcpcopy(0)?;
        ensure!(tcpcopy.running()?, "tcpcopy ended: {}", tcpcopy.output()?.trim());
        Ok(tcpcopy.output()?.contains("10.91.2.3"))
    })?;
    let load = chain.load(Pace::Rate(1_000), keep_alive(20), 1)?;
    let report = chain.run(load)?;
    ensure!(chain.tcpcopy(0)?.running()?, "tcpcopy ended");
    chain.start_intercepts()?;
    chain.tcpcopy(0)?.wait_ready()?;
    let load = chain.load(Pace::Rate(1_000), short(), 1)?;
    let first = load.first_id;
    let after = chain.run(load)?;
    wait::until(Duration::from_secs(15), "replay begins once intercept is there", || {
        Ok(chain.target()?.ids().filter(|&id| id >= first).count() >= usize::try_from(after.answered)?)
    })?;
    chain.finish()?;
    Ok(format!("{} answered meanwhile, {} replayed after", report.answered, after.answered))
}

/// A message without the name of the program.
fn reason(message: &str) -> &str {
    message.split_once(": ").map_or(message, |(_, reason)| reason)
}

/// Runs a program that must end with exit code `code` and one line of explanation, which is returned.
fn fails(chain: &Chain, program: Program, role: Role, arguments: &str, code: i32) -> Result<String> {
    let arguments: Vec<String> = arguments.split_whitespace().map(str::to_owned).collect();
    let on = chain.network().host(role, 0)?.namespace();
    let mut daemon = Daemon::start(program, on, &arguments, chain.scratch())?;
    judge(&mut daemon, &format!("{} {}", program.name(), arguments.join(" ")), code)
}

fn judge(daemon: &mut Daemon, what: &str, code: i32) -> Result<String> {
    let status = daemon.wait_for(REFUSAL).with_context(|| format!("`{what}` goes on"))?;
    let output = daemon.output()?;
    ensure!(status.code() == Some(code), "`{what}` ended with {status}, not with {code}: {}", output.trim());
    // Life-cycle lines of the log may come before the reason.
    let reasons: Vec<&str> = output
        .lines()
        .filter(|line| !line.trim().is_empty() && !line.contains(" INFO ") && !line.contains(" WARN "))
        .collect();
    match reasons.as_slice() {
        [reason] => Ok((*reason).to_owned()),
        lines => anyhow::bail!("`{what}` explains in {} lines, not one: {}", lines.len(), output.trim()),
    }
}
