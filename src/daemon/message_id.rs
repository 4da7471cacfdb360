//! The `MESSAGE_ID`s of the events that operators alert on: `journalctl MESSAGE_ID=…` finds them, whatever their
//! text says. They never change; `tests/documents.rs` compares the manual pages with them.

/// Gives each event its identifier, and lists them all.
macro_rules! message_ids {
    ($($(#[$doc:meta])+ $name:ident = $id:literal;)+) => {
        $($(#[$doc])+ pub const $name: &str = $id;)+

        /// All of them, with their names.
        pub const ALL: &[(&str, &str)] = &[$((stringify!($name), $id)),+];
    };
}

message_ids! {
    /// Traffic would flow from now on.
    READY = "f4446ca297f34f29a12c82985b49534c";
    /// The program has ended in good order.
    STOPPED = "9abcb3d96243428abcceacba0bdec5ea";
    /// The program cannot start, or has to end.
    FAILED = "7901fab0e97d42a6b5befe752b9f2f37";
    /// The configuration was read again and is in force for what is new.
    CONFIG_RELOADED = "4d7b1ea4ecd84405b47d9bd746cb06a1";
    /// The configuration was read again and is wrong, or cannot be put in force: what was before still is.
    CONFIG_REJECTED = "b4a58f305abc4007a1a1d9b5fbb4f07e";
    /// The configuration was read again; some of what has changed takes a restart.
    RESTART_NEEDED = "112ca608049641e9a6b603967407dfae";
    /// Somebody had changed the rules, or the sink was gone: they are back.
    RULES_BACK = "043fef38dbd747dda8e4dcc0140238c0";
    /// A closed host dropped traffic of a kind that it had not seen before; an entry of `pass` would let it through.
    STRAY_DROPPED = "058710cec410450aad4a77fd3b824b7e";
    /// The rules are not there and cannot be put back by the program.
    RULES_MISSING = "04718b9e107042b299266e2d5d4101c1";
    /// Less of production is replayed than was asked for: a limit is reached.
    SAMPLING_REDUCED = "0c0b114e848f4339a294ec4a1389dde5";
    /// All of it is replayed again.
    SAMPLING_RESTORED = "ff3d755d766a484e9c3d06ff0bfd37c2";
    /// Sessions, or an intercept's tunnels, hold as much as they may: new ones are refused, the fullest ended.
    MEMORY_LIMIT_REACHED = "658ee7d3bfa2451597d3d09e83e213b9";
    /// There is room for new ones again.
    MEMORY_LIMIT_LEFT = "e25473e5f051409c8e600593c7da4da3";
    /// The kernel drops packets because a queue or its buffer is full.
    QUEUE_DROPS = "f8fc619f05eb439c9173173fb4adee5f";
    /// It no longer does.
    QUEUE_DROPS_OVER = "e59a288c9522499f85354774d0a97514";
    /// A tcpcopy claims flows that it may not have: their target or client is not for it.
    CLAIMS_REFUSED = "98e0c96c65954807b7bfb5601ab7890f";
    /// It no longer does.
    CLAIMS_REFUSED_OVER = "f11ce4125dbb43598c7589eae5e3f3e0";
    /// A tcpcopy reads its tunnel too slowly: headers are dropped.
    TUNNEL_FULL = "e357ac6e12894705be7727f25362f448";
    /// It keeps up again, or is gone.
    TUNNEL_FULL_OVER = "55b1fcd21adf4e068df9c0599d12f537";
    /// An intercept cannot be reached; it is tried again.
    INTERCEPT_LOST = "24e692f2ff494507a9a0f34ec9e3c320";
    /// All workers have their tunnels to an intercept.
    INTERCEPT_BACK = "d5563f2e29ff4070a2a1ea738c5112f6";
    /// An intercept's host is open: nothing is sent until it is closed.
    INTERCEPT_OPEN = "94a21fcff4ad412eaa9cd90be223bc0b";
    /// It is closed again.
    INTERCEPT_CLOSED = "4abe56dc403445f1bddac8e36e13d796";
    /// A target answers nothing; sessions wait for it.
    TARGET_UNREACHABLE = "1a359b87de6b44aa999bab197869ee49";
    /// It answers again.
    TARGET_BACK = "09afd5589d83437eb364e4d6960f8975";
    /// A mapping's target has become what is captured, so it is not replayed.
    TARGET_IS_PRODUCTION = "38d2a85ee8884f58b0dbc415793368f5";
    /// It no longer is.
    TARGET_IS_APART = "2b9ef3510384479e928de68632c58c0e";
    /// Requests leave long after their capture.
    REPLAY_BEHIND = "5d0a1f3c9be24f6fa7c1d2a64be8f703";
    /// They leave in time again.
    REPLAY_KEEPS_UP = "c8427d1b6f6e4a0d9e53b7f0a1c96d24";
    /// More connections replace others than `max-reconnects-per-second` allows: the rest waits.
    RECONNECT_LIMIT_REACHED = "878143e79c3b4d42b780675155b70657";
    /// Connections no longer wait for that limit.
    RECONNECT_LIMIT_LEFT = "62a59c53fa79417791d8a3758a8e7b38";
    /// A worker makes no progress; the service manager's watchdog is not fed.
    WORKER_STUCK = "943d922c8f1a4a2eb57100aab3805311";
    /// Counters since the start, and rates since the last such line.
    STATS = "f88fb7b0ad80486ea9dace78a51b65b8";
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_is_a_number_of_its_own() {
        for (at, (name, id)) in ALL.iter().enumerate() {
            assert!(id.len() == 32 && id.bytes().all(|byte| b"0123456789abcdef".contains(&byte)), "{name}");
            assert!(!ALL.iter().skip(at + 1).any(|(_, other)| other == id), "{name}");
        }
    }
}
