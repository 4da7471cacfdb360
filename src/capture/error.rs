//! Why a queue could not be opened, and what to do about it.

use std::io;

use super::counters::{self, QueueCounters};
use crate::sys::capabilities::{Capability, has_capability};
use crate::sys::nfqueue::Step;

/// A netfilter queue could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum CaptureError {
    /// Another process has the queue.
    #[error(
        "queue {queue} is in use by another process (netlink port {}): stop it, or choose other queues with `queue`",
        port.map_or_else(|| "unknown".to_owned(), |port| port.to_string())
    )]
    Busy {
        /// The queue's number.
        queue: u16,
        /// The other's netlink port, mostly its process id.
        port: Option<u32>,
    },
    /// This process may not use netfilter queues.
    #[error("no permission to open netfilter queue {queue}: run as root or with CAP_NET_ADMIN")]
    Permission {
        /// The queue's number.
        queue: u16,
        /// What the kernel said.
        source: io::Error,
    },
    /// The kernel has no netfilter queues.
    #[error(
        "this kernel has no netfilter queues: `modprobe nfnetlink_queue`, or a kernel with \
         CONFIG_NETFILTER_NETLINK_QUEUE"
    )]
    Unsupported {
        /// What the kernel said.
        source: io::Error,
    },
    /// A netlink socket could not be opened.
    #[error("opening a netfilter netlink socket for queue {queue} failed")]
    Open {
        /// The queue's number.
        queue: u16,
        /// What the kernel said.
        source: io::Error,
    },
    /// The kernel refused to bind the queue for a reason of its own.
    #[error("binding netfilter queue {queue} failed")]
    Bind {
        /// The queue's number.
        queue: u16,
        /// What the kernel said.
        source: io::Error,
    },
    /// The queue is bound, and a setting was refused.
    #[error("configuring netfilter queue {queue} failed")]
    Configure {
        /// The queue's number.
        queue: u16,
        /// What the kernel said.
        source: io::Error,
    },
    /// A packet socket could not be opened or set up.
    #[error(
        "opening a packet socket failed: run as root or with CAP_NET_RAW and CAP_NET_ADMIN, as a service also with \
         RestrictAddressFamilies=AF_PACKET"
    )]
    Packet {
        /// What the kernel said.
        source: io::Error,
    },
    /// The kernel takes no filter as long as these services and clients need.
    #[error("too many services or clients for capture.source = \"packet\": name fewer, or use \"nfqueue\"")]
    LongFilter,
    /// The socket that was opened could not be found among our descriptors.
    #[error("taking over the socket of netfilter queue {queue} failed: is /proc mounted?")]
    Adopt {
        /// The queue's number.
        queue: u16,
        /// What went wrong.
        source: io::Error,
    },
}

impl CaptureError {
    /// The error for a step of [`crate::sys::nfqueue::open`] that failed.
    pub(super) fn explain(queue: u16, step: Step, source: io::Error) -> Self {
        let holder = match step {
            Step::Bind => counters::kernel_counters().unwrap_or_default(),
            Step::Open | Step::Configure | Step::Adopt => Vec::new(),
        };
        let permitted = has_capability(Capability::NetAdmin).unwrap_or(true);
        Self::classify(queue, step, source, &holder, permitted)
    }

    /// The error for a packet socket.
    pub(super) fn packet(source: io::Error) -> Self {
        Self::Packet { source }
    }

    fn classify(queue: u16, step: Step, source: io::Error, bound: &[QueueCounters], permitted: bool) -> Self {
        let port = bound.iter().find(|counters| counters.queue == queue).map(|counters| counters.port);
        match (step, source.raw_os_error()) {
            // nfnetlink knows no such subsystem, and could not load it.
            (Step::Bind, Some(libc::EINVAL)) | (Step::Open, Some(libc::EPROTONOSUPPORT)) => {
                Self::Unsupported { source }
            }
            (_, Some(libc::EPERM | libc::EACCES)) if !permitted => Self::Permission { queue, source },
            // A queue bound to another netlink port answers EPERM, one bound to our own EBUSY.
            (Step::Bind, Some(libc::EPERM | libc::EBUSY)) => Self::Busy { queue, port },
            (Step::Open, _) => Self::Open { queue, source },
            (Step::Bind, _) => Self::Bind { queue, source },
            (Step::Configure, _) => Self::Configure { queue, source },
            (Step::Adopt, _) => Self::Adopt { queue, source },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn classify(step: Step, errno: i32, permitted: bool) -> String {
        let bound = [QueueCounters { queue: 5, port: 4321, ..QueueCounters::default() }];
        let error = CaptureError::classify(5, step, io::Error::from_raw_os_error(errno), &bound, permitted);
        error.to_string()
    }

    #[test]
    fn a_busy_queue_names_its_holder() {
        for errno in [libc::EPERM, libc::EBUSY] {
            let text = classify(Step::Bind, errno, true);
            assert!(text.contains("queue 5 is in use") && text.contains("4321"), "{text}");
        }
    }

    #[test]
    fn without_the_capability_it_is_permission() {
        assert!(classify(Step::Bind, libc::EPERM, false).contains("CAP_NET_ADMIN"));
        assert!(classify(Step::Configure, libc::EPERM, false).contains("CAP_NET_ADMIN"));
    }

    #[test]
    fn a_kernel_without_queues_is_named() {
        assert!(classify(Step::Bind, libc::EINVAL, true).contains("modprobe nfnetlink_queue"));
        assert!(classify(Step::Open, libc::EPROTONOSUPPORT, true).contains("modprobe nfnetlink_queue"));
    }

    #[test]
    fn other_errors_name_their_step() {
        assert!(classify(Step::Open, libc::EMFILE, true).contains("opening"));
        assert!(classify(Step::Bind, libc::ENOMEM, true).contains("binding"));
        assert!(classify(Step::Configure, libc::ENOMEM, true).contains("configuring"));
        assert!(classify(Step::Adopt, libc::ENOENT, true).contains("/proc"));
    }
}
