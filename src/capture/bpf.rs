//! Classic BPF: its operations, and programs under construction. Pure code.

use crate::sys::packet::Instruction;

// Operations of include/uapi/linux/bpf_common.h that are used here; `X` are relative to the register X, `K` constant.
pub(super) const LOAD_WORD: u16 = 0x20;
pub(super) const LOAD_HALF: u16 = 0x28;
pub(super) const LOAD_BYTE: u16 = 0x30;
pub(super) const LOAD_HALF_X: u16 = 0x48;
pub(super) const LOAD_BYTE_X: u16 = 0x50;
pub(super) const LOAD_KEPT: u16 = 0x60;
pub(super) const KEEP: u16 = 0x02;
pub(super) const KEEP_X: u16 = 0x03;
pub(super) const SET: u16 = 0x00;
pub(super) const SET_X: u16 = 0x01;
pub(super) const LOAD_X_KEPT: u16 = 0x61;
/// X becomes the length of the IPv4 header at an offset.
pub(super) const LOAD_X_IP_HEADER_LEN: u16 = 0xb1;
pub(super) const TO_X: u16 = 0x07;
pub(super) const ADD: u16 = 0x04;
pub(super) const ADD_X: u16 = 0x0c;
pub(super) const SUB_X: u16 = 0x1c;
pub(super) const MUL: u16 = 0x24;
pub(super) const OR_X: u16 = 0x4c;
pub(super) const AND: u16 = 0x54;
pub(super) const SHIFT_LEFT: u16 = 0x64;
pub(super) const SHIFT_RIGHT: u16 = 0x74;
pub(super) const XOR_X: u16 = 0xac;
/// Skips as many instructions as `k` says.
pub(super) const GO: u16 = 0x05;
pub(super) const IF_EQUAL: u16 = 0x15;
pub(super) const IF_AT_LEAST: u16 = 0x35;
pub(super) const IF_EQUAL_X: u16 = 0x1d;
pub(super) const IF_ANY_BIT: u16 = 0x45;
pub(super) const RETURN: u16 = 0x06;
pub(super) const RETURN_A: u16 = 0x16;

/// `BPF_MAXINSNS`.
const MOST: usize = 4096;

/// Where the port is kept that [`Program::jhash`] takes; 0 to 3 hold the address.
pub(super) const PORT: u32 = 6;
/// Where `a`, `b` and `c` of the hash are kept.
const A: u32 = 8;
const B: u32 = 9;
const C: u32 = 10;
/// Scratch.
pub(super) const T: u32 = 11;

/// A program under construction: instructions with one register A, one register X, and 16 kept words.
#[derive(Debug, Default)]
pub(super) struct Program(Vec<Instruction>);

impl Program {
    /// All of it; `None` if it is too long.
    pub(super) fn finish(self) -> Option<Vec<Instruction>> {
        (self.0.len() <= MOST).then_some(self.0)
    }

    pub(super) fn step(&mut self, code: u16, k: u32) {
        self.0.push(Instruction { code, jt: 0, jf: 0, k });
    }

    pub(super) fn branch(&mut self, code: u16, k: u32, jt: u8, jf: u8) {
        self.0.push(Instruction { code, jt, jf, k });
    }

    /// Ends with 0 unless it holds.
    pub(super) fn require(&mut self, code: u16, k: u32) {
        self.branch(code, k, 1, 0);
        self.step(RETURN, 0);
    }

    /// Ends with 0 if it holds.
    pub(super) fn refuse(&mut self, code: u16, k: u32) {
        self.branch(code, k, 0, 1);
        self.step(RETURN, 0);
    }

    /// Keeps A's lower `bytes` bytes in `place`, in the order in which they lie in the packet.
    pub(super) fn swap(&mut self, bytes: u32, place: u32) {
        if cfg!(target_endian = "big") {
            self.step(SHIFT_LEFT, 32 - 8 * bytes);
            self.step(KEEP, place);
            return;
        }
        self.step(KEEP, T);
        self.step(SET, 0);
        self.step(KEEP, place);
        for byte in 0..bytes {
            self.step(LOAD_KEPT, T);
            self.step(SHIFT_RIGHT, 8 * byte);
            self.step(AND, 0xff);
            self.step(SHIFT_LEFT, 8 * (bytes - 1 - byte));
            self.step(LOAD_X_KEPT, place);
            self.step(OR_X, 0);
            self.step(KEEP, place);
        }
    }

    /// A becomes the hash of the first `address` kept words and the port: see `wire::flow`.
    pub(super) fn jhash(&mut self, address: u32, seed: u32) {
        let start = 0xdead_beef_u32.wrapping_add(4 * (address + 1)).wrapping_add(seed);
        for place in [A, B, C] {
            self.step(SET, start);
            self.step(KEEP, place);
        }
        if address == 1 {
            self.add(A, 0);
            self.add(B, PORT);
        } else {
            self.add(A, 0);
            self.add(B, 1);
            self.add(C, 2);
            for (x, y, z, by) in
                [(A, C, B, 4), (B, A, C, 6), (C, B, A, 8), (A, C, B, 16), (B, A, C, 19), (C, B, A, 4)]
            {
                // x -= y; x ^= rotated(y); y += z
                self.combine(x, y, SUB_X);
                self.rotated(y, by);
                self.combine(x, T, XOR_X);
                self.add(y, z);
            }
            self.add(A, 3);
            self.add(B, PORT);
        }
        for (x, y, by) in [(C, B, 14), (A, C, 11), (B, A, 25), (C, B, 16), (A, C, 4), (B, A, 14), (C, B, 24)]
        {
            self.combine(x, y, XOR_X);
            self.rotated(y, by);
            self.combine(x, T, SUB_X);
        }
    }

    fn add(&mut self, x: u32, y: u32) {
        self.combine(x, y, ADD_X);
    }

    /// The word kept at `x` becomes what the operation makes of it and that at `y`, and A with it.
    fn combine(&mut self, x: u32, y: u32, operation: u16) {
        self.step(LOAD_X_KEPT, y);
        self.step(LOAD_KEPT, x);
        self.step(operation, 0);
        self.step(KEEP, x);
    }

    /// T becomes the word kept at `y`, rotated left.
    fn rotated(&mut self, y: u32, by: u32) {
        self.step(LOAD_KEPT, y);
        self.step(SHIFT_LEFT, by);
        self.step(TO_X, 0);
        self.step(LOAD_KEPT, y);
        self.step(SHIFT_RIGHT, 32 - by);
        self.step(OR_X, 0);
        self.step(KEEP, T);
    }

    /// A becomes A × `parts` ÷ 2³², in two halves: there are 32 bits only.
    pub(super) fn scale(&mut self, parts: u16) {
        self.step(KEEP, C);
        self.step(AND, 0xffff);
        self.step(MUL, parts.into());
        self.step(SHIFT_RIGHT, 16);
        self.step(TO_X, 0);
        self.step(LOAD_KEPT, C);
        self.step(SHIFT_RIGHT, 16);
        self.step(MUL, parts.into());
        self.step(ADD_X, 0);
        self.step(SHIFT_RIGHT, 16);
    }
}
