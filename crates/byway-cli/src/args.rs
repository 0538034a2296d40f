//! The command line.

use std::{net::SocketAddr, path::PathBuf};

use byway_proto::{PeerAddr, addr::HostAddr, ticket::is_service_name};
use clap::{ArgAction, Args, Parser, Subcommand};

use crate::{
    bench::MAX_SECONDS,
    config::metrics::MetricsAddr,
    target::{PeerName, Upstream},
};

const EXIT_CODES: &str = "\
Exit codes:
    0  done, or a command that runs until it is stopped was stopped
    1  something on this machine failed
    2  the command line, a ticket or the configuration makes no sense
    3  no node runs in this data directory, or it was stopped while this command used it
    4  the peer or the relay cannot be reached
    5  the peer was reached and refused
  130  stopped by Ctrl-C or SIGTERM before the work was done

Results go to standard output, everything else to standard error.";

/// Reach any machine by its public key: directly where the network allows it, through a blind relay where it does not.
#[derive(Debug, Parser)]
#[command(name = "byway", version, after_help = EXIT_CODES, arg_required_else_help = true)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) global: Global,
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// What every command takes.
#[derive(Debug, Clone, Args)]
pub(crate) struct Global {
    /// Where this node's key and memory are; one node runs in each
    #[arg(long, global = true, value_name = "DIR")]
    pub(crate) data_dir: Option<PathBuf>,
    /// The configuration file
    #[arg(long, global = true, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
    /// Print one JSON object a line on standard output
    #[arg(long, global = true)]
    pub(crate) json: bool,
    /// Log more, up to -vvv; BYWAY_LOG takes a filter
    #[arg(short, long, global = true, action = ArgAction::Count)]
    pub(crate) verbose: u8,
    /// End when standard input does: a parent that dies takes this process along
    #[arg(long, global = true, hide = true)]
    pub(crate) until_stdin_closes: bool,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Show it all on this machine: a relay, two nodes and a web server, each a process of its own
    Demo(DemoArgs),
    /// Run the node, and serve what the configuration lists
    Up(UpArgs),
    /// Print this node's id
    Id,
    /// Let a peer reach a local TCP service, and print the ticket for it
    Serve(ServeArgs),
    /// Open a local port that leads to a peer's service
    Reach(ReachArgs),
    /// Connect standard input and output to a peer
    Pipe(PipeArgs),
    /// Measure the way to a peer
    Ping(PingArgs),
    /// Measure what the line to a peer carries, and how long small messages take meanwhile
    Bench(BenchArgs),
    /// Find out how the NATs between this machine and the internet behave, and what that means
    Check(CheckArgs),
    /// Explain why a peer is reached directly, or why it is not and what would help; or why it is not connected
    Why(WhyArgs),
    /// Print what this node knows and does
    Status(StatusArgs),
    /// The peers that this node knows: list them, keep some out, take them along
    #[command(subcommand)]
    Peers(PeersCommand),
    /// Have the running node read its configuration again, and print what has changed
    Reload,
    /// Relay for others, and print the address to give them
    Relay(RelayArgs),
    /// The web server of the demo
    #[command(hide = true)]
    DemoHttp(DemoHttpArgs),
}

#[derive(Debug, Clone, Args)]
pub(crate) struct DemoArgs {
    /// End after the download
    #[arg(long)]
    pub(crate) once: bool,
    /// Never leave the relay
    #[arg(long)]
    pub(crate) relay_only: bool,
}

#[derive(Debug, Clone, Args)]
pub(crate) struct UpArgs {
    /// Tell the node's figures to Prometheus at http://ADDR/metrics; a port alone stands for 127.0.0.1
    #[arg(long, value_name = "ADDR")]
    pub(crate) metrics: Option<MetricsAddr>,
}

#[derive(Debug, Clone, Args)]
pub(crate) struct ServeArgs {
    /// The service's name in the ticket
    #[arg(value_parser = service_name)]
    pub(crate) name: String,
    /// Where it leads: tcp:HOST:PORT
    #[arg(value_name = "tcp:HOST:PORT")]
    pub(crate) to: Upstream,
    #[command(flatten)]
    pub(crate) servers: ServerChoice,
    /// Let in whoever knows the ticket, instead of the first peer alone
    #[arg(long)]
    pub(crate) open: bool,
    /// Leave this machine's addresses out of the ticket: peers begin at the relay
    #[arg(long)]
    pub(crate) hide_addresses: bool,
}

#[derive(Debug, Clone, Args)]
pub(crate) struct ReachArgs {
    /// A ticket, or PEER/NAME of a peer known from one
    #[arg(value_name = "TICKET | PEER/NAME")]
    pub(crate) to: String,
    /// The local address to open [default: the port used last, at 127.0.0.1]
    #[arg(long, value_name = "ADDR")]
    pub(crate) listen: Option<SocketAddr>,
    #[command(flatten)]
    pub(crate) servers: ServerChoice,
}

#[derive(Debug, Clone, Args)]
pub(crate) struct PipeArgs {
    /// A ticket, or PEER/NAME of a peer known from one; without it, a ticket is printed and one peer taken
    #[arg(value_name = "TICKET | PEER/NAME")]
    pub(crate) to: Option<String>,
    /// Leave this machine's addresses out of the ticket: peers begin at the relay
    #[arg(long, conflicts_with = "to")]
    pub(crate) hide_addresses: bool,
    #[command(flatten)]
    pub(crate) servers: ServerChoice,
}

#[derive(Debug, Clone, Args)]
pub(crate) struct PingArgs {
    /// A ticket, or the id of a known peer
    #[arg(value_name = "TICKET | PEER")]
    pub(crate) to: String,
    /// How many pings to send
    #[arg(short, long, default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub(crate) count: u32,
    #[command(flatten)]
    pub(crate) servers: ServerChoice,
}

#[derive(Debug, Clone, Args)]
pub(crate) struct BenchArgs {
    /// A ticket, or the id of a known peer
    #[arg(value_name = "TICKET | PEER")]
    pub(crate) to: String,
    /// How many seconds each direction is loaded
    #[arg(short, long, value_name = "SECS", default_value_t = 5, value_parser = clap::value_parser!(u64).range(1..=MAX_SECONDS))]
    pub(crate) seconds: u64,
    #[command(flatten)]
    pub(crate) servers: ServerChoice,
}

#[derive(Debug, Clone, Args)]
pub(crate) struct CheckArgs {
    /// How many seconds the servers may take to answer
    #[arg(long, value_name = "SECS", default_value_t = 15, value_parser = clap::value_parser!(u64).range(1..=600))]
    pub(crate) wait: u64,
    #[command(flatten)]
    pub(crate) servers: Servers,
}

#[derive(Debug, Clone, Args)]
pub(crate) struct StatusArgs {
    /// Show peers, paths and channels as a page that renews itself, until q is pressed
    #[arg(short, long)]
    pub(crate) watch: bool,
}

#[derive(Debug, Clone, Args)]
pub(crate) struct WhyArgs {
    /// A ticket, or the id of a peer
    #[arg(value_name = "TICKET | PEER")]
    pub(crate) to: String,
}

/// What is done with the address book.
#[derive(Debug, Clone, Subcommand)]
pub(crate) enum PeersCommand {
    /// List the peers of the address book, and those that are banned
    List,
    /// Write a peer into the address book
    Add {
        /// The peer and its addresses: ID@HOST:PORT,HOST:PORT
        #[arg(value_name = "ID@HOST:PORT", value_parser = peer)]
        peer: PeerAddr,
    },
    /// Keep a peer out: its connection is closed, and it is neither let in nor dialled
    Ban {
        /// The peer's id, or enough of its beginning
        #[arg(value_name = "PEER")]
        peer: PeerName,
        /// For how many hours [default: for good]
        #[arg(long, value_name = "HOURS", value_parser = clap::value_parser!(u64).range(1..=1_000_000))]
        hours: Option<u64>,
        /// Why, for yourself
        #[arg(long, value_name = "TEXT", default_value = "by hand")]
        why: String,
    },
    /// Let a banned peer in again
    Unban {
        /// The peer's id, or enough of its beginning
        #[arg(value_name = "PEER")]
        peer: PeerName,
    },
    /// Print the address book as JSON, for `import` elsewhere
    Export,
    /// Take over an address book from standard input, as `export` prints it
    Import,
}

#[derive(Debug, Clone, Args)]
pub(crate) struct RelayArgs {
    /// The UDP address to listen on [default: every address, the port used last or 4477]
    #[arg(long, value_name = "ADDR")]
    pub(crate) listen: Option<SocketAddr>,
    #[command(flatten)]
    pub(crate) up: UpArgs,
}

/// Servers of one run, beside those of the configuration.
#[derive(Debug, Clone, Default, Args)]
pub(crate) struct Servers {
    /// A relay to use beside the configured ones, as `byway relay` prints it; may be repeated
    #[arg(long = "relay", value_name = "RELAY", value_parser = relay)]
    pub(crate) relays: Vec<PeerAddr>,
    /// A STUN server that tells how the NATs behave, beside the relays, which do too; may be repeated
    #[arg(long = "stun", value_name = "HOST:PORT")]
    pub(crate) stun: Vec<HostAddr>,
}

/// The servers of a command that reaches peers, or is reached by them.
#[derive(Debug, Clone, Default, Args)]
pub(crate) struct ServerChoice {
    #[command(flatten)]
    pub(crate) servers: Servers,
    /// Never reach a peer directly
    #[arg(long)]
    pub(crate) relay_only: bool,
}

#[derive(Debug, Clone, Args)]
pub(crate) struct DemoHttpArgs {
    /// What the offered file is made of
    #[arg(long)]
    pub(crate) seed: u64,
}

fn service_name(text: &str) -> Result<String, String> {
    match is_service_name(text) {
        true => Ok(text.to_owned()),
        false => Err("use 1 to 64 letters, digits and -_.:/".into()),
    }
}

fn relay(text: &str) -> Result<PeerAddr, String> {
    let relay: PeerAddr = text.parse().map_err(|error| format!("{error}"))?;
    match relay.addrs.is_empty() {
        true => Err("a relay is id@host:port, as `byway relay` prints it".into()),
        false => Ok(relay),
    }
}

fn peer(text: &str) -> Result<PeerAddr, String> {
    let peer: PeerAddr = text.parse().map_err(|error| format!("{error}"))?;
    match peer.addrs.is_empty() {
        true => Err("without an address there is nothing to write down; write id@host:port".into()),
        false => Ok(peer),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn global_flags_may_follow_the_command() {
        let cli = Cli::try_parse_from(["byway", "status", "--json", "--data-dir", "/x", "-vv"]).unwrap();
        assert!(cli.global.json && cli.global.verbose == 2);
    }

    #[test]
    fn wrong_arguments_are_refused_before_anything_starts() {
        for line in [
            "byway serve web 127.0.0.1:80",
            "byway serve a,b tcp:127.0.0.1:80",
            "byway serve web tcp:127.0.0.1:80 --relay 127.0.0.1:1",
            "byway reach",
            "byway ping",
            "byway pipe x --hide-addresses",
            "byway up --metrics localhost:9464",
        ] {
            assert!(Cli::try_parse_from(line.split(' ')).is_err(), "{line}");
        }
    }
}
