//! Rules into the kernel and out again, each time in one transaction.

use std::io;

use super::batch::{self, Object, Transaction};
use super::encode::QueueKind;
use super::link::{Failure, Link};
use super::message::Captured;
use super::readback::{self, Presence};
use super::ruleset::{Family, Ruleset, TableName};
use super::strays::{self, Strays};

/// Rules in force, and the socket they were installed through.
///
/// A ruleset with an owner is in force as long as this value lives: the kernel removes it when the socket is closed,
/// however the process ends. Any other stays until [`Installed::remove`] or [`remove_table`].
pub struct Installed {
    link: Link,
    /// What is in force.
    ruleset: Ruleset,
    queue: QueueKind,
    /// Why the sets that were wanted are not in force.
    without_sets: Option<InstallError>,
}

/// Why rules could not be installed or removed. A transaction is carried out as a whole or not at all; only after
/// [`InstallError::Receive`], [`InstallError::Unanswered`] and [`InstallError::Altered`] it may have been.
#[derive(Debug, thiserror::Error)]
pub enum InstallError {
    /// There is nothing to install.
    #[error(
        "no rule would match anything: name at least one address or port of an address family that is wanted"
    )]
    Empty,
    /// No socket.
    #[error(
        "cannot open a netfilter netlink socket: {0}; the kernel needs nfnetlink (CONFIG_NETFILTER_NETLINK, \
         modprobe nfnetlink)"
    )]
    Socket(#[source] io::Error),
    /// No permission.
    #[error("no permission to change nft rules: run as root or with CAP_NET_ADMIN in this network namespace")]
    Permission,
    /// No nf_tables.
    #[error("the kernel has no nf_tables: it needs CONFIG_NF_TABLES (modprobe nf_tables)")]
    NoNftables,
    /// The table is another process's.
    #[error(
        "table {family} {table} belongs to another process that is running: stop the other tcpcopy, or set \
         another table (and queue, and sink) for this one"
    )]
    Owned {
        /// The table's family.
        family: Family,
        /// The table's name.
        table: TableName,
    },
    /// The kernel cannot tie tables to a process.
    #[error(
        "the kernel does not know table flag owner, without which rules would outlive a killed tcpcopy: use Linux \
         5.12 or later"
    )]
    NoOwnerFlag,
    /// No way to queue packets.
    #[error(
        "the kernel can queue packets neither by nft queue (CONFIG_NFT_QUEUE, modprobe nft_queue) nor by the xtables \
         target NFQUEUE (CONFIG_NFT_COMPAT and CONFIG_NETFILTER_XT_TARGET_NFQUEUE, modprobe nft_compat xt_NFQUEUE)"
    )]
    NoQueue,
    /// An expression the kernel lacks.
    #[error(
        "the kernel lacks an expression of the rule \"{rule}\" in table {family} {table}: it needs {} \
         (CONFIG_*, or the modules of those names)", .options.join(", ")
    )]
    MissingExpression {
        /// The table's family.
        family: Family,
        /// The table's name.
        table: TableName,
        /// The rule.
        rule: String,
        /// The kernel options it needs.
        options: Vec<&'static str>,
    },
    /// Anything else the kernel refused.
    #[error("the kernel refuses {object} in table {table}: {source}")]
    Refused {
        /// The table's name.
        table: TableName,
        /// What was refused.
        object: String,
        /// The kernel's reason.
        source: io::Error,
    },
    /// The transaction did not reach the kernel.
    #[error("cannot send nft rules to the kernel: {0}")]
    Send(#[source] io::Error),
    /// The kernel's answer could not be read.
    #[error("cannot read the kernel's answer about nft rules: {0}")]
    Receive(#[source] io::Error),
    /// The kernel answered less than it was asked.
    #[error(
        "the kernel acknowledged {answers} of {expected} nft messages and then no more: see nft list ruleset"
    )]
    Unanswered {
        /// The answers that came.
        answers: usize,
        /// The answers that were due.
        expected: usize,
    },
    /// What was installed is not there.
    #[error(
        "the kernel took the rules, but {0}: another program is changing the ruleset; stop it and try again"
    )]
    Altered(String),
}

impl Installed {
    /// Puts `ruleset` in force, in place of whatever tables of its name there are, without a moment between.
    ///
    /// If the kernel refuses its sets, it is [`Ruleset::without_sets`] that is put in force: see
    /// [`Installed::without_sets`].
    pub fn install(ruleset: &Ruleset) -> Result<Self, InstallError> {
        let Some(table) = ruleset.tables.first() else { return Err(InstallError::Empty) };
        let queue = if ruleset.uses_queues() { probe_queue(table.family)? } else { QueueKind::Native };
        let link = Link::open().map_err(InstallError::Socket)?;
        let mut installed = Self { link, ruleset: ruleset.clone(), queue, without_sets: None };
        installed.put(ruleset)?;
        Ok(installed)
    }

    /// Puts another ruleset, of the same table name, in force in place of this one, without a moment between; if the
    /// kernel refuses, this one still is.
    pub fn replace(&mut self, ruleset: &Ruleset) -> Result<(), InstallError> {
        if ruleset.tables.is_empty() {
            return Err(InstallError::Empty);
        }
        self.put(ruleset)
    }

    /// Puts the same rules in force again, after somebody has changed or removed them.
    pub fn restore(&mut self) -> Result<(), InstallError> {
        self.put(&self.ruleset.clone())
    }

    /// Takes the rules away.
    pub fn remove(mut self) -> Result<(), InstallError> {
        remove_through(&mut self.link, &self.ruleset.name).map(drop)
    }

    /// Why the kernel refused the sets of the ruleset, if it did: the rules do without.
    pub fn without_sets(&self) -> Option<&InstallError> {
        self.without_sets.as_ref()
    }

    /// True if the ACKs of clients' handshakes are told from other ACKs: the rules have the set it takes.
    pub fn handshakes(&self) -> bool {
        self.ruleset.has_sets()
    }

    /// The rules in force.
    pub fn ruleset(&self) -> &Ruleset {
        &self.ruleset
    }

    /// How packets are queued.
    pub fn queue_kind(&self) -> QueueKind {
        self.queue
    }

    /// Whether the rules are still in force as they were installed.
    pub fn check(&mut self) -> io::Result<Presence> {
        readback::presence(&mut self.link, &self.ruleset)
    }

    /// What the rules of an online host have counted since they were installed.
    pub fn captured(&mut self) -> io::Result<Captured> {
        readback::counted(&mut self.link, &self.ruleset)
    }

    /// What an intercept's rules have dropped although it was no response, in each table.
    pub fn strays(&mut self) -> io::Result<Vec<(Family, Strays)>> {
        strays::read(&mut self.link, &self.ruleset)
    }

    fn put(&mut self, ruleset: &Ruleset) -> Result<(), InstallError> {
        let (in_force, without_sets) = match self.commit(ruleset) {
            Ok(()) => (ruleset.clone(), None),
            Err(Refusal { error, of_sets: true }) => {
                let rest = ruleset.without_sets();
                self.commit(&rest).map_err(|refusal| refusal.error)?;
                (rest, Some(error))
            }
            Err(Refusal { error, of_sets: false }) => return Err(error),
        };
        self.ruleset = in_force;
        self.without_sets = without_sets;
        match self.check().map_err(InstallError::Receive)? {
            Presence::Complete => Ok(()),
            Presence::Altered(what) => Err(InstallError::Altered(what)),
        }
    }

    fn commit(&mut self, ruleset: &Ruleset) -> Result<(), Refusal> {
        let transaction = batch::install(ruleset, self.queue);
        self.link.commit(&transaction).map_err(|failure| Refusal {
            of_sets: concerns_sets(&failure, &transaction),
            error: explain(failure, &transaction, &ruleset.name),
        })
    }
}

/// Why a ruleset is not in force, and whether it would be if it had no sets.
struct Refusal {
    error: InstallError,
    of_sets: bool,
}

/// Removes the tables called `name` and says of which families there was one.
pub fn remove_table(name: &TableName) -> Result<Vec<Family>, InstallError> {
    remove_through(&mut Link::open().map_err(InstallError::Socket)?, name)
}

/// The families in which there is a table called `name`.
pub fn table_families(name: &TableName) -> Result<Vec<Family>, InstallError> {
    families_through(&mut Link::open().map_err(InstallError::Socket)?, name)
}

fn families_through(link: &mut Link, name: &TableName) -> Result<Vec<Family>, InstallError> {
    let mut families = Vec::new();
    for family in Family::ALL {
        match link.table_flags(family, name) {
            Ok(Some(_flags)) => families.push(family),
            Ok(None) => {}
            Err(error) if error.raw_os_error() == Some(libc::EPERM) => return Err(InstallError::Permission),
            Err(error) => return Err(InstallError::Receive(error)),
        }
    }
    Ok(families)
}

fn remove_through(link: &mut Link, name: &TableName) -> Result<Vec<Family>, InstallError> {
    let families = families_through(link, name)?;
    if !families.is_empty() {
        let transaction = batch::remove(name, &families);
        link.commit(&transaction).map_err(|failure| explain(failure, &transaction, name))?;
    }
    Ok(families)
}

/// How this kernel queues packets. Nothing is changed by asking.
///
/// Each attempt has a socket of its own: answers to a refused one must not be taken for answers to the next.
fn probe_queue(family: Family) -> Result<QueueKind, InstallError> {
    let name = TableName::probe();
    for kind in [QueueKind::Native, QueueKind::Compat] {
        let mut link = Link::open().map_err(InstallError::Socket)?;
        let transaction = batch::probe(&name, family, kind);
        match link.commit(&transaction).map_err(|failure| explain(failure, &transaction, &name)) {
            Ok(()) => return Ok(kind),
            Err(InstallError::MissingExpression { .. }) => {}
            Err(error) => return Err(error),
        }
    }
    Err(InstallError::NoQueue)
}

/// Whether it was a set, or a rule that uses one, that was refused.
fn concerns_sets(failure: &Failure, transaction: &Transaction) -> bool {
    let Failure::Refused { sequence, .. } = failure else { return false };
    transaction.object(*sequence).is_some_and(|(_, object)| match object {
        Object::Set(_) => true,
        Object::Rule { uses_set, .. } => *uses_set,
        Object::Reserve | Object::Removal | Object::Table | Object::Chain(_) => false,
    })
}

/// What a failure means, by the message that was refused and the errno.
fn explain(failure: Failure, transaction: &Transaction, table: &TableName) -> InstallError {
    let (sequence, source) = match failure {
        Failure::Send(error) if error.raw_os_error() == Some(libc::EPERM) => return InstallError::Permission,
        Failure::Send(error) => return InstallError::Send(error),
        Failure::Receive(error) => return InstallError::Receive(error),
        Failure::Unanswered { answers } => {
            return InstallError::Unanswered { answers, expected: transaction.acknowledgements };
        }
        Failure::Refused { sequence, error } => (sequence, error),
    };
    let table = table.clone();
    let Some((family, object)) = transaction.object(sequence) else {
        return match source.raw_os_error() {
            Some(libc::EPERM) => InstallError::Permission,
            Some(libc::EOPNOTSUPP) => InstallError::NoNftables,
            _ => InstallError::Refused { table, object: "the transaction as a whole".to_owned(), source },
        };
    };
    let family = *family;
    match (object, source.raw_os_error()) {
        (Object::Reserve | Object::Removal, Some(libc::EPERM | libc::EBUSY)) => {
            InstallError::Owned { family, table }
        }
        (Object::Table, Some(libc::EOPNOTSUPP | libc::EINVAL)) => InstallError::NoOwnerFlag,
        // Of a rule with a set, that may be what is missing; the rest shows without it.
        (Object::Rule { text, options, uses_set: false }, Some(libc::ENOENT)) => {
            InstallError::MissingExpression { family, table, rule: text.clone(), options: options.clone() }
        }
        (Object::Reserve | Object::Table, _) => refused(table, format!("the {family} table"), source),
        (Object::Removal, _) => refused(table, format!("to remove the {family} table"), source),
        (Object::Set(set), _) => refused(table, format!("the {family} set {set}"), source),
        (Object::Chain(chain), _) => refused(table, format!("the {family} chain {chain}"), source),
        (Object::Rule { text, .. }, _) => refused(table, format!("the {family} rule \"{text}\""), source),
    }
}

fn refused(table: TableName, object: String, source: io::Error) -> InstallError {
    InstallError::Refused { table, object, source }
}

#[cfg(test)]
mod tests {
    use super::super::{AssistantSpec, Place, Queues, Unclaimed, assistant};
    use super::*;

    fn transaction() -> (Transaction, TableName) {
        let ruleset = assistant(&AssistantSpec {
            table: TableName::intercept(),
            targets: vec!["192.0.2.1:80".parse().unwrap()],
            clients: Vec::new(),
            pass: Vec::new(),
            tunnel_port: 36524,
            queues: Queues::new(1, 2),
            unclaimed: Unclaimed::Drop,
            accept_mark: 1,
            place: Place::Assistant,
        });
        (batch::install(&ruleset, QueueKind::Native), ruleset.name)
    }

    fn refusal(of: impl Fn(&Object) -> bool, errno: i32) -> String {
        let (transaction, table) = transaction();
        let position = transaction.objects.iter().position(|(_, object)| of(object)).unwrap();
        let sequence = transaction.first + u32::try_from(position).unwrap();
        let error = io::Error::from_raw_os_error(errno);
        explain(Failure::Refused { sequence, error }, &transaction, &table).to_string()
    }

    #[test]
    fn a_refusal_names_the_object_and_the_remedy() {
        let owned = refusal(|object| *object == Object::Removal, libc::EPERM);
        assert!(owned.contains("belongs to another process"), "{owned}");
        let flag = refusal(|object| *object == Object::Table, libc::EOPNOTSUPP);
        assert!(flag.contains("Linux 5.12"), "{flag}");
        let is_queue =
            |object: &Object| matches!(object, Object::Rule { text, .. } if text.contains("queue"));
        let missing = refusal(is_queue, libc::ENOENT);
        assert!(missing.contains("ip saddr 192.0.2.1 tcp sport 80 jhash"), "{missing}");
        assert!(missing.contains("NFT_HASH, NFT_QUEUE"), "{missing}");
        let chain = refusal(|object| *object == Object::Chain("blackhole"), libc::EINVAL);
        assert!(chain.contains("the ip chain blackhole in table intercept"), "{chain}");
    }

    #[test]
    fn a_refusal_of_the_whole_is_about_permission_or_the_kernel() {
        let (transaction, table) = transaction();
        let refused = |errno| {
            let error = io::Error::from_raw_os_error(errno);
            let sequence = transaction.first.saturating_sub(1);
            explain(Failure::Refused { sequence, error }, &transaction, &table)
        };
        assert!(matches!(refused(libc::EPERM), InstallError::Permission));
        assert!(matches!(refused(libc::EOPNOTSUPP), InstallError::NoNftables));
        assert!(matches!(refused(libc::ENOMEM), InstallError::Refused { .. }));
    }
}
