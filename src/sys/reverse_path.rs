//! The reverse path filter of IPv4 (`rp_filter`), which drops packets whose sender is not reached the way they came.

use std::fs;
use std::path::Path;

/// One entry for each interface, and `all` and `default`.
const DIRECTORY: &str = "/proc/sys/net/ipv4/conf";
/// Only the best route back counts; 2 is satisfied with any route.
const STRICT: u8 = 1;

/// Whether the filter is strict on an interface. The kernel takes the greater one of the interface's setting and of
/// that for all. An interface whose settings cannot be read counts as not strict.
pub fn is_strict(interface: &str) -> bool {
    is_strict_in(Path::new(DIRECTORY), interface)
}

/// Whether this host forwards IPv4 packets.
pub fn is_forwarding() -> bool {
    fs::read_to_string("/proc/sys/net/ipv4/ip_forward").is_ok_and(|text| text.trim() != "0")
}

fn is_strict_in(directory: &Path, interface: &str) -> bool {
    let of = |name: &str| -> u8 {
        let text = fs::read_to_string(directory.join(name).join("rp_filter")).unwrap_or_default();
        text.trim().parse().unwrap_or_default()
    };
    of("all").max(of(interface)) == STRICT
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_greater_setting_counts() {
        let directory = std::env::temp_dir().join(format!("tcpcopy-rp-filter-{}", std::process::id()));
        for (all, own, strict) in [
            ("0\n", "0\n", false),
            ("0\n", "1\n", true),
            ("1\n", "0\n", true),
            ("2\n", "1\n", false),
            ("1\n", "2\n", false),
            ("1\n", "?", true),
        ] {
            for (name, value) in [("all", all), ("eth0", own)] {
                fs::create_dir_all(directory.join(name)).unwrap();
                fs::write(directory.join(name).join("rp_filter"), value).unwrap();
            }
            assert_eq!(is_strict_in(&directory, "eth0"), strict, "all {all}, own {own}");
        }
        fs::remove_dir_all(&directory).unwrap();
        assert!(!is_strict_in(&directory, "eth0"), "no such setting");
    }
}
