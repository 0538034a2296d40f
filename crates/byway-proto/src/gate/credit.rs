//! The three-times rule of RFC 9000 §8.1 for one unproven route.

/// How much may be sent to an address that has not shown that it receives: three times what came from it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Credit {
    received: u64,
    sent: u64,
}

impl Credit {
    /// The factor of RFC 9000 §8.1.
    pub const FACTOR: u64 = 3;

    /// Counts a datagram of `n` bytes (UDP payload) from the address.
    pub fn received(&mut self, n: usize) {
        self.received = self.received.saturating_add(n as u64);
    }

    /// Whether `n` bytes (UDP payload) may be sent; if so, they count as sent.
    pub fn may_send(&mut self, n: usize) -> bool {
        let fits = n as u64 <= self.left();
        if fits {
            self.sent += n as u64;
        }
        fits
    }

    /// Bytes that may still be sent.
    pub fn left(&self) -> u64 {
        self.received.saturating_mul(Self::FACTOR).saturating_sub(self.sent)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn nothing_may_be_sent_before_something_came() {
        let mut credit = Credit::default();
        assert!(!credit.may_send(1));
        credit.received(1_200);
        assert!(credit.may_send(3_600));
        assert!(!credit.may_send(1));
    }

    proptest! {
        #[test]
        fn never_more_than_three_times(steps in prop::collection::vec((any::<bool>(), 0usize..5_000), 0..200)) {
            let mut credit = Credit::default();
            let (mut came, mut went) = (0, 0);
            for (inbound, n) in steps {
                if inbound {
                    credit.received(n);
                    came += n;
                } else if credit.may_send(n) {
                    went += n;
                }
                prop_assert!(went <= 3 * came);
            }
        }

        #[test]
        fn no_size_panics(a: usize, b: usize, c: usize) {
            let mut credit = Credit::default();
            credit.received(a);
            credit.may_send(b);
            credit.received(c);
            credit.may_send(c);
        }
    }
}
