//! The ways in which a user, a service manager or a parent process says: enough.

use tokio::sync::watch;

use crate::failure::Exit;

/// Tells when the process was asked to end.
#[derive(Debug, Clone)]
pub(crate) struct Stop(watch::Receiver<bool>);

impl Stop {
    /// Listens for Ctrl-C and SIGTERM, and for the end of standard input if asked to. A second signal ends the process
    /// at once.
    pub(crate) fn listen(until_stdin_closes: bool) -> Self {
        let (stop, stopped) = watch::channel(false);
        tokio::spawn(async move {
            tokio::select! {
                biased;
                () = signal() => {}
                () = stdin_end(), if until_stdin_closes => {}
            }
            stop.send_replace(true);
            signal().await;
            std::process::exit(i32::from(u8::from(Exit::Interrupted)));
        });
        Stop(stopped)
    }

    /// Waits until the process is asked to end.
    pub(crate) async fn requested(&mut self) {
        if self.0.wait_for(|stop| *stop).await.is_err() {
            std::future::pending::<()>().await; // nobody can ask any more
        }
    }
}

/// Tells when the process was asked to read its configuration again (SIGHUP).
#[derive(Debug)]
pub(crate) struct Hangups {
    #[cfg(unix)]
    signal: Option<tokio::signal::unix::Signal>,
}

impl Hangups {
    /// Listens from now on; where there is no such signal, for nothing.
    pub(crate) fn listen() -> Self {
        #[cfg(unix)]
        return Hangups { signal: tokio::signal::unix::signal(tokio::signal::unix::SignalKind::hangup()).ok() };
        #[cfg(not(unix))]
        Hangups {}
    }

    /// Waits for the next request.
    pub(crate) async fn next(&mut self) {
        #[cfg(unix)]
        if let Some(signal) = &mut self.signal
            && signal.recv().await.is_some()
        {
            return;
        }
        std::future::pending().await
    }
}

#[cfg(unix)]
async fn signal() {
    use tokio::signal::unix::{SignalKind, signal};
    let (Ok(mut int), Ok(mut term)) = (signal(SignalKind::interrupt()), signal(SignalKind::terminate())) else {
        tracing::warn!("cannot listen for signals; SIGKILL is the only way to end this process");
        return std::future::pending().await;
    };
    tokio::select! {
        biased;
        _ = int.recv() => {}
        _ = term.recv() => {}
    }
}

#[cfg(not(unix))]
async fn signal() {
    if tokio::signal::ctrl_c().await.is_err() {
        std::future::pending::<()>().await;
    }
}

async fn stdin_end() {
    use tokio::io::AsyncReadExt;
    let mut stdin = tokio::io::stdin();
    let mut buffer = [0; 256];
    while matches!(stdin.read(&mut buffer).await, Ok(1..)) {}
}
