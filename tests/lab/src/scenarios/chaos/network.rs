//! The tunnel, the ways to the target, and the target itself.

use anyhow::Result;

use super::{Fault, Heal, over};
use crate::chain::Chain;
use crate::faults::{Leg, lose, stop_losing};
use crate::load::Request;
use crate::namespace::run;
use crate::network::Role;
use crate::scenarios::Context;

/// A table of the faults' own.
const TABLE: &str = "lab-chaos";

pub(super) fn faults() -> Vec<Fault> {
    vec![
        Fault { times: 5, lasts: 100, ..Fault::new("tunnel-cut", cut) },
        Fault { lasts: 1_000, ..Fault::new("tunnel-half-open", half_open) },
        Fault::new("sends-refused", refuse_sends),
        Fault { perfect: false, ..Fault::new("target-resets-all", reset_all) },
        Fault { request: Request::Post(10_000), ..Fault::new("mtu-smaller", smaller_mtu) },
        Fault::new("address-removed", remove_address),
    ]
}

/// The tunnel's connections are reset.
pub(super) fn cut(chain: &mut Chain, _: &Context) -> Result<Heal> {
    let online = chain.network().host(Role::Online, 0)?.namespace();
    online.output("ss", &["--kill", "--no-header", "state", "established", "dport", "=", "36524"])?;
    Ok(over())
}

/// No packet of the tunnel gets through, either way, and neither end is told.
fn half_open(chain: &mut Chain, _: &Context) -> Result<Heal> {
    lose(chain, Leg::Tunnel, 100)?;
    Ok(Box::new(|chain| stop_losing(chain, Leg::Tunnel).map(drop)))
}

/// A firewall of the online host refuses what the raw socket sends.
fn refuse_sends(chain: &mut Chain, _: &Context) -> Result<Heal> {
    rule(chain, Role::Online, "output", "oifname \"back\" tcp dport 80 counter drop")
}

/// Whatever comes in at the target's service is answered with a reset.
fn reset_all(chain: &mut Chain, _: &Context) -> Result<Heal> {
    rule(chain, Role::Target, "input", "tcp dport 80 counter reject with tcp reset")
}

/// The way to the target takes smaller packets only.
fn smaller_mtu(chain: &mut Chain, _: &Context) -> Result<Heal> {
    let set = |chain: &mut Chain, mtu: &str| {
        let online = chain.network().host(Role::Online, 0)?.namespace();
        online.output("ip", &["link", "set", "back", "mtu", mtu]).map(drop)
    };
    set(chain, "1280")?;
    Ok(Box::new(move |chain| set(chain, "1500")))
}

/// The online host loses its address towards the target and the assistant, and with it the route.
fn remove_address(chain: &mut Chain, _: &Context) -> Result<Heal> {
    let change = |chain: &mut Chain, what: &str| {
        let online = chain.network().host(Role::Online, 0)?.namespace();
        online.output("ip", &["address", what, "10.91.2.1/24", "dev", "back"]).map(drop)
    };
    change(chain, "del")?;
    Ok(Box::new(move |chain| change(chain, "add")))
}

/// Has a host apply a rule until the fault is over.
pub(super) fn rule(chain: &mut Chain, role: Role, hook: &str, does: &str) -> Result<Heal> {
    let text =
        format!("table inet {TABLE} {{ chain fault {{ type filter hook {hook} priority 10; {does}; }}; }}");
    let host = chain.network().host(role, 0)?.namespace();
    run(host.command("nft").args(["-f", "-"]), Some(&text))?;
    Ok(Box::new(move |chain| {
        let host = chain.network().host(role, 0)?.namespace();
        host.output("nft", &["delete", "table", "inet", TABLE]).map(drop)
    }))
}
