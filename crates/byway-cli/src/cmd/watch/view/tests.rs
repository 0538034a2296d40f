use ratatui::{Terminal, backend::TestBackend};

use super::*;
use crate::control::event::{Memory, Own, Path, nat::Nat};

fn channel(protocol: &str, channel: Option<u32>, out: f64, waits: u64) -> Channel {
    let sent = Flow { messages: 9, bytes: 9_000, waiting_bytes: waits, bytes_s: out, ..Flow::default() };
    let received = Flow { bytes_s: out / 2.0, ..sent };
    Channel { protocol: protocol.into(), channel, class: "bulk".into(), sent, received, ..Channel::default() }
}

fn route(path: Path, remote: &str, selected: bool) -> Route {
    Route {
        path,
        remote: remote.parse().unwrap(),
        selected,
        alive: true,
        rtt_ms: Some(25.04),
        loss: 0.01,
        goodput_s: selected.then_some(11_500_000),
        mtu: 1_443,
        bytes_sent: 0,
        bytes_received: 0,
        why: if selected { "the fastest".into() } else { "a spare one, kept warm".into() },
    }
}

fn peer(id: &str, out: f64, channels: Vec<Channel>) -> Peer {
    let mut peer = Peer {
        id: id.into(),
        agent: String::new(),
        path: Some(Path::Direct),
        rtt_ms: Some(25.04),
        connected_s: 7_512.0,
        protocols: Vec::new(),
        channels,
        routes: vec![route(Path::Relay, "198.51.100.7:4477", false), route(Path::Direct, "[2001:db8::1]:4433", true)],
    };
    peer.channels.push(channel("chat", Some(1), out, 100));
    peer
}

fn status(peers: Vec<Peer>) -> Status {
    Status {
        node: Own {
            id: "ahlvvgabqkyq".into(),
            version: "0.1.0".into(),
            network: "byway".into(),
            data_dir: "/d".into(),
            uptime_s: 93_784.0,
            addresses: Vec::new(),
            protocols: Vec::new(),
        },
        relays: Vec::new(),
        peers,
        nat: Nat::default(),
        mappings: Vec::new(),
        serving: Vec::new(),
        reaching: Vec::new(),
        relaying: None,
        memory: Memory::default(),
        dropped: [("junk".to_owned(), 3)].into(),
        processes: Vec::new(),
    }
}

fn three() -> Status {
    let mut chat = channel("tunnel", None, 2_048.0, 0);
    chat.dropped.insert("queue_full".into(), 12);
    status(vec![
        peer("cccccccccccc", 10.0, Vec::new()),
        peer("aaaaaaaaaaaa", 1_024.0, vec![chat]),
        peer("bbbbbbbbbbbb", 4e6, Vec::new()),
    ])
}

/// What the page of [`three`] looks like.
const GOLDEN: &str = "\
byway ahlvvgabqk  network byway  up 1 d 2 h
registered at 0 of 0 relays  3 datagrams dropped
3 peers by id───────────────────────────────────────────────────────────────────
peer       path   rtt        loss   out/s       in/s        waits       up for
aaaaaaaaaa direct 25.0 ms    1 %    3.00 KiB    1.50 KiB    200 B       2 h 05
bbbbbbbbbb direct 25.0 ms    1 %    3.81 MiB    1.91 MiB    200 B       2 h 05
cccccccccc direct 25.0 ms    1 %    10 B        5 B         200 B       2 h 05
paths to aaaaaaaaaa─────────────────────────────────────────────────────────────
path     rtt        loss   goodput/s   to                 why
* direct 25.0 ms    1 %    10.97 MiB   [2001:db8::1]:4433 the fastest
  relay  25.0 ms    1 %    -           198.51.100.7:4477  a spare one, kept warm

channels────────────────────────────────────────────────────────────────────────
channel            class out/s       in/s        to send     to read     dropped
tunnel/streams     bulk  2.00 KiB    1.00 KiB    0 B         0 B         12
chat/1             bulk  1.00 KiB    512 B       100 B       100 B       0







q quit  ↑↓ peer  PgUp PgDn channels  s sort";

fn screen(view: &View, width: u16, height: u16) -> Vec<String> {
    let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
    terminal.draw(|frame| view.draw(frame)).unwrap();
    let buffer = terminal.backend().buffer();
    let lines = buffer.content().chunks(usize::from(width));
    lines.map(|line| line.iter().map(|cell| cell.symbol()).collect::<String>().trim_end().to_owned()).collect()
}

fn press(view: &mut View, code: KeyCode) -> bool {
    view.press(KeyEvent::new(code, KeyModifiers::NONE))
}

#[test]
fn everything_fits_a_terminal_of_80_by_24() {
    let shown = screen(&View::new(three()), 80, 24).join("\n");
    assert_eq!(shown, GOLDEN, "\n{shown}");
}

#[test]
fn keys_sort_and_select_and_leave() {
    let mut view = View::new(three());
    let ids = |view: &View| view.status.peers.iter().map(|peer| peer.id[..1].to_owned()).collect::<String>();
    assert_eq!((ids(&view).as_str(), view.place()), ("abc", Some(0)));
    assert!(!press(&mut view, KeyCode::Down) && !press(&mut view, KeyCode::Char('s')));
    assert_eq!((ids(&view).as_str(), view.place()), ("bac", Some(0)), "by what goes out; the same peer is selected");
    view.renew(status(vec![peer("bbbbbbbbbbbb", 1.0, Vec::new()), peer("aaaaaaaaaaaa", 2.0, Vec::new())]));
    assert_eq!((ids(&view).as_str(), view.place()), ("ab", Some(1)), "it stays selected where it goes");
    view.renew(status(vec![peer("aaaaaaaaaaaa", 2.0, Vec::new())]));
    assert_eq!(view.place(), Some(0), "another one when it is gone");
    press(&mut view, KeyCode::End);
    press(&mut view, KeyCode::Down);
    assert_eq!(view.place(), Some(0));
    view.renew(status(Vec::new()));
    assert!(!press(&mut view, KeyCode::Up) && view.place().is_none());
    let interrupt = KeyEvent::new(KeyCode::Char('c'), KeyModifiers::CONTROL);
    assert!(view.press(interrupt) && press(&mut view, KeyCode::Esc) && press(&mut view, KeyCode::Char('q')));
}

#[test]
fn long_lists_scroll() {
    let many: Vec<_> = (10..60).map(|n| peer(&format!("peer{n}xxxxxx"), 1.0, Vec::new())).collect();
    let mut view = View::new(status(many));
    press(&mut view, KeyCode::End);
    let lines = screen(&view, 80, 24).join("\n");
    assert!(lines.contains("peer59") && !lines.contains("peer10") && lines.contains("50 peers by id"), "{lines}");
    let channels = (1..40).map(|n| channel("busy", Some(n), 1.0, 0)).collect();
    let mut view = View::new(status(vec![peer("aaaaaaaaaaaa", 1.0, channels)]));
    assert!(screen(&view, 80, 24).iter().any(|line| line.starts_with("busy/1 ")));
    assert!((0..100).all(|_| !press(&mut view, KeyCode::PageDown)));
    let lines = screen(&view, 80, 24).join("\n");
    assert!(lines.contains("chat/1") && !lines.contains("busy/1 "), "the last one is still there: {lines}");
}

#[test]
fn trouble_is_told_until_it_is_over_and_any_size_is_drawn() {
    let mut view = View::new(three());
    view.lose("no node runs in /d".into());
    assert_eq!(screen(&view, 80, 24)[1], "no node runs in /d");
    view.renew(three());
    assert!(!screen(&view, 80, 24)[1].contains("no node"));
    for (width, height) in [(1, 1), (10, 3), (200, 60)] {
        assert_eq!(screen(&view, width, height).len(), usize::from(height));
    }
}
