//! What stands between this node and its peers, and how to get through it.
//!
//! A **survey** asks servers in the core how the NATs on the way out behave; each side tells the other what it found
//! ([`NatReport`]); one pure function of both reports (`punch::plan`) says how to get through, and the agent carries that out
//! within hard budgets. What works enters the peer's route machine ([`crate::paths`]); nothing here carries a user's byte.

mod event;
mod report;

pub use event::{Input, LinkId, MAX_GUESSES, Output, Signal, SocketId};
pub use report::{FamilyReport, Filtering, Mapping, NatReport, Ports};
