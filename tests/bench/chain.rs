//! A replayer as its worker drives it, between scripted clients and a scripted target. It gets packets that are
//! read already, and makes those that leave, so that a step costs what the code under test costs.

use std::hint::black_box;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use tcpcopy::replayer::{Claim, Config, Replayer, Transmit};
use tcpcopy::wire::{Flags, FlowId, Mapping, Outgoing, Packet, Seq, TcpHeader, TcpOptions, Time, Timestamps};

/// Bytes of a request and of its response: a small web page's.
pub(crate) const REQUEST: usize = 300;
pub(crate) const REQUEST_LEN: u32 = 300;
pub(crate) const RESPONSE: u32 = 1_200;

const ACK: Flags = Flags::ACK;

/// A client of many, by its number.
pub(crate) fn client(number: u32) -> SocketAddr {
    let port = 1024 + u16::try_from(number % 60_000).expect("below 65,536");
    SocketAddr::new(Ipv4Addr::from_bits(0x0a09_0000 + number / 60_000).into(), port)
}

pub(crate) fn online() -> SocketAddr {
    SocketAddr::new(Ipv4Addr::new(10, 1, 0, 1).into(), 80)
}

pub(crate) fn target() -> SocketAddr {
    SocketAddr::new(Ipv4Addr::new(10, 2, 0, 2).into(), 8080)
}

/// What common stacks offer in a SYN, and have in every later segment.
pub(crate) fn options(syn: bool) -> TcpOptions {
    let timestamps = Some(Timestamps { value: 1_000, echo: 900 });
    if syn {
        TcpOptions { mss: Some(1460), window_scale: Some(7), sack_permitted: true, timestamps }
    } else {
        TcpOptions { timestamps, ..TcpOptions::default() }
    }
}

pub(crate) fn header(seq: Seq, ack: Seq, flags: Flags, payload_len: u32) -> TcpHeader {
    TcpHeader { seq, ack, flags, window: 501, options: options(flags.syn()), payload_len }
}

/// Where one client's conversation stands.
#[derive(Clone, Copy)]
pub(crate) struct Talk {
    pub(crate) client: SocketAddr,
    flow: FlowId,
    /// The client's next sequence number, and the online server's.
    up: Seq,
    down: Seq,
    /// The target's next one.
    target: Seq,
}

/// The replayer, its clients and its target.
pub(crate) struct Chain {
    pub(crate) replayer: Replayer,
    pub(crate) now: Time,
    out: Outgoing,
    request: Vec<u8>,
}

impl Chain {
    pub(crate) fn new() -> Self {
        let config = Config::new(vec![Mapping { online: None, port: 80, target: target() }]);
        let now = Time::from_micros(1_000_000);
        let mut replayer = Replayer::new(Arc::new(config));
        replayer.set_reachable(now, true);
        Self { replayer, now, out: Outgoing::default(), request: vec![b'x'; REQUEST] }
    }

    /// A captured packet, already read.
    fn capture(&mut self, src: SocketAddr, header: TcpHeader) {
        let payload = if header.payload_len > 0 { &self.request[..] } else { &[] };
        self.replayer.handle_client(self.now, &Packet { src, dst: online(), header, payload });
    }

    /// What the worker does at the end of a turn. Returns the last claim and the last segment.
    pub(crate) fn turn(&mut self) -> (Option<Claim>, Option<Transmit>) {
        self.replayer.handle_timeout(self.now);
        let (mut claimed, mut last) = (None, None);
        while let Some(claim) = self.replayer.poll_claim() {
            claimed = Some(claim);
            if let Claim::Claim(id, _) = claim {
                self.replayer.handle_claim_told(self.now, id, 0);
            }
        }
        while let Some(transmit) = self.replayer.poll_transmit(self.now, &mut self.out) {
            let bytes = self.out.finish(transmit.src, transmit.dst, &transmit.header).expect("fits");
            black_box(bytes);
            last = Some(transmit);
        }
        (claimed, last)
    }

    /// The client's SYN is captured, and leaves for the target.
    pub(crate) fn open(&mut self, client: SocketAddr) -> Talk {
        let isn = Seq(u32::from(client.port()) << 12);
        self.capture(client, header(isn, Seq(0), Flags::SYN, 0));
        let (claim, sent) = self.turn();
        let Some(Claim::Claim(flow, _)) = claim else { panic!("no claim for {client}") };
        assert!(sent.is_some_and(|sent| sent.header.flags.syn()), "no SYN for {client}");
        Talk { client, flow, up: isn.add(1), down: Seq(7_000), target: Seq(90_000) }
    }

    /// The target takes the connection.
    pub(crate) fn accept(&mut self, talk: &mut Talk) {
        self.answer(talk, header(talk.target, talk.up, Flags::SYN | ACK, 0));
        talk.target = talk.target.add(1);
    }

    /// A request that acknowledges the response before it, and its response.
    pub(crate) fn exchange(&mut self, talk: &mut Talk) {
        self.capture(talk.client, header(talk.up, talk.down, Flags::PSH | ACK, REQUEST_LEN));
        let (_, sent) = self.turn();
        assert!(sent.is_some_and(|sent| sent.header.payload_len == REQUEST_LEN), "the request did not leave");
        talk.up = talk.up.add(REQUEST_LEN);
        self.now += Duration::from_micros(100);
        self.answer(talk, header(talk.target, talk.up, Flags::PSH | ACK, RESPONSE));
        talk.target = talk.target.add(RESPONSE);
        talk.down = talk.down.add(RESPONSE);
    }

    /// The client closes, then the target.
    pub(crate) fn close(&mut self, talk: &Talk) {
        self.capture(talk.client, header(talk.up, talk.down, Flags::FIN | ACK, 0));
        let (_, sent) = self.turn();
        assert!(sent.is_some_and(|sent| sent.header.flags.fin()), "no FIN");
        self.answer(talk, header(talk.target, talk.up.add(1), Flags::FIN | ACK, 0));
    }

    fn answer(&mut self, talk: &Talk, header: TcpHeader) {
        self.replayer.handle_target(self.now, talk.flow, &header);
        self.turn();
    }

    /// `n` sessions that have made one exchange each.
    pub(crate) fn with_sessions(n: u32) -> (Self, Vec<Talk>) {
        let mut chain = Self::new();
        let talks = (0..n).map(|number| {
            let mut talk = chain.open(client(number));
            chain.accept(&mut talk);
            chain.exchange(&mut talk);
            talk
        });
        let talks = talks.collect();
        (chain, talks)
    }

    /// A connection with one request, from SYN to its end. TIME-WAIT ends while later ones are open.
    pub(crate) fn connection(&mut self, number: u32) {
        let mut talk = self.open(client(number));
        self.accept(&mut talk);
        self.exchange(&mut talk);
        self.close(&talk);
        self.now += Duration::from_millis(9);
    }
}
