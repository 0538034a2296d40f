//! Seeded randomness that an outsider cannot predict: BLAKE3 in extendable-output mode.

use core::fmt;

/// A cryptographic generator; the same seed gives the same numbers.
pub struct Rng(blake3::OutputReader);

impl Rng {
    /// A generator for one purpose: `purpose` keeps the streams of one seed apart.
    pub fn new(seed: &[u8; 32], purpose: &str) -> Self {
        Rng(blake3::Hasher::new_keyed(seed).update(purpose.as_bytes()).finalize_xof())
    }

    /// Fills `out` with random bytes.
    pub fn fill(&mut self, out: &mut [u8]) {
        self.0.fill(out);
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
