//! Both ends of the tunnel, against a peer that says anything.

use std::sync::Arc;
use std::time::Duration;

use tcpcopy::tunnel::{
    ClaimRefusal, Claimer, Client, ClientEvent, Endpoint, Ephemeral, Features, Hello, Limits, Refuse,
    SECRET_BYTES, Secret, Server, ServerEvent, Welcome,
};
use tcpcopy::wire::flow::SPLIT_SEED;
use tcpcopy::wire::{Flags, FlowId, FlowKey, Scope, Seq, TcpHeader, TcpOptions, Time};

use super::ends::{OUTPUT, Stage, in_pieces, limits};
use super::input::Input;

const FEATURES: Features = Features::HOST_STATE.with(Features::CONFIRMATION);
const WELCOME: Welcome = Welcome { workers: 2, worker: 1, split_seed: SPLIT_SEED, features: FEATURES };
const HELLO: Hello = Hello { instance: 7, claimer: 3, worker: 1, features: FEATURES };

/// Bytes, time and calls of the owner in any order: events come in their order, buffers keep their bounds, and it
/// does not matter in which pieces the bytes come.
pub(crate) fn run(data: &[u8]) {
    let mut input = Input::new(data);
    match input.u8() % 6 {
        0 => server(input),
        1 => client(input),
        2 => pieces_to_server(input),
        3 => pieces_to_client(input),
        4 => stranger(input),
        _ => sealed(input),
    }
}

/// The bytes of the peer's next write: raw, or a frame whose length is right, or a good greeting.
fn bytes(input: &mut Input<'_>, greeting: &[u8]) -> Vec<u8> {
    let len = usize::from(input.u8());
    match input.below(4) {
        0 => input.take(len).to_vec(),
        1 => greeting.to_vec(),
        _ => {
            let code = input.u8() % 16;
            frame(code, input.take(len))
        }
    }
}

fn frame(code: u8, body: &[u8]) -> Vec<u8> {
    let length = u32::try_from(body.len() + 1).expect("short");
    [&length.to_be_bytes()[..], &[code], body].concat()
}

/// The first frame of a good peer.
fn hello() -> Vec<u8> {
    Client::new(Time::ZERO, HELLO, limits()).pending().to_vec()
}

fn welcome() -> Vec<u8> {
    let mut server = Server::new(Time::ZERO, limits());
    server.handle_bytes(Time::ZERO, &hello());
    assert!(matches!(server.poll_event(), Some(ServerEvent::Hello(HELLO))));
    server.welcome(Time::ZERO, WELCOME);
    server.pending().to_vec()
}

fn server(mut input: Input<'_>) {
    let (mut now, mut stage) = (Time::ZERO, Stage::Before);
    let mut server = Server::new(now, limits());
    while !input.is_empty() {
        match input.u8() % 8 {
            0..3 => server.handle_bytes(now, &bytes(&mut input, &hello())),
            3 => {
                now += Duration::from_millis(u64::from(input.u16()));
                server.handle_timeout(now);
            }
            4 => {
                let sent = server.response(FlowId(input.u64()), &header(&mut input), Duration::ZERO);
                assert!(!sent || stage == Stage::Open);
            }
            5 if stage == Stage::Open => server.refused(FlowId(input.u64()), ClaimRefusal::Taken),
            5 => {}
            6 if input.one_in(4) => server.confirmed(FlowId(input.u64())),
            6 if input.one_in(2) => server.host(input.one_in(2).then_some("open"), Some(&Scope::default())),
            6 => {
                let _ = server.report(input.u64(), 1);
            }
            _ => server.sent(usize::from(input.u16())),
        }
        while let Some(event) = server.poll_event() {
            match (event, &stage) {
                (ServerEvent::Hello(_), Stage::Before) => {
                    stage = Stage::Greeted;
                    if input.one_in(8) {
                        server.refuse(Refuse::Version(9));
                    } else {
                        server.welcome(now, WELCOME);
                        stage = Stage::Open;
                    }
                }
                (ServerEvent::Claim { key, .. }, Stage::Open) => {
                    assert_eq!(key.client.is_ipv4(), key.server.is_ipv4());
                }
                (ServerEvent::Release(_) | ServerEvent::Hurry(_), Stage::Open) => {}
                (ServerEvent::Closed(_), Stage::Before | Stage::Greeted | Stage::Open) => stage = Stage::Over,
                (event, stage) => panic!("{event:?} when {stage:?}"),
            }
        }
        assert_eq!(server.is_connected(), stage == Stage::Open);
        let _ = server.pending();
        assert!(!server.space().is_empty());
    }
}

fn client(mut input: Input<'_>) {
    let (mut now, mut stage) = (Time::ZERO, Stage::Before);
    let mut client = Client::new(now, HELLO, limits());
    while !input.is_empty() {
        match input.u8() % 8 {
            0..3 => client.handle_bytes(now, &bytes(&mut input, &welcome())),
            3 => {
                now += Duration::from_millis(u64::from(input.u16()));
                client.handle_timeout(now);
            }
            4 => {
                let server = ([10, 0, 0, 2], input.u16()).into();
                let client_end = ([10, 0, 0, 1], input.u16()).into();
                client.claim(FlowId(input.u64()), FlowKey { client: client_end, server });
            }
            5 => client.release(FlowId(input.u64())),
            6 => client.hurry(Duration::from_millis(u64::from(input.u16()))),
            _ => client.sent(usize::from(input.u16())),
        }
        while let Some(event) = client.poll_event() {
            match (event, &stage) {
                (ClientEvent::Connected { workers }, Stage::Before) => {
                    assert!(workers > HELLO.worker);
                    stage = Stage::Open;
                }
                (
                    ClientEvent::Response(_)
                    | ClientEvent::Refused { .. }
                    | ClientEvent::Host
                    | ClientEvent::Confirmed(_)
                    | ClientEvent::Stats(_),
                    Stage::Open,
                ) => {}
                (ClientEvent::Closed(_), Stage::Before | Stage::Open) => stage = Stage::Over,
                (event, stage) => panic!("{event:?} when {stage:?}"),
            }
        }
        assert_eq!(client.is_connected(), stage == Stage::Open);
        assert!(client.pending().len() <= OUTPUT);
        assert!(!client.space().is_empty());
    }
}

fn header(input: &mut Input<'_>) -> TcpHeader {
    TcpHeader {
        seq: Seq(input.u32()),
        ack: Seq(input.u32()),
        flags: Flags::from_bits(input.u8()),
        window: input.u16(),
        options: TcpOptions::default(),
        payload_len: u32::from(input.u16()),
    }
}

fn pieces_to_server(mut input: Input<'_>) {
    let size = input.below(64) + 1;
    let stream = stream(&mut input, &hello());
    let new = || Server::new(Time::ZERO, Limits::default());
    in_pieces(&stream, size, new, |server| {
        let event = server.poll_event();
        if matches!(event, Some(ServerEvent::Hello(_))) {
            server.welcome(Time::ZERO, WELCOME);
        }
        event
    });
}

fn pieces_to_client(mut input: Input<'_>) {
    let size = input.below(64) + 1;
    let stream = stream(&mut input, &welcome());
    let new = || Client::new(Time::ZERO, HELLO, Limits::default());
    in_pieces(&stream, size, new, Client::poll_event);
}

fn stream(input: &mut Input<'_>, greeting: &[u8]) -> Vec<u8> {
    let mut stream = greeting.to_vec();
    while !input.is_empty() {
        stream.extend(bytes(input, greeting));
    }
    stream
}

fn secret(n: u8) -> Secret {
    Secret::new([n; SECRET_BYTES])
}

fn keyed_server() -> Server {
    let keys: Arc<[Secret]> = [secret(1), secret(2)].into();
    Server::keyed(Time::ZERO, Limits::default(), keys, Ephemeral::new([102; SECRET_BYTES]))
}

fn keyed_client() -> Client {
    Client::keyed(Time::ZERO, HELLO, Limits::default(), &secret(1), Ephemeral::new([101; SECRET_BYTES]))
}

/// Without the key, nobody gets as far as a hello, nor can he pass for an intercept.
fn stranger(mut input: Input<'_>) {
    let opening = keyed_client().pending().to_vec();
    let (mut server, mut client) = (keyed_server(), keyed_client());
    // A good opening may be known from a recording.
    let mut recorded = if input.one_in(2) { opening } else { Vec::new() };
    while !input.is_empty() {
        recorded.extend(bytes(&mut input, &hello()));
        server.handle_bytes(Time::ZERO, &recorded);
        client.handle_bytes(Time::ZERO, &recorded);
        recorded.clear();
        for event in std::iter::from_fn(|| server.poll_event()) {
            assert!(matches!(event, ServerEvent::Closed(_)), "{event:?} without the key");
        }
        for event in std::iter::from_fn(|| client.poll_event()) {
            assert!(matches!(event, ClientEvent::Closed(_)), "{event:?} without the key");
        }
        assert!(!server.is_connected() && !client.is_connected());
    }
}

/// Somebody in between changes, cuts, repeats and puts in what he likes: what arrives is a beginning of what was said.
fn sealed(mut input: Input<'_>) {
    let (mut server, mut client) = (keyed_server(), keyed_client());
    let (mut said, mut heard) = (0, 0);
    let mut before = Vec::new();
    let mut over = false;
    while !input.is_empty() && !over {
        match input.u8() % 8 {
            0..3 if client.is_connected() => {
                client.claim(
                    FlowId(said),
                    FlowKey { client: ([10, 0, 0, 1], 1).into(), server: ([10, 0, 0, 2], 2).into() },
                );
                said += 1;
            }
            0..3 => {}
            3 => server.handle_bytes(Time::ZERO, input.piece()),
            4 => server.handle_bytes(Time::ZERO, &before),
            kind => {
                let mut bytes = client.pending().to_vec();
                client.sent(bytes.len());
                before.clone_from(&bytes);
                if kind == 5 {
                    let (at, bit) = (usize::from(input.u16()), input.u8() % 8);
                    if let Some(byte) = bytes.get_mut(at) {
                        *byte ^= 1 << bit;
                    }
                }
                server.handle_bytes(Time::ZERO, &bytes);
            }
        }
        while let Some(event) = server.poll_event() {
            match event {
                ServerEvent::Hello(hello) => {
                    assert_eq!(hello, HELLO);
                    server.welcome(Time::ZERO, WELCOME);
                }
                ServerEvent::Claim { flow, .. } => {
                    assert_eq!(flow, FlowId(heard));
                    heard += 1;
                    assert!(heard <= said, "a claim that nobody made");
                }
                ServerEvent::Closed(_) => over = true,
                ServerEvent::Release(_) | ServerEvent::Hurry(_) => panic!("{event:?} was never said"),
            }
        }
        let answer = server.pending().to_vec();
        server.sent(answer.len());
        client.handle_bytes(Time::ZERO, &answer);
        for event in std::iter::from_fn(|| client.poll_event()) {
            over |= matches!(event, ClientEvent::Closed(_));
        }
    }
}
