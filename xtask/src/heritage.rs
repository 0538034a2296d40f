//! Holds `docs/heritage.md` to its word: every test that it names exists, and no defect of the ancestors is passed over.

use std::{collections::BTreeSet, fs, path::Path};

use crate::{Stop, root};

/// The table.
const TABLE: &str = "docs/heritage.md";

/// Numbered defects of the systems that Byway learns from: the letter, and the least last number.
const SERIES: [(char, u8); 4] = [('A', 6), ('B', 18), ('C', 28), ('W', 10)];

/// Underscores of what is quoted outside of the tables and meant for a test.
const TEST_UNDERSCORES: usize = 3;

/// Compares the table with the tests of the repository.
pub(crate) fn run() -> Result<(), Stop> {
    let root = root();
    let text = fs::read_to_string(root.join(TABLE)).map_err(|e| Stop::Failed(format!("cannot read {TABLE}: {e}")))?;
    let mut tests = BTreeSet::new();
    for dir in ["crates", "xtask", "fuzz"] {
        read_tests(&root.join(dir), &mut tests)?;
    }
    let faults = faults(&text, &tests);
    faults.iter().for_each(|fault| println!("{fault}"));
    match faults.len() {
        0 => Ok(()),
        n => Err(Stop::Failed(format!("{n} rows of {TABLE} do not hold; mend the row, or write the test"))),
    }
}

/// Collects the names of all functions below `dir` that stand under a test attribute, or are lab scenarios.
fn read_tests(dir: &Path, tests: &mut BTreeSet<String>) -> Result<(), Stop> {
    let failed = |e: std::io::Error| Stop::Failed(format!("cannot read {}: {e}", dir.display()));
    for entry in fs::read_dir(dir).map_err(failed)? {
        let path = entry.map_err(failed)?.path();
        if path.is_dir() && path.file_name().is_some_and(|name| name != "target") {
            read_tests(&path, tests)?;
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            tests.extend(tests_in(&fs::read_to_string(&path).map_err(failed)?));
        }
    }
    Ok(())
}

fn tests_in(source: &str) -> Vec<String> {
    let mut found = Vec::new();
    let mut under_test = false;
    for line in source.lines().map(str::trim) {
        under_test |= line.starts_with("#[test]") || line.starts_with("#[tokio::test");
        if let Some(name) = line.trim_start_matches("async ").strip_prefix("fn ").filter(|_| under_test) {
            found.extend(name.split(['(', '<']).next().map(str::to_owned));
            under_test = false;
        }
    }
    found
}

fn faults(text: &str, tests: &BTreeSet<String>) -> Vec<String> {
    let mut faults = Vec::new();
    let mut seen = BTreeSet::new();
    for line in text.lines() {
        if !line.starts_with("| ") {
            let missing = quoted(line).filter(|name| is_test(name) && !tests.contains(*name));
            faults.extend(missing.map(|name| format!("there is no test `{name}`")));
            continue;
        }
        let cells: Vec<&str> = line.trim_matches('|').split('|').map(str::trim).collect();
        let [id, _, named, reason] = cells[..] else {
            faults.push(format!("not four cells: {line}"));
            continue;
        };
        if id == "id" {
            continue;
        }
        match number(id) {
            Some(row) if seen.insert(row) => {}
            Some(_) => faults.push(format!("{id} has two rows")),
            None => faults.push(format!("{id} belongs to no series")),
        }
        if quoted(named).next().is_none() && reason.is_empty() {
            faults.push(format!("{id} has neither a test nor a reason"));
        }
        let missing = quoted(named).filter(|name| !tests.contains(*name));
        faults.extend(missing.map(|name| format!("{id}: there is no test `{name}`")));
    }
    for (letter, least) in SERIES {
        let last = seen.range((letter, 0)..=(letter, u8::MAX)).next_back().map_or(0, |(_, number)| *number);
        let missing = (1..=last.max(least)).filter(|number| !seen.contains(&(letter, *number)));
        faults.extend(missing.map(|number| format!("{letter}{number} has no row")));
    }
    faults
}

fn quoted(text: &str) -> impl Iterator<Item = &str> {
    text.split('`').skip(1).step_by(2)
}

/// Whether a word is meant for the name of a test.
fn is_test(word: &str) -> bool {
    let fits = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
    word.chars().all(fits) && word.matches('_').count() >= TEST_UNDERSCORES
}

/// The series of a row, and its number there.
fn number(id: &str) -> Option<(char, u8)> {
    let (letter, number) = SERIES.iter().find_map(|(letter, _)| Some((*letter, id.strip_prefix(*letter)?)))?;
    Some((letter, number.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(rows: &[&str]) -> String {
        let others = SERIES.iter().flat_map(|(letter, last)| (1..=*last).map(move |n| format!("{letter}{n}")));
        let others = others.filter(|id| rows.iter().all(|row| !row.starts_with(&format!("| {id} "))));
        let rows =
            rows.iter().map(|row| (*row).to_owned()).chain(others.map(|id| format!("| {id} | x | | cannot be |")));
        format!("| id | what | test | reason |\n|---|---|---|---|\n{}\n", rows.collect::<Vec<_>>().join("\n"))
    }

    #[test]
    fn a_row_needs_a_test_that_exists_or_a_reason() {
        let tests = BTreeSet::from(["it_holds".to_owned()]);
        assert_eq!(faults(&table(&["| B1 | late | `it_holds` | |"]), &tests), Vec::<String>::new());
        assert_eq!(faults(&table(&["| B1 | late | `it_held` | |"]), &tests), ["B1: there is no test `it_held`"]);
        assert_eq!(faults(&table(&["| B1 | late | | |"]), &tests), ["B1 has neither a test nor a reason"]);
        assert_eq!(faults(&table(&["| B1 | late |"]), &tests), ["not four cells: | B1 | late |", "B1 has no row"]);
        assert_eq!(faults(&table(&["| W1 | late | `it_held` | |"]), &tests), ["W1: there is no test `it_held`"]);
    }

    #[test]
    fn no_number_of_any_series_is_left_out_or_stands_twice() {
        let (whole, tests) = (table(&[]), BTreeSet::new());
        assert_eq!(faults(&whole, &tests), Vec::<String>::new());
        let row = |letter: char, number: u8| format!("| {letter}{number} | x | | cannot be |\n");
        for (letter, last) in SERIES {
            let without = whole.replace(&row(letter, last), "");
            assert_eq!(faults(&without, &tests), [format!("{letter}{last} has no row")]);
            let twice = whole.clone() + &row(letter, last);
            assert_eq!(faults(&twice, &tests), [format!("{letter}{last} has two rows")]);
            let gap = whole.clone() + &row(letter, last + 2);
            assert_eq!(faults(&gap, &tests), [format!("{letter}{} has no row", last + 1)]);
        }
        assert_eq!(faults(&(whole + &row('X', 1)), &tests), ["X1 belongs to no series"]);
    }

    #[test]
    fn a_test_that_is_named_beside_the_tables_exists_too() {
        let tests = BTreeSet::from(["it_holds_all_the_time".to_owned()]);
        let whole = table(&[]) + "Held by `it_holds_all_the_time`, as `cargo xtask heritage` says.\n";
        assert_eq!(faults(&whole, &tests), Vec::<String>::new());
        let other = whole + "So `it_held_all_the_time`.\n";
        assert_eq!(faults(&other, &tests), ["there is no test `it_held_all_the_time`"]);
    }

    #[test]
    fn only_functions_under_a_test_attribute_are_tests() {
        let source = "#[test]\nfn one() {}\nfn helper() {}\n#[tokio::test(start_paused = true)]\nasync fn two() {}\n";
        assert_eq!(tests_in(source), ["one", "two"]);
    }
}
