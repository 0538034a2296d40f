//! What stands between this node and its peers, and how to get through it.
//!
//! A **survey** asks servers in the core how the NATs on the way out behave; each side tells the other what it found
//! ([`NatReport`]); one pure function of both reports ([`plan`]) says how to get through, and the agent carries that out
//! within hard budgets. What works enters the peer's route machine ([`crate::paths`]); nothing here carries a user's byte. Ports that the
//! gateway forwards by itself are [`portmap`]'s, which needs none of that.

mod agent;
mod ages;
mod budget;
pub mod candidates;
mod event;
mod explain;
mod memory;
mod observed;
pub mod portmap;
mod punch;
mod report;
mod session;
mod survey;
mod turns;

pub use agent::{Agent, AgentConfig, AgentConfigError, BudgetConfig, ChallengeConfig, MAX_LINKS, ScanConfig};
pub use budget::Counters;
pub use event::{Input, LinkId, MAX_GUESSES, Output, Signal, SocketId, SocketIds};
pub use explain::{Attempt, Explanation, Means, Outcome, Remedy};
pub use punch::{Obstacle, Plan, Side, plan};
pub use report::{FamilyReport, Filtering, Mapping, NatReport, Ports};
pub use survey::Survey;
