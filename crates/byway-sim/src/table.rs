//! The project's own measurements, as `byway-sim` prints them: each is a scenario and the row it makes.

pub mod failover;
pub mod matrix;
pub mod scale;
pub mod soak;
pub mod wan;
