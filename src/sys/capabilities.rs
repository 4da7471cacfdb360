//! Which capabilities this thread may use: for checks before start, and to give up those that it does not need.

use std::io;

/// The capabilities the daemons need (capabilities(7)); the value is the bit's number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Capability {
    /// Rules, queues, links and marks.
    NetAdmin = 12,
    /// Raw sockets.
    NetRaw = 13,
}

impl Capability {
    /// The name in capabilities(7) and in systemd's `AmbientCapabilities=`.
    pub fn name(self) -> &'static str {
        match self {
            Self::NetAdmin => "CAP_NET_ADMIN",
            Self::NetRaw => "CAP_NET_RAW",
        }
    }
}

/// Whether the calling thread has `capability` in its effective set.
///
/// In a user namespace the answer is about that namespace, as are the permissions to its networks.
pub fn has_capability(capability: Capability) -> io::Result<bool> {
    let status = std::fs::read_to_string("/proc/thread-self/status")?;
    let effective = effective(&status).ok_or_else(|| {
        io::Error::new(io::ErrorKind::InvalidData, "/proc/thread-self/status has no CapEff line")
    })?;
    Ok(effective & (1 << capability as u8) != 0)
}

/// Whether `capability` is handed down to the programs that this thread executes, as a service manager has handed it
/// down to this one.
pub fn is_ambient(capability: Capability) -> bool {
    ambient(IS_SET, capability).is_ok_and(|is_set| is_set == 1)
}

/// From now on `capability` is not handed down to programs that this thread executes. This takes no privilege.
pub fn lower_ambient(capability: Capability) -> io::Result<()> {
    ambient(LOWER, capability).map(drop)
}

// What to do with the ambient set, of linux/prctl.h.
const IS_SET: libc::c_ulong = 1;
const LOWER: libc::c_ulong = 3;

fn ambient(what: libc::c_ulong, capability: Capability) -> io::Result<libc::c_int> {
    let unused: libc::c_ulong = 0;
    // SAFETY: the call takes numbers only, five of this width, the last two of them 0.
    let result =
        unsafe { libc::prctl(libc::PR_CAP_AMBIENT, what, capability as libc::c_ulong, unused, unused) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// Gives up all capabilities of the calling thread but `needed`, for good; of those it keeps what it has, and may use it
/// at once. Threads that it starts from then on have no more either.
///
/// Nothing is asked of the kernel when there is nothing to give up. `EPERM` is from a sandbox that forbids it.
pub fn keep_capabilities(needed: &[Capability]) -> io::Result<()> {
    let had = of_this_thread()?;
    let kept = had.permitted & mask(needed);
    if had.permitted == kept && had.effective == kept {
        return Ok(());
    }
    let header = Header { version: VERSION_3, pid: 0 };
    let data = [Data { effective: kept, permitted: kept, inheritable: 0 }, Data::default()];
    // SAFETY: `header` and `data` are live and of the layout that the kernel has for this version, which takes two
    // elements; the kernel only reads both, during the call.
    let result = unsafe { libc::syscall(libc::SYS_capset, &raw const header, data.as_ptr()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Whether the calling thread has a capability that is not among `those`.
pub fn has_more_than(those: &[Capability]) -> io::Result<bool> {
    Ok(of_this_thread()?.permitted & !mask(those) != 0)
}

/// The calling thread's, those numbered below 32.
fn of_this_thread() -> io::Result<Data> {
    let mut header = Header { version: VERSION_3, pid: 0 };
    let mut data = [Data::default(); 2];
    // SAFETY: `header` and `data` are live, writable, and of the layout that the kernel has for this version, which
    // takes two elements; the kernel keeps neither pointer.
    let result = unsafe { libc::syscall(libc::SYS_capget, &raw mut header, data.as_mut_ptr()) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    let [low, high] = data;
    // Those from 32 on are never needed: one of them counts as the highest of the others.
    let merge = |low: u32, high: u32| low | u32::from(high != 0) << 31;
    Ok(Data {
        effective: merge(low.effective, high.effective),
        permitted: merge(low.permitted, high.permitted),
        inheritable: low.inheritable,
    })
}

fn mask(capabilities: &[Capability]) -> u32 {
    capabilities.iter().fold(0, |mask, capability| mask | 1 << *capability as u32)
}

/// `_LINUX_CAPABILITY_VERSION_3` of linux/capability.h: 64 capabilities, in two [`Data`].
const VERSION_3: u32 = 0x2008_0522;

/// `struct __user_cap_header_struct`.
#[repr(C)]
struct Header {
    version: u32,
    /// 0: the calling thread.
    pid: i32,
}

/// `struct __user_cap_data_struct`: 32 of each.
#[derive(Clone, Copy, Default)]
#[repr(C)]
struct Data {
    effective: u32,
    permitted: u32,
    inheritable: u32,
}

/// The `CapEff` line of a `status` file of proc(5): a hexadecimal mask.
fn effective(status: &str) -> Option<u64> {
    let mask = status.lines().find_map(|line| line.strip_prefix("CapEff:"))?;
    u64::from_str_radix(mask.trim(), 16).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_effective_mask_is_read() {
        let status = "Name:\tx\nCapPrm:\tffffffffffffffff\nCapEff:\t0000000000003000\nCapBnd:\t0\n";
        assert_eq!(effective(status), Some(1 << Capability::NetAdmin as u8 | 1 << Capability::NetRaw as u8));
    }

    #[test]
    fn odd_status_files_have_no_mask() {
        for status in ["", "CapEff:", "CapEff:\tzz", "CapEff:\t1ffffffffffffffff", "CapPrm:\t1"] {
            assert_eq!(effective(status), None, "{status:?}");
        }
    }

    #[test]
    fn a_thread_gives_up_what_it_does_not_need() {
        std::thread::spawn(|| {
            let had = has_capability(Capability::NetAdmin).unwrap();
            keep_capabilities(&[Capability::NetAdmin]).unwrap();
            assert_eq!(has_capability(Capability::NetAdmin).unwrap(), had);
            assert!(!has_capability(Capability::NetRaw).unwrap());
            assert!(!has_more_than(&[Capability::NetAdmin]).unwrap());
            assert_eq!(has_more_than(&[]).unwrap(), had);
            keep_capabilities(&[]).unwrap();
            assert!(!has_capability(Capability::NetAdmin).unwrap());
        })
        .join()
        .unwrap();
    }

    #[test]
    fn the_own_status_has_a_mask() {
        has_capability(Capability::NetAdmin).unwrap();
    }
}
