//! The largest value of the last rounds.

/// Rounds that are remembered: the cycle of probes has eight phases of one round trip, so that the best of them is never
/// forgotten before the next one.
const ROUNDS: usize = 10;

/// The maximum over the rounds in which something was measured: those without a value forget none.
#[derive(Debug, Clone, Default)]
pub(super) struct MaxFilter {
    /// The largest value of each round; 0 where there is none yet.
    best: [f64; ROUNDS],
    at: usize,
}

impl MaxFilter {
    /// Takes a value of the present round in.
    pub(super) fn update(&mut self, value: f64) {
        if let Some(best) = self.best.get_mut(self.at) {
            *best = best.max(value);
        }
    }

    /// Begins a new round, if the present one has a value.
    pub(super) fn end_round(&mut self) {
        if self.best.get(self.at).is_some_and(|best| *best > 0.0) {
            self.at = (self.at + 1) % ROUNDS;
            if let Some(oldest) = self.best.get_mut(self.at) {
                *oldest = 0.0;
            }
        }
    }

    /// A filter that knows nothing but `value`.
    pub(super) fn of(value: f64) -> Self {
        let mut filter = MaxFilter::default();
        filter.update(value);
        filter
    }

    /// The largest value of the present round and the last one.
    pub(super) fn latest(&self) -> f64 {
        let of = |at: usize| self.best.get(at % ROUNDS).copied().unwrap_or(0.0);
        of(self.at).max(of(self.at + ROUNDS - 1))
    }

    /// The largest value; 0 if there is none.
    pub(super) fn max(&self) -> f64 {
        self.best.iter().copied().fold(0.0, f64::max)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_lasts_ten_measured_rounds_however_many_were_silent() {
        let mut filter = MaxFilter::default();
        filter.update(9.0);
        (0..100).for_each(|_| filter.end_round());
        for _ in 0..ROUNDS - 1 {
            filter.update(1.0);
            assert_eq!(filter.max(), 9.0);
            filter.end_round();
        }
        filter.update(1.0);
        assert_eq!(filter.max(), 1.0);
    }
}
