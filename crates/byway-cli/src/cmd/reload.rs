//! `byway reload`: have the running node read its configuration again.

use super::{Followed, Shell, interrupted};
use crate::{
    control::{Request, event::Reloaded},
    failure::Failure,
    session::{self, Session},
};

/// Prints what has changed; it needs a node that runs.
pub(super) async fn run(mut shell: Shell) -> Result<(), Failure> {
    let dir = session::data_dir(&shell.global)?;
    let session = Session::attach(&dir, "reload").await?;
    match shell.follow(session, &Request::Reload).await? {
        Followed::Done => Ok(()),
        Followed::Stopped => Err(interrupted()),
    }
}

/// What has changed, one key a line.
pub(crate) fn describe(Reloaded { changed, restart }: &Reloaded) -> String {
    let mut lines: Vec<_> = changed.iter().map(|change| format!("{}: {}", change.key, change.what)).collect();
    if !restart.is_empty() {
        lines.push(format!("with the next start only: {}", restart.join(", ")));
    }
    if lines.is_empty() { "nothing has changed".into() } else { lines.join("\n") }
}
