//! Responses that packet sockets take at intercept (`capture.source = "packet"`): the same fidelity, and as black a hole.

use anyhow::{Result, ensure};

use super::steady::{self, Steady};
use super::{Context, Offloads, Scenario, loss, safety};
use crate::chain::{Chain, Setup, keep_alive, short};
use crate::faults::Leg;
use crate::load::Request;
use crate::network::{Family, Plan};

pub(super) fn scenarios() -> Vec<Scenario> {
    let loads = [
        ("keep-alive-5000", Steady::new(5_000, keep_alive(50))),
        ("short-1000", Steady::new(1_000, short())),
        // Packets that are longer than the MTU, where there are offloads.
        ("get-100kb-short", Steady::new(100, short()).asking(Request::Get(100_000))),
        ("get-1mb", Steady::new(20, keep_alive(8)).asking(Request::Get(1 << 20))),
    ];
    let mut scenarios = steady::scenarios("tapped", loads, arrives);
    for family in [Family::V4, Family::V6] {
        let name = format!("tapped/unclaimed-{}", family.name());
        scenarios.push(Scenario::new(name, Offloads::On, move |context| {
            safety::unclaimed(context, setup(forwarding(context), family), false)
        }));
        for (kind, connections) in [("keep-alive", keep_alive(20)), ("short", short())] {
            let name = format!("tapped/killed-forwarding-{kind}-{}", family.name());
            scenarios.push(Scenario::new(name, Offloads::On, move |context| {
                safety::intercept_killed(context, setup(forwarding(context), family), connections)
            }));
        }
    }
    for (kind, connections) in [("keep-alive", keep_alive(20)), ("short", short())] {
        let name = format!("tapped/5-percent-of-responses-lost-{kind}");
        scenarios.push(Scenario::new(name, Offloads::On, move |context| {
            loss::lost(context, setup(context.plan(), Family::V4), Leg::Responses, 5, connections)
        }));
    }
    scenarios
}

/// Two workers, so that the kernel splits the responses.
fn setup(plan: Plan, family: Family) -> Setup {
    let intercept = ["--capture-source", "packet", "--workers", "2"].map(str::to_owned).to_vec();
    Setup { intercept, ..Setup::new(plan, family) }
}

fn forwarding(context: &Context) -> Plan {
    Plan { forwarding: true, ..context.plan() }
}

fn arrives(context: &Context, family: Family, load: Steady) -> Result<String> {
    let mut chain = Chain::start(setup(context.plan(), family), &context.scratch)?;
    let (_, comparison) = load.arrives(context, &mut chain)?;
    chain.account()?;
    let counters = chain.finish_counting()?;
    let (responses, dropped) = (counters.of("responses"), counters.of("kernel_dropped"));
    ensure!(responses > 0 && dropped == 0, "{responses} responses, {dropped} dropped by the kernel");
    let odd = ["unreadable", "unclaimed_dropped"].map(|name| counters.of(name));
    ensure!(odd == [0, 0], "responses that are none of ours: {counters}");
    Ok(format!("{comparison}, {responses} responses"))
}
