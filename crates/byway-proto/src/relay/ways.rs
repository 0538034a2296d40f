//! By which relays two connected peers reach each other.

use alloc::vec::Vec;

use super::homes::WARM;
use crate::id::PeerId;

/// Who opens the allocation at a relay.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Opener {
    /// This side, registering there first if it is not.
    Us,
    /// The other side; this one waits for it.
    Them,
}

/// The relays of a link, at most [`WARM`], and who opens each: one pure function of what both sides know, so that they agree.
///
/// `ours` and `theirs` are the relays at which the two are registered and that are not known to be dead, in the order of
/// choice; `dialled` says that this side dialled. Relays that both use come first, for nobody has to register anywhere;
/// then those of the side that was dialled, as its ticket had it; then those of the dialling side, by which the two still
/// meet if the others die. Whoever is not registered at a relay goes there and opens.
pub fn ways(ours: &[PeerId], theirs: &[PeerId], dialled: bool) -> Vec<(PeerId, Opener)> {
    let (dialling, accepting) = if dialled { (ours, theirs) } else { (theirs, ours) };
    let common = accepting.iter().filter(|relay| dialling.contains(relay));
    let others = accepting.iter().filter(|relay| !dialling.contains(relay));
    let last = dialling.iter().filter(|relay| !accepting.contains(relay));
    let opener = |relay: &PeerId| match (ours.contains(relay), theirs.contains(relay)) {
        (true, true) if dialled => Opener::Us,
        (false, _) => Opener::Us,
        (true, _) => Opener::Them,
    };
    common.chain(others).chain(last).take(WARM).map(|relay| (*relay, opener(relay))).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn relay(n: u8) -> PeerId {
        PeerId::ed25519([n; 32])
    }

    #[test]
    fn relays_that_both_use_come_first_and_the_dialling_side_opens_them() {
        let (ours, theirs) = ([relay(1), relay(2)], [relay(3), relay(2)]);
        assert_eq!(ways(&ours, &theirs, true), [(relay(2), Opener::Us), (relay(3), Opener::Us)]);
        assert_eq!(ways(&theirs, &ours, false), [(relay(2), Opener::Them), (relay(3), Opener::Them)]);
    }

    #[test]
    fn when_the_relays_of_one_side_are_dead_the_other_sides_are_left() {
        let theirs = [relay(1), relay(2)];
        assert_eq!(ways(&[], &theirs, false), [(relay(1), Opener::Us), (relay(2), Opener::Us)]);
        assert_eq!(ways(&theirs, &[], true), [(relay(1), Opener::Them), (relay(2), Opener::Them)]);
    }

    proptest! {
        #[test]
        fn both_sides_choose_the_same_relays_and_one_of_them_opens(
            a in prop::collection::btree_set(0u8..6, 0..4), b in prop::collection::btree_set(0u8..6, 0..4),
        ) {
            let (a, b): (Vec<_>, Vec<_>) = (a.into_iter().map(relay).collect(), b.into_iter().map(relay).collect());
            let (here, there) = (ways(&a, &b, true), ways(&b, &a, false));
            let union = a.iter().filter(|relay| !b.contains(relay)).count() + b.len();
            prop_assert_eq!(here.len(), union.min(WARM));
            for ((relay, opener), (same, other)) in here.iter().zip(&there) {
                prop_assert_eq!(relay, same);
                prop_assert_ne!(opener, other);
            }
        }
    }
}
