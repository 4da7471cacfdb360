//! The tunnel: its two ends are the real ones, and the world carries their bytes, frame by frame. What the setup does
//! to the tunnel it does to frames, though TCP loses and reorders none.

use std::time::Duration;

use tcpcopy::replayer;
use tcpcopy::tunnel::{
    ClaimRefusal, Claimer, Client, ClientEvent, Endpoint, Features, Hello, Limits, Server, ServerEvent,
    Welcome,
};
use tcpcopy::wire::flow::SPLIT_SEED;
use tcpcopy::wire::{FlowId, TcpHeader, Time};

/// One connection.
#[derive(Debug)]
pub(crate) struct Tunnel {
    client: Client,
    server: Server,
}

impl Tunnel {
    /// A connection that has just been made.
    pub(crate) fn new(now: Time) -> Self {
        let mut client = Client::new(
            now,
            Hello { instance: 1, claimer: 0, worker: 0, features: Features::NONE },
            Limits::default(),
        );
        let mut server = Server::new(now, Limits::default());
        server.handle_bytes(now, &written(&mut client));
        assert!(matches!(server.poll_event(), Some(ServerEvent::Hello(_))));
        server.welcome(
            now,
            Welcome { workers: 1, worker: 0, split_seed: SPLIT_SEED, features: Features::NONE },
        );
        client.handle_bytes(now, &written(&mut server));
        assert_eq!(client.poll_event(), Some(ClientEvent::Connected { workers: 1 }));
        Self { client, server }
    }

    /// The frame of a claim or release, for the intercept.
    pub(crate) fn claim(&mut self, claim: replayer::Claim) -> Vec<u8> {
        match claim {
            replayer::Claim::Claim(id, key) => self.client.claim(id, key),
            replayer::Claim::Release(id, _) => self.client.release(id),
        }
        written(&mut self.client)
    }

    /// The frame of a header, for tcpcopy.
    pub(crate) fn header(&mut self, id: FlowId, header: &TcpHeader) -> Vec<u8> {
        assert!(self.server.response(id, header, Duration::ZERO), "its buffer is empty");
        written(&mut self.server)
    }

    /// The frame of a refused claim, for tcpcopy.
    pub(crate) fn refusal(&mut self, id: FlowId) -> Vec<u8> {
        self.server.refused(id, ClaimRefusal::Taken);
        written(&mut self.server)
    }

    /// What a frame tells the intercept.
    pub(crate) fn at_server(&mut self, now: Time, frame: &[u8]) -> Option<ServerEvent> {
        self.server.handle_bytes(now, frame);
        self.server.poll_event()
    }

    /// What a frame tells tcpcopy.
    pub(crate) fn at_client(&mut self, now: Time, frame: &[u8]) -> Option<ClientEvent> {
        self.client.handle_bytes(now, frame);
        self.client.poll_event()
    }
}

/// What an end has to say.
fn written(end: &mut impl Endpoint) -> Vec<u8> {
    let bytes = end.pending().to_vec();
    end.sent(bytes.len());
    bytes
}
