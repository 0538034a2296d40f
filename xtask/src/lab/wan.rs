//! What `byway bench` gets out of a bad line, beside TCP on the same line: three rows of the simulator's `wan` table.

use std::{fs, time::Duration};

use serde_json::Value;

use crate::{
    Stop,
    lab::{
        Lab, Outcome, Scenario,
        network::{Namespace, Plan},
        node,
        process::{self, Service},
        wire::{self, Line},
    },
};

/// The line of the table, without its faults: 100 Mbit/s, 50 ms for a round trip, a queue of 100 ms.
const LINE: Line = Line {
    delay: Duration::from_millis(25),
    mbit_s: 100,
    queue: Duration::from_millis(100),
    loss: 0,
    jitter: Duration::ZERO,
    seed: 4,
};
/// How long each measurement lasts: more than 100 MB where the gate is held.
const SECONDS: u64 = 10;
/// What a measurement may take besides: a start, a dial, round trips on the idle line, an end.
const REST: Duration = Duration::from_secs(15);
/// How long a server may take to listen.
const START_LIMIT: Duration = Duration::from_secs(8);
/// The gate of each of these rows.
const GATE: f64 = 85.0;
/// What of the gate must be reached here, where other programs want the same processors, unless TCP reaches less.
const SHARE: f64 = 0.8;
/// The two ends of the line.
const ADDRESSES: [&str; 2] = ["11.0.0.1", "11.0.0.2"];

/// A row.
#[derive(Debug, Clone, Copy)]
struct Case {
    name: &'static str,
    line: Line,
}

const CASES: [Case; 3] = [
    Case { name: "wan-clean", line: LINE },
    Case { name: "wan-loss-1", line: Line { loss: 10_000, ..LINE } },
    Case { name: "wan-jitter-0.5", line: Line { jitter: Duration::from_micros(500), ..LINE } },
];

/// One scenario for each case; each leaves namespaces behind that the next network's building removes.
pub(crate) fn scenarios() -> Vec<Scenario> {
    let scenario = |case: Case| {
        let run = Box::new(move |lab: &Lab| run(lab, &case.line));
        let name = |end: usize| ADDRESSES[end].to_owned();
        Scenario { name: case.name, a: name(0), b: name(1), plan: Plan::default(), breaks: true, run }
    };
    CASES.into_iter().map(scenario).collect()
}

fn run(lab: &Lab, line: &Line) -> Result<Outcome, Stop> {
    let cable = Namespace::new("wire")?;
    let _wire = wire::start(&cable, line, &lab.dir)?;
    let ends = [Namespace::new("wa")?, Namespace::new("wb")?];
    for ((end, device), address) in ends.iter().zip(wire::ENDS).zip(ADDRESSES) {
        cable.give(device, end)?;
        end.ip(&format!("link set lo up\nlink set eth0 up\naddr add {address}/24 dev eth0\n"))?;
    }
    let (control, tcp) = tcp(lab, &ends)?;
    let event = bench(lab, &ends)?;
    if let Some(why) = event["message"].as_str() {
        return Err(Stop::Failed(format!("`byway bench` failed: {why}; TCP {control} {tcp:.1} up (Mbit/s)")));
    }
    Measured::read(&event)?.judge(line, &control, tcp)
}

/// What TCP gets, from the first end to the second, and which congestion control it used.
fn tcp(lab: &Lab, [client, server]: &[Namespace; 2]) -> Result<(String, f64), Stop> {
    let controls = fs::read_to_string("/proc/sys/net/ipv4/tcp_available_congestion_control").unwrap_or_default();
    let control = if controls.split_whitespace().any(|name| name == "bbr") { "bbr" } else { "cubic" };
    let serve = ["--server", "--one-off", "--forceflush"];
    let mut service = Service::start(server.command("iperf3").args(serve), "iperf3-server", &lab.dir)?;
    service.line(START_LIMIT, "Server listening", |line| line.contains("Server listening").then_some(()))?;
    let seconds = SECONDS.to_string();
    let send = ["--client", ADDRESSES[1], "--time", &seconds, "--interval", "0", "--congestion", control, "--json"];
    let text = process::run(client.command("iperf3").args(send), "")?;
    let value: Value = serde_json::from_str(&text).unwrap_or_default();
    let rate = value["end"]["sum_received"]["bits_per_second"].as_f64();
    let rate = rate.ok_or_else(|| Stop::Failed("iperf3 told no `end.sum_received.bits_per_second`".into()))?;
    Ok((control.to_owned(), rate / 1e6))
}

/// What `byway bench` prints last, its result or its error, from the first end to the second and back.
fn bench(lab: &Lab, [client, server]: &[Namespace; 2]) -> Result<Value, Stop> {
    let mut serve = node::command(server, &lab.byway, &lab.dir.join("serve"));
    serve.args(["--until-stdin-closes", "serve", "nothing", "tcp:127.0.0.1:9"]);
    let mut serving = Service::start(&mut serve, "serve", &lab.dir)?;
    let event = serving.event(START_LIMIT, "ticket", |_| true)?;
    let ticket = event["ticket"].as_str().unwrap_or_default();
    let mut bench = node::command(client, &lab.byway, &lab.dir.join("bench"));
    bench.args(["bench", ticket, "--seconds", &SECONDS.to_string()]);
    let limit = Duration::from_secs(2 * SECONDS) + REST;
    Service::start(&mut bench, "bench", &lab.dir)?.line(limit, "measured", |line| {
        let event: Value = serde_json::from_str(line).ok()?;
        matches!(event["event"].as_str(), Some("measured" | "error")).then_some(event)
    })
}

/// What the row is about.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Measured {
    direct: bool,
    idle: Duration,
    up: f64,
    down: f64,
}

impl Measured {
    fn read(event: &Value) -> Result<Self, Stop> {
        let number = |of: &str, field: &str| {
            let number = event[of][field].as_f64();
            number.ok_or_else(|| Stop::Failed(format!("`byway bench --json` told no `{of}.{field}`: {event}")))
        };
        let idle = Duration::from_secs_f64(number("idle", "p50_ms")?.max(0.0) / 1e3);
        let (up, down) = (number("up", "mbit_s")?, number("down", "mbit_s")?);
        Ok(Measured { direct: event["path"] == "direct", idle, up, down })
    }

    /// Passes a rate that is near the gate or not below that of TCP, whichever asks for less.
    fn judge(&self, line: &Line, control: &str, tcp: f64) -> Result<Outcome, Stop> {
        let Measured { direct, idle, up, down } = *self;
        let figures = format!("Byway {up:.1} up, {down:.1} down; TCP {control} {tcp:.1} up (Mbit/s)");
        if idle < 2 * line.delay || !direct {
            let idle = idle.as_secs_f64() * 1e3;
            return Err(Stop::Failed(format!(
                "a round trip of {idle:.1} ms, direct: {direct}: not over the wire; {figures}"
            )));
        }
        let wanted = tcp.min(SHARE * GATE);
        if up.min(down) < wanted {
            return Err(Stop::Failed(format!("less than {wanted:.1} Mbit/s: {figures}")));
        }
        Ok(Outcome { path: Some("direct"), took: Some(idle), note: figures })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judge(up: f64, tcp: f64) -> Result<Outcome, Stop> {
        Measured { direct: true, idle: Duration::from_millis(50), up, down: 90.0 }.judge(&LINE, "bbr", tcp)
    }

    #[test]
    fn a_row_passes_near_the_gate_or_beside_a_slow_tcp() {
        assert!(judge(68.0, 90.0).is_ok());
        assert!(judge(49.0, 49.0).is_ok());
        assert!(matches!(judge(67.9, 90.0), Err(Stop::Failed(_))));
        assert!(matches!(judge(48.9, 49.0), Err(Stop::Failed(_))));
    }

    #[test]
    fn a_round_trip_shorter_than_the_line_fails() {
        let near = Measured { direct: true, idle: Duration::from_millis(49), up: 90.0, down: 90.0 };
        assert!(matches!(near.judge(&LINE, "bbr", 90.0), Err(Stop::Failed(why)) if why.contains("not over the wire")));
    }
}
