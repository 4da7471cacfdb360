//! How many descriptors the process may have.

use std::fs;

use nix::sys::resource::{Resource, setrlimit};

/// The line of `/proc/self/limits` that is about descriptors (proc(5)).
const LINE: &str = "Max open files";

/// Raises the soft limit to the hard one: a shell gives 1,024, which is kept for programs that call select(2). Returns
/// the limit in force; `None` if the system does not tell.
pub(super) fn raise() -> Option<u64> {
    // Read as a file: a service's filter of system calls may refuse prlimit(2), which is getrlimit(2) too.
    let (soft, hard) = parse(&fs::read_to_string("/proc/self/limits").ok()?)?;
    if soft >= hard {
        return Some(soft);
    }
    match setrlimit(Resource::RLIMIT_NOFILE, hard, hard) {
        Ok(()) => Some(hard),
        Err(error) => {
            tracing::debug!(%error, soft, hard, "the limit of descriptors stays as it is");
            Some(soft)
        }
    }
}

/// The soft and the hard limit.
fn parse(limits: &str) -> Option<(u64, u64)> {
    let line = limits.lines().find_map(|line| line.strip_prefix(LINE))?;
    let mut words = line.split_whitespace();
    let mut next = || match words.next()? {
        "unlimited" => Some(u64::MAX),
        number => number.parse().ok(),
    };
    Some((next()?, next()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_read_as_the_kernel_writes_them() {
        let limits = "Limit                     Soft Limit           Hard Limit           Units     \n\
                      Max processes             96000                96000                processes \n\
                      Max open files            1024                 524288               files     \n";
        assert_eq!(parse(limits), Some((1024, 524_288)));
        assert_eq!(
            parse("Max open files            unlimited            unlimited            files"),
            Some((u64::MAX, u64::MAX))
        );
        for odd in ["", "Max open files", "Max open files 1 x", "Max processes 1 2"] {
            assert_eq!(parse(odd), None, "{odd}");
        }
    }

    #[test]
    fn the_own_limit_is_raised_to_what_is_allowed() {
        let (_, hard) = parse(&fs::read_to_string("/proc/self/limits").expect("proc")).expect("limits");
        assert_eq!(raise(), Some(hard));
        assert_eq!(parse(&fs::read_to_string("/proc/self/limits").expect("proc")), Some((hard, hard)));
    }
}
