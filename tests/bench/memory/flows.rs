//! Workloads of intercept's.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use tcpcopy::router::{ConnId, FLOW_MEMORY, Identity, Router, Settings, Tenant, Unclaimed};
use tcpcopy::wire::{Flags, FlowId, FlowKey, Packet, Seq, TcpHeader, Time};

use super::Bounds;

const TARGET: ([u8; 4], u16) = ([10, 2, 0, 2], 80);
const ONE: ConnId = ConnId(1);

fn key(number: u32) -> FlowKey {
    let port = 1024 + u16::try_from(number % 60_000).expect("below 65,536");
    let client = SocketAddr::new(Ipv4Addr::from_bits(0x0a09_0000 + number / 60_000).into(), port);
    FlowKey { client, server: TARGET.into() }
}

fn router(max_flows: usize) -> Router {
    let settings = Settings { max_flows, ..Settings::new(vec![TARGET.into()], Unclaimed::Drop) };
    let mut router = Router::new(Time::ZERO, settings);
    router.connect(ONE, Identity { tenant: Tenant::Key([1; 4]), instance: 1, worker: 0 }, None);
    router
}

fn pass(router: &mut Router, now: &mut Time, time: Duration) {
    let end = *now + time;
    while *now < end {
        *now = end.min(*now + Duration::from_secs(1));
        for _ in 0..1_000 {
            router.handle_timeout(*now);
        }
        router.shrink();
    }
}

/// As many flows as there may be are claimed, released, and as many others claimed; then all are over.
pub(crate) fn many(number: usize, bounds: &Bounds) {
    let flows = u32::try_from(bounds.part() / FLOW_MEMORY).expect("few");
    let mut router = router(bounds.part() / FLOW_MEMORY);
    let mut now = Time::ZERO;
    for round in 0..2 {
        for flow in 0..flows {
            let key = key(round * flows + flow);
            router.claim(now, ONE, FlowId(flow.into()), key).expect("there is room");
        }
        bounds.check(number, "claimed", router.memory());
        assert!(router.memory() <= bounds.part(), "more than FLOW_MEMORY for each");
        for flow in 0..flows {
            router.release(now, ONE, FlowId(flow.into()));
        }
        bounds.check(number, "released", router.memory());
        assert!(router.memory() <= bounds.part(), "more than FLOW_MEMORY for each");
    }
    pass(&mut router, &mut now, Duration::from_secs(60));
    bounds.check_end(number, "a minute after their end", router.memory());
    pass(&mut router, &mut now, Duration::from_secs(180));
    assert!(router.memory() < 1 << 20, "{} bytes stay when they are forgotten", router.memory());
}

/// Responses that wait for claims which do not come.
pub(crate) fn held(number: usize, bounds: &Bounds) {
    let mut router = router(1_000);
    let mut now = Time::ZERO;
    for round in 0..5 {
        for flow in 0..50_000 {
            let FlowKey { client, server } = key(round * 50_000 + flow);
            let header = TcpHeader::bare(Seq(1), Seq(2), Flags::SYN | Flags::ACK, 100);
            router.handle_response(now, flow, &Packet { src: server, dst: client, header, payload: &[] });
        }
        bounds.check(number, "held", router.memory());
        now += Duration::from_millis(300);
        router.handle_timeout(now);
    }
    pass(&mut router, &mut now, Duration::from_secs(60));
    bounds.check_end(number, "a minute after their end", router.memory());
}
