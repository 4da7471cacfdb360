//! The capabilities a process has (capabilities(7)), as `/proc/self/status` shows them.

/// A capability that the programs need.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Capability {
    /// Rules, queues, devices, marks, buffers beyond the limit.
    NetAdmin,
    /// Raw sockets.
    NetRaw,
}

impl Capability {
    /// Its name in capabilities(7).
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::NetAdmin => "CAP_NET_ADMIN",
            Self::NetRaw => "CAP_NET_RAW",
        }
    }

    /// Its bit, from linux/capability.h.
    fn bit(self) -> u64 {
        match self {
            Self::NetAdmin => 1 << 12,
            Self::NetRaw => 1 << 13,
        }
    }
}

/// Those of `needed` that are not in the effective set of the process whose status this is.
pub(super) fn missing(status: &str, needed: &[Capability]) -> Vec<Capability> {
    let Some(effective) = effective(status) else {
        // A kernel that does not say; what lacks then shows in the first call that needs it.
        return Vec::new();
    };
    needed.iter().copied().filter(|capability| effective & capability.bit() == 0).collect()
}

fn effective(status: &str) -> Option<u64> {
    let digits = status.lines().find_map(|line| line.strip_prefix("CapEff:"))?;
    u64::from_str_radix(digits.trim(), 16).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOTH: [Capability; 2] = [Capability::NetAdmin, Capability::NetRaw];

    #[test]
    fn the_effective_set_counts() {
        let status =
            |bits: &str| format!("Name:\tx\nCapPrm:\tffffffffffffffff\nCapEff:\t{bits}\nCapBnd:\t0\n");
        assert_eq!(missing(&status("000001ffffffffff"), &BOTH), []);
        assert_eq!(missing(&status("0000000000003000"), &BOTH), []);
        assert_eq!(missing(&status("0000000000001000"), &BOTH), [Capability::NetRaw]);
        assert_eq!(missing(&status("0000000000000000"), &BOTH), BOTH);
    }

    #[test]
    fn what_is_not_said_is_not_missing() {
        assert_eq!(missing("Name:\tx\n", &BOTH), []);
        assert_eq!(missing("CapEff:\tnothing\n", &BOTH), []);
    }
}
