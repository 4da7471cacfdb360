//! From a captured packet to one that can be used.

use crate::capture::{Captured, Checksums};
use crate::wire::{self, Packet, Reject};

/// Reads a packet, and refuses a damaged one.
pub(super) fn read<'a>(captured: &Captured<'a>, checksums: &mut Checksums) -> Result<Packet<'a>, Reject> {
    let packet = wire::parse(captured.bytes, captured.original_len)?;
    // Of one that is cut nobody can tell.
    let whole = captured.has_checksum && captured.bytes.len() == captured.original_len;
    if whole && checksums.is_damaged(!wire::is_damaged(captured.bytes, captured.original_len)) {
        return Err(Reject::Checksum);
    }
    Ok(packet)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::{Flags, Outgoing, Seq, TcpHeader};

    #[test]
    fn a_damaged_packet_is_refused_unless_it_may_be_none() {
        let mut out = Outgoing::default();
        out.payload().extend_from_slice(b"data");
        let header = TcpHeader { payload_len: 4, ..TcpHeader::bare(Seq(1), Seq(2), Flags::ACK, 3) };
        let ends = (([10, 9, 0, 1], 5).into(), ([10, 0, 0, 2], 80).into());
        let sound = out.finish(ends.0, ends.1, &header).expect("one family, short").to_vec();
        let mut damaged = sound.clone();
        damaged[40] ^= 4;
        let mut checksums = Checksums::default();
        let mut take = |bytes: &[u8], cut: usize, has_checksum| {
            let bytes = &bytes[..bytes.len() - cut];
            let captured = Captured { id: 1, bytes, original_len: bytes.len() + cut, has_checksum };
            read(&captured, &mut checksums).map(|packet| packet.header)
        };
        assert_eq!(take(&sound, 0, true), Ok(header));
        assert_eq!(take(&damaged, 0, true), Err(Reject::Checksum));
        assert_eq!(take(&damaged, 0, false), Ok(header), "a card was to fill it in");
        assert_eq!(take(&damaged, 1, true), Ok(header), "cut");
    }
}
