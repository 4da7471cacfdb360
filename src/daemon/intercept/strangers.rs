//! The connections that have not said hello: how many there may be, and who has to go for others.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};

use slab::Slab;

use crate::daemon::pipe::Pipe;
use crate::tunnel::Server;

/// How many connections there may be that have not said hello.
#[derive(Clone, Copy, Debug)]
pub(super) struct Room {
    /// In all.
    pub(super) all: usize,
    /// From one address; an IPv6 host has a /64. A tcpcopy connects once for each pair of workers, at once.
    pub(super) one_address: usize,
}

/// A connection that has not said hello.
#[derive(Debug)]
pub(super) struct Stranger {
    pub(super) pipe: Pipe,
    pub(super) server: Server,
    source: IpAddr,
}

/// All of them, by the keys of their tokens.
#[derive(Debug)]
pub(super) struct Strangers {
    room: Room,
    all: Slab<Stranger>,
    sources: HashMap<IpAddr, usize>,
}

impl Strangers {
    pub(super) fn new(room: Room) -> Self {
        Self { room, all: Slab::new(), sources: HashMap::new() }
    }

    /// The key that the next one gets.
    pub(super) fn next_key(&self) -> usize {
        self.all.vacant_key()
    }

    pub(super) fn insert(&mut self, address: IpAddr, pipe: Pipe, server: Server) {
        let source = source(address);
        *self.sources.entry(source).or_default() += 1;
        self.all.insert(Stranger { pipe, server, source });
    }

    pub(super) fn get_mut(&mut self, key: usize) -> Option<&mut Stranger> {
        self.all.get_mut(key)
    }

    pub(super) fn remove(&mut self, key: usize) -> Option<Stranger> {
        let stranger = self.all.try_remove(key)?;
        if let Some(count) = self.sources.get_mut(&stranger.source) {
            *count -= 1;
            if *count == 0 {
                self.sources.remove(&stranger.source);
            }
        }
        Some(stranger)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (usize, &Stranger)> {
        self.all.iter()
    }

    /// Who has to go before another one of that address can come: of its own address if that has its share, else of
    /// the address with the most.
    pub(super) fn to_go(&self, address: IpAddr) -> Option<usize> {
        let own = source(address);
        if self.sources.get(&own).is_some_and(|count| *count >= self.room.one_address) {
            return self.oldest_of(own);
        }
        if self.all.len() >= self.room.all { self.first_to_go() } else { None }
    }

    /// Who has to go before anybody else: one of the address with the most.
    pub(super) fn first_to_go(&self) -> Option<usize> {
        let (most, _) = self.sources.iter().max_by_key(|(_, count)| **count)?;
        self.oldest_of(*most)
    }

    /// The one that has waited for longest: a tcpcopy says hello at once.
    fn oldest_of(&self, source: IpAddr) -> Option<usize> {
        let theirs = self.all.iter().filter(|(_, stranger)| stranger.source == source);
        theirs.min_by_key(|(_, stranger)| stranger.server.poll_timeout()).map(|(key, _)| key)
    }
}

/// What counts as one address.
fn source(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() & !u128::from(u64::MAX)).into(),
        v4 @ IpAddr::V4(_) => v4,
    }
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};
    use std::time::Duration;

    use super::*;
    use crate::tunnel::Limits;
    use crate::wire::Time;

    const ROOM: Room = Room { all: 6, one_address: 4 };

    /// A stranger from `address`, whatever its socket says, that came at that second.
    fn come(strangers: &mut Strangers, address: &str, second: u32) -> usize {
        let listener = TcpListener::bind("127.0.0.1:0").expect("bind");
        let stream = TcpStream::connect(listener.local_addr().expect("bound")).expect("connect");
        let now = Time::ZERO + Duration::from_secs(1) * second;
        let key = strangers.next_key();
        let pipe = Pipe::new(mio::net::TcpStream::from_std(stream));
        strangers.insert(address.parse().expect("address"), pipe, Server::new(now, Limits::default()));
        key
    }

    fn to_go(strangers: &Strangers, address: &str) -> Option<usize> {
        strangers.to_go(address.parse().expect("address"))
    }

    #[test]
    fn a_crowd_of_one_address_makes_room_among_itself() {
        let mut strangers = Strangers::new(ROOM);
        let other = come(&mut strangers, "10.0.0.1", 0);
        let oldest = come(&mut strangers, "fd00::1", 1);
        for n in 2..=4 {
            assert_eq!(to_go(&strangers, "fd00::ffff:1"), None);
            come(&mut strangers, &format!("fd00::{n}"), n);
        }
        assert_eq!(to_go(&strangers, "fd00::ffff:1"), Some(oldest), "a /64 is one address");
        assert_eq!(to_go(&strangers, "fd00:0:0:1::1"), None);
        assert_eq!(to_go(&strangers, "::ffff:10.0.0.1"), None, "others come and go");
        assert!(strangers.remove(oldest).is_some() && strangers.remove(oldest).is_none());
        assert_eq!(to_go(&strangers, "fd00::ffff:1"), None);
        assert!(strangers.get_mut(other).is_some());
    }

    #[test]
    fn a_crowd_of_many_addresses_makes_room_where_most_are() {
        let mut strangers = Strangers::new(ROOM);
        assert_eq!(strangers.first_to_go(), None);
        come(&mut strangers, "10.0.0.1", 0);
        let first = come(&mut strangers, "10.0.1.1", 2);
        for (n, address) in (3..).zip(["10.0.1.1", "10.0.2.1", "10.0.3.1"]) {
            come(&mut strangers, address, n);
            assert_eq!(to_go(&strangers, "10.0.4.1"), None);
        }
        come(&mut strangers, "10.0.5.1", 1);
        assert_eq!(to_go(&strangers, "10.0.4.1"), Some(first));
    }
}
