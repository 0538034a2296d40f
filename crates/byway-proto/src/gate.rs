//! (stub to be replaced)
