//! What a person reads while the demo runs.

use std::time::Duration;

use super::Cast;
use crate::{
    cmd::status::bytes,
    control::event::Path,
    http,
    output::{Output, way},
};

/// Tells the demo's story on standard output, and nothing where JSON was asked for.
pub(super) struct Story(pub(super) Output);

impl Story {
    pub(super) fn cast(&self, cast: &Cast, relay_only: bool) {
        let (http, relay, serve, reach) = (cast.http.pid, cast.relay.pid, cast.serve.pid, cast.reach.pid);
        let address = cast.address;
        self.say("Four processes on this machine, each on its own as if on four machines:\n");
        self.say(&format!("  web server  {http:>7}  a page and a file of 64 MiB; knows nothing of Byway"));
        self.say(&format!("  serve       {serve:>7}  offers it under a key; the ticket names the relay, no address"));
        self.say(&format!("  relay       {relay:>7}  carries sealed packets and cannot read them"));
        self.say(&format!("  reach       {reach:>7}  was given the ticket; {address} leads to the web server\n"));
        if relay_only {
            self.say("Neither node may leave the relay.\n");
        }
        self.say("After the dial:");
    }

    /// What happened since the dial, in its order.
    pub(super) fn meeting(&self, connected: (Path, f64), first_byte: f64, direct: Option<f64>, relay_only: bool) {
        let over = |at: f64| if direct.is_some_and(|direct| direct <= at) { Path::Direct } else { Path::Relay };
        let mut lines = vec![
            (connected.1, format!("connected {}", way(connected.0))),
            (first_byte, format!("the page's first byte, {}", way(over(first_byte)))),
        ];
        if let Some(ms) = direct.filter(|_| connected.0 == Path::Relay) {
            lines.push((ms, "the two have found a direct way, and the connection has moved to it".into()));
        }
        lines.sort_by(|a, b| a.0.total_cmp(&b.0));
        for (ms, line) in lines {
            self.say(&format!("{ms:>9.1} ms  {line}"));
        }
        if direct.is_none() && !relay_only {
            self.say("              the two have found no direct way, which is a fault here");
        }
    }

    pub(super) fn downloaded(&self, took: Duration, matches: bool, relayed: u64) {
        let rate = http::FILE_LEN as f64 / took.as_secs_f64().max(1e-3) / f64::from(1 << 20);
        let verdict = if matches { "SHA-256 as it should be" } else { "SHA-256 WRONG" };
        self.say(&format!("\n64 MiB in {:.1} s ({rate:.0} MiB/s), {verdict}.", took.as_secs_f64()));
        self.say(&format!("The relay has carried {} in all.", bytes(relayed)));
    }

    fn say(&self, line: &str) {
        if !self.0.is_json() {
            self.0.result(line);
        }
    }
}
