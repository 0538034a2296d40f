//! Scenarios on a real kernel: NATs of nftables in network namespaces, real gateways and STUN servers, and the shipping
//! binary on each host.
//!
//! Each scenario is one row. The network is built anew where a scenario wants another one, and after one that failed or
//! broke it. Two processes beside this one are this program in another role: `lab guard` removes everything when this
//! process ends, however it ends; `lab echo` and `lab exchange` are the application whose bytes cross, `lab poke` and `lab knock` are a stranger,
//! `lab igd` a UPnP gateway that lies or is hard to please, `lab wire` a line of a given delay, rate and loss.

use std::{
    env,
    fs::{self, File},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use serde_json::{Value, json};

use crate::{Stop, command};

mod coturn;
mod failover;
mod gateway;
mod igd;
mod lan;
mod meet;
mod nat;
mod need;
mod network;
mod node;
mod pair;
mod process;
mod proxy;
mod special;
mod survey;
mod traffic;
#[cfg(target_os = "linux")]
mod wan;
#[cfg(target_os = "linux")]
mod wire;

use network::{Network, Plan};

/// Where the lab keeps its files; only root can write beside it.
const DIR: &str = "/run/bylab";
/// Held by the run that owns the namespaces: their names are the same in each.
const LOCK: &str = "/run/bylab.lock";
/// What the whole suite may take after the build; the scenarios that are left then fail.
const SUITE_LIMIT: Duration = Duration::from_secs(12 * 60);

/// What a scenario found when it passed.
#[derive(Debug, Default, PartialEq, Eq)]
struct Outcome {
    /// The path that the bytes took: `direct` or `relay`.
    path: Option<&'static str>,
    /// How long what the scenario is about took.
    took: Option<Duration>,
    /// What a reader of the row may want to know.
    note: String,
}

/// One row of the lab.
struct Scenario {
    name: &'static str,
    a: String,
    b: String,
    plan: Plan,
    /// Whether it leaves more behind than other rules in its routers.
    breaks: bool,
    run: Box<Run>,
}

type Run = dyn Fn(&Lab) -> Result<Outcome, Stop>;

impl Scenario {
    /// What `--only` is compared with.
    fn id(&self) -> String {
        [self.name, &self.a, &self.b].into_iter().filter(|part| !part.is_empty()).collect::<Vec<_>>().join("/")
    }
}

/// What a scenario has at hand.
struct Lab {
    network: Network,
    /// The command under test.
    byway: PathBuf,
    /// The simulator's command, whose NATs the lab's are compared with.
    simulator: PathBuf,
    /// Where the scenario's files go.
    dir: PathBuf,
}

#[derive(Debug, Default, PartialEq, Eq)]
struct Options {
    only: Option<String>,
    keep: bool,
    json: bool,
}

/// Runs the lab, or one of the roles that it starts itself in.
pub(crate) fn run(args: &[String]) -> Result<(), Stop> {
    match args.first().map(String::as_str) {
        Some("guard") => guard(),
        Some("echo") => traffic::echo(args.get(1..).unwrap_or_default()),
        Some("igd") => igd::run(args.get(1..).unwrap_or_default()),
        Some("poke") => traffic::poke(args.get(1..).unwrap_or_default()),
        Some("knock") => traffic::knock(args.get(1..).unwrap_or_default()),
        Some("exchange") => traffic::exchange(args.get(1..).unwrap_or_default()),
        #[cfg(target_os = "linux")]
        Some("wire") => wire::run(args.get(1..).unwrap_or_default()),
        _ => scenarios(&options(args)?),
    }
}

fn options(args: &[String]) -> Result<Options, Stop> {
    let mut options = Options::default();
    let mut args = args.iter();
    while let Some(arg) = args.next() {
        match arg.as_str() {
            "--json" => options.json = true,
            "--keep" => options.keep = true,
            "--only" => {
                let name = args.next().ok_or_else(|| Stop::Usage("--only wants a scenario".into()))?;
                options.only = Some(name.clone());
            }
            other => return Err(Stop::Usage(format!("no such argument: {other}"))),
        }
    }
    Ok(options)
}

fn scenarios(options: &Options) -> Result<(), Stop> {
    let wanted = |scenario: &Scenario| {
        let id = scenario.id();
        options.only.as_ref().is_none_or(|only| is_part(only, &id))
    };
    let mut list: Vec<Scenario> = survey::scenarios();
    list.extend(pair::scenarios());
    list.extend(special::scenarios());
    list.push(proxy::scenario());
    list.extend(lan::scenarios());
    list.extend(gateway::scenarios());
    list.extend(igd::scenarios());
    list.extend(failover::scenarios());
    #[cfg(target_os = "linux")]
    list.extend(wan::scenarios());
    list.retain(wanted);
    if list.is_empty() {
        let only = options.only.as_deref().unwrap_or_default();
        return Err(Stop::Usage(format!("no scenario `{only}`; survey/NAT and pair/NAT/NAT are some")));
    }
    need::check()?;
    let programs = build()?;
    let lock = File::create(LOCK).map_err(|error| Stop::Failed(format!("cannot write {LOCK}: {error}")))?;
    if lock.try_lock().is_err() {
        return Err(Stop::Failed(format!("another run of the lab holds {LOCK}: wait for its end")));
    }
    let mut guard = if options.keep { None } else { Some(start_guard()?) };
    let failed = run_all(&list, &programs, options.json);
    if options.keep {
        eprintln!("lab: the network is kept; `ip netns list` shows it, the next run removes it. Logs are in {DIR}");
    } else {
        clean_up()?;
    }
    drop(lock);
    if let Some(guard) = &mut guard {
        drop(guard.stdin.take());
        let _ = guard.wait();
    }
    match failed {
        0 => Ok(()),
        failed => Err(Stop::Failed(format!("{failed} of {} scenarios failed; each says why above", list.len()))),
    }
}

/// Whether `only` is the id or ends before one of its `/` or `-`.
fn is_part(only: &str, id: &str) -> bool {
    id.strip_prefix(only).is_some_and(|rest| rest.is_empty() || rest.starts_with(['/', '-']))
}

/// Runs the scenarios one after another, and gives the number of those that failed.
fn run_all(list: &[Scenario], programs: &[PathBuf; 2], json: bool) -> usize {
    let started = Instant::now();
    let mut failed = 0;
    let mut network = None;
    for scenario in list {
        let dir = Path::new(DIR).join(scenario.id().replace('/', "+"));
        let begun = Instant::now();
        let result = if started.elapsed() > SUITE_LIMIT {
            Err(Stop::Failed(format!("not run: the suite has taken {} s already", SUITE_LIMIT.as_secs())))
        } else {
            one(scenario, &mut network, programs, &dir)
        };
        eprintln!("lab: {} took {:.1} s", scenario.id(), begun.elapsed().as_secs_f64());
        if matches!(result, Err(Stop::Failed(_) | Stop::Usage(_))) {
            failed += 1;
            process::print_tails(&dir);
        }
        print(&row(scenario, &result), json);
    }
    failed
}

fn one(
    scenario: &Scenario,
    network: &mut Option<Network>,
    [byway, simulator]: &[PathBuf; 2],
    dir: &Path,
) -> Result<Outcome, Stop> {
    let ready = match network.take() {
        Some(network) if network.plan() == scenario.plan => network,
        _ => Network::build(scenario.plan)?,
    };
    let _ = fs::remove_dir_all(dir);
    fs::create_dir_all(dir).map_err(|error| Stop::Failed(format!("cannot create {}: {error}", dir.display())))?;
    let lab = Lab { network: ready, byway: byway.clone(), simulator: simulator.clone(), dir: dir.to_owned() };
    let result = (scenario.run)(&lab);
    if !scenario.breaks && !matches!(result, Err(Stop::Failed(_))) {
        *network = Some(lab.network);
    }
    result
}

fn row(scenario: &Scenario, result: &Result<Outcome, Stop>) -> Value {
    let (word, path, took, note) = match result {
        Ok(outcome) => ("pass", outcome.path, outcome.took, &outcome.note),
        Err(Stop::Skipped(why)) => ("skip", None, None, why),
        Err(Stop::Failed(why) | Stop::Usage(why)) => ("fail", None, None, why),
    };
    let ms = took.map(|took| u64::try_from(took.as_millis()).unwrap_or(u64::MAX));
    json!({"scenario": scenario.name, "a": scenario.a, "b": scenario.b, "result": word, "path": path, "ms": ms, "note": note})
}

#[allow(clippy::print_stdout)] // The rows are the result.
fn print(row: &Value, json: bool) {
    if json {
        println!("{row}");
        return;
    }
    let text = |field: &str| match &row[field] {
        Value::Null => "-".to_owned(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    };
    let [result, scenario, a, b, path, ms, note] = ["result", "scenario", "a", "b", "path", "ms", "note"].map(text);
    println!("{result:<4}  {scenario:<14}  {a:<24}  {b:<24}  {path:<6}  {ms:>6}  {note}");
}

/// Builds the command as it ships and the simulator's, and tells where they are.
fn build() -> Result<[PathBuf; 2], Stop> {
    let mut build = command::cargo("build --release -p byway-cli -p byway-sim --message-format=json");
    let output = command::output(&mut build, command::LIMIT)?;
    let messages: Vec<Value> = output.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
    let find = |name: &str| {
        let mut programs = messages.iter().filter(|message| message["target"]["name"] == name);
        let path = programs.find_map(|message| message["executable"].as_str().map(PathBuf::from));
        path.ok_or_else(|| Stop::Failed(format!("cargo built no program `{name}`: does its crate still have it?")))
    };
    Ok([find("byway")?, find("byway-sim")?])
}

/// This program in one of its roles.
fn role(words: &[&str]) -> Result<Vec<String>, Stop> {
    let this = env::current_exe().map_err(|error| Stop::Failed(format!("this program has no path: {error}")))?;
    let this = this.to_string_lossy().into_owned();
    Ok([this.as_str(), "lab"].iter().chain(words).map(|word| (*word).to_owned()).collect())
}

/// Starts what cleans up if this process is killed; it has a group of its own, so that Ctrl-C spares it.
fn start_guard() -> Result<Child, Stop> {
    use std::os::unix::process::CommandExt;
    let words = role(&["guard"])?;
    let mut command = Command::new(&words[0]);
    command.args(&words[1..]).stdin(Stdio::piped()).stdout(Stdio::null()).process_group(0);
    command.spawn().map_err(|error| Stop::Failed(format!("cannot start the guard: {error}")))
}

/// Waits for its input to end, which happens when the lab does, and cleans up unless another run has begun.
fn guard() -> Result<(), Stop> {
    let _ = std::io::copy(&mut std::io::stdin(), &mut std::io::sink());
    let Ok(lock) = File::create(LOCK) else { return Ok(()) };
    match lock.try_lock() {
        Ok(()) => clean_up(),
        Err(_) => Ok(()), // that run has cleaned up
    }
}

fn clean_up() -> Result<(), Stop> {
    network::remove_all()?;
    match fs::remove_dir_all(DIR) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(Stop::Failed(format!("cannot remove {DIR}: {error}")))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scenario() -> Scenario {
        let run = Box::new(|_: &Lab| Ok(Outcome::default()));
        Scenario { name: "pair", a: "open".into(), b: "full-cone".into(), plan: Plan::default(), breaks: false, run }
    }

    #[test]
    fn a_row_has_the_fields_of_every_row() {
        let took = Some(Duration::from_micros(12_900));
        let outcome = Outcome { path: Some("direct"), took, note: "n".into() };
        let wanted = json!({"scenario": "pair", "a": "open", "b": "full-cone", "result": "pass", "path": "direct", "ms": 12, "note": "n"});
        assert_eq!(row(&scenario(), &Ok(outcome)), wanted);
        let skipped = row(&scenario(), &Err(Stop::Skipped("why".into())));
        assert_eq!(
            (&skipped["result"], &skipped["note"], &skipped["ms"]),
            (&json!("skip"), &json!("why"), &Value::Null)
        );
    }

    #[test]
    fn arguments_that_make_no_sense_are_refused() {
        let parse = |text: &str| options(&text.split(' ').map(str::to_owned).collect::<Vec<_>>());
        let all = Options { only: Some("pair/open".into()), keep: true, json: true };
        assert_eq!(parse("--json --only pair/open --keep"), Ok(all));
        assert!(
            is_part("wan", "wan-clean/a/b") && is_part("wan-clean", "wan-clean/a/b") && is_part("pair/a/b", "pair/a/b")
        );
        assert!(!is_part("wan", "wander/a") && !is_part("pair/a/b", "pair/a"));
        assert!(matches!(parse("--only"), Err(Stop::Usage(_))));
        assert!(matches!(parse("--jsn"), Err(Stop::Usage(_))));
    }
}
