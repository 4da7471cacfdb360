//! The figures: what each means, and how it follows from a load without and with replay.

use std::time::Duration;

use super::cost::Packets;
use crate::records::Comparison;

/// What a load cost, from just before its first request until the target had been quiet.
#[derive(Clone, Debug, Default)]
pub(super) struct Run {
    pub(super) elapsed: Duration,
    /// Requests answered online.
    pub(super) answered: u64,
    /// Answered online in a second.
    pub(super) rate: f64,
    /// Production latency, µs.
    pub(super) p50: u32,
    pub(super) p99: u32,
    /// From capture to raw send, µs, if our tcpcopy replays.
    pub(super) delay_p99: Option<u32>,
    /// Processor time of the servers.
    pub(super) online_server: Duration,
    pub(super) target_server: Duration,
    /// Of all processes of the laboratory.
    pub(super) processes: Duration,
    /// Of all processors, without what other processes on the machine took.
    pub(super) busy: Duration,
    /// Which was this.
    pub(super) others: Duration,
    /// On the target's interface.
    pub(super) packets: Packets,
    /// What replays on the online host and on the assistant, if processes of their own do.
    pub(super) daemons: Option<(Spent, Spent)>,
}

/// What a daemon spent.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Spent {
    pub(super) cpu: Duration,
    pub(super) switches: u64,
    pub(super) peak_mb: f64,
}

/// One measurement: the same load without and with replay.
#[derive(Clone, Debug)]
pub(super) struct Sample {
    pub(super) off: Run,
    pub(super) on: Run,
    pub(super) comparison: Comparison,
}

/// A figure.
pub(super) struct Metric {
    /// In JSON.
    pub(super) key: &'static str,
    /// Over its column; empty: in JSON only.
    pub(super) head: &'static str,
    pub(super) help: &'static str,
    pub(super) decimals: usize,
    /// Whether the table shows the range, and the ratio to what we are compared with.
    pub(super) price: bool,
    of: fn(&Sample) -> Option<f64>,
}

impl Metric {
    /// The figure of a sample, if it has it.
    pub(super) fn of(&self, sample: &Sample) -> Option<f64> {
        (self.of)(sample)
    }
}

const fn figure(
    key: &'static str,
    head: &'static str,
    decimals: usize,
    of: fn(&Sample) -> Option<f64>,
    help: &'static str,
) -> Metric {
    Metric { key, head, help, decimals, price: false, of }
}

const fn price(
    key: &'static str,
    head: &'static str,
    decimals: usize,
    of: fn(&Sample) -> Option<f64>,
    help: &'static str,
) -> Metric {
    Metric { price: true, ..figure(key, head, decimals, of, help) }
}

/// All figures, in the order of the columns.
pub(super) static METRICS: [Metric; 21] = [
    figure(
        "requests_per_second",
        "online/s",
        0,
        |s| Some(s.on.rate),
        "requests that the online server answered in a second",
    ),
    figure(
        "fidelity",
        "fidelity",
        5,
        |s| Some(s.comparison.fidelity()),
        "part of the requests answered online that the target answered too, by their ids",
    ),
    price(
        "cpu_online",
        "online",
        1,
        |s| Some(s.online()),
        "CPU ms of tcpcopy; with --mirror, of the online nginx beyond what it takes without",
    ),
    price("cpu_assistant", "assist", 1, Sample::assistant, "CPU ms of intercept"),
    price("cpu_replay", "both", 1, |s| Some(s.online() + s.assistant().unwrap_or(0.0)), "the two together"),
    price(
        "cpu_processes",
        "processes",
        1,
        |s| Some(s.beyond(|run| run.processes) - s.target()),
        "CPU ms of all processes of the laboratory (clients, servers, daemons; with the network's work that the kernel did in their name), beyond the same load without replay and without the target's nginx",
    ),
    price(
        "cpu_machine",
        "machine",
        1,
        |s| Some(s.beyond(|run| run.busy) - s.target()),
        "the same of all processors of the machine, from /proc/stat, without what processes outside the laboratory took: `processes` with interrupts and the kernel's threads",
    ),
    figure(
        "cpu_target",
        "target",
        1,
        |s| Some(s.target()),
        "CPU ms of the target's nginx; what its kernel does with the packets is in `processes` and `machine`, whatever brings them",
    ),
    figure(
        "switches_online",
        "switches",
        2,
        |s| Some(s.each(s.on.daemons?.0.switches)),
        "context switches of tcpcopy for each request",
    ),
    figure(
        "switches_assistant",
        "",
        2,
        |s| Some(s.each(s.on.daemons?.1.switches)),
        "context switches of intercept for each request",
    ),
    price(
        "packets_to_target",
        "pkts to",
        2,
        |s| Some(s.each(s.on.packets.received)),
        "packets that reached the target, for each request",
    ),
    figure(
        "packets_from_target",
        "from",
        2,
        |s| Some(s.each(s.on.packets.sent)),
        "packets that the target sent, for each request",
    ),
    figure("peak_mb_online", "MB", 1, |s| Some(s.on.daemons?.0.peak_mb), "the most memory tcpcopy had, MB"),
    figure(
        "peak_mb_assistant",
        "MB as.",
        1,
        |s| Some(s.on.daemons?.1.peak_mb),
        "the most memory intercept had, MB",
    ),
    figure(
        "p50_off_us",
        "p50 off",
        0,
        |s| Some(s.off.p50.into()),
        "production latency, median, without replay, µs",
    ),
    figure("p99_off_us", "p99 off", 0, |s| Some(s.off.p99.into()), "99th percentile, without replay, µs"),
    figure("p50_on_us", "p50 on", 0, |s| Some(s.on.p50.into()), "median with replay, µs"),
    figure("p99_on_us", "p99 on", 0, |s| Some(s.on.p99.into()), "99th percentile with replay, µs"),
    figure(
        "delay_p99_us",
        "delay",
        0,
        |s| Some(s.on.delay_p99?.into()),
        "99th percentile of the time from capture to raw send, by tcpcopy's own count, µs",
    ),
    figure(
        "others_off",
        "",
        1,
        |s| Some(others(&s.off)),
        "CPU ms a second that processes outside the laboratory took while the load ran without replay: the more, the less the figures are worth",
    ),
    figure("others_on", "others", 1, |s| Some(others(&s.on)), "the same with replay"),
];

impl Sample {
    /// For 1,000 replayed requests, milliseconds.
    fn per_thousand(&self, cpu: Duration) -> f64 {
        cpu.as_secs_f64() * 1e6 / self.replayed()
    }

    #[expect(clippy::cast_precision_loss, reason = "counts far below 2^52")]
    fn each(&self, count: u64) -> f64 {
        count as f64 / self.replayed()
    }

    #[expect(clippy::cast_precision_loss, reason = "counts far below 2^52")]
    fn replayed(&self) -> f64 {
        self.comparison.replayed.max(1) as f64
    }

    /// What the load took more of than it takes without replay. A flood makes another number of requests then.
    #[expect(clippy::cast_precision_loss, reason = "counts far below 2^52")]
    fn beyond(&self, of: fn(&Run) -> Duration) -> f64 {
        let scale = self.on.answered as f64 / self.off.answered.max(1) as f64;
        let beyond = of(&self.on).as_secs_f64() - of(&self.off).as_secs_f64() * scale;
        beyond * 1e6 / self.replayed()
    }

    fn online(&self) -> f64 {
        match self.on.daemons {
            Some((online, _)) => self.per_thousand(online.cpu),
            None => self.beyond(|run| run.online_server),
        }
    }

    fn assistant(&self) -> Option<f64> {
        Some(self.per_thousand(self.on.daemons?.1.cpu))
    }

    fn target(&self) -> f64 {
        self.per_thousand(self.on.target_server)
    }
}

fn others(run: &Run) -> f64 {
    run.others.as_secs_f64() * 1e3 / run.elapsed.as_secs_f64().max(1e-9)
}

impl Spent {
    /// What was spent since an earlier reading.
    pub(super) fn since(self, earlier: Self) -> Self {
        Self {
            cpu: self.cpu.saturating_sub(earlier.cpu),
            switches: self.switches.saturating_sub(earlier.switches),
            peak_mb: self.peak_mb,
        }
    }
}

/// A figure of several samples.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Spread {
    pub(super) median: f64,
    pub(super) least: f64,
    pub(super) most: f64,
}

impl Spread {
    /// Of a metric; `None` if the samples do not have it.
    pub(super) fn of(metric: &Metric, samples: &[Sample]) -> Option<Self> {
        Self::over(samples.iter().filter_map(|sample| metric.of(sample)).collect())
    }

    fn over(mut values: Vec<f64>) -> Option<Self> {
        values.sort_by(f64::total_cmp);
        let (&least, &most) = (values.first()?, values.last()?);
        let (&low, &high) = (values.get((values.len() - 1) / 2)?, values.get(values.len() / 2)?);
        Some(Self { median: f64::midpoint(low, high), least, most })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn value(key: &str, sample: &Sample) -> Option<f64> {
        METRICS.iter().find(|metric| metric.key == key).unwrap().of(sample)
    }

    fn sample() -> Sample {
        let seconds = Duration::from_secs;
        let off = Run { answered: 1_000, processes: seconds(2), busy: seconds(3), ..Run::default() };
        let spent = |cpu| Spent { cpu: seconds(cpu), switches: 100, peak_mb: 1.0 };
        let on = Run {
            answered: 2_000,
            processes: seconds(11),
            busy: seconds(14),
            target_server: seconds(1),
            daemons: Some((spent(4), spent(2))),
            packets: Packets { received: 3_000, sent: 1_500 },
            ..Run::default()
        };
        let comparison = Comparison {
            online: 2_000,
            replayed: 500,
            lost: Vec::new(),
            lost_count: 1_500,
            duplicated: 0,
            extra: 0,
            failed: 0,
            altered: 0,
        };
        Sample { off, on, comparison }
    }

    #[test]
    fn a_price_is_what_the_same_requests_cost_more() {
        let figure = |key| value(key, &sample());
        assert_eq!((figure("cpu_online"), figure("cpu_assistant")), (Some(8_000.0), Some(4_000.0)));
        // 11 s less twice 2 s, for twice the requests, less the target's 1 s; for 500 requests.
        assert_eq!(figure("cpu_processes"), Some(12_000.0));
        assert_eq!(figure("cpu_machine"), Some(14_000.0));
        assert_eq!((figure("packets_to_target"), figure("switches_online")), (Some(6.0), Some(0.2)));
    }

    #[test]
    fn without_daemons_the_online_server_pays() {
        let mut sample = sample();
        sample.on.daemons = None;
        sample.off.online_server = Duration::from_secs(1);
        sample.on.online_server = Duration::from_secs(3);
        assert_eq!((value("cpu_online", &sample), value("cpu_assistant", &sample)), (Some(2_000.0), None));
        assert_eq!((value("cpu_replay", &sample), value("peak_mb_online", &sample)), (Some(2_000.0), None));
    }

    #[test]
    fn the_median_is_in_the_middle() {
        let spread = |values: &[f64]| Spread::over(values.to_vec());
        assert_eq!(spread(&[3.0, 1.0, 9.0]), Some(Spread { median: 3.0, least: 1.0, most: 9.0 }));
        assert_eq!(spread(&[4.0, 2.0]).map(|spread| spread.median), Some(3.0));
        assert_eq!(spread(&[]), None);
    }
}
