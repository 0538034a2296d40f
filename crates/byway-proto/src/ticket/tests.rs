use super::*;
use crate::addr::HostAddr;
use alloc::format;
use core::net::IpAddr;
use proptest::prelude::*;

const GOLDEN: &str = "byway1agkqcajbaedqobyha4dqobyha4dqobyha4dqobyha4dqobyha4dqobyha4dqobado5swebiqaucqkbifaucqkbifaucqkbifaubaobgavaaqoekraidqjsyaoeercuiccmdcaainxaaaaaaaaaaaaaaaaaaaoekramzaccijbeeqscijbeeqscijbeeqscijbeeqscijbeeqscijbeeqscijaegxezlmmf4s4zlymfwxa3dfag55ohi";

fn ticket() -> Ticket {
    Ticket {
        addrs: ["192.168.1.7:4433", "203.0.113.9:4433", "[2001:db8::7]:4433"].map(|addr| addr.parse().unwrap()).into(),
        relays: [PeerAddr::new(PeerId::ed25519([9; 32]), ["relay.example:443".parse::<HostAddr>().unwrap()])].into(),
        service: Some("web".into()),
        secret: Some([5; 16]),
        ..Ticket::new(PeerId::ed25519([7; 32]))
    }
}

fn parse(text: &str) -> Result<Ticket, ParseTicketError> {
    text.parse()
}

fn text_of(version: u8, body: &[u8]) -> String {
    format!("{PREFIX}{}", base32::encode(&frame(version, body)))
}

/// A body that holds the peer and these fields.
fn body_with(fields: &[(u32, &[u8])]) -> Vec<u8> {
    let mut body = Ticket::new(PeerId::ed25519([7; 32])).body();
    for (tag, value) in fields {
        assert!(fields::push_field(*tag, value, MAX_BODY_LEN, &mut body));
    }
    body
}

#[test]
fn text_is_the_documented_one() {
    assert_eq!(ticket().to_string(), GOLDEN);
    assert_eq!(parse(GOLDEN), Ok(ticket()));
}

#[test]
fn a_usual_ticket_fits_in_a_chat_line() {
    assert!(GOLDEN.len() < 300, "{}", GOLDEN.len());
    assert!(Ticket::new(PeerId::ed25519([7; 32])).to_string().len() < 75);
}

#[test]
fn blanks_line_breaks_and_case_do_not_matter() {
    let wrapped: Vec<&str> = GOLDEN.as_bytes().chunks(40).map(|line| core::str::from_utf8(line).unwrap()).collect();
    for separator in ["\n", "\r\n  ", " ", "\t", "\u{200b}", "\u{a0}"] {
        let text = format!("\u{feff} {}\n", wrapped.join(separator));
        assert_eq!(parse(&text), Ok(ticket()), "{separator:?}");
        assert_eq!(parse(&text.to_uppercase()), Ok(ticket()), "{separator:?}");
    }
}

#[test]
fn every_truncation_is_called_one() {
    for len in 1..GOLDEN.len() {
        assert_eq!(parse(&GOLDEN[..len]), Err(ParseTicketError::Truncated { found: len }));
    }
}

#[test]
fn every_single_mistyped_character_is_caught() {
    for at in PREFIX.len()..GOLDEN.len() {
        for wrong in "abcdefghijklmnopqrstuvwxyz234567".chars().filter(|c| !GOLDEN[at..].starts_with(*c)) {
            let error = parse(&format!("{}{wrong}{}", &GOLDEN[..at], &GOLDEN[at + 1..])).unwrap_err();
            // The first characters hold the length: what is wrong there looks like too much or too little text.
            assert!(error == ParseTicketError::Mistyped || at < PREFIX.len() + 5, "{at} {wrong} {error}");
        }
    }
}

#[test]
fn errors_tell_what_is_wrong() {
    assert_eq!(parse(""), Err(ParseTicketError::NotATicket));
    assert_eq!(parse("hello"), Err(ParseTicketError::NotATicket));
    assert_eq!(parse(&PeerId::ed25519([7; 32]).to_string()), Err(ParseTicketError::NotATicket));
    assert_eq!(
        parse(&format!("{GOLDEN}{GOLDEN}")),
        Err(ParseTicketError::Character { found: '1', at: GOLDEN.len() + 6 })
    );
    assert_eq!(parse(&format!("{GOLDEN}aa")), Err(ParseTicketError::TrailingText));
    assert_eq!(parse(&format!("{PREFIX}{}", "a".repeat(5_000))), Err(ParseTicketError::TooLong));
    assert_eq!(parse(&GOLDEN.replacen("1a", "18", 1)), Err(ParseTicketError::Character { found: '8', at: 7 }));
}

#[test]
fn a_newer_ticket_asks_for_an_update() {
    let newer = text_of(2, b"whatever that version has");
    assert_eq!(parse(&newer), Err(ParseTicketError::NewerVersion { version: 2 }));
    assert!(parse(&newer).unwrap_err().to_string().contains("update byway"));
    assert_eq!(parse(&newer[..20]), Err(ParseTicketError::Truncated { found: 20 }));
    let newer_key = text_of(VERSION, &[1, 4, 99, 1, 2, 3]);
    assert_eq!(parse(&newer_key), Err(ParseTicketError::UnknownKind(99)));
    assert_eq!(parse(&text_of(0, &[])), Err(ParseTicketError::Malformed("version 0")));
}

#[test]
fn every_error_says_what_to_do_next() {
    let errors = [
        ParseTicketError::NotATicket,
        ParseTicketError::Truncated { found: 1 },
        ParseTicketError::TrailingText,
        ParseTicketError::TooLong,
        ParseTicketError::Character { found: '0', at: 9 },
        ParseTicketError::Mistyped,
        ParseTicketError::NewerVersion { version: 2 },
        ParseTicketError::UnknownKind(9),
        ParseTicketError::Malformed("no peer"),
    ];
    for error in errors {
        let text = error.to_string();
        assert!(["paste", "copy", "update", "ask for"].iter().any(|verb| text.contains(verb)), "{text}");
    }
}

#[test]
fn unknown_fields_are_kept_and_written_again() {
    let strange_addr = [9, 1, 2, 3];
    let strange_relay = [&[77][..], &[1; 40]].concat();
    let body =
        body_with(&[(77, b"new"), (300, b""), (TAG_ADDR, &strange_addr), (TAG_RELAY, &strange_relay), (77, b"")]);
    let read = parse(&text_of(VERSION, &body)).unwrap();
    assert!(!read.unknown.is_empty() && read.addrs.is_empty() && read.relays.is_empty());
    assert_eq!(read.body(), body);
    let mut changed = read.clone();
    changed.addrs.push("192.0.2.1:1".parse().unwrap());
    assert_eq!(parse(&changed.to_string()), Ok(changed));
}

#[test]
fn wrong_contents_are_the_makers_fault() {
    let body = |tag, value: &[u8]| parse(&text_of(VERSION, &body_with(&[(tag, value)])));
    let malformed = |what| Err(ParseTicketError::Malformed(what));
    assert_eq!(parse(&text_of(VERSION, &[])), malformed("no peer"));
    assert_eq!(parse(&text_of(VERSION, &[1, 200])), malformed("a field's length"));
    assert_eq!(parse(&text_of(VERSION, &[1, 0])), malformed("an empty peer"));
    assert_eq!(parse(&text_of(VERSION, &[1, 1, 1])), malformed("the peer's length"));
    assert_eq!(body(TAG_PEER, &PeerId::ed25519([8; 32]).to_wire()), malformed("a field twice"));
    assert_eq!(body(TAG_SECRET, &[1; 15]), malformed("the secret's length"));
    assert_eq!(body(TAG_SERVICE, b"two words"), malformed("the service's name"));
    assert_eq!(body(TAG_SERVICE, b"\xff"), malformed("the service's name"));
    let addr: (u32, &[u8]) = (TAG_ADDR, &[4, 1, 2, 3, 4, 0, 5]);
    assert_eq!(parse(&text_of(VERSION, &body_with(&[addr; 9]))), malformed("too many addresses"));
    let relay = PeerId::ed25519([8; 32]).to_wire();
    assert_eq!(parse(&text_of(VERSION, &body_with(&[(TAG_RELAY, &relay[..]); 4]))), malformed("too many relays"));
}

#[test]
fn what_exceeds_the_limits_is_left_out_from_the_end() {
    let long_name = HostAddr::name(&["abcdefg"; 31].join("."), 443).unwrap();
    let mut big = ticket();
    big.addrs = (1..20).map(|port| SocketAddr::new([32, 1, 13, 184, 0, 0, 0, 1].into(), port)).collect();
    big.relays = (1..9).map(|n| PeerAddr::new(PeerId::ed25519([n; 32]), [long_name.clone()])).collect();
    let read = parse(&big.to_string()).unwrap();
    assert!(big.to_string().len() <= MAX_TICKET_CHARS);
    assert_eq!(read.addrs, big.addrs[..MAX_ADDRS]);
    assert_eq!(read.relays, big.relays[..1]);
    assert_eq!((read.service, read.secret), (big.service, big.secret));
}

#[test]
fn a_name_that_is_no_service_is_not_written() {
    for name in ["", "two words", "a\nb", "\u{202e}x", &"a".repeat(65)] {
        assert!(!is_service_name(name), "{name:?}");
        let text = Ticket { service: Some(name.into()), ..ticket() }.to_string();
        assert_eq!(parse(&text), Ok(Ticket { service: None, ..ticket() }));
    }
    assert!(is_service_name("фото-2.local:80/x"));
}

#[test]
fn debug_text_hides_the_secret() {
    let debug = format!("{:?}", Ticket { secret: Some([171; 16]), ..ticket() });
    assert!(debug.contains("Some(\"..\")") && !debug.contains("171"), "{debug}");
}

fn sockets() -> impl Strategy<Value = SocketAddr> {
    (any::<IpAddr>(), any::<u16>()).prop_map(|(ip, port)| SocketAddr::new(ip.to_canonical(), port))
}

fn relays() -> impl Strategy<Value = PeerAddr> {
    let host = prop_oneof![
        sockets().prop_map(HostAddr::Socket),
        ("[a-z]{1,9}\\.[a-z]{2,9}", any::<u16>()).prop_map(|(name, port)| HostAddr::Name(name, port)),
    ];
    (any::<[u8; 32]>(), prop::collection::vec(host, 0..3))
        .prop_map(|(key, addrs)| PeerAddr::new(PeerId::ed25519(key), addrs))
}

fn tickets() -> impl Strategy<Value = Ticket> {
    let unknown = prop::collection::vec((6..500_u32, prop::collection::vec(any::<u8>(), 0..20)), 0..4);
    (
        any::<[u8; 32]>(),
        prop::collection::vec(sockets(), 0..=MAX_ADDRS),
        prop::collection::vec(relays(), 0..=MAX_RELAYS),
        prop::option::of("[a-z0-9-]{1,20}"),
        any::<Option<[u8; 16]>>(),
        unknown.prop_map(UnknownFields),
    )
        .prop_map(|(key, addrs, relays, service, secret, unknown)| Ticket {
            peer: PeerId::ed25519(key),
            addrs,
            relays,
            service,
            secret,
            unknown,
        })
}

proptest! {
    #[test]
    fn tickets_round_trip(ticket in tickets()) {
        prop_assert_eq!(parse(&ticket.to_string()), Ok(ticket));
    }

    #[test]
    fn one_wrong_character_never_gives_another_ticket(ticket in tickets(), at: prop::sample::Index, wrong in "[a-z1-7]") {
        let mut text = ticket.to_string();
        let at = at.index(text.len());
        prop_assume!(text[at..=at] != wrong);
        text.replace_range(at..=at, &wrong);
        prop_assert!(parse(&text).is_err());
    }

    #[test]
    fn no_text_and_no_body_panic(text: String, body in prop::collection::vec(any::<u8>(), 0..MAX_BODY_LEN), letters in "[a-z2-7]{0,1100}") {
        let _ = (parse(&text), parse(&format!("{PREFIX}{text}")), parse(&format!("{PREFIX}{letters}")));
        if let Ok(read) = parse(&text_of(VERSION, &body)) {
            prop_assert_eq!(parse(&read.to_string()), Ok(read));
        }
    }

    #[test]
    fn any_fields_beside_a_peer_are_an_error_or_survive(fields in prop::collection::vec((0..9_u32, prop::collection::vec(any::<u8>(), 0..60)), 0..6)) {
        let fields: Vec<(u32, &[u8])> = fields.iter().map(|(tag, value)| (*tag, &value[..])).collect();
        if let Ok(read) = parse(&text_of(VERSION, &body_with(&fields))) {
            prop_assert_eq!(parse(&read.to_string()), Ok(read));
        }
    }
}
