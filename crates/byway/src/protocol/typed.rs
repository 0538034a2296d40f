//! Channels of values: encoded once, however many peers a message goes to, and decoded where they are received.

use std::{fmt, marker::PhantomData};

use bytes::Bytes;
use byway_proto::PeerId;

use super::{Channel, Protocol, Receiver, SendError, Sender, Sent, To};

/// A value that travels on a channel.
///
/// ```
/// use byway::{Channel, Malformed, Message, Protocol};
/// use bytes::Bytes;
///
/// #[derive(Debug, PartialEq)]
/// struct Temperature(i16);
///
/// impl Message for Temperature {
///     fn encode(&self) -> Bytes {
///         Bytes::copy_from_slice(&self.0.to_be_bytes())
///     }
///
///     fn decode(bytes: Bytes) -> Result<Self, Malformed> {
///         let bytes = bytes[..].try_into().map_err(|_| Malformed("a temperature has two bytes"))?;
///         Ok(Temperature(i16::from_be_bytes(bytes)))
///     }
/// }
///
/// let mut weather = Protocol::new("weather", 1..=1);
/// let (tx, rx) = weather.typed::<Temperature>(Channel::new(1).max_message(2));
/// assert_eq!(Temperature::decode(Temperature(-3).encode()), Ok(Temperature(-3)));
/// ```
pub trait Message: Sized {
    /// The value's bytes, at most the channel's `max_message`.
    fn encode(&self) -> Bytes;

    /// Reads a value from the bytes of a message, which a peer made: any are possible.
    fn decode(bytes: Bytes) -> Result<Self, Malformed>;
}

/// A peer's message is not what the channel is for; the text says why.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the peer sent a malformed message: {0}")]
pub struct Malformed(pub &'static str);

impl Protocol {
    /// Adds a channel of values; [`Protocol::channel`] is the same for bytes.
    pub fn typed<M: Message>(&mut self, channel: Channel) -> (TypedSender<M>, TypedReceiver<M>) {
        let (sender, receiver) = self.channel(channel);
        (TypedSender { sender, values: PhantomData }, TypedReceiver { receiver, values: PhantomData })
    }
}

/// Sends values on one channel.
pub struct TypedSender<M> {
    sender: Sender,
    values: PhantomData<fn(M)>,
}

impl<M: Message> TypedSender<M> {
    /// As [`Sender::send`]; the value is encoded once.
    pub fn send(&self, to: &To, value: &M) -> Sent {
        self.sender.send(to, value.encode())
    }

    /// As [`Sender::send_wait`].
    pub async fn send_wait(&self, peer: PeerId, value: &M) -> Result<(), SendError> {
        self.sender.send_wait(peer, value.encode()).await
    }
}

impl<M> Clone for TypedSender<M> {
    fn clone(&self) -> Self {
        TypedSender { sender: self.sender.clone(), values: PhantomData }
    }
}

impl<M> fmt::Debug for TypedSender<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.sender.fmt(f)
    }
}

/// Receives values on one channel, from all peers in turn.
#[derive(Debug)]
pub struct TypedReceiver<M> {
    receiver: Receiver,
    values: PhantomData<fn() -> M>,
}

impl<M: Message> TypedReceiver<M> {
    /// As [`Receiver::recv`]. A malformed message costs its peer nothing but the message: what else it is to cost, such as
    /// the connection, is for the caller to say.
    pub async fn recv(&mut self) -> Option<(PeerId, Result<M, Malformed>)> {
        let (peer, bytes) = self.receiver.recv().await?;
        Some((peer, M::decode(bytes)))
    }

    /// As [`Receiver::try_recv`].
    pub fn try_recv(&mut self) -> Option<(PeerId, Result<M, Malformed>)> {
        let (peer, bytes) = self.receiver.try_recv()?;
        Some((peer, M::decode(bytes)))
    }
}
