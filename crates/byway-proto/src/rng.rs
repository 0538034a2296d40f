//! Seeded randomness that an outsider cannot predict: BLAKE3 in extendable-output mode.

use core::fmt;

/// What BLAKE3 makes at once.
const BLOCK: usize = blake3::BLOCK_LEN;

/// A cryptographic generator; the same seed gives the same numbers.
pub struct Rng {
    output: blake3::OutputReader,
    block: [u8; BLOCK],
    /// Bytes at the end of `block` that nobody has got yet.
    left: usize,
}

impl Rng {
    /// A generator for one purpose: `purpose` keeps the streams of one seed apart.
    pub fn new(seed: &[u8; 32], purpose: &str) -> Self {
        let output = blake3::Hasher::new_keyed(seed).update(purpose.as_bytes()).finalize_xof();
        Rng { output, block: [0; BLOCK], left: 0 }
    }

    /// Fills `out` with random bytes.
    pub fn fill(&mut self, mut out: &mut [u8]) {
        while !out.is_empty() {
            if self.left == 0 {
                self.output.fill(&mut self.block);
                self.left = BLOCK;
            }
            let (_, rest) = self.block.split_at(BLOCK - self.left);
            let len = out.len().min(rest.len());
            let (now, later) = out.split_at_mut(len);
            now.copy_from_slice(rest.split_at(len).0);
            self.left -= len;
            out = later;
        }
    }

    /// Random bytes of a fixed length.
    pub fn bytes<const N: usize>(&mut self) -> [u8; N] {
        let mut out = [0; N];
        self.fill(&mut out);
        out
    }

    /// A random number over the whole range.
    pub fn next_u64(&mut self) -> u64 {
        u64::from_le_bytes(self.bytes())
    }

    /// A random number in `0..bound`, or 0 if `bound` is 0; its bias is below 2⁻³² for bounds below 2³².
    pub fn below(&mut self, bound: u64) -> u64 {
        ((u128::from(self.next_u64()) * u128::from(bound)) >> 64) as u64
    }
}

impl fmt::Debug for Rng {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Rng(..)") // the state would tell what comes next
    }
}

#[cfg(test)]
mod tests {
    use alloc::vec::Vec;

    use super::*;

    #[test]
    fn however_much_is_drawn_at_once_the_bytes_are_the_same() {
        let mut whole = [0; 1_000];
        blake3::Hasher::new_keyed(&[7; 32]).update(b"test").finalize_xof().fill(&mut whole);
        let mut rng = Rng::new(&[7; 32], "test");
        let mut drawn = Vec::new();
        for len in [1, 8, 54, 2, 0, 64, 63, 200, 8, 600] {
            let from = drawn.len();
            drawn.resize(from + len, 0);
            rng.fill(&mut drawn[from..]);
        }
        assert_eq!(drawn, whole);
    }
}
