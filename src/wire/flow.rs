//! Flows: who talks to whom, and which worker it belongs to.

use std::net::{IpAddr, SocketAddr};

/// A connection by its two ends. Upstream is client to server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FlowKey {
    /// The end that opened the connection.
    pub client: SocketAddr,
    /// The end that was listening.
    pub server: SocketAddr,
}

/// A replayed flow's name between one tcpcopy worker and its intercepts: chosen by the former,
/// opaque to the latter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct FlowId(pub u64);

/// Seed of the hash that spreads flows over workers, in rules and here: "tcpc".
pub const SPLIT_SEED: u32 = 0x7463_7063;

/// The worker, of `workers`, that a client's packets belong to.
///
/// It is what the kernel computes for the nft expression
/// `jhash ip saddr . tcp sport mod <workers> seed 0x74637063` (`ip6 saddr` for IPv6; `daddr . dport`
/// on the assistant), so that whoever knows the address knows the queue:
/// `net/netfilter/nft_hash.c` and `include/linux/jhash.h`.
pub fn split(client: SocketAddr, workers: u16) -> u16 {
    if workers <= 1 {
        return 0;
    }
    let scaled = (u64::from(hash(client, SPLIT_SEED)) * u64::from(workers)) >> 32;
    u16::try_from(scaled).unwrap_or(0)
}

/// Seed of the hash that selects connections by their share, in rules, filters and here: "tcps".
pub const SHARE_SEED: u32 = 0x7463_7073;
/// Shares that all connections are divided into; a percent is a hundred of them.
pub const SHARES: u16 = 10_000;

/// The share, of [`SHARES`], that a client's connections from one port belong to.
///
/// A percentage selects those below its part of [`SHARES`], so what a smaller one selects, a larger one selects too. It is
/// what the kernel computes for the nft expression `jhash ip saddr . tcp sport mod 10000 seed 0x74637073`.
pub fn share_of(client: SocketAddr) -> u16 {
    let scaled = (u64::from(hash(client, SHARE_SEED)) * u64::from(SHARES)) >> 32;
    u16::try_from(scaled).unwrap_or(0)
}

/// `jhash` of an address and, right behind it, its port padded to four bytes.
fn hash(client: SocketAddr, seed: u32) -> u32 {
    let [high, low] = client.port().to_be_bytes();
    // A register holds the two bytes of a port padded to four.
    let port = u32::from_ne_bytes([high, low, 0, 0]);
    match client.ip() {
        IpAddr::V4(ip) => jhash(&[u32::from_ne_bytes(ip.octets()), port], seed),
        IpAddr::V6(ip) => {
            let mut words = [0, 0, 0, 0, port];
            for (word, bytes) in words.iter_mut().zip(ip.octets().as_chunks().0) {
                *word = u32::from_ne_bytes(*bytes);
            }
            jhash(&words, seed)
        }
    }
}

/// Bob Jenkins' lookup3 over whole words, as the kernel's `jhash()`.
fn jhash(words: &[u32], seed: u32) -> u32 {
    const INITVAL: u32 = 0xdead_beef;
    let bytes = u32::try_from(words.len() * 4).unwrap_or(u32::MAX);
    let start = INITVAL.wrapping_add(bytes).wrapping_add(seed);
    let (mut a, mut b, mut c) = (start, start, start);
    let mut rest = words;
    // A last block of three stays for the final mix, as in the kernel: `while (length > 12)`.
    while let [x, y, z, more @ ..] = rest
        && !more.is_empty()
    {
        a = a.wrapping_add(*x);
        b = b.wrapping_add(*y);
        c = c.wrapping_add(*z);
        (a, b, c) = mix(a, b, c);
        rest = more;
    }
    let mut tail = rest.iter().copied();
    a = a.wrapping_add(tail.next().unwrap_or(0));
    b = b.wrapping_add(tail.next().unwrap_or(0));
    c = c.wrapping_add(tail.next().unwrap_or(0));
    final_mix(a, b, c)
}

fn mix(mut a: u32, mut b: u32, mut c: u32) -> (u32, u32, u32) {
    a = a.wrapping_sub(c) ^ c.rotate_left(4);
    c = c.wrapping_add(b);
    b = b.wrapping_sub(a) ^ a.rotate_left(6);
    a = a.wrapping_add(c);
    c = c.wrapping_sub(b) ^ b.rotate_left(8);
    b = b.wrapping_add(a);
    a = a.wrapping_sub(c) ^ c.rotate_left(16);
    c = c.wrapping_add(b);
    b = b.wrapping_sub(a) ^ a.rotate_left(19);
    a = a.wrapping_add(c);
    c = c.wrapping_sub(b) ^ b.rotate_left(4);
    b = b.wrapping_add(a);
    (a, b, c)
}

fn final_mix(mut a: u32, mut b: u32, mut c: u32) -> u32 {
    c = (c ^ b).wrapping_sub(b.rotate_left(14));
    a = (a ^ c).wrapping_sub(c.rotate_left(11));
    b = (b ^ a).wrapping_sub(a.rotate_left(25));
    c = (c ^ b).wrapping_sub(b.rotate_left(16));
    a = (a ^ c).wrapping_sub(c.rotate_left(4));
    b = (b ^ a).wrapping_sub(a.rotate_left(14));
    (c ^ b).wrapping_sub(b.rotate_left(24))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spreads_ports_of_one_parity_and_stays_in_range() {
        for workers in [1u16, 2, 3, 4, 16] {
            let mut hits = vec![0u32; usize::from(workers)];
            for port in (32768..60000u16).step_by(2) {
                let client = SocketAddr::new([10, 0, 0, 1].into(), port);
                hits[usize::from(split(client, workers))] += 1;
            }
            let fair = 13616 / u32::from(workers);
            assert!(hits.iter().all(|&n| n > fair * 8 / 10 && n < fair * 12 / 10), "{hits:?}");
        }
    }
}
