//! nftables expressions that the `nftnl` crate does not offer, as [`nftnl::expr::Expression`]s.
//!
//! Only whole expressions can be made from outside: libnftnl copies an attribute by the size it expects, so the
//! pairing of attribute and width is settled here, next to the `unsafe` that depends on it. Attribute names are those
//! of `libnftnl/expr.h`, their meaning that of `linux/netfilter/nf_tables.h`.

use std::ffi::{CStr, CString};
use std::ptr::NonNull;

use nftnl::Rule;
use nftnl::expr::Expression;
use nftnl::nftnl_sys as sys;

/// A 16-byte register, by the numbers of `enum nft_registers`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Register(u32);

impl Register {
    /// `NFT_REG_1`, the register the `nftnl` crate's own expressions work on.
    pub const R1: Self = Self(libc::NFT_REG_1 as u32);
    /// `NFT_REG_2`.
    pub const R2: Self = Self(libc::NFT_REG_2 as u32);

    /// The register that begins `bytes` behind the beginning of this one; a multiple of 4. Together they hold what
    /// several loads put side by side.
    #[must_use]
    pub fn behind(self, bytes: u32) -> Self {
        let words = bytes / 4;
        if words.is_multiple_of(4) {
            return Self(self.0 + words / 4);
        }
        // NFT_REG_1 is the same as NFT_REG32_00 to NFT_REG32_03, and so on.
        let first_word = (self.0 - libc::NFT_REG_1 as u32) * 4;
        Self(libc::NFT_REG32_00 as u32 + first_word + words)
    }
}

/// The header a payload's offset counts from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Base {
    /// The IP header.
    Network,
    /// The TCP header; the rule fails to match where there is none (later fragments).
    Transport,
}

#[derive(Debug, Clone)]
enum Value {
    U8(u8),
    U16(u16),
    U32(u32),
    U64(u64),
    Name(CString),
    /// An expression that belongs to another one.
    Nested(Box<Expr>),
    /// Handed over to libnftnl, which frees it, as a copy made by `malloc`.
    Given(Vec<u8>),
}

/// One expression: its kernel name and attributes. Turned into a libnftnl object each time it is added to a rule.
#[derive(Debug, Clone)]
pub struct Expr {
    name: &'static CStr,
    attributes: Vec<(u16, Value)>,
}

impl Expr {
    /// Loads `length` bytes at `offset` from `base` into `into`, zero-padded to 4 bytes.
    pub fn payload(base: Base, offset: u32, length: u32, into: Register) -> Self {
        let base = match base {
            Base::Network => libc::NFT_PAYLOAD_NETWORK_HEADER,
            Base::Transport => libc::NFT_PAYLOAD_TRANSPORT_HEADER,
        };
        Self::new(c"payload")
            .u32(sys::NFTNL_EXPR_PAYLOAD_BASE, base.cast_unsigned())
            .u32(sys::NFTNL_EXPR_PAYLOAD_OFFSET, offset)
            .u32(sys::NFTNL_EXPR_PAYLOAD_LEN, length)
            .u32(sys::NFTNL_EXPR_PAYLOAD_DREG, into.0)
    }

    /// `jhash` of `length` bytes from `from`, scaled to `0..modulus`, into register 1.
    pub fn jhash(from: Register, length: u32, modulus: u32, seed: u32) -> Self {
        const NFT_HASH_JENKINS: u32 = 0;
        Self::new(c"hash")
            .u32(sys::NFTNL_EXPR_HASH_SREG, from.0)
            .u32(sys::NFTNL_EXPR_HASH_DREG, Register::R1.0)
            .u32(sys::NFTNL_EXPR_HASH_LEN, length)
            .u32(sys::NFTNL_EXPR_HASH_MODULUS, modulus)
            .u32(sys::NFTNL_EXPR_HASH_SEED, seed)
            .u32(sys::NFTNL_EXPR_HASH_OFFSET, 0)
            .u32(sys::NFTNL_EXPR_HASH_TYPE, NFT_HASH_JENKINS)
    }

    /// Swaps the number in register 1 from this machine's byte order to the network's.
    pub fn to_network_order() -> Self {
        const NFT_BYTEORDER_HTON: u32 = 1;
        Self::new(c"byteorder")
            .u32(sys::NFTNL_EXPR_BYTEORDER_SREG, Register::R1.0)
            .u32(sys::NFTNL_EXPR_BYTEORDER_DREG, Register::R1.0)
            .u32(sys::NFTNL_EXPR_BYTEORDER_OP, NFT_BYTEORDER_HTON)
            .u32(sys::NFTNL_EXPR_BYTEORDER_LEN, 4)
            .u32(sys::NFTNL_EXPR_BYTEORDER_SIZE, 4)
    }

    /// Ends the rule unless more than `packets` come in a second, of which `burst` may come at once.
    pub fn limit_over(packets: u32, burst: u32) -> Self {
        const NFT_LIMIT_PKTS: u32 = 0;
        const NFT_LIMIT_F_INV: u32 = 1;
        const ONE_SECOND: u64 = 1;
        Self::new(c"limit")
            .value(sys::NFTNL_EXPR_LIMIT_RATE, Value::U64(packets.into()))
            .value(sys::NFTNL_EXPR_LIMIT_UNIT, Value::U64(ONE_SECOND))
            .u32(sys::NFTNL_EXPR_LIMIT_BURST, burst)
            .u32(sys::NFTNL_EXPR_LIMIT_TYPE, NFT_LIMIT_PKTS)
            .u32(sys::NFTNL_EXPR_LIMIT_FLAGS, NFT_LIMIT_F_INV)
    }

    /// The route type of the destination address (`fib daddr type`) into register 1, as `RTN_*`.
    pub fn fib_daddr_type() -> Self {
        const NFT_FIB_RESULT_ADDRTYPE: u32 = 3;
        const NFTA_FIB_F_DADDR: u32 = 1 << 1;
        Self::new(c"fib")
            .u32(sys::NFTNL_EXPR_FIB_DREG, Register::R1.0)
            .u32(sys::NFTNL_EXPR_FIB_RESULT, NFT_FIB_RESULT_ADDRTYPE)
            .u32(sys::NFTNL_EXPR_FIB_FLAGS, NFTA_FIB_F_DADDR)
    }

    /// Duplicates the packet to the address in register 1, through the interface whose index is in register 2.
    pub fn dup() -> Self {
        Self::new(c"dup")
            .u32(sys::NFTNL_EXPR_DUP_SREG_ADDR, Register::R1.0)
            .u32(sys::NFTNL_EXPR_DUP_SREG_DEV, Register::R2.0)
    }

    /// Ends the rule if `set`, of the rule's table, has an element with the key that begins in register `key`.
    pub fn not_in(set: &CStr, key: Register) -> Self {
        Self::new(c"lookup")
            .u32(sys::NFTNL_EXPR_LOOKUP_SREG, key.0)
            .value(sys::NFTNL_EXPR_LOOKUP_SET, Value::Name(set.to_owned()))
            .u32(sys::NFTNL_EXPR_LOOKUP_FLAGS, libc::NFT_LOOKUP_F_INV as u32)
    }

    /// Adds the key that begins in register `key` to `set`, of the rule's table, or ends the rule if that fails. An
    /// element that is there is left as it is.
    pub fn set_add(set: &CStr, key: Register) -> Self {
        Self::dynset(set, key, libc::NFT_DYNSET_OP_ADD as u32)
    }

    /// Deletes the key that begins in register `key` from `set`, if it is there; the rule goes on either way
    /// (`NFT_DYNSET_OP_DELETE` of `linux/netfilter/nf_tables.h`, Linux 5.4).
    pub fn set_delete(set: &CStr, key: Register) -> Self {
        const NFT_DYNSET_OP_DELETE: u32 = 2;
        Self::dynset(set, key, NFT_DYNSET_OP_DELETE)
    }

    /// Counts in the element of `set` with the key that begins in register `key`, which is added if it is not there and
    /// lives on if it is, or ends the rule if that fails.
    pub fn set_count(set: &CStr, key: Register) -> Self {
        Self::dynset(set, key, libc::NFT_DYNSET_OP_UPDATE as u32)
            .value(sys::NFTNL_EXPR_DYNSET_EXPR, Value::Nested(Box::new(Self::new(c"counter"))))
    }

    /// Whether the packet has a fragment header of IPv6, as one byte in register 1.
    pub fn has_fragment_header() -> Self {
        const NFT_EXTHDR_F_PRESENT: u32 = 1;
        const IPPROTO_FRAGMENT: u8 = 44;
        Self::new(c"exthdr")
            .u32(sys::NFTNL_EXPR_EXTHDR_DREG, Register::R1.0)
            .value(sys::NFTNL_EXPR_EXTHDR_TYPE, Value::U8(IPPROTO_FRAGMENT))
            .u32(sys::NFTNL_EXPR_EXTHDR_OFFSET, 0)
            .u32(sys::NFTNL_EXPR_EXTHDR_LEN, 1)
            .u32(sys::NFTNL_EXPR_EXTHDR_FLAGS, NFT_EXTHDR_F_PRESENT)
    }

    fn dynset(set: &CStr, key: Register, operation: u32) -> Self {
        Self::new(c"dynset")
            .u32(sys::NFTNL_EXPR_DYNSET_SREG_KEY, key.0)
            .u32(sys::NFTNL_EXPR_DYNSET_OP, operation)
            .value(sys::NFTNL_EXPR_DYNSET_SET_NAME, Value::Name(set.to_owned()))
    }

    /// Keeps connection tracking from seeing the packet.
    pub fn notrack() -> Self {
        Self::new(c"notrack")
    }

    /// The native `queue num N`, without flags: no bypass, so a packet without a listener is dropped.
    pub fn queue(number: u16) -> Self {
        Self::new(c"queue").u16(sys::NFTNL_EXPR_QUEUE_NUM, number).u16(sys::NFTNL_EXPR_QUEUE_TOTAL, 1)
    }

    /// The same as [`Expr::queue`], as the xtables target `NFQUEUE` revision 3 through `nft_compat`.
    pub fn nfqueue_target(number: u16) -> Self {
        // struct xt_NFQ_info_v3 { u16 queuenum, queues_total, flags }, padded to XT_ALIGN (8).
        let queues_total = 1_u16;
        let flags = 0_u16;
        let mut info = Vec::with_capacity(8);
        info.extend_from_slice(&number.to_ne_bytes());
        info.extend_from_slice(&queues_total.to_ne_bytes());
        info.extend_from_slice(&flags.to_ne_bytes());
        info.extend_from_slice(&[0, 0]);
        Self::new(c"target")
            .value(sys::NFTNL_EXPR_TG_NAME, Value::Name(c"NFQUEUE".to_owned()))
            .u32(sys::NFTNL_EXPR_TG_REV, 3)
            .value(sys::NFTNL_EXPR_TG_INFO, Value::Given(info))
    }

    fn new(name: &'static CStr) -> Self {
        Self { name, attributes: Vec::new() }
    }

    fn u16(self, attribute: u32, value: u16) -> Self {
        self.value(attribute, Value::U16(value))
    }

    fn u32(self, attribute: u32, value: u32) -> Self {
        self.value(attribute, Value::U32(value))
    }

    fn value(mut self, attribute: u32, value: Value) -> Self {
        // Attribute numbers are small constants of libnftnl/expr.h; its functions take them as u16.
        let attribute = u16::try_from(attribute).expect("libnftnl numbers attributes from 0 to about 10");
        self.attributes.push((attribute, value));
        self
    }
}

impl Expression for Expr {
    fn to_expr(&self, _rule: &Rule<'_>) -> NonNull<sys::nftnl_expr> {
        self.allocate()
    }
}

impl Expr {
    fn allocate(&self) -> NonNull<sys::nftnl_expr> {
        // SAFETY: the name is a NUL-terminated static string; libnftnl only reads it.
        let expr = non_null(unsafe { sys::nftnl_expr_alloc(self.name.as_ptr()) });
        for (attribute, value) in &self.attributes {
            // SAFETY: `expr` was just allocated for `self.name`, and the constructors above pair each of that
            // expression's attributes with the type libnftnl copies for it.
            unsafe { set(expr, *attribute, value) };
        }
        expr
    }
}

/// Sets one attribute.
///
/// # Safety
///
/// `expr` is a live expression, and `value` has the type that libnftnl expects for `attribute` of it.
unsafe fn set(expr: NonNull<sys::nftnl_expr>, attribute: u16, value: &Value) {
    let expr = expr.as_ptr();
    match value {
        // SAFETY: by this function's contract.
        Value::U8(value) => unsafe { sys::nftnl_expr_set_u8(expr, attribute, *value) },
        // SAFETY: by this function's contract.
        Value::U16(value) => unsafe { sys::nftnl_expr_set_u16(expr, attribute, *value) },
        // SAFETY: by this function's contract.
        Value::U64(value) => unsafe { sys::nftnl_expr_set_u64(expr, attribute, *value) },
        // SAFETY: by this function's contract.
        Value::U32(value) => unsafe { sys::nftnl_expr_set_u32(expr, attribute, *value) },
        Value::Name(name) => {
            // SAFETY: by this function's contract; the string is NUL-terminated and copied.
            let result = unsafe { sys::nftnl_expr_set_str(expr, attribute, name.as_ptr()) };
            assert!(result == 0, "libnftnl has no memory for a name");
        }
        Value::Nested(inner) => {
            // SAFETY: by this function's contract; libnftnl keeps the expression, which nothing else refers to, and frees
            // it with the outer one. It looks at the pointer only, whatever the length.
            let result = unsafe { sys::nftnl_expr_set(expr, attribute, inner.allocate().as_ptr().cast(), 0) };
            assert!(result == 0, "libnftnl refuses an expression in another one");
        }
        Value::Given(bytes) => {
            // SAFETY: malloc has no preconditions; the result is checked, holds `bytes.len()` bytes and overlaps
            // nothing. libnftnl keeps this pointer and frees it with the expression, so it is not freed here.
            let result = unsafe {
                let copy = non_null(libc::malloc(bytes.len())).as_ptr();
                std::ptr::copy_nonoverlapping(bytes.as_ptr(), copy.cast::<u8>(), bytes.len());
                let length = u32::try_from(bytes.len()).expect("a target's data is 8 bytes");
                sys::nftnl_expr_set(expr, attribute, copy, length)
            };
            assert!(result == 0, "libnftnl refuses a target's data");
        }
    }
}

/// The pointer, if the allocation worked; a process that cannot have a few bytes ends, as in the standard library.
fn non_null<T>(pointer: *mut T) -> NonNull<T> {
    NonNull::new(pointer).unwrap_or_else(|| std::process::abort())
}
