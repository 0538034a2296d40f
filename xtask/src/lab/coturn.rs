//! coturn: the STUN server with two addresses (RFC 5780), and a second opinion on what a NAT does.

use std::{path::Path, time::Duration};

use crate::{
    Stop,
    lab::{
        nat::Depends,
        network::{Namespace, STUN},
        process::{self, Service},
    },
};

/// The port of the server; the alternative one is the next.
pub(crate) const PORT: u16 = 3478;
/// How long the server may take to start.
const START_LIMIT: Duration = Duration::from_secs(5);

/// Starts the server on the machine with both addresses.
pub(crate) fn serve(machine: &Namespace, dir: &Path) -> Result<Service, Stop> {
    let mut command = machine.command("turnserver");
    command.args(["-n", "--no-tls", "--no-dtls", "--no-cli", "--no-auth", "--log-file=stdout", "--simple-log"]);
    command.args(STUN.iter().map(|addr| format!("--listening-ip={addr}")));
    command.args([format!("--relay-ip={}", STUN[0]), format!("--listening-port={PORT}")]);
    command.arg(format!("--alt-listening-port={}", PORT + 1));
    command.arg(format!("--pidfile={}", dir.join("turnserver.pid").display()));
    command.arg(format!("--userdb={}", dir.join("turndb").display()));
    let service = Service::start(&mut command, "turnserver", dir)?;
    let bound = || {
        let sockets = process::run(machine.command("ss").args(["-H", "-u", "-l", "-n"]), "").unwrap_or_default();
        STUN.iter().all(|addr| sockets.contains(&format!("{addr}:{}", PORT + 1))).then_some(())
    };
    process::wait_for(START_LIMIT, bound).ok_or_else(|| {
        Stop::Failed(format!("turnserver does not listen after {} s: its log is below", START_LIMIT.as_secs()))
    })?;
    Ok(service)
}

/// What coturn's client finds of the NAT before `host`; `None` where UDP does not pass.
pub(crate) fn discover(host: &Namespace) -> Result<Option<(Depends, Depends)>, Stop> {
    let mut command = host.command("turnutils_natdiscovery");
    command.args(["-m", "-f", "-p", &PORT.to_string(), &STUN[0].to_string()]);
    let text = process::run(&mut command, "")?;
    Ok(verdict(&text, "Mapping").zip(verdict(&text, "Filtering")))
}

/// The last sentence about `what`: the client prints one for each behaviour it has found.
fn verdict(text: &str, what: &str) -> Option<Depends> {
    let line = text.lines().rev().find(|line| line.contains("NAT") && line.contains(&format!("{what}!")))?;
    let kinds = [
        ("Endpoint Independent", Depends::Nothing),
        ("Address and Port Dependent", Depends::AddressAndPort),
        ("Address Dependent", Depends::Address),
    ];
    kinds.iter().find(|(words, _)| line.contains(words)).map(|(_, kind)| *kind)
}
