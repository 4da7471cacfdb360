//! nftables rules: as data, as text, and in the kernel.
//!
//! | step | where |
//! |---|---|
//! | what is to be captured becomes rules, as pure data | [`online()`], [`assistant()`] -> [`Ruleset`] |
//! | rules become text for `nft -f` | `Display` of [`Ruleset`]; `nftables/*.nft` are printed so |
//! | rules become one netlink batch, and go into the kernel | [`Installed`] |
//! | somebody else changes them | [`RulesWatch`] tells, [`present`] compares, [`Installed::restore`] puts them back |
//! | what was claimed stays closed, whatever becomes of the rules | [`ClaimedFlows`] |
//! | rules that outlive the process are taken away | [`remove_table`] |
//! | the ruleset is flushed or edited | [`Backstop`]: routing drops the same, on an assistant and on the target |
//! | rules of others that lead connections elsewhere | [`redirections()`] reads them |
//!
//! The only state is in the kernel; [`Installed`] holds the socket that owns the tables. Imports `sys` and `wire`.

mod assistant;
mod backstop;
mod batch;
mod claimed;
mod content;
mod encode;
mod install;
mod link;
mod message;
mod nat;
mod online;
mod readback;
mod ruleset;
mod sink_table;
mod strays;
mod text;
mod watch;
mod xtables;

pub use assistant::{AssistantSpec, Place, Unclaimed, assistant};
pub use backstop::{Backstop, BackstopError};
pub use claimed::ClaimedFlows;
pub use encode::QueueKind;
pub use install::{InstallError, Installed, remove_table, table_families};
pub use message::{Captured, Counters};
pub use nat::{Direction, NewAddress, Redirection, redirections};
pub use online::{Capture, DUP_TO_V4, DUP_TO_V6, OnlineSpec, OwnResponses, online};
pub use readback::{Presence, present};
pub use ruleset::{
    BadTableName, Chain, Device, End, Families, Family, Hook, Match, Queues, Rule, Ruleset, Set, Statement,
    Table, TableName,
};
pub use strays::{Strays, strays};
pub use watch::{Change, RulesWatch};
