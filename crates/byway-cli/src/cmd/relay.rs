//! `byway relay`: relay for others.

use super::Shell;
use crate::{
    args::RelayArgs,
    config::Settings,
    control::{Needs, Request},
    failure::Failure,
    session::{self, Session},
};

/// Relays until it is stopped; its clients then have some seconds to find another relay.
pub(super) async fn run(mut shell: Shell, args: &RelayArgs) -> Result<(), Failure> {
    let dir = session::data_dir(&shell.global)?;
    let settings = Settings::relaying(&session::config(&shell.global)?, args.listen).metrics_at(args.up.metrics);
    let session = Session::open(&dir, "relay", &settings, Needs::default()).await?;
    shell.follow(session, &Request::Watch).await.map(drop)
}
