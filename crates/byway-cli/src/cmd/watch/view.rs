//! The page of `status --watch`: what is on it, and what keys do to it; it knows neither a node nor a terminal.

use std::cmp::Ordering;

use ratatui::{
    Frame,
    crossterm::event::{KeyCode, KeyEvent, KeyEventKind, KeyModifiers},
    layout::{Constraint, Layout, Rect},
    style::{Style, Stylize},
    text::Line,
    widgets::{Block, Borders, Row, Table},
};

use super::super::status::{bytes, ms, word};
use crate::{
    control::event::{
        Peer, Route, Status,
        channel::{Channel, Flow},
    },
    output::short,
};

/// What moves by one key that turns a page.
const PAGE: usize = 5;

/// Lines of the paths to a peer: as many as a connection has, and one beneath the heading.
const PATHS: u16 = 5;

/// The page.
pub(super) struct View {
    status: Status,
    /// Why what is shown is old, if it is.
    trouble: Option<String>,
    sort: Sort,
    /// The peer whose paths and channels are shown.
    selected: Option<String>,
    /// Channels above the first that is shown.
    scrolled: usize,
}

/// What the peers are sorted by; all but the id begin with the most.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Sort {
    Id,
    Out,
    In,
    Waits,
    Rtt,
}

impl Sort {
    const ALL: [Sort; 5] = [Sort::Id, Sort::Out, Sort::In, Sort::Waits, Sort::Rtt];

    fn next(self) -> Self {
        let place = Sort::ALL.iter().position(|sort| *sort == self).unwrap_or_default();
        Sort::ALL[(place + 1) % Sort::ALL.len()]
    }

    fn name(self) -> &'static str {
        match self {
            Sort::Id => "id",
            Sort::Out => "out/s",
            Sort::In => "in/s",
            Sort::Waits => "waits",
            Sort::Rtt => "rtt",
        }
    }

    fn compare(self, a: &Peer, b: &Peer) -> Ordering {
        let most = |of: fn(&Peer) -> f64| of(b).total_cmp(&of(a));
        let order = match self {
            Sort::Id => Ordering::Equal,
            Sort::Out => most(|peer| sum(peer, |channel| channel.sent.bytes_s)),
            Sort::In => most(|peer| sum(peer, |channel| channel.received.bytes_s)),
            Sort::Waits => most(waits),
            Sort::Rtt => most(|peer| peer.rtt_ms.unwrap_or_default()),
        };
        order.then_with(|| a.id.cmp(&b.id))
    }
}

impl View {
    pub(super) fn new(status: Status) -> Self {
        let mut view = View { status, trouble: None, sort: Sort::Id, selected: None, scrolled: 0 };
        view.arrange();
        view
    }

    /// Shows a newer status.
    pub(super) fn renew(&mut self, status: Status) {
        (self.status, self.trouble) = (status, None);
        self.arrange();
    }

    /// Says that the status is not renewed.
    pub(super) fn lose(&mut self, why: String) {
        self.trouble = Some(why);
    }

    /// Does what a key says; `true` if that is to leave.
    pub(super) fn press(&mut self, key: KeyEvent) -> bool {
        if key.kind == KeyEventKind::Release {
            return false;
        }
        match key.code {
            KeyCode::Char('q') | KeyCode::Esc => return true,
            KeyCode::Char('c') if key.modifiers.contains(KeyModifiers::CONTROL) => return true,
            KeyCode::Char('s') => self.sort = self.sort.next(),
            KeyCode::Up | KeyCode::Char('k') => self.select(|place| place.saturating_sub(1)),
            KeyCode::Down | KeyCode::Char('j') => self.select(|place| place + 1),
            KeyCode::Home | KeyCode::Char('g') => self.select(|_| 0),
            KeyCode::End | KeyCode::Char('G') => self.select(|_| usize::MAX),
            KeyCode::PageUp => self.scrolled = self.scrolled.saturating_sub(PAGE),
            KeyCode::PageDown => self.scrolled += PAGE,
            _ => return false,
        }
        self.arrange();
        false
    }

    /// Selects another peer.
    fn select(&mut self, place: impl Fn(usize) -> usize) {
        let last = self.status.peers.len().saturating_sub(1);
        let place = place(self.place().unwrap_or_default()).min(last);
        self.selected = self.status.peers.get(place).map(|peer| peer.id.clone());
        self.scrolled = 0;
    }

    /// Puts the peers in their order, and what is selected within what there is.
    fn arrange(&mut self) {
        let sort = self.sort;
        self.status.peers.sort_by(|a, b| sort.compare(a, b));
        if self.place().is_none() {
            self.selected = self.status.peers.first().map(|peer| peer.id.clone());
        }
        let last = self.peer().map_or(0, |peer| used(peer).count().saturating_sub(1));
        self.scrolled = self.scrolled.min(last);
    }

    fn place(&self) -> Option<usize> {
        let selected = self.selected.as_ref()?;
        self.status.peers.iter().position(|peer| peer.id == *selected)
    }

    fn peer(&self) -> Option<&Peer> {
        self.status.peers.get(self.place()?)
    }

    pub(super) fn draw(&self, frame: &mut Frame) {
        let peers = self.status.peers.len() as u16 + 2;
        let rows = [
            Constraint::Length(2),
            Constraint::Max(peers.max(3)),
            Constraint::Length(PATHS),
            Constraint::Min(4),
            Constraint::Length(1),
        ];
        let [head, peers, paths, channels, foot] = Layout::vertical(rows).areas(frame.area());
        frame.render_widget(self.head(), head);
        self.draw_peers(frame, peers);
        self.draw_paths(frame, paths);
        self.draw_channels(frame, channels);
        frame.render_widget(self.foot(), foot);
    }

    fn head(&self) -> ratatui::widgets::Paragraph<'_> {
        let own = &self.status.node;
        let registered = self.status.relays.iter().filter(|relay| relay.registered).count();
        let relays = self.status.relays.len();
        let first = format!("byway {}  network {}  up {}", short(&own.id), own.network, duration(own.uptime_s));
        let second = match &self.trouble {
            Some(trouble) => Line::from(trouble.clone()).red().bold(),
            None => {
                let dropped: u64 = self.status.dropped.values().sum();
                let words = format!("registered at {registered} of {relays} relays  {dropped} datagrams dropped");
                Line::from(match &self.status.relaying {
                    Some(relay) => {
                        format!("{words}  relays for {} nodes, {} so far", relay.clients, bytes(relay.bytes))
                    }
                    None => words,
                })
            }
        };
        ratatui::widgets::Paragraph::new(vec![Line::from(first).bold(), second])
    }

    fn foot(&self) -> Line<'_> {
        Line::from("q quit  \u{2191}\u{2193} peer  PgUp PgDn channels  s sort").dim()
    }

    fn draw_peers(&self, frame: &mut Frame, area: Rect) {
        let all = &self.status.peers;
        let title = match all.len() {
            0 => "no peer is connected".into(),
            1 => "1 peer".into(),
            count => format!("{count} peers by {}", self.sort.name()),
        };
        let visible = usize::from(area.height.saturating_sub(2)).max(1);
        let place = self.place().unwrap_or_default();
        let above = (place + 1).saturating_sub(visible);
        let rows = all.iter().enumerate().skip(above).take(visible).map(|(at, peer)| {
            let row = Row::new(peer_cells(peer));
            if at == place { row.style(Style::new().reversed()) } else { row }
        });
        let widths = [10, 6, 10, 6, 11, 11, 11, 8].map(Constraint::Length);
        let columns = ["peer", "path", "rtt", "loss", "out/s", "in/s", "waits", "up for"];
        frame.render_widget(table(rows.collect(), &columns, &widths, title), area);
    }

    fn draw_paths(&self, frame: &mut Frame, area: Rect) {
        let routes = self.peer().map(|peer| peer.routes.as_slice()).unwrap_or_default();
        let title = self.peer().map_or_else(|| "paths".into(), |peer| format!("paths to {}", short(&peer.id)));
        let mut routes: Vec<_> = routes.iter().collect();
        routes.sort_by_key(|route| !route.selected);
        let longest = routes.iter().map(|route| route.remote.to_string().len()).max().unwrap_or_default();
        let rows = routes.into_iter().map(|route| Row::new(path_cells(route)));
        let widths = [
            Constraint::Length(8),
            Constraint::Length(10),
            Constraint::Length(6),
            Constraint::Length(11),
            Constraint::Length(longest as u16),
            Constraint::Min(8),
        ];
        let columns = ["path", "rtt", "loss", "goodput/s", "to", "why"];
        frame.render_widget(table(rows.collect(), &columns, &widths, title), area);
    }

    fn draw_channels(&self, frame: &mut Frame, area: Rect) {
        let all: Vec<&Channel> = self.peer().into_iter().flat_map(used).collect();
        let visible = usize::from(area.height.saturating_sub(2)).max(1);
        let title = match all.len() {
            count if count > visible => {
                format!("channels {} to {} of {count}", self.scrolled + 1, count.min(self.scrolled + visible))
            }
            _ => "channels".into(),
        };
        let rows = all.into_iter().skip(self.scrolled).take(visible).map(|channel| Row::new(channel_cells(channel)));
        let widths = [
            Constraint::Min(17),
            Constraint::Length(5),
            Constraint::Length(11),
            Constraint::Length(11),
            Constraint::Length(11),
            Constraint::Length(11),
            Constraint::Length(7),
        ];
        let columns = ["channel", "class", "out/s", "in/s", "to send", "to read", "dropped"];
        frame.render_widget(table(rows.collect(), &columns, &widths, title), area);
    }
}

fn table<'a>(rows: Vec<Row<'a>>, columns: &[&'static str], widths: &[Constraint], title: String) -> Table<'a> {
    let heading = Row::new(columns.to_vec()).dim();
    let block = Block::new().borders(Borders::TOP).title(title);
    Table::new(rows, widths.to_vec()).header(heading).block(block)
}

fn peer_cells(peer: &Peer) -> [String; 8] {
    let selected = peer.routes.iter().find(|route| route.selected);
    [
        short(&peer.id).to_owned(),
        peer.path.map_or("-", word).to_owned(),
        ms(peer.rtt_ms),
        selected.map_or_else(|| "-".into(), |route| percent(route.loss)),
        rate(sum(peer, |channel| channel.sent.bytes_s)),
        rate(sum(peer, |channel| channel.received.bytes_s)),
        bytes(waits(peer) as u64),
        duration(peer.connected_s),
    ]
}

fn path_cells(route: &Route) -> [String; 6] {
    let mark = if route.selected { "*" } else { " " };
    [
        format!("{mark} {}", word(route.path)),
        ms(route.rtt_ms),
        percent(route.loss),
        route.goodput_s.map_or_else(|| "-".into(), bytes),
        route.remote.to_string(),
        route.why.clone(),
    ]
}

fn channel_cells(channel: &Channel) -> [String; 7] {
    let class = match channel.class.as_str() {
        "interactive" => "inter",
        "control" => "ctrl",
        other => other,
    };
    let waits = |flow: &Flow| bytes(flow.waiting_bytes);
    [
        channel.name(),
        class.to_owned(),
        rate(channel.sent.bytes_s),
        rate(channel.received.bytes_s),
        waits(&channel.sent),
        waits(&channel.received),
        channel.dropped.values().sum::<u64>().to_string(),
    ]
}

fn used(peer: &Peer) -> impl Iterator<Item = &Channel> {
    peer.channels.iter().filter(|channel| channel.is_used())
}

fn sum(peer: &Peer, of: fn(&Channel) -> f64) -> f64 {
    peer.channels.iter().map(of).sum()
}

fn waits(peer: &Peer) -> f64 {
    sum(peer, |channel| (channel.sent.waiting_bytes + channel.received.waiting_bytes) as f64)
}

fn rate(bytes_s: f64) -> String {
    if bytes_s > 0.0 { bytes(bytes_s.round() as u64) } else { "-".into() }
}

fn percent(share: f64) -> String {
    format!("{:.0} %", share * 100.0)
}

/// The two largest units, such as `2 h 5 min`.
fn duration(seconds: f64) -> String {
    let seconds = seconds as u64;
    let (days, hours, minutes) = (seconds / 86_400, seconds / 3_600 % 24, seconds / 60 % 60);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{seconds} s"),
        (0, 0, _) => format!("{minutes} min"),
        (0, ..) => format!("{hours} h {minutes:02}"),
        _ => format!("{days} d {hours} h"),
    }
}

#[cfg(test)]
mod tests;
