//! The figures as a table, as JSON, and their explanation.

use std::fmt::Write;

use super::figures::{METRICS, Metric, Sample, Spread};
use super::way::Way;

/// What came out for a load replayed in one way.
pub(super) struct Outcome {
    pub(super) load: &'static str,
    pub(super) way: &'static str,
    /// Whether nothing happened that must not.
    pub(super) safe: bool,
    samples: Vec<Sample>,
    /// What was not perfect.
    notes: Vec<String>,
}

impl Outcome {
    pub(super) fn new(load: &'static str, way: &'static str) -> Self {
        Self { load, way, safe: true, samples: Vec::new(), notes: Vec::new() }
    }

    pub(super) fn add(&mut self, sample: Sample, fault: Option<String>) {
        if !sample.comparison.perfect() {
            self.notes.push(sample.comparison.to_string());
        }
        self.safe &= fault.is_none();
        self.notes.extend(fault);
        self.samples.push(sample);
    }
}

/// How the table looks.
pub(super) struct Table {
    /// Whether prices have a range.
    pub(super) ranges: bool,
}

impl Table {
    pub(super) fn heads(&self) -> String {
        let mut line = format!("{:<17} {:<8}", "load", "replay");
        for metric in columns() {
            let _ = write!(line, " {:>1$}", metric.head, self.width(metric));
        }
        line
    }

    /// A line for each way, then how the first, which is ours, compares with the others.
    pub(super) fn lines(&self, outcomes: &[Outcome]) -> Vec<String> {
        let mut lines = Vec::new();
        for outcome in outcomes.iter().filter(|outcome| !outcome.samples.is_empty()) {
            let mut line = format!("{:<17} {:<8}", outcome.load, outcome.way);
            for metric in columns() {
                let spread = Spread::of(metric, &outcome.samples);
                let cell = spread.map_or_else(|| "-".to_owned(), |spread| self.cell(metric, spread));
                let _ = write!(line, " {cell:>0$}", self.width(metric));
            }
            lines.push(line);
            lines.extend(outcome.notes.iter().map(|note| format!("  {}: {note}", outcome.way)));
        }
        if let [ours, others @ ..] = outcomes {
            for other in others {
                let ratios = ratios(ours, other);
                if !ratios.is_empty() {
                    let ratios: Vec<String> =
                        ratios.iter().map(|(metric, ratio)| format!("{} {ratio:.2}", metric.head)).collect();
                    lines.push(format!("  {} / {}: {}", ours.way, other.way, ratios.join(", ")));
                }
            }
        }
        lines
    }

    fn cell(&self, metric: &Metric, Spread { median, least, most }: Spread) -> String {
        let decimals = metric.decimals;
        if self.ranges && metric.price {
            format!("{median:.decimals$} ({least:.decimals$}-{most:.decimals$})")
        } else {
            format!("{median:.decimals$}")
        }
    }

    fn width(&self, metric: &Metric) -> usize {
        if self.ranges && metric.price { 22 } else { 9 }
    }
}

fn columns() -> impl Iterator<Item = &'static Metric> {
    METRICS.iter().filter(|metric| !metric.head.is_empty())
}

/// Our price by the other's, of medians, where both have one.
fn ratios(ours: &Outcome, other: &Outcome) -> Vec<(&'static Metric, f64)> {
    let median = |metric, outcome: &Outcome| Spread::of(metric, &outcome.samples).map(|spread| spread.median);
    METRICS
        .iter()
        .filter(|metric| metric.price)
        .filter_map(|metric| Some((metric, median(metric, ours)?, median(metric, other)?)))
        .filter(|(_, _, other)| *other > 0.0)
        .map(|(metric, ours, other)| (metric, ours / other))
        .collect()
}

/// The outcomes as JSON. All strings are names of loads, ways and figures: nothing to escape.
pub(super) fn document(outcomes: &[Outcome]) -> String {
    let rows: Vec<String> = outcomes.iter().map(|outcome| object(outcome, outcomes)).collect();
    format!("[\n{}\n]\n", rows.join(",\n"))
}

fn object(outcome: &Outcome, all: &[Outcome]) -> String {
    let Outcome { load, way, safe, samples, .. } = outcome;
    let total = |count: fn(&Sample) -> u64| samples.iter().map(count).sum::<u64>();
    let mut text = format!(
        "  {{\"load\": \"{load}\", \"replay\": \"{way}\", \"repetitions\": {}, \"safe\": {safe}, \"online\": {}, \
         \"replayed\": {}, \"lost\": {}, \"duplicated\": {}, \"extra\": {}, \"failed\": {}, \"altered\": {}",
        samples.len(),
        total(|sample| sample.comparison.online as u64),
        total(|sample| sample.comparison.replayed as u64),
        total(|sample| sample.comparison.lost_count as u64),
        total(|sample| sample.comparison.duplicated as u64),
        total(|sample| sample.comparison.extra as u64),
        total(|sample| sample.comparison.failed),
        total(|sample| sample.comparison.altered as u64),
    );
    for metric in &METRICS {
        let _ = match Spread::of(metric, samples) {
            Some(Spread { median, least, most }) => write!(
                text,
                ",\n   \"{}\": {{\"median\": {median:.6}, \"min\": {least:.6}, \"max\": {most:.6}}}",
                metric.key
            ),
            None => write!(text, ",\n   \"{}\": null", metric.key),
        };
    }
    let ours = all.iter().find(|other| other.load == *load && other.way == Way::Ours.name());
    if let Some(ours) = ours.filter(|ours| ours.way != *way) {
        let ratios: Vec<String> = ratios(ours, outcome)
            .iter()
            .map(|(metric, ratio)| format!("\"{}\": {ratio:.4}", metric.key))
            .collect();
        let _ = write!(text, ",\n   \"ours_by_this\": {{{}}}", ratios.join(", "));
    }
    text.push('}');
    text
}

/// What `lab measure` does and what its columns mean.
pub(crate) fn help() -> String {
    let mut text = String::from(HELP);
    for metric in &METRICS {
        let name = if metric.head.is_empty() { "(JSON)" } else { metric.head };
        let _ = write!(text, "\n  {name:<10} {:<20} {}", metric.key, metric.help);
    }
    text
}

const HELP: &str = "\
usage: lab measure [NAME…] [--seconds 5] [--repeat 1] [--offloads on|off] [--json FILE]
                   [--original TCPCOPY,INTERCEPT [--mixed]] [--packet] [--mirror] [--apart] [--syscalls]

Puts fixed loads on the online server, those whose name contains a NAME or all: first without replay, then replayed.
All hosts share this machine, so measure when it does nothing else, and see `others` below.

  --repeat N     everything N times, the ways in turns; medians, and of prices (least-most)
  --original A,B also with the C programs tcpcopy and intercept at these paths; intercept may be built for NFQUEUE
                 (--traditional --nfqueue; needs iptables) or for pcap
  --mixed        also with the C tcpcopy and our intercept, and the other way round (`legacy`)
  --packet       also with our programs and packet sockets as the source of both (capture.source)
  --apart        with the first processor for the clients and the online server alone, and the others for the rest
  --mirror       also with nginx's mirror module in the online server. It opens a connection to the target for each
                 request, and closes it at the header of the response: the target's answers to large GETs are cut short
  --syscalls     then once more under strace -c, for the system calls of the daemons for each request
  --json FILE    all figures, with `median`, `min` and `max`, and our prices by those of the others (`ours_by_this`)

CPU is user and system time in milliseconds for 1,000 replayed requests, from just before the first request until the
target has been quiet for 250 ms. The time in which the laboratory itself watches (reads logs, hashes bodies) is left out.
A price below zero is noise. The kernel handles a packet where it is sent: on this machine the sender of a packet pays
for its way through the receiver's network stack, netfilter included.

column and name in JSON:";

#[cfg(test)]
mod tests {
    use super::super::figures::{Run, Spent};
    use super::*;
    use crate::records::{Answers, Comparison};
    use std::time::Duration;

    fn outcome(way: &'static str, seconds: &[u64]) -> Outcome {
        let mut outcome = Outcome::new("short", way);
        for &seconds in seconds {
            let spent = Spent { cpu: Duration::from_secs(seconds), switches: 1, peak_mb: 2.0 };
            let on = Run { daemons: Some((spent, spent)), ..Run::default() };
            let none = Answers::default();
            let comparison = Comparison { online: 1_000, replayed: 1_000, ..Comparison::of(&none, &none, 1) };
            outcome.add(Sample { off: Run::default(), on, comparison }, None);
        }
        outcome
    }

    #[test]
    fn prices_have_a_range_and_a_ratio() {
        let outcomes = [outcome("ours", &[2, 1, 3]), outcome("original", &[4])];
        let lines = Table { ranges: true }.lines(&outcomes).join("\n");
        assert!(lines.contains(" 2000.0 (1000.0-3000.0) "), "{lines}");
        assert!(lines.contains("ours / original: online 0.50, assist 0.50, both 0.50"), "{lines}");
    }

    #[test]
    fn what_is_not_perfect_is_said() {
        let mut bad = outcome("ours", &[1]);
        let mut sample = bad.samples.first().unwrap().clone();
        sample.comparison.lost_count = 7;
        bad.add(sample, Some("LEAK: 3 packets".to_owned()));
        let lines = Table { ranges: false }.lines(std::slice::from_ref(&bad)).join("\n");
        assert!(lines.contains("7 lost") && lines.contains("LEAK: 3 packets") && !bad.safe, "{lines}");
    }

    #[test]
    fn every_figure_is_in_the_document_and_explained() {
        let outcomes = [outcome("ours", &[2]), outcome("original", &[4])];
        let (document, help) = (document(&outcomes), help());
        for metric in &METRICS {
            assert_eq!(document.matches(&format!("\n   \"{}\": ", metric.key)).count(), 2, "{document}");
            assert!(help.contains(metric.key), "{help}");
        }
        assert_eq!(document.matches('{').count(), document.matches('}').count());
        assert_eq!(document.matches("ours_by_this").count(), 1);
    }
}
