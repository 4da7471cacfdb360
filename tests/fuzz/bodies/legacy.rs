//! Both ends of the C tools' tunnel, against a peer that says anything.

use std::time::Duration;

use tcpcopy::tunnel::legacy::{Client, MAX_RECORDS, MESSAGE, RECORD, Server, ServerEvent, VERSION};
use tcpcopy::tunnel::{Claimer, ClientEvent, Endpoint};
use tcpcopy::wire::{Flags, FlowId, FlowKey, Seq, TcpHeader, TcpOptions, Time, Timestamps};

use super::ends::{OUTPUT, Stage, in_pieces, limits};
use super::input::Input;

/// Events come in their order, buffers keep their bounds, what one end sends the other one hears, and it does not matter
/// in which pieces the bytes come.
pub(crate) fn run(data: &[u8]) {
    let mut input = Input::new(data);
    match input.u8() % 4 {
        0 => server(input),
        1 => client(input),
        2 => pieces(input),
        _ => both(input),
    }
}

fn opening() -> Vec<u8> {
    let [high, low] = VERSION.to_be_bytes();
    let mut bytes = vec![0; MESSAGE];
    bytes[6] = high;
    bytes[7] = low;
    bytes
}

/// The bytes of a tcpcopy's next write: raw, or a good first message, or a claim.
fn messages(input: &mut Input<'_>) -> Vec<u8> {
    match input.below(3) {
        0 => input.piece().to_vec(),
        1 => opening(),
        _ => {
            let mut claim = input.take(MESSAGE).to_vec();
            claim.resize(MESSAGE, 0);
            claim[6..8].copy_from_slice(&[0, 1]);
            claim
        }
    }
}

/// The bytes of an intercept's next write: raw, or a frame of whole records, most of them IPv4.
fn records(input: &mut Input<'_>) -> Vec<u8> {
    if input.one_in(4) {
        return input.piece().to_vec();
    }
    let count = input.below(usize::from(MAX_RECORDS) + 1);
    let mut bytes = vec![0, u8::try_from(count).expect("few")];
    for _ in 0..count {
        let mut record = input.take(RECORD).to_vec();
        record.resize(RECORD, 0);
        if !input.one_in(8) {
            record[0] = 0x40 | record[0] & 0x0f;
            record[9] = 6;
        }
        bytes.extend(record);
    }
    bytes
}

fn key(input: &mut Input<'_>) -> FlowKey {
    FlowKey {
        client: (input.u32().to_be_bytes(), input.u16().max(1)).into(),
        server: ([10, 0, 0, 2], input.u16().max(1)).into(),
    }
}

fn header(input: &mut Input<'_>) -> TcpHeader {
    let present = input.u8();
    let has = |bit: u8| present & bit != 0;
    TcpHeader {
        seq: Seq(input.u32()),
        ack: Seq(input.u32()),
        // URG goes without its pointer, and is left out.
        flags: Flags::from_bits(input.u8() & !Flags::URG.bits()),
        window: input.u16(),
        options: TcpOptions {
            mss: has(1).then(|| input.u16()),
            window_scale: has(2).then(|| input.u8() % 15),
            sack_permitted: has(4),
            timestamps: has(8).then(|| Timestamps { value: input.u32(), echo: input.u32() }),
        },
        payload_len: u32::from(input.u16()),
    }
}

fn server(mut input: Input<'_>) {
    let (mut now, mut stage) = (Time::ZERO, Stage::Before);
    let mut server = Server::new(now, limits());
    while !input.is_empty() {
        match input.u8() % 6 {
            0..3 => server.handle_bytes(now, &messages(&mut input)),
            3 => {
                now += Duration::from_millis(u64::from(input.u16()));
                server.handle_timeout(now);
            }
            4 => {
                let sent = server.response(&key(&mut input), &header(&mut input));
                assert!(!sent || stage == Stage::Open);
            }
            _ => server.sent(usize::from(input.u16())),
        }
        while let Some(event) = server.poll_event() {
            match (event, &stage) {
                (ServerEvent::Greeted, Stage::Before) => stage = Stage::Open,
                (ServerEvent::Claim(key), Stage::Open) => {
                    assert!(key.client.is_ipv4() && key.server.is_ipv4());
                }
                (ServerEvent::Ignored(kind), Stage::Open) => assert_ne!(kind, 1),
                (ServerEvent::Closed(_), Stage::Before | Stage::Open) => stage = Stage::Over,
                (event, stage) => panic!("{event:?} when {stage:?}"),
            }
        }
        assert_eq!(server.is_connected(), stage == Stage::Open);
        // Of each frame's count there is no account.
        assert!(server.pending().len() <= OUTPUT + 2 * OUTPUT / RECORD);
        assert!(!server.space().is_empty());
    }
}

fn client(mut input: Input<'_>) {
    let mut stage = Stage::Before;
    let mut client = Client::new(limits());
    while !input.is_empty() {
        match input.u8() % 4 {
            0..2 => client.handle_bytes(Time::ZERO, &records(&mut input)),
            2 => client.claim(FlowId(1), key(&mut input)),
            _ => client.sent(usize::from(input.u16())),
        }
        while let Some(event) = client.poll_event() {
            match (event, &stage) {
                (ClientEvent::Connected { workers: 1 }, Stage::Before) => stage = Stage::Open,
                (ClientEvent::Unnamed { key, .. }, Stage::Open) => assert_ne!(key.client, key.server),
                (ClientEvent::Unreadable(_), Stage::Open) => {}
                (ClientEvent::Closed(_), Stage::Open) => stage = Stage::Over,
                (event, stage) => panic!("{event:?} when {stage:?}"),
            }
        }
        assert_eq!(client.is_connected(), stage == Stage::Open);
        assert!(client.pending().len() <= OUTPUT);
        assert!(!client.space().is_empty());
    }
}

/// Events of the same bytes in one piece and in many.
fn pieces(mut input: Input<'_>) {
    let size = input.below(64) + 1;
    let to_server = input.one_in(2);
    let mut stream = if to_server { opening() } else { Vec::new() };
    while !input.is_empty() {
        stream.extend(if to_server { messages(&mut input) } else { records(&mut input) });
    }
    if to_server {
        in_pieces(&stream, size, || Server::new(Time::ZERO, limits()), Server::poll_event);
    } else {
        in_pieces(&stream, size, || Client::new(limits()), Client::poll_event);
    }
}

/// A tcpcopy and an intercept: all claims arrive, and all headers that were sent, as they were.
fn both(mut input: Input<'_>) {
    let (mut client, mut server) = (Client::new(limits()), Server::new(Time::ZERO, limits()));
    let (mut claimed, mut answered) = (Vec::new(), Vec::new());
    while !input.is_empty() {
        match input.u8() % 4 {
            0 if client.is_connected() => {
                let key = key(&mut input);
                client.claim(FlowId(1), key);
                claimed.push(ServerEvent::Claim(key));
            }
            1 => {
                let (key, header) = (key(&mut input), header(&mut input));
                if key.client != key.server && server.response(&key, &header) {
                    answered.push(ClientEvent::Unnamed { key, header });
                }
            }
            2 => pass(&mut client, &mut server, &mut input),
            _ => pass(&mut server, &mut client, &mut input),
        }
        for event in std::iter::from_fn(|| server.poll_event()) {
            if event != ServerEvent::Greeted {
                assert_eq!(event, claimed.remove(0));
            }
        }
        for event in std::iter::from_fn(|| client.poll_event()) {
            if let ClientEvent::Closed(_) = event {
                return;
            }
            if !matches!(event, ClientEvent::Connected { .. }) {
                assert_eq!(event, answered.remove(0));
            }
        }
    }
}

/// Some of what one end has to say reaches the other.
fn pass(from: &mut impl Endpoint, to: &mut impl Endpoint, input: &mut Input<'_>) {
    let n = from.pending().len().min(usize::from(input.u16()));
    let bytes = from.pending()[..n].to_vec();
    from.sent(n);
    to.handle_bytes(Time::ZERO, &bytes);
}
