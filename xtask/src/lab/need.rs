//! What the lab needs of the machine. It installs what it can.

use std::process::Command;

use crate::{Stop, command};

/// Programs, and the Debian packages that have them.
const PROGRAMS: [(&str, &str); 9] = [
    ("ip", "iproute2"),
    ("sysctl", "procps"),
    ("nft", "nftables"),
    ("conntrack", "conntrack"),
    ("turnserver", "coturn"),
    ("turnutils_natdiscovery", "coturn"),
    ("miniupnpd", "miniupnpd-nftables"),
    ("iperf3", "iperf3"),
    ("tinyproxy", "tinyproxy-bin"),
];

/// Skips, with the reason, where the lab cannot run.
pub(crate) fn check() -> Result<(), Stop> {
    let skipped = |why: &str| Err(Stop::Skipped(why.to_owned()));
    if !cfg!(target_os = "linux") {
        return skipped("network namespaces are Linux's");
    }
    if !command::works(Command::new("sh").args(["-c", "test $(id -u) = 0"])) {
        return skipped("network namespaces need root: run it as root");
    }
    install();
    let missing: Vec<&str> = PROGRAMS.iter().filter(|(name, _)| !has(name)).map(|(_, package)| *package).collect();
    if !missing.is_empty() {
        return Err(Stop::Skipped(format!("missing here, and apt-get does not install them: {}", missing.join(", "))));
    }
    let name = format!("{}probe", super::network::PREFIX);
    let namespace = command::works(Command::new("ip").args(["netns", "add", &name]));
    let nft =
        ["netns", "exec", &name, "nft", "add table ip nat { chain c { type nat hook postrouting priority 100; }; }"];
    let works = namespace && command::works(Command::new("ip").args(nft));
    let _ = command::works(Command::new("ip").args(["netns", "delete", &name]));
    match (namespace, works) {
        (false, _) => skipped("this kernel, or this container, allows no network namespaces"),
        (true, false) => skipped("this kernel has no address translation by nftables"),
        (true, true) => Ok(()),
    }
}

fn has(program: &str) -> bool {
    command::works(Command::new("sh").args(["-c", &format!("command -v {program}")]))
}

/// Installs what is missing, on Debian and its relatives; what does not work out is seen afterwards.
fn install() {
    let mut missing: Vec<&str> = PROGRAMS.iter().filter(|(name, _)| !has(name)).map(|(_, package)| *package).collect();
    missing.dedup();
    if missing.is_empty() || !has("apt-get") {
        return;
    }
    eprintln!("lab: installing {}", missing.join(", "));
    let apt = |args: &[&str]| {
        let mut command = Command::new("apt-get");
        command::works(command.args(args).env("DEBIAN_FRONTEND", "noninteractive"))
    };
    let install =
        ["install", "-y", "-q", "--no-install-recommends"].iter().chain(&missing).copied().collect::<Vec<_>>();
    let _ = apt(&["update", "-q"]) && apt(&install);
}
