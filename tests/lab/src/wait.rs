//! Waiting for conditions with a deadline, never for time to pass.

use std::time::{Duration, Instant};

use anyhow::{Result, bail};

/// How often a condition is looked at.
const POLL: Duration = Duration::from_millis(10);

/// Polls `condition` until it holds; fails with `what` after `limit`.
pub(crate) fn until(limit: Duration, what: &str, condition: impl FnMut() -> Result<bool>) -> Result<()> {
    every(POLL, limit, what, condition)
}

/// As [`until`], for a condition that costs something to look at.
pub(crate) fn every(
    poll: Duration,
    limit: Duration,
    what: &str,
    mut condition: impl FnMut() -> Result<bool>,
) -> Result<()> {
    let deadline = Instant::now() + limit;
    while !condition()? {
        if Instant::now() >= deadline {
            bail!("not within {limit:?}: {what}");
        }
        std::thread::sleep(poll);
    }
    Ok(())
}

/// Polls `value` until it has not changed for `quiet`, or `enough` of it holds and it has not changed for `settle`;
/// gives up watching after `limit`. Returns the last value: the caller judges it.
pub(crate) fn settled<T: PartialEq>(
    limit: Duration,
    quiet: Duration,
    settle: Duration,
    mut value: impl FnMut() -> Result<T>,
    enough: impl Fn(&T) -> bool,
) -> Result<T> {
    let start = Instant::now();
    let mut last = value()?;
    let mut changed = Instant::now();
    loop {
        std::thread::sleep(POLL);
        let now = value()?;
        if now != last {
            last = now;
            changed = Instant::now();
        }
        let needed = if enough(&last) { settle } else { quiet };
        if changed.elapsed() >= needed || start.elapsed() >= limit {
            return Ok(last);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn until_names_what_did_not_happen() {
        let error = until(Duration::from_millis(30), "the sky falls", || Ok(false)).unwrap_err();
        assert!(error.to_string().contains("the sky falls"), "{error}");
    }

    #[test]
    fn settled_goes_on_while_the_value_grows() {
        let mut count = 0;
        let last = settled(
            Duration::from_secs(5),
            Duration::from_millis(100),
            Duration::from_millis(30),
            || {
                count = (count + 1).min(20);
                Ok(count)
            },
            |_| false,
        )
        .unwrap();
        assert_eq!(last, 20);
    }
}
