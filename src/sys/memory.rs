//! The C library's allocator: when it gives memory back to the system.
//!
//! By default, glibc raises the size from which a block is a mapping of its own to that of the largest block freed so far, up
//! to 32 MiB. Large tables then grow by copies within a heap, beside each other, and leave holes that stay with the process.

/// Blocks of so many bytes are mappings of their own: they grow in place, and go back to the system when they are freed.
const MAPPED: libc::c_int = 128 << 10;
/// The unused end of a heap goes back to the system from so many bytes on.
const UNUSED_END: libc::c_int = 1 << 20;

/// Sets the allocator up for a process whose need of memory rises and falls. To be called once, before other threads start.
pub fn configure() {
    #[cfg(target_env = "gnu")]
    // SAFETY: mallopt(3) takes integers only, and no other thread runs yet that could allocate meanwhile.
    unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, MAPPED);
        libc::mallopt(libc::M_TRIM_THRESHOLD, UNUSED_END);
    }
}

/// Gives pages back to the system in which nothing is allocated. It takes milliseconds for each 100 MiB, during which other
/// threads may wait when they allocate.
pub fn trim() {
    #[cfg(target_env = "gnu")]
    // SAFETY: malloc_trim(3) takes an integer, and locks what it works on.
    unsafe {
        libc::malloc_trim(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_trimmed_process_goes_on() {
        configure();
        let blocks: Vec<Vec<u8>> = (0..1_000).map(|n| vec![1; 100 * n]).collect();
        drop(blocks);
        trim();
        assert_eq!(vec![7u8; 1 << 20].len(), 1 << 20);
    }
}
