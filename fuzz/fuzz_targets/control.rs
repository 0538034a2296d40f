//! The control stream: its messages do not depend on how the bytes arrive, read again as they were written, and two
//! hellos come to mirror images of one answer.
#![no_main]

use byway_proto::hello::{Agreed, Announced, Control, ControlCodec, ControlError, Hello, Limits, Refusal, agree};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let Some((cut, stream)) = bytes.split_first() else { return };
    let (messages, end) = read(stream.chunks(stream.len().max(1)));
    assert_eq!(read(stream.chunks(usize::from(*cut) + 1)), (messages.clone(), end));
    let mut hellos = vec![common_hello()];
    for message in messages {
        match message.to_frame() {
            Ok(frame) => assert_eq!(read([&frame[..]]), (vec![message.clone()], None)),
            Err(error) => assert!(matches!(error, ControlError::TooLong(_))),
        }
        match message {
            Control::Hello(hello) => hellos.push(hello),
            Control::Goodbye(goodbye) => drop(Refusal::from_goodbye(&goodbye)),
            _ => {}
        }
    }
    for pair in hellos.windows(2) {
        check_agreement(&pair[0], &pair[1]);
    }
});

/// The messages of a stream, and the error that ended it early.
fn read<'a>(parts: impl IntoIterator<Item = &'a [u8]>) -> (Vec<Control>, Option<ControlError>) {
    let mut codec = ControlCodec::new();
    let mut messages = Vec::new();
    for part in parts {
        codec.push(part);
        loop {
            match codec.next() {
                Ok(Some(message)) => messages.push(message),
                Ok(None) => break,
                Err(error) => return (messages, Some(error)),
            }
        }
    }
    (messages, None)
}

fn check_agreement(a: &Hello, b: &Hello) {
    match (agree(a, b), agree(b, a)) {
        (Ok(here), Ok(there)) => assert_eq!(swapped(&here), plain(&there)),
        (Err(here), Err(there)) if a.check().is_ok() && b.check().is_ok() => {
            assert_eq!(Refusal::from_goodbye(&here.to_goodbye()), Some(there.clone()));
            assert_eq!(here.mirrored(), there);
        }
        (Err(here), Err(there)) => {
            let fault = |it| matches!(it, Refusal::PeerMisbehaved(_) | Refusal::ApiMisuse(_));
            let _ = Refusal::from_goodbye(&here.to_goodbye());
            assert!(fault(here) && fault(there));
        }
        (here, there) => panic!("one side refuses and the other does not: {here:?}, {there:?}"),
    }
}

type Row<'a> = (&'a str, u32, u32, u32);

/// What was agreed, with our numbers in the place of theirs.
fn swapped(agreed: &Agreed) -> (bool, Vec<Row<'_>>) {
    (agreed.relay, agreed.protocols.iter().map(|it| (&it.name[..], it.version, it.theirs, it.ours)).collect())
}

/// What was agreed, as it is.
fn plain(agreed: &Agreed) -> (bool, Vec<Row<'_>>) {
    (agreed.relay, agreed.protocols.iter().map(|it| (&it.name[..], it.version, it.ours, it.theirs)).collect())
}

/// A hello that shares its network, and one protocol, with hellos that are easy to find.
fn common_hello() -> Hello {
    let (streams, datagrams) = (vec![1], vec![2]);
    let protocol = Announced { id: 1, name: "a".into(), min: 1, max: 2, required: true, streams, datagrams };
    Hello {
        agent: String::new(),
        network: String::new(),
        instance: 1,
        relay: false,
        protocols: vec![protocol],
        limits: Limits { max_message: 1, max_streams: 1 },
    }
}
