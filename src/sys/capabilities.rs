//! Which capabilities this thread may use, for checks before start.

use std::io;

/// The capabilities the daemons need (capabilities(7)); the value is the bit's number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Capability {
    /// Rules, queues, links and marks.
    NetAdmin = 12,
    /// Raw sockets.
    NetRaw = 13,
}

impl Capability {
    /// The name in capabilities(7) and in systemd's `AmbientCapabilities=`.
    pub fn name(self) -> &'static str {
        match self {
            Self::NetAdmin => "CAP_NET_ADMIN",
            Self::NetRaw => "CAP_NET_RAW",
        }
    }
}

/// Whether the calling thread has `capability` in its effective set.
///
/// In a user namespace the answer is about that namespace, as are the permissions to its networks.
pub fn has_capability(capability: Capability) -> io::Result<bool> {
    let status = std::fs::read_to_string("/proc/thread-self/status")?;
    let effective = effective(&status).ok_or_else(|| {
        io::Error::new(io::ErrorKind::InvalidData, "/proc/thread-self/status has no CapEff line")
    })?;
    Ok(effective & (1 << capability as u8) != 0)
}

/// The `CapEff` line of a `status` file of proc(5): a hexadecimal mask.
fn effective(status: &str) -> Option<u64> {
    let mask = status.lines().find_map(|line| line.strip_prefix("CapEff:"))?;
    u64::from_str_radix(mask.trim(), 16).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_effective_mask_is_read() {
        let status = "Name:\tx\nCapPrm:\tffffffffffffffff\nCapEff:\t0000000000003000\nCapBnd:\t0\n";
        assert_eq!(effective(status), Some(1 << Capability::NetAdmin as u8 | 1 << Capability::NetRaw as u8));
    }

    #[test]
    fn odd_status_files_have_no_mask() {
        for status in ["", "CapEff:", "CapEff:\tzz", "CapEff:\t1ffffffffffffffff", "CapPrm:\t1"] {
            assert_eq!(effective(status), None, "{status:?}");
        }
    }

    #[test]
    fn the_own_status_has_a_mask() {
        has_capability(Capability::NetAdmin).unwrap();
    }
}
