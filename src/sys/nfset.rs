//! The message that adds a set whose elements rules change. The `nftnl` crate's own has neither timeout nor size.
#![expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "constants of C headers, small and positive, in the widths that libnftnl takes"
)]

use std::ffi::{CStr, c_char, c_void};
use std::ptr::NonNull;

use nftnl::nftnl_sys as sys;
use nftnl::{MsgType, NlMsg, ProtoFamily};

/// Which set it is, for other messages of the same batch. Ours refer to sets by name, but the kernel wants a number.
const SET_ID: u32 = 1;

/// What a set is like, in the kernel's terms.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shape {
    /// `NFT_SET_*`.
    pub flags: u32,
    /// nft's number for the type of the key, which the kernel only keeps.
    pub key_type: u32,
    /// Bytes of registers in a key.
    pub key_length: u32,
    /// The most elements.
    pub size: u32,
    /// How long an element stays, in milliseconds.
    pub timeout_ms: u64,
}

/// A message about a named set.
pub struct SetMessage {
    set: NonNull<sys::nftnl_set>,
    family: ProtoFamily,
}

impl SetMessage {
    /// A message about set `name` of table `table` of `family`.
    pub fn new(table: &CStr, family: ProtoFamily, name: &CStr, shape: &Shape) -> Self {
        // SAFETY: no preconditions; the result is checked.
        let allocated = unsafe { sys::nftnl_set_alloc() };
        let set = NonNull::new(allocated).unwrap_or_else(|| std::process::abort());
        let numbers = [
            (sys::NFTNL_SET_FAMILY, family as u32),
            (sys::NFTNL_SET_ID, SET_ID),
            (sys::NFTNL_SET_FLAGS, shape.flags),
            (sys::NFTNL_SET_KEY_TYPE, shape.key_type),
            (sys::NFTNL_SET_KEY_LEN, shape.key_length),
            (sys::NFTNL_SET_DESC_SIZE, shape.size),
        ];
        // SAFETY: the set was just allocated; the attributes get the types that libnftnl/set.h gives them, and the
        // names are copied.
        unsafe {
            for (attribute, number) in numbers {
                sys::nftnl_set_set_u32(set.as_ptr(), attribute as u16, number);
            }
            sys::nftnl_set_set_u64(set.as_ptr(), sys::NFTNL_SET_TIMEOUT as u16, shape.timeout_ms);
            sys::nftnl_set_set_str(set.as_ptr(), sys::NFTNL_SET_TABLE as u16, table.as_ptr());
            sys::nftnl_set_set_str(set.as_ptr(), sys::NFTNL_SET_NAME as u16, name.as_ptr());
        }
        Self { set, family }
    }
}

impl Drop for SetMessage {
    fn drop(&mut self) {
        // SAFETY: allocated in `new`, freed only here.
        unsafe { sys::nftnl_set_free(self.set.as_ptr()) };
    }
}

// SAFETY: a set message holds a header, two names of at most 255 bytes and a few numbers, far below the limit.
unsafe impl NlMsg for SetMessage {
    unsafe fn write(&self, buffer: *mut c_void, sequence: u32, kind: MsgType) {
        let (kind, flags) = match kind {
            MsgType::Add => (libc::NFT_MSG_NEWSET, libc::NLM_F_CREATE | libc::NLM_F_ACK),
            MsgType::Del => (libc::NFT_MSG_DELSET, libc::NLM_F_ACK),
        };
        // SAFETY: the caller gives a buffer of the size NlMsg demands, and the set lives as long as `self`.
        unsafe {
            let header = sys::nftnl_nlmsg_build_hdr(
                buffer.cast::<c_char>(),
                kind as u16,
                self.family as u16,
                flags as u16,
                sequence,
            );
            sys::nftnl_set_nlmsg_build_payload(header, self.set.as_ptr());
        }
    }
}
