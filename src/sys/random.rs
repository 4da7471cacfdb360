//! Random bytes for keys, of the kernel's.

use std::io;

/// `N` random bytes fit for a key (getrandom(2)). It waits only in the first moments after a boot.
pub fn bytes<const N: usize>() -> io::Result<[u8; N]> {
    let mut out = [0; N];
    let mut filled = 0;
    while let Some(rest) = out.get_mut(filled..).filter(|rest| !rest.is_empty()) {
        // SAFETY: `rest` is valid for writes of its own length, and the kernel writes no more than that.
        let n = unsafe { libc::getrandom(rest.as_mut_ptr().cast(), rest.len(), 0) };
        if let Ok(n) = usize::try_from(n) {
            filled += n;
            continue;
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    #[test]
    fn no_two_are_alike() {
        let (a, b) = (super::bytes::<32>().expect("random"), super::bytes::<32>().expect("random"));
        assert_ne!(a, b);
        assert_ne!(a, [0; 32]);
    }
}
