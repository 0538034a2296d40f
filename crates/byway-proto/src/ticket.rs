//! (stub to be replaced)
/// What one machine gives another so that it can be reached.
pub struct Ticket;
