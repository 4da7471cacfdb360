//! How long the replay takes to go on after faults: written into a scenario's figures, and read from there for the table at
//! the end of a run.

use std::fmt::Write;

/// What the times follow in a scenario's figures.
const MARK: &str = "recovered within ms:";

/// A fault, and how long each recovery from it took, in milliseconds.
pub(crate) type Recoveries = (String, Vec<u128>);

/// The figures' text for the times after `fault`, or after the fault the scenario is named after.
pub(crate) fn text(fault: &str, millis: &[u128]) -> String {
    let mut text = format!("{fault}{MARK}");
    for time in millis {
        // Writing to a string cannot fail.
        let _ = write!(text, " {time}");
    }
    text
}

/// The times in the figures of the scenario `name`.
pub(crate) fn of_faults(name: &str, figures: &str) -> Vec<Recoveries> {
    let parts = figures.split("; ").filter_map(|part| part.split_once(MARK));
    parts
        .map(|(fault, times)| {
            let times = times.split_whitespace().map_while(|time| time.parse().ok()).collect();
            let separator = if fault.is_empty() { "" } else { ": " };
            (format!("{name}{separator}{}", fault.trim_end()), times)
        })
        .collect()
}

/// The table of a run.
pub(crate) fn table(all: &[Recoveries]) -> String {
    let mut text = format!("{:40} {:>5} {:>8} {:>8}", "recovery from", "times", "p50 ms", "max ms");
    for (fault, times) in all {
        let mut sorted = times.clone();
        sorted.sort_unstable();
        let Some(max) = sorted.last() else { continue };
        let p50 = sorted.get((sorted.len() - 1) / 2).unwrap_or(max);
        let _ = write!(text, "\n{fault:40} {:>5} {p50:>8} {max:>8}", times.len());
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read_back_and_summed_up() {
        let figures = format!("2 rounds; {}; {}; 5 answered", text("killed ", &[30, 10, 20]), text("", &[7]));
        let read = of_faults("chaos/x", &figures);
        assert_eq!(read, [("chaos/x: killed".to_owned(), vec![30, 10, 20]), ("chaos/x".to_owned(), vec![7])]);
        assert!(of_faults("chaos/x", "nothing").is_empty());
        let table = table(&read);
        assert_eq!(table.lines().count(), 3, "{table}");
        assert!(table.contains("3       20       30"), "{table}");
    }
}
