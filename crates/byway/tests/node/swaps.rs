//! What is tested and simulated is what ships.

use std::{fs, path::Path};

#[test]
fn no_code_of_byway_is_swapped_for_tests_or_simulation() {
    let mut swaps = Vec::new();
    look(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), &mut swaps);
    assert!(swaps.is_empty(), "conditional code that is no module of tests:\n{}", swaps.join("\n"));
}

fn look(dir: &Path, swaps: &mut Vec<String>) {
    for entry in fs::read_dir(dir).unwrap().map(Result::unwrap) {
        let path = entry.path();
        if path.is_dir() {
            look(&path, swaps);
            continue;
        }
        let text = fs::read_to_string(&path).unwrap();
        let lines: Vec<_> = text.lines().map(str::trim).collect();
        for (n, line) in lines.iter().enumerate().filter(|(_, line)| line.contains("cfg")) {
            let by = ["test", "feature", "sim", "debug_assertions"];
            let is_swap = line.contains("cfg(") || line.contains("cfg!(") || line.contains("cfg_attr(");
            let is_tests =
                *line == "#[cfg(test)]" && lines.get(n + 1).is_some_and(|next| next.starts_with("mod tests"));
            let is_prose = *line == "#[cfg(doctest)]"
                && lines.get(n + 1).is_some_and(|next| next.starts_with("#[doc = include_str!("))
                && lines.get(n + 2) == Some(&"struct Readme;");
            if is_swap && by.iter().any(|by| line.contains(by)) && !is_tests && !is_prose {
                swaps.push(format!("{}:{}: {line}", path.display(), n + 1));
            }
        }
    }
}
