//! The messages of peer exchange: one protobuf message each, on a channel of their own.

use alloc::vec::Vec;

use prost::Message as _;

use crate::{
    PeerId,
    book::{Contact, ContactRow, MAX_TELL},
};

/// Bytes of one message: [`MAX_TELL`] peers with four addresses and two relays each take about 20 KiB.
pub const MAX_PEX_MESSAGE: usize = 32 * 1_024;

/// What peers say to each other about peers.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Message {
    /// Where the sender is to be found.
    Own(Contact),
    /// Whom do you know?
    Ask,
    /// These, at most [`MAX_TELL`].
    Tell(Vec<Contact>),
}

/// What no correct peer sends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PexFault {
    /// A message is longer than [`MAX_PEX_MESSAGE`].
    #[error("a message of peer exchange is longer than {MAX_PEX_MESSAGE} bytes")]
    TooLong,
    /// The bytes are no message.
    #[error("a message of peer exchange is garbled")]
    Garbled,
    /// A message names more than [`MAX_TELL`] peers.
    #[error("a message of peer exchange names more than {MAX_TELL} peers")]
    TooMany,
}

impl Message {
    /// The message's bytes; of a list that is too long the first [`MAX_TELL`] peers, and fewer if they do not fit.
    pub fn to_bytes(&self) -> Vec<u8> {
        let body = match self {
            Message::Own(contact) => Body::Own(ContactRow::from(contact)),
            Message::Ask => Body::Ask(Empty {}),
            Message::Tell(contacts) => {
                let mut list = List { peers: contacts.iter().take(MAX_TELL).map(Named::from).collect() };
                while list.encoded_len() > MAX_PEX_MESSAGE - FRAME {
                    list.peers.pop();
                }
                Body::Tell(list)
            }
        };
        Frame { body: Some(body) }.encode_to_vec()
    }

    /// Reads a message of `peer`; `None` if it is of a kind that this version does not know.
    pub fn from_bytes(bytes: &[u8], peer: PeerId) -> Result<Option<Self>, PexFault> {
        if bytes.len() > MAX_PEX_MESSAGE {
            return Err(PexFault::TooLong);
        }
        let frame = Frame::decode(bytes).map_err(|_| PexFault::Garbled)?;
        Ok(match frame.body {
            None => None,
            Some(Body::Own(row)) => Some(Message::Own(row.read(peer).ok_or(PexFault::Garbled)?)),
            Some(Body::Ask(Empty {})) => Some(Message::Ask),
            Some(Body::Tell(list)) if list.peers.len() > MAX_TELL => return Err(PexFault::TooMany),
            Some(Body::Tell(list)) => {
                let contacts = list.peers.iter().map(Named::read).collect::<Option<_>>();
                Some(Message::Tell(contacts.ok_or(PexFault::Garbled)?))
            }
        })
    }
}

/// The tag and the length of a list.
const FRAME: usize = 8;

#[derive(Clone, PartialEq, prost::Message)]
struct Frame {
    #[prost(oneof = "Body", tags = "1, 2, 3")]
    body: Option<Body>,
}

#[derive(Clone, PartialEq, prost::Oneof)]
enum Body {
    #[prost(message, tag = "1")]
    Own(ContactRow),
    #[prost(message, tag = "2")]
    Ask(Empty),
    #[prost(message, tag = "3")]
    Tell(List),
}

#[derive(Clone, Copy, PartialEq, prost::Message)]
struct Empty {}

#[derive(Clone, PartialEq, prost::Message)]
struct List {
    #[prost(message, repeated, tag = "1")]
    peers: Vec<Named>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Named {
    #[prost(bytes = "vec", tag = "1")]
    peer: Vec<u8>,
    #[prost(message, optional, tag = "2")]
    contact: Option<ContactRow>,
}

impl From<&Contact> for Named {
    fn from(contact: &Contact) -> Self {
        Named { peer: contact.peer.to_wire().to_vec(), contact: Some(ContactRow::from(contact)) }
    }
}

impl Named {
    fn read(&self) -> Option<Contact> {
        let peer = PeerId::from_wire(&self.peer)?;
        self.contact.clone().unwrap_or_default().read(peer)
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// A list of as many peers as one likes.
    pub(in super::super) fn forge(peers: usize) -> Vec<u8> {
        let named = Named { peer: PeerId::ed25519([1; 32]).to_wire().to_vec(), contact: None };
        Frame { body: Some(Body::Tell(List { peers: alloc::vec![named; peers] })) }.encode_to_vec()
    }
}
