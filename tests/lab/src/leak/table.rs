//! The leak matrix as a table at the end of a run: events by deployments, and in each cell how many packets leaked of how
//! many that were made.

use std::fmt::Write;

/// What the names of the matrix's scenarios begin with: then come the deployment and the event.
const MATRIX: &str = "matrix/";
/// What the count of leaks and of strays are between in the figures.
const LEAKS: &str = "leaks ";
const OF: &str = " of ";
/// The same in errors.
const LEAK: &str = "LEAK: ";

/// How a scenario ended: its name, and its figures or its error.
pub(crate) type Ended = (String, Result<String, String>);

/// The table of all that are of the matrix; `None` if none is.
pub(crate) fn table(all: &[Ended]) -> Option<String> {
    let cells: Vec<(&str, &str, String)> = all.iter().filter_map(cell).collect();
    let (mut deployments, mut events) = (Vec::new(), Vec::new());
    for (deployment, event, _) in &cells {
        if !deployments.contains(deployment) {
            deployments.push(*deployment);
        }
        if !events.contains(event) {
            events.push(*event);
        }
    }
    let mut text = format!("{:30}", "leaks of strays made");
    for deployment in &deployments {
        // Writing to a string cannot fail.
        let _ = write!(text, " {deployment:>16}");
    }
    for event in &events {
        let _ = write!(text, "\n{event:30}");
        for deployment in &deployments {
            let cell = cells.iter().find(|(d, e, _)| (d, e) == (deployment, event));
            let _ = write!(text, " {:>16}", cell.map_or("", |(_, _, text)| text));
        }
    }
    (!cells.is_empty()).then_some(text)
}

/// Deployment, event and text of a cell.
fn cell((name, outcome): &Ended) -> Option<(&str, &str, String)> {
    let (deployment, event) = name.strip_prefix(MATRIX)?.split_once('/')?;
    let number = |text: &str| text.split(|c: char| !c.is_ascii_digit()).next().unwrap_or_default().to_owned();
    let text = match outcome {
        Ok(figures) => figures.split_once(LEAKS).and_then(|(_, counts)| {
            let (leaks, strays) = counts.split_once(OF)?;
            Some(format!("{}/{}", number(leaks), number(strays)))
        }),
        Err(error) => error.split_once(LEAK).map(|(_, count)| format!("LEAK {}", number(count))),
    };
    Some((deployment, event, text.unwrap_or_else(|| "failed".to_owned())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cells_are_leaks_of_strays() {
        let ended = [
            ("matrix/a/x".to_owned(), Ok("leaks 0 of 12 strays; seed 3".to_owned())),
            ("matrix/b/x".to_owned(), Err("LEAK: 7 packets of the target reached client".to_owned())),
            ("matrix/b/y".to_owned(), Err("no".to_owned())),
            ("safety/x".to_owned(), Ok("leaks 0 of 5".to_owned())),
        ];
        let table = table(&ended).unwrap();
        let words: Vec<Vec<&str>> = table.lines().map(|line| line.split_whitespace().collect()).collect();
        assert_eq!(words[1..], [vec!["x", "0/12", "LEAK", "7"], vec!["y", "failed"]]);
        assert_eq!(super::table(&ended[3..]), None);
    }
}
