//! What a chain is built of: network, deployment, options of the daemons.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use crate::network::{Family, Plan, Role};
use crate::nginx::Behaviour;

/// [`Setup::patience`] where nothing disturbs the replay.
const QUIET: Duration = Duration::from_secs(3);

/// Who takes the target's responses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Deployment {
    /// `intercept` on the assistants.
    Assistant,
    /// `intercept` on every target.
    OnTarget,
    /// Every tcpcopy itself.
    Embedded,
}

impl Deployment {
    /// Where `intercept` runs.
    pub(crate) fn intercepts(self) -> Option<Role> {
        match self {
            Self::Assistant => Some(Role::Assistant),
            Self::OnTarget => Some(Role::Target),
            Self::Embedded => None,
        }
    }

    /// Where the responses are taken.
    pub(crate) fn responses(self) -> Role {
        self.intercepts().unwrap_or(Role::Online)
    }
}

/// What to set up.
#[derive(Clone, Debug)]
pub(crate) struct Setup {
    /// The network.
    pub(crate) plan: Plan,
    /// Who takes the responses.
    pub(crate) deployment: Deployment,
    /// The IP version of the clients, the services and the tunnel.
    pub(crate) family: Family,
    /// How the servers behave.
    pub(crate) behaviour: Behaviour,
    /// How the targets behave, if not the same.
    pub(crate) target_behaviour: Option<Behaviour>,
    /// The port of servers that the scenario starts itself: there is no nginx then.
    pub(crate) port: Option<u16>,
    /// What each tcpcopy replays (`-x`); empty: port 80 to the first target.
    pub(crate) mappings: Vec<String>,
    /// Further options of each tcpcopy; `{n}` stands for its number, from 1.
    pub(crate) tcpcopy: Vec<String>,
    /// Further options of each intercept.
    pub(crate) intercept: Vec<String>,
    /// The configuration file of each intercept, in which its targets are: a reload reads it again.
    pub(crate) intercept_file: Option<PathBuf>,
    /// The configuration file of each tcpcopy, in which its mappings are.
    pub(crate) tcpcopy_file: Option<PathBuf>,
    /// What each intercept is started by: a program and its first arguments, or nothing.
    pub(crate) intercept_under: Vec<String>,
    /// Whether the tunnels have a key.
    pub(crate) keyed: bool,
    /// On how many of the online hosts there is a tcpcopy, and a load: the first ones.
    pub(crate) replaying: usize,
    /// Where tcpcopies find the intercept, if not at its address.
    pub(crate) tunnel: Option<SocketAddr>,
    /// How long the target's log must be quiet before what is missing counts as lost.
    pub(crate) patience: Duration,
}

impl Setup {
    /// The plain chain for a family.
    pub(crate) fn new(plan: Plan, family: Family) -> Self {
        Self {
            plan,
            deployment: Deployment::Assistant,
            family,
            behaviour: Behaviour::default(),
            target_behaviour: None,
            patience: QUIET,
            port: None,
            mappings: Vec::new(),
            tcpcopy: Vec::new(),
            intercept: Vec::new(),
            intercept_file: None,
            tcpcopy_file: None,
            intercept_under: Vec::new(),
            keyed: true,
            replaying: usize::MAX,
            tunnel: None,
        }
    }

    /// With intercept on the targets; nothing else is between them and the clients.
    pub(crate) fn on_target(mut self, intercept: &str) -> Self {
        self.deployment = Deployment::OnTarget;
        self.plan = Plan { assistants: 0, forwarding: true, ..self.plan };
        self.intercept = intercept.split_whitespace().map(str::to_owned).collect();
        self.intercept.push("--on-target".to_owned());
        self
    }

    /// With tcpcopy alone.
    pub(crate) fn embedded(mut self) -> Self {
        self.deployment = Deployment::Embedded;
        self.plan = Plan { assistants: 0, forwarding: true, ..self.plan };
        self
    }

    /// With further tcpcopy options, written as on a command line.
    pub(crate) fn tcpcopy(mut self, options: &str) -> Self {
        self.tcpcopy = options.split_whitespace().map(str::to_owned).collect();
        self
    }
}
