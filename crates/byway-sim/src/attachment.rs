//! What hosts and NATs have in common: a place in the tree, a link to what lies above, and a switch.

/// Gives a handle (`shared`, `id`) the methods that do not ask whether it stands for a host or a NAT.
macro_rules! attachment {
    ($handle:ty) => {
        impl $handle {
            /// Its name in this world's rules.
            pub fn id(&self) -> $crate::NodeId {
                self.id
            }

            /// Replaces its link, both directions; packets under way keep to the old one.
            pub fn set_link(&self, link: $crate::Link) {
                self.edit_link(|old| *old = link.clone());
            }

            /// Changes its link, both directions. What lies behind a NAT passes the NAT's link besides its own.
            pub fn edit_link(&self, mut edit: impl FnMut(&mut $crate::Link)) {
                self.edit_uplink(&mut edit);
                self.edit_downlink(&mut edit);
            }

            /// Changes the direction towards the core.
            pub fn edit_uplink(&self, mut edit: impl FnMut(&mut $crate::Link)) {
                self.shared.enter(|fabric, _| edit(&mut fabric.topology.node_mut(self.id).up.link));
            }

            /// Changes the direction away from the core.
            pub fn edit_downlink(&self, mut edit: impl FnMut(&mut $crate::Link)) {
                self.shared.enter(|fabric, _| edit(&mut fabric.topology.node_mut(self.id).down.link));
            }

            /// Switches it off: what it sends, gets or would pass on is dropped in silence. A host's tasks go on, and
            /// hosts behind a NAT still reach each other.
            pub fn set_down(&self) {
                self.shared.enter(|fabric, _| fabric.topology.node_mut(self.id).off = true);
            }

            /// Switches it on again; a NAT has the mappings that it had.
            pub fn set_up(&self) {
                self.shared.enter(|fabric, _| fabric.topology.node_mut(self.id).off = false);
            }
        }
    };
}

pub(crate) use attachment;
