//! Tickets: the one line that one person gives another so that their machines can meet.

mod fields;

use alloc::{
    string::{String, ToString},
    vec::Vec,
};
use core::{fmt, net::SocketAddr, str::FromStr};

use crate::{
    addr::{self, PeerAddr, decode_socket_addr, encode_socket_addr},
    id::{PeerId, base32},
};

/// The most addresses of the peer itself in a ticket; see [`addr::MAX_ADDRS`].
pub const MAX_ADDRS: usize = addr::MAX_ADDRS;

/// The most relays in a ticket: a node keeps two warm, and one more outlives a move.
pub const MAX_RELAYS: usize = 3;

/// The longest text of a ticket: what a chat message, a terminal line or a dense QR code still takes. Most have under 300 characters.
pub const MAX_TICKET_CHARS: usize = 1_024;

/// The longest service name in bytes, as long as a protocol's name.
pub const MAX_SERVICE_LEN: usize = 64;

/// The version of tickets that this version of byway makes and reads.
pub const VERSION: u8 = 1;

/// What every ticket begins with. `1` is not in the base32 alphabet: it ends the word, and stands for no version.
const PREFIX: &str = "byway1";
const MAX_BASE32_CHARS: usize = MAX_TICKET_CHARS - PREFIX.len();
/// Version, length (two bytes of LEB128 suffice), checksum.
const MAX_FRAME_LEN: usize = 1 + 2 + base32::CHECKSUM_LEN;
const MAX_BODY_LEN: usize = MAX_BASE32_CHARS * 5 / 8 - MAX_FRAME_LEN;

const TAG_PEER: u32 = 1;
const TAG_ADDR: u32 = 2;
const TAG_RELAY: u32 = 3;
const TAG_SERVICE: u32 = 4;
const TAG_SECRET: u32 = 5;

/// What one machine gives another so that it can be reached.
///
/// As text, `byway1` and base32. Blanks and line breaks anywhere, and either case, are accepted. Whoever holds a
/// ticket with a secret may use the service: treat the text like a password.
///
/// ```
/// use byway_proto::{PeerId, Ticket};
///
/// let mut ticket = Ticket::new(PeerId::ed25519([7; 32]));
/// ticket.addrs.push(([192, 0, 2, 1], 4433).into());
/// ticket.service = Some("web".into());
/// let text = ticket.to_string();
/// assert!(text.starts_with("byway1") && text.parse() == Ok(ticket));
/// ```
#[derive(Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Ticket {
    /// Whom it leads to.
    pub peer: PeerId,
    /// Where that peer may be; the first [`MAX_ADDRS`] are written.
    pub addrs: Vec<SocketAddr>,
    /// Relays at which that peer is registered; the first [`MAX_RELAYS`] are written.
    pub relays: Vec<PeerAddr>,
    /// The service that it leads to; written if [`is_service_name`] agrees.
    pub service: Option<String>,
    /// What proves to that peer that the bearer was given this ticket.
    pub secret: Option<[u8; 16]>,
    /// What a newer version has put in; written again as it was.
    pub unknown: UnknownFields,
}

/// The fields of a ticket that this version cannot read, at most as many as fit in [`MAX_TICKET_CHARS`].
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct UnknownFields(Vec<(u32, Vec<u8>)>);

impl UnknownFields {
    /// Whether this version has understood all of the ticket.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// Whether a text can name a service: 1 to [`MAX_SERVICE_LEN`] bytes of letters, digits and `-_.:/`.
pub fn is_service_name(name: &str) -> bool {
    (1..=MAX_SERVICE_LEN).contains(&name.len())
        && name.chars().all(|found| found.is_alphanumeric() || "-_.:/".contains(found))
}

impl Ticket {
    /// A ticket that says whom to reach and nothing else.
    pub fn new(peer: PeerId) -> Self {
        Ticket {
            peer,
            addrs: Vec::new(),
            relays: Vec::new(),
            service: None,
            secret: None,
            unknown: UnknownFields::default(),
        }
    }

    /// The body: what must not be missing first, so that what finds no room at the end is an address or a relay.
    fn body(&self) -> Vec<u8> {
        let mut body = Vec::new();
        let mut push = |tag, value: &[u8]| fields::push_field(tag, value, MAX_BODY_LEN, &mut body);
        push(TAG_PEER, &self.peer.to_wire());
        if let Some(service) = self.service.as_deref().filter(|name| is_service_name(name)) {
            push(TAG_SERVICE, service.as_bytes());
        }
        if let Some(secret) = &self.secret {
            push(TAG_SECRET, secret);
        }
        for (tag, value) in &self.unknown.0 {
            push(*tag, value);
        }
        for addr in self.addrs.iter().take(MAX_ADDRS) {
            let mut value = Vec::new();
            encode_socket_addr(addr, &mut value);
            push(TAG_ADDR, &value);
        }
        for relay in self.relays.iter().take(MAX_RELAYS) {
            push(TAG_RELAY, &relay.to_wire());
        }
        body
    }

    fn from_body(mut body: &[u8]) -> Result<Self, ParseTicketError> {
        let mut draft = Draft::default();
        while !body.is_empty() {
            let (tag, value, rest) =
                fields::split_field(body).ok_or(ParseTicketError::Malformed("a field's length"))?;
            draft.take(tag, value)?;
            body = rest;
        }
        draft.finish()
    }
}

impl fmt::Display for Ticket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(PREFIX)?;
        f.write_str(&base32::encode(&frame(VERSION, &self.body())))
    }
}

impl fmt::Debug for Ticket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ticket")
            .field("peer", &self.peer)
            .field("addrs", &self.addrs)
            .field("relays", &self.relays)
            .field("service", &self.service)
            .field("secret", &self.secret.map(|_| "..")) // a log must not open the service
            .finish_non_exhaustive()
    }
}

impl FromStr for Ticket {
    type Err = ParseTicketError;

    fn from_str(text: &str) -> Result<Self, ParseTicketError> {
        let mut chars = text.chars().filter(|found| !is_blank(*found));
        for (read, expected) in PREFIX.chars().enumerate() {
            match chars.next() {
                Some(found) if found.to_ascii_lowercase() == expected => {}
                None if read > 0 => return Err(ParseTicketError::Truncated { found: read }),
                _ => return Err(ParseTicketError::NotATicket),
            }
        }
        let decoded = base32::decode(chars.by_ref().take(MAX_BASE32_CHARS))
            .map_err(|wrong| ParseTicketError::Character { found: wrong.found, at: PREFIX.len() + wrong.at })?;
        if chars.next().is_some() {
            return Err(ParseTicketError::TooLong);
        }
        match unframe(&decoded)? {
            (VERSION, body) => Ticket::from_body(body),
            (0, _) => Err(ParseTicketError::Malformed("version 0")),
            (version, _) => Err(ParseTicketError::NewerVersion { version }),
        }
    }
}

/// Why a text is not a [`Ticket`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ParseTicketError {
    /// It does not begin like a ticket.
    #[error("this is not a ticket: a ticket begins with {PREFIX}; paste the whole line that the other side was shown")]
    NotATicket,
    /// It ends too early.
    #[error("the ticket is truncated: it ends after {found} characters; copy all of it, every line if it was wrapped")]
    Truncated {
        /// How many characters there are, blanks not counted.
        found: usize,
    },
    /// There is more text after its end.
    #[error("the ticket is followed by other text, or mistyped; copy it again, and nothing else")]
    TrailingText,
    /// It is longer than any ticket.
    #[error("this is longer than a ticket can be ({MAX_TICKET_CHARS} characters); copy the ticket alone")]
    TooLong,
    /// A character that no ticket contains.
    #[error("the ticket is mistyped: no ticket contains {found:?} (character {at}); copy it again")]
    Character {
        /// The character.
        found: char,
        /// Where it stands, counted from 1, blanks not counted.
        at: usize,
    },
    /// The checksum does not fit the rest.
    #[error("the ticket is mistyped: its checksum does not match; copy it again")]
    Mistyped,
    /// A newer byway made it.
    #[error("the ticket has version {version} and this byway reads up to {VERSION}; update byway here")]
    NewerVersion {
        /// The ticket's version.
        version: u8,
    },
    /// The peer's key is of a kind that this version does not know.
    #[error("the ticket's peer has an unknown kind of key ({0}), so a newer byway made it; update byway here")]
    UnknownKind(u8),
    /// Its checksum is right and its contents are not.
    #[error(
        "the ticket is malformed ({0}) though nothing is mistyped: the program that made it is wrong; ask for another"
    )]
    Malformed(&'static str),
}

/// A ticket in the making, until its peer is known.
#[derive(Default)]
struct Draft {
    peer: Option<PeerId>,
    addrs: Vec<SocketAddr>,
    relays: Vec<PeerAddr>,
    service: Option<String>,
    secret: Option<[u8; 16]>,
    unknown: UnknownFields,
}

impl Draft {
    /// Takes one field. An address or relay of a kind that this version does not know is kept like an unknown field.
    fn take(&mut self, tag: u32, value: &[u8]) -> Result<(), ParseTicketError> {
        let malformed = ParseTicketError::Malformed;
        let repeated = match tag {
            TAG_PEER => self.peer.replace(decode_peer(value)?).is_some(),
            TAG_SERVICE => {
                let name = core::str::from_utf8(value).ok().filter(|name| is_service_name(name));
                self.service.replace(name.ok_or(malformed("the service's name"))?.to_string()).is_some()
            }
            TAG_SECRET => {
                let secret = value.try_into().map_err(|_| malformed("the secret's length"))?;
                self.secret.replace(secret).is_some()
            }
            TAG_ADDR if self.addrs.len() == MAX_ADDRS => return Err(malformed("too many addresses")),
            TAG_RELAY if self.relays.len() == MAX_RELAYS => return Err(malformed("too many relays")),
            _ => {
                self.take_list_entry(tag, value);
                false
            }
        };
        if repeated { Err(malformed("a field twice")) } else { Ok(()) }
    }

    fn take_list_entry(&mut self, tag: u32, value: &[u8]) {
        match (tag, decode_socket_addr(value), PeerAddr::from_wire(value)) {
            (TAG_ADDR, Some((addr, [])), _) => self.addrs.push(addr),
            (TAG_RELAY, _, Some(relay)) => self.relays.push(relay),
            _ => self.unknown.0.push((tag, value.to_vec())),
        }
    }

    fn finish(self) -> Result<Ticket, ParseTicketError> {
        Ok(Ticket {
            peer: self.peer.ok_or(ParseTicketError::Malformed("no peer"))?,
            addrs: self.addrs,
            relays: self.relays,
            service: self.service,
            secret: self.secret,
            unknown: self.unknown,
        })
    }
}

fn decode_peer(value: &[u8]) -> Result<PeerId, ParseTicketError> {
    let kind = value.first().copied().ok_or(ParseTicketError::Malformed("an empty peer"))?;
    if crate::id::KeyKind::from_byte(kind).is_none() {
        return Err(ParseTicketError::UnknownKind(kind));
    }
    PeerId::from_wire(value).ok_or(ParseTicketError::Malformed("the peer's length"))
}

/// Version, length, body, checksum: this much is the same in every version, so that an old byway can tell a newer ticket from a mistyped one.
fn frame(version: u8, body: &[u8]) -> Vec<u8> {
    let mut framed = Vec::with_capacity(MAX_FRAME_LEN.saturating_add(body.len()));
    framed.push(version);
    fields::push_varint(u32::try_from(body.len()).unwrap_or(u32::MAX), &mut framed);
    framed.extend(body);
    base32::push_checksum(&mut framed);
    framed
}

/// The version and the body.
fn unframe(decoded: &base32::Decoded) -> Result<(u8, &[u8]), ParseTicketError> {
    let truncated = ParseTicketError::Truncated { found: PREFIX.len().saturating_add(decoded.chars) };
    let bytes = &decoded.bytes[..];
    let Some((len, rest)) = bytes.get(1..).and_then(fields::split_varint) else {
        return Err(if bytes.len() < MAX_FRAME_LEN { truncated } else { ParseTicketError::Mistyped });
    };
    let len = usize::try_from(len).ok().filter(|len| *len <= MAX_BODY_LEN).ok_or(ParseTicketError::Mistyped)?;
    let head_len = bytes.len().saturating_sub(rest.len());
    let expected = base32::encoded_len(head_len.saturating_add(len).saturating_add(base32::CHECKSUM_LEN));
    if decoded.chars < expected {
        return Err(truncated);
    }
    if decoded.chars > expected {
        return Err(ParseTicketError::TrailingText);
    }
    let checked = base32::split_checksum(bytes).filter(|_| decoded.spare == 0).ok_or(ParseTicketError::Mistyped)?;
    let version = checked.first().copied().unwrap_or_default();
    Ok((version, checked.get(head_len..).unwrap_or_default()))
}

/// What a chat program or a terminal may put into a line: white space, and the blanks that no one sees.
fn is_blank(found: char) -> bool {
    found.is_whitespace() || matches!(found, '\u{ad}' | '\u{200b}' | '\u{2060}' | '\u{feff}')
}

#[cfg(test)]
mod tests;
