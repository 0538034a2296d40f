//! The machine's reasons in the words of the public face.

use byway_proto::{
    PeerId,
    switch::{Close, NotDialing},
};

use crate::{dial::DialError, gone::Gone};

pub(super) fn gone(why: Close) -> Gone {
    match why {
        Close::Stopped => Gone::Closed,
        Close::Banned => Gone::Banned,
        Close::Full => Gone::Full,
        Close::Filtered(why) => Gone::Filtered(why),
        Close::FilterTimeout => Gone::Filtered("the filter did not answer in time; try again".into()),
        Close::Duplicate => Gone::Duplicate,
        Close::Replaced => Gone::Replaced,
        Close::Restarted => Gone::Restarted,
        Close::Itself => Gone::SelfDial,
        Close::Felt => Gone::Felt,
        _ => Gone::Disconnected,
    }
}

pub(super) fn not_dialled(peer: PeerId, why: NotDialing) -> DialError {
    match why {
        NotDialing::Itself => DialError::SelfDial,
        NotDialing::Stopped => DialError::Closed,
        NotDialing::Banned { .. } => DialError::Banned(peer),
        _ => DialError::Full(peer),
    }
}
