//! The examples run to their end and print what they promise.

use std::process::Command;

/// What an example prints; `cargo test` has built it.
fn run(name: &str) -> String {
    let deps = std::env::current_exe().unwrap();
    let path =
        deps.parent().unwrap().with_file_name("examples").join(name).with_extension(std::env::consts::EXE_EXTENSION);
    let output =
        Command::new(&path).output().unwrap_or_else(|e| panic!("{path:?}: {e}; run `cargo build --examples` first"));
    assert!(output.status.success(), "{name}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn echo_echoes() {
    assert!(run("echo").contains("echoes: is anybody there?"));
}

#[test]
fn everybody_in_the_chat_hears_the_others() {
    let said = run("chat");
    for name in ["ada", "ben", "eve"] {
        assert_eq!(said.matches(&format!("hello, this is {name}")).count(), 2, "{said}");
    }
}

#[test]
fn questions_are_answered_beside_a_copy() {
    assert!(run("multi_protocol").contains("125 MiB copied"));
}

#[test]
fn a_masked_transport_connects() {
    assert!(run("custom_transport").contains("under a mask"));
}
