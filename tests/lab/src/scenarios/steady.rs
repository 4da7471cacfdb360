//! Steady loads of which every request must arrive. Scenarios with one differ in their set-up, and in what else is looked
//! at.

use anyhow::Result;

use super::{Context, Offloads, Scenario};
use crate::chain::Chain;
use crate::load::{Connections, Load, Pace, Report, Request};
use crate::network::Family;
use crate::records::Comparison;

/// A load.
#[derive(Clone, Copy, Debug)]
pub(super) struct Steady {
    /// Requests a second.
    rate: u32,
    connections: Connections,
    request: Request,
}

/// The scenarios of a subject that are made of these loads, which have names: each with both families.
pub(super) fn scenarios<const N: usize>(
    subject: &str,
    loads: [(&str, Steady); N],
    body: fn(&Context, Family, Steady) -> Result<String>,
) -> Vec<Scenario> {
    let mut scenarios = Vec::new();
    for (name, load) in loads {
        for family in [Family::V4, Family::V6] {
            let name = format!("{subject}/{name}-{}", family.name());
            scenarios.push(Scenario::new(name, Offloads::Both, move |context| body(context, family, load)));
        }
    }
    scenarios
}

impl Steady {
    /// So many requests a second, with short responses.
    pub(super) fn new(rate: u32, connections: Connections) -> Self {
        Self { rate, connections, request: Request::Get(100) }
    }

    /// The same, with other requests.
    pub(super) fn asking(self, request: Request) -> Self {
        Self { request, ..self }
    }

    /// Puts it on production for two seconds; the target receives all of it, once and as it was.
    pub(super) fn arrives(self, context: &Context, chain: &mut Chain) -> Result<(Report, Comparison)> {
        let load = chain.load(Pace::Rate(self.rate), self.connections, context.seconds(2))?;
        let report = chain.run(Load { request: self.request, ..load })?;
        let comparison = chain.expect_perfect(1)?;
        if let Request::Post(size) = self.request {
            chain.check_bodies(size)?;
        }
        Ok((report, comparison))
    }
}
