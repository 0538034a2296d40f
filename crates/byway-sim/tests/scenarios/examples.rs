//! The example runs to its end.

use std::process::Command;

#[test]
fn your_protocol_runs_in_the_simulator() {
    let deps = std::env::current_exe().unwrap();
    let path = deps.parent().unwrap().with_file_name("examples").join("simulate_your_protocol");
    let path = path.with_extension(std::env::consts::EXE_EXTENSION);
    let output =
        Command::new(&path).output().unwrap_or_else(|e| panic!("{path:?}: {e}; run `cargo build --examples` first"));
    let shown = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success() && shown.matches("Direct").count() == 3, "{shown}");
}
