//! The slots, and who holds them: links, dials under way, and strangers that were let in a moment ago.

use alloc::collections::BTreeMap;

use super::SwitchConfig;
use crate::book::Group;

/// Who wanted a link.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Class {
    /// It is one of the persistent or unconditional peers.
    Reserved,
    /// The program dialled it.
    Asked,
    /// It was dialled out of the book.
    Chosen,
    /// It came by itself.
    Inbound,
}

/// One slot, taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Seat {
    pub(super) class: Class,
    pub(super) group: Group,
}

#[derive(Debug)]
pub(super) struct Seats {
    max_general: usize,
    max_chosen: usize,
    max_inbound: usize,
    chosen_per_group: usize,
    inbound_per_group: usize,
    /// How many seats are taken by class.
    taken: BTreeMap<Class, usize>,
    /// How many by class and group, private addresses not counted.
    of_groups: BTreeMap<(Class, Group), usize>,
}

impl Seats {
    pub(super) fn new(config: &SwitchConfig) -> Self {
        Seats {
            max_general: config.max_general(),
            max_chosen: config.max_chosen(),
            max_inbound: config.max_inbound(),
            chosen_per_group: config.chosen_per_group,
            inbound_per_group: config.max_inbound_of_group(),
            taken: BTreeMap::new(),
            of_groups: BTreeMap::new(),
        }
    }

    pub(super) fn taken(&self, class: Class) -> usize {
        self.taken.get(&class).copied().unwrap_or_default()
    }

    /// Whether a group of addresses has as many peers of this class as it may.
    pub(super) fn is_group_full(&self, class: Class, group: Group) -> bool {
        let limit = match class {
            Class::Reserved | Class::Asked => return false,
            Class::Chosen => self.chosen_per_group,
            Class::Inbound => self.inbound_per_group,
        };
        group != Group::LOCAL && self.of_groups.get(&(class, group)).is_some_and(|count| *count >= limit)
    }

    pub(super) fn has_room(&self, class: Class) -> bool {
        let general = self.taken(Class::Asked) + self.taken(Class::Chosen) + self.taken(Class::Inbound);
        let own = match class {
            Class::Reserved => return true, // as many as there are such peers, which the configuration bounds
            Class::Asked => true,
            Class::Chosen => self.taken(class) < self.max_chosen,
            Class::Inbound => self.taken(class) < self.max_inbound,
        };
        own && general < self.max_general
    }

    /// Takes a seat if there is one.
    pub(super) fn take(&mut self, seat: Seat) -> bool {
        let fits = self.has_room(seat.class) && !self.is_group_full(seat.class, seat.group);
        if fits {
            self.force(seat);
        }
        fits
    }

    /// Takes a seat in the place of one that was just freed, whatever its group.
    pub(super) fn force(&mut self, seat: Seat) {
        *self.taken.entry(seat.class).or_default() += 1;
        *self.of_groups.entry((seat.class, seat.group)).or_default() += 1;
    }

    pub(super) fn free(&mut self, seat: Option<Seat>) {
        let Some(seat) = seat else { return };
        if let Some(count) = self.taken.get_mut(&seat.class) {
            *count = count.saturating_sub(1);
        }
        let of_group = (seat.class, seat.group);
        if let Some(count) = self.of_groups.get_mut(&of_group) {
            *count = count.saturating_sub(1);
            if *count == 0 {
                self.of_groups.remove(&of_group);
            }
        }
    }
}
