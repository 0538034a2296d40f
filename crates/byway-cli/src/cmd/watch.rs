//! `byway status --watch`: the status as a page that renews itself, on a terminal of its own.

mod view;

use std::{
    io::{self, IsTerminal},
    thread,
    time::Duration,
};

use ratatui::{
    DefaultTerminal,
    crossterm::event::{self, Event as TerminalEvent},
};
use tokio::{sync::mpsc, time};

use self::view::View;
use super::{Shell, unless_stopped};
use crate::{
    control::{Event, Request, event::Status},
    datadir::DataDir,
    failure::Failure,
    session::{self, Session},
};

/// How often the node is asked.
const EVERY: Duration = Duration::from_secs(1);

/// How long an answer may take before the page says that there is none.
const PATIENCE: Duration = Duration::from_secs(3);

/// How often the thread that reads keys looks whether it is still wanted.
const LOOK: Duration = Duration::from_millis(200);

/// Keys that were pressed and not acted on yet; a thread that finds it full waits.
const KEYS: usize = 16;

/// Shows the page until the user leaves it.
pub(super) async fn run(mut shell: Shell) -> Result<(), Failure> {
    if shell.output.is_json() || !io::stdout().is_terminal() || !io::stdin().is_terminal() {
        let why =
            "--watch needs a terminal for itself; take `byway status --json`, as often as you like, for anything else";
        return Err(Failure::usage(why));
    }
    let dir = session::data_dir(&shell.global)?;
    let mut view = View::new(unless_stopped(shell.stop.clone(), read(&dir)).await?);
    let terminal = ratatui::try_init(); // which also lets a panic leave the terminal as it was
    let shown = match terminal {
        Ok(mut terminal) => show(&mut shell, &dir, &mut view, &mut terminal).await,
        Err(error) => Err(error),
    };
    let _ = ratatui::try_restore(); // there is no other terminal to say it to
    shown.map_err(|error| Failure::here(format!("cannot draw on this terminal: {error}; take `byway status` instead")))
}

async fn show(shell: &mut Shell, dir: &DataDir, view: &mut View, terminal: &mut DefaultTerminal) -> io::Result<()> {
    let mut pressed = read_keys();
    let mut tick = time::interval(EVERY);
    tick.set_missed_tick_behavior(time::MissedTickBehavior::Delay);
    tick.tick().await; // the first reading is there already
    loop {
        terminal.draw(|frame| view.draw(frame))?;
        tokio::select! {
            biased;
            () = shell.stop.requested() => return Ok(()),
            event = pressed.recv() => match event {
                Some(Ok(TerminalEvent::Key(key))) => if view.press(key) { return Ok(()) },
                Some(Ok(_)) => {} // another size: it is drawn anew
                Some(Err(error)) => return Err(error),
                None => return Ok(()),
            },
            _ = tick.tick() => match time::timeout(PATIENCE, read(dir)).await {
                Ok(Ok(status)) => view.renew(status),
                Ok(Err(failure)) => view.lose(failure.to_string()),
                Err(_) => view.lose("the node does not answer".into()),
            },
        }
    }
}

async fn read(dir: &DataDir) -> Result<Status, Failure> {
    let mut session = Session::attach(dir, "status --watch").await?;
    session.request(&Request::Status).await?;
    let mut found = None;
    while let Some(event) = session.next().await? {
        if let Event::Status(status) = event {
            found = Some(*status);
        }
    }
    found.ok_or_else(|| Failure::here("the node told no status; stop it, and start it again with this version"))
}

/// Reads keys on a thread of its own, for the system has no other way to wait for them; it ends with the page.
fn read_keys() -> mpsc::Receiver<io::Result<TerminalEvent>> {
    let (keys, pressed) = mpsc::channel(KEYS);
    thread::spawn(move || {
        while !keys.is_closed() {
            let event = match event::poll(LOOK) {
                Ok(true) => event::read(),
                Ok(false) => continue,
                Err(error) => Err(error),
            };
            let is_over = event.is_err();
            if keys.blocking_send(event).is_err() || is_over {
                return;
            }
        }
    });
    pressed
}
