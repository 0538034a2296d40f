//! `byway ping`: how long the way to a peer is.

use super::{Followed, Shell, interrupted};
use crate::{args::PingArgs, control::Request, failure::Failure};

/// Pings a peer.
pub(super) async fn run(mut shell: Shell, args: PingArgs) -> Result<(), Failure> {
    let to = args.to.parse().map_err(Failure::usage)?;
    let session = shell.open("ping", &args.servers).await?;
    match shell.follow(session, &Request::Ping { to, count: args.count }).await? {
        Followed::Done => Ok(()),
        Followed::Stopped => Err(interrupted()),
    }
}
