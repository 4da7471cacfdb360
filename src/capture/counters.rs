//! The kernel's own counters of its queues: what it dropped before anybody here could see it.

use std::fs::File;
use std::io::{self, Read, Seek};

/// This thread's network namespace, not that of the process's first thread.
const PATH: &str = "/proc/thread-self/net/netfilter/nfnetlink_queue";

/// One bound queue, as `seq_show` of `net/netfilter/nfnetlink_queue.c` prints it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct QueueCounters {
    /// Queue number.
    pub queue: u16,
    /// Netlink port of the socket that is bound, mostly its process's id.
    pub port: u32,
    /// Packets waiting for a verdict.
    pub waiting: u32,
    /// 0 nothing, 1 metadata, 2 packets are copied.
    pub copy_mode: u8,
    /// Bytes copied of each packet.
    pub copy_range: u32,
    /// Packets dropped because the queue was at its maximum length.
    pub queue_dropped: u32,
    /// Packets dropped because the socket's receive buffer was full.
    pub user_dropped: u32,
    /// The newest packet's id, which is the number of packets queued since the queue was bound. Wraps around.
    pub sequence: u32,
}

/// The file with the counters of all queues bound in a network namespace.
#[derive(Debug)]
pub struct KernelCounters(File);

impl KernelCounters {
    /// Opens that of this thread's network namespace.
    ///
    /// Root and its group may, whatever the capabilities; once it is open, it can be read by anybody. Without
    /// nfnetlink_queue the error is `NotFound`.
    pub fn open() -> io::Result<Self> {
        File::open(PATH).map(Self)
    }

    /// The counters as they are now, in the kernel's order.
    pub fn read(&mut self) -> io::Result<Vec<QueueCounters>> {
        let mut text = String::new();
        self.0.rewind()?;
        self.0.read_to_string(&mut text)?;
        parse(&text).ok_or_else(|| {
            io::Error::new(io::ErrorKind::InvalidData, format!("{PATH} is not in the format known"))
        })
    }
}

/// The counters of all queues bound in this thread's network namespace; see [`KernelCounters`].
pub fn kernel_counters() -> io::Result<Vec<QueueCounters>> {
    KernelCounters::open()?.read()
}

/// All lines, or nothing when one is not as expected: a counter misread would be worse than none.
fn parse(text: &str) -> Option<Vec<QueueCounters>> {
    text.lines().filter(|line| !line.trim().is_empty()).map(parse_line).collect()
}

fn parse_line(line: &str) -> Option<QueueCounters> {
    let mut fields = line.split_ascii_whitespace();
    let mut next = || fields.next()?.parse::<u32>().ok();
    let counters = QueueCounters {
        queue: next()?.try_into().ok()?,
        port: next()?,
        waiting: next()?,
        copy_mode: next()?.try_into().ok()?,
        copy_range: next()?,
        queue_dropped: next()?,
        user_dropped: next()?,
        sequence: next()?,
    };
    // A constant 1 follows; later kernels may append more.
    next().map(|_| counters)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_the_kernel_are_read() {
        let text = "36520   1234     7 2 65531     3    11   100025  1\n    0 4294962960     0 1     0     0     0        0  1\n";
        let expected = [
            QueueCounters {
                queue: 36520,
                port: 1234,
                waiting: 7,
                copy_mode: 2,
                copy_range: 65531,
                queue_dropped: 3,
                user_dropped: 11,
                sequence: 100_025,
            },
            QueueCounters { port: 4_294_962_960, copy_mode: 1, ..QueueCounters::default() },
        ];
        assert_eq!(parse(text).as_deref(), Some(&expected[..]));
    }

    #[test]
    fn no_queue_is_no_line() {
        assert_eq!(parse(""), Some(vec![]));
        assert_eq!(parse("\n  \n"), Some(vec![]));
    }

    #[test]
    fn fields_appended_by_a_later_kernel_are_ignored() {
        assert_eq!(parse("1 2 3 2 5 6 7 8 1 99 x").map(|all| all.len()), Some(1));
    }

    #[test]
    fn odd_lines_are_refused_whole() {
        for line in [
            "garbage",
            "1 2 3",
            "1 2 3 2 5 6 7 8",
            "65536 2 3 2 5 6 7 8 1",
            "1 2 3 256 5 6 7 8 1",
            "1 -2 3 2 5 6 7 8 1",
            "1 2 3 2 5 6 4294967296 8 1",
            "1 2 3 2 5 6 7 8 x",
        ] {
            assert_eq!(parse(&format!("1 2 3 2 5 6 7 8 1\n{line}\n")), None, "{line:?}");
        }
    }
}
