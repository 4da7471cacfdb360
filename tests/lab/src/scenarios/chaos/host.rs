//! What can go wrong with the hosts that the daemons run on.

use std::fs::{self, File};
use std::io::Write;
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};

use super::{Fault, Heal, network, over};
use crate::chain::{Chain, Setup};
use crate::daemon::{Daemon, Program};
use crate::load::Request;
use crate::namespace::run;
use crate::network::{Role, Segment};
use crate::scenarios::{Context, Offloads, Scenario};
use crate::wait;

/// Descriptors of an intercept that is to run out of them, and connections that would take more.
const DESCRIPTORS: &str = "--nofile=40";
const CONNECTIONS: usize = 100;
/// Memory of a tcpcopy that is to be killed for want of more, bytes.
const MEMORY: &str = "50331648";
/// How long a program may take to refuse, and how long one may take to use up its memory.
const REFUSAL: Duration = Duration::from_secs(5);
const USED_UP: Duration = Duration::from_secs(20);

pub(super) fn faults() -> Vec<Fault> {
    vec![
        // On an assistant that forwards; until they are back, the routing policy stands in.
        Fault { lasts: 100, ..Fault::new("rules-deleted", delete_rules) },
        Fault { lasts: 100, ..Fault::new("queue-taken", take_queue) },
        Fault { setup: log_on_small_disk, ..Fault::new("disk-full", fill_disk) },
        Fault {
            setup: |_, mut setup| {
                setup.intercept_under = ["prlimit", DESCRIPTORS].map(str::to_owned).to_vec();
                Ok(setup)
            },
            ..Fault::new("out-of-descriptors", use_descriptors)
        },
        Fault {
            request: Request::Post(10_000),
            lasts: 100,
            perfect: false,
            survived: false,
            ..Fault::new("out-of-memory", use_memory)
        },
    ]
}

pub(super) fn scenarios() -> Vec<Scenario> {
    vec![Scenario::new("chaos/no-threads-to-be-had", Offloads::On, no_threads)]
}

/// Root deletes the rules by hand. Those of tcpcopy have an owner, and the kernel refuses; those of intercept come back.
fn delete_rules(chain: &mut Chain, _: &Context) -> Result<Heal> {
    let online = chain.network().host(Role::Online, 0)?.namespace();
    let refused = online.output("nft", &["delete", "table", "ip", "tcpcopy"]);
    let Err(error) = refused else { bail!("the kernel let root delete the rules of tcpcopy") };
    ensure!(format!("{error:#}").contains("not permitted"), "{error:#}");
    ensure!(chain.has_table(Role::Online, 0, "tcpcopy")?, "the rules of tcpcopy are gone");
    let assistant = chain.network().host(Role::Assistant, 0)?.namespace();
    assistant.output("nft", &["delete", "table", "ip", "intercept"])?;
    wait::until(REFUSAL, "the rules of intercept are back", || {
        let rules = chain.network().host(Role::Assistant, 0)?.namespace();
        Ok(rules.output("nft", &["list", "tables", "ip"])?.contains("intercept"))
    })?;
    Ok(over())
}

/// Another process wants the queues of the tcpcopy that runs: it is refused, and takes nothing away.
fn take_queue(chain: &mut Chain, _: &Context) -> Result<Heal> {
    let arguments = chain.tcpcopy_arguments(0)?;
    let online = chain.network().host(Role::Online, 0)?.namespace();
    let path = Program::Tcpcopy.path()?;
    let mut second = Daemon::run(&path, "tcpcopy-second", online, &arguments, chain.scratch())?;
    let status = second.wait_for(REFUSAL)?;
    let said = second.output()?;
    ensure!(status.code() == Some(69) && said.contains("queue"), "it ended with {status}: {}", said.trim());
    Ok(over())
}

/// tcpcopy logs to a file system of its own, which is small.
fn log_on_small_disk(context: &Context, setup: Setup) -> Result<Setup> {
    let disk = context.scratch.join("disk");
    fs::create_dir_all(&disk)?;
    run(Command::new("mount").args(["-t", "tmpfs", "-o", "size=64k", "tmpfs"]).arg(&disk), None)?;
    std::os::unix::fs::symlink(disk.join("tcpcopy.log"), context.scratch.join("tcpcopy-online.log"))?;
    Ok(setup)
}

/// The disk is full, and there is something to be logged.
fn fill_disk(chain: &mut Chain, context: &Context) -> Result<Heal> {
    let filler = context.scratch.join("disk/filler");
    let mut file = File::create(&filler)?;
    while file.write_all(&[0; 512]).is_ok() {}
    let cut = network::cut(chain, context)?;
    Ok(Box::new(move |chain| {
        fs::remove_file(filler)?;
        cut(chain)
    }))
}

/// Connections take all the descriptors that intercept may have.
fn use_descriptors(chain: &mut Chain, _: &Context) -> Result<Heal> {
    let address = (chain.network().host(Role::Assistant, 0)?.back(crate::network::Family::V4), 36524);
    let online = chain.network().host(Role::Online, 0)?.namespace();
    let connections = online.enter(|| {
        (0..CONNECTIONS).map(|_| TcpStream::connect(address)).collect::<std::io::Result<Vec<_>>>()
    })??;
    Ok(Box::new(move |_| {
        drop(connections);
        Ok(())
    }))
}

/// The group of processes whose memory is limited, if the machine has such groups.
fn memory_group() -> Result<(PathBuf, &'static str)> {
    for (parent, file) in
        [("/sys/fs/cgroup/memory", "memory.limit_in_bytes"), ("/sys/fs/cgroup", "memory.max")]
    {
        if Path::new(parent).join("cgroup.procs").is_file() {
            return Ok((Path::new(parent).join("tcpcopy-lab"), file));
        }
    }
    bail!("no memory controller in /sys/fs/cgroup")
}

/// tcpcopy gets less memory than it has leave to use, and the target is away until the kernel kills it.
fn use_memory(chain: &mut Chain, _: &Context) -> Result<Heal> {
    let (group, limit) = memory_group()?;
    fs::create_dir_all(&group).context("cannot make a control group")?;
    fs::write(group.join(limit), MEMORY).context("cannot limit memory")?;
    fs::write(group.join("cgroup.procs"), chain.tcpcopy(0)?.pid().to_string())?;
    let plug = |chain: &mut Chain, up| chain.network().host(Role::Target, 0)?.set_link(Segment::Back, up);
    plug(chain, false)?;
    wait::until(USED_UP, "the kernel kills tcpcopy", || Ok(!chain.tcpcopy(0)?.running()?))?;
    Ok(Box::new(move |chain| {
        plug(chain, true)?;
        chain.start_tcpcopies()?;
        Ok(fs::remove_dir(group)?)
    }))
}

/// No thread can be started: both programs say so, end, and leave nothing behind.
fn no_threads(context: &Context) -> Result<String> {
    // A key is for the user who starts the programs, and here that is another one.
    let setup = Setup { keyed: false, ..super::plain(context) };
    let chain = Chain::prepare(setup, &context.scratch)?;
    let mut messages = Vec::new();
    let commands = [
        (Program::Tcpcopy, Role::Online, chain.tcpcopy_arguments(0)?),
        (Program::Intercept, Role::Assistant, chain.intercept_arguments()?),
    ];
    for (program, role, arguments) in commands {
        // Limits are for ordinary users, who need the capabilities then, and a file they may run.
        let copy = chain.scratch().join(format!("{}-for-all", program.name()));
        fs::copy(program.path()?, &copy)?;
        let caps = "--inh-caps=+net_admin,+net_raw";
        let ambient = "--ambient-caps=+net_admin,+net_raw";
        let under = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", caps, ambient, "prlimit"];
        let mut all: Vec<String> = under.iter().skip(1).map(|&word| word.to_owned()).collect();
        all.extend(["--nproc=1".to_owned(), copy.display().to_string()]);
        all.extend(arguments);
        let on = chain.network().host(role, 0)?.namespace();
        let name = format!("{}-no-threads", program.name());
        let mut daemon = Daemon::run("setpriv".as_ref(), &name, on, &all, chain.scratch())?;
        let status = daemon.wait_for(REFUSAL)?;
        let said = daemon.output()?;
        ensure!(status.code() == Some(71), "{} ended with {status}: {}", program.name(), said.trim());
        // Warnings come before.
        messages.push(said.trim().lines().next_back().unwrap_or_default().to_owned());
    }
    chain.remove_rules()?;
    chain.finish()?;
    Ok(messages.join(" | "))
}
