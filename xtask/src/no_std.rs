//! Proves that `byway-proto` and everything it links stands without `std`, on the host, without another target.
//!
//! The proof is the compiler's: a program may hold one panic handler only, and `std` brings one. So a probe crate that
//! is `no_std`, defines a panic handler and links the built `byway-proto` compiles exactly if nothing below it links
//! `std`. A second probe that does name `std` must fail, so that the proof is known to bite.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use serde_json::Value;

use crate::{Stop, command, root};

const PROBE: &str = "#![no_std]
extern crate byway_proto;
#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}
";

/// Builds `byway-proto` alone (so that no other crate's features colour its dependencies) and both probes.
pub(crate) fn run() -> Result<(), Stop> {
    let library = library()?;
    let dir = root().join("target/no-std");
    fs::create_dir_all(&dir).map_err(|e| Stop::Failed(format!("cannot make {}: {e}", dir.display())))?;
    if !probe(&dir, "without", PROBE, &library, Stdio::inherit())? {
        return Err(Stop::Failed("byway-proto or a crate below it links std: see the compiler's message".into()));
    }
    if probe(&dir, "with", &format!("{PROBE}extern crate std;\n"), &library, Stdio::null())? {
        return Err(Stop::Failed("the probe compiles with std too: it proves nothing any more, mend xtask".into()));
    }
    println!("byway-proto links no std: the probe with its own panic handler compiles, and with std it does not");
    Ok(())
}

/// The file that `cargo build -p byway-proto` made of the crate.
fn library() -> Result<PathBuf, Stop> {
    let mut build = command::cargo("build -p byway-proto --message-format json-render-diagnostics");
    let output = command::output(&mut build, command::LIMIT)?;
    let rows = output.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let mut built = rows.filter(|row| row["target"]["name"] == "byway_proto" && row["reason"] == "compiler-artifact");
    let files = built.next().map(|row| row["filenames"].clone());
    let files = files.as_ref().and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str);
    let metadata = files.map(PathBuf::from).find(|file| file.extension().is_some_and(|end| end == "rmeta"));
    metadata.ok_or_else(|| Stop::Failed("cargo does not say where it built byway-proto: mend xtask".into()))
}

/// Whether the probe `source` compiles.
fn probe(dir: &Path, name: &str, source: &str, library: &Path, stderr: Stdio) -> Result<bool, Stop> {
    let file = dir.join(format!("{name}.rs"));
    fs::write(&file, source).map_err(|e| Stop::Failed(format!("cannot write {}: {e}", file.display())))?;
    let mut rustc: Command = command::program("rustc", "--edition 2024 --crate-type lib --emit metadata");
    rustc.arg("--out-dir").arg(dir).arg("--extern").arg(format!("byway_proto={}", library.display()));
    rustc.arg("-L").arg(format!("dependency={}", library.parent().unwrap_or(dir).display()));
    let status = rustc.arg(&file).stderr(stderr).status();
    status.map(|status| status.success()).map_err(|e| Stop::Failed(format!("cannot start rustc: {e}")))
}
