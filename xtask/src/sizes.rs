//! Keeps files, functions and structs small; exceptions are lines of `sizes.allow` with a reason.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
};

use crate::{Stop, root};

use self::source::Source;

mod source;

/// What a file may have of lines that are not tests.
const FILE_LINES: usize = 500;
/// What a function may have of lines between its braces.
const FUNCTION_LINES: usize = 80;
/// What a struct may have of fields.
const STRUCT_FIELDS: usize = 15;
/// How many of the largest files are printed.
const LARGEST: usize = 5;

/// Measures every `.rs` file of the repository against the limits.
pub(crate) fn run() -> Result<(), Stop> {
    let root = root();
    let mut sources = BTreeMap::new();
    read(&root, "", &mut sources)?;
    forget_test_modules(&mut sources);
    print_largest(&sources);
    let allowed = fs::read_to_string(root.join("sizes.allow")).map_err(|e| failed("sizes.allow", &e))?;
    let offences = offences(&sources);
    let faults = faults(&offences, &parse_allowed(&allowed)?);
    for fault in &faults {
        println!("{fault}");
    }
    match faults.len() {
        0 => Ok(()),
        n => Err(Stop::Failed(format!("{n} over the limits, split what is too large, by what it is about"))),
    }
}

/// Reads what lies below `dir`, leaving out build output and hidden directories.
fn read(root: &Path, dir: &str, sources: &mut BTreeMap<String, Source>) -> Result<(), Stop> {
    for entry in fs::read_dir(root.join(dir)).map_err(|e| failed(dir, &e))? {
        let entry = entry.map_err(|e| failed(dir, &e))?;
        let name = entry.file_name().to_string_lossy().into_owned();
        let path = if dir.is_empty() { name.clone() } else { format!("{dir}/{name}") };
        let kind = entry.file_type().map_err(|e| failed(&path, &e))?;
        if kind.is_dir() && name != "target" && !name.starts_with('.') {
            read(root, &path, sources)?;
        } else if kind.is_file() && name.ends_with(".rs") && !path.split('/').any(|part| part == "tests") {
            let text = fs::read_to_string(entry.path()).map_err(|e| failed(&path, &e))?;
            sources.insert(path, Source::measure(&text));
        }
    }
    Ok(())
}

fn failed(path: &str, error: &std::io::Error) -> Stop {
    Stop::Failed(format!("cannot read {path}: {error}"))
}

/// Takes out the files of modules that are declared for tests only, with all below them.
fn forget_test_modules(sources: &mut BTreeMap<String, Source>) {
    let modules: BTreeSet<String> = sources
        .iter()
        .flat_map(|(path, source)| source.test_modules.iter().map(|name| format!("{}{name}", children(path))))
        .collect();
    sources.retain(|path, _| {
        !modules.iter().any(|module| path.strip_prefix(module).is_some_and(|rest| rest.starts_with(['.', '/'])))
    });
}

/// Where the modules that a file declares are: beside a crate's root, below any other file.
fn children(path: &str) -> String {
    let (dir, file) = path.rsplit_once('/').unwrap_or(("", path));
    match file {
        "lib.rs" | "main.rs" => format!("{dir}/"),
        _ => format!("{}/", path.trim_end_matches(".rs")),
    }
}

fn print_largest(sources: &BTreeMap<String, Source>) {
    let total: usize = sources.values().map(|source| source.lines).sum();
    println!("{total} lines without tests in {} files, the largest:", sources.len());
    let mut largest: Vec<(usize, &String)> = sources.iter().map(|(path, source)| (source.lines, path)).collect();
    largest.sort_by(|a, b| b.cmp(a));
    for (lines, path) in largest.iter().take(LARGEST) {
        println!("{lines:>6} {path}");
    }
}

/// What is too large, by file.
fn offences(sources: &BTreeMap<String, Source>) -> BTreeMap<&str, Vec<String>> {
    let mut offences: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    for (path, source) in sources {
        let mut add = |text: String| offences.entry(path).or_default().push(text);
        if source.lines > FILE_LINES {
            add(format!("{path}: {} lines without tests, limit {FILE_LINES}", source.lines));
        }
        for it in source.functions.iter().filter(|it| it.size > FUNCTION_LINES) {
            add(format!("{path}:{}: fn {} has {} lines, limit {FUNCTION_LINES}", it.line, it.name, it.size));
        }
        for it in source.structs.iter().filter(|it| it.size > STRUCT_FIELDS) {
            add(format!("{path}:{}: struct {} has {} fields, limit {STRUCT_FIELDS}", it.line, it.name, it.size));
        }
    }
    offences
}

/// The paths of `sizes.allow`, whose lines are `path reason`, `# comment` or blank.
fn parse_allowed(text: &str) -> Result<BTreeSet<&str>, Stop> {
    let lines = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
    lines
        .map(|line| match line.split_once(char::is_whitespace) {
            Some((path, _)) => Ok(path),
            None => Err(Stop::Failed(format!("sizes.allow: `{line}` needs a reason behind the path"))),
        })
        .collect()
}

/// The offences that are not allowed, and the exceptions that nothing needs.
fn faults(offences: &BTreeMap<&str, Vec<String>>, allowed: &BTreeSet<&str>) -> Vec<String> {
    let over = offences.iter().filter(|(path, _)| !allowed.contains(*path)).flat_map(|(_, texts)| texts.clone());
    let unused = allowed.iter().filter(|path| !offences.contains_key(*path));
    over.chain(unused.map(|path| format!("sizes.allow: nothing in {path} needs an exception, remove the line")))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sources(files: &[(&str, &str)]) -> BTreeMap<String, Source> {
        files.iter().map(|(path, text)| ((*path).to_owned(), Source::measure(text))).collect()
    }

    #[test]
    fn what_is_over_a_limit_is_named_unless_allowed() {
        let long = format!("fn f() {{\n{}}}\n{}", "1;\n".repeat(81), "//\n".repeat(418));
        let wide = format!("struct S {{ {} }}", "a: u8, ".repeat(16));
        let sources = sources(&[("a.rs", &long), ("b.rs", &wide), ("c.rs", "fn f() {}")]);
        let found = offences(&sources);
        assert_eq!(faults(&found, &BTreeSet::new()).len(), 3);
        let left = faults(&found, &parse_allowed("# why\n\na.rs a table of constants\n").unwrap());
        assert_eq!(left, ["b.rs:1: struct S has 16 fields, limit 15"]);
    }

    #[test]
    fn what_is_at_its_limit_passes() {
        let text = format!("fn f() {{\n{}}}\n{}", "1;\n".repeat(80), "//\n".repeat(418));
        assert!(offences(&sources(&[("a.rs", &text)])).is_empty());
    }

    #[test]
    fn an_exception_that_nothing_needs_is_a_fault() {
        let sources = sources(&[("a.rs", "fn f() {}")]);
        let faults = faults(&offences(&sources), &parse_allowed("a.rs it was long once").unwrap());
        assert_eq!(faults.len(), 1);
        assert!(parse_allowed("a.rs\n").is_err());
    }

    #[test]
    fn files_of_test_modules_are_left_out() {
        let declares = "#[cfg(test)]\nmod pair;\nmod pairing;\n";
        let paths =
            ["s/lib.rs", "s/pair.rs", "s/pair/x.rs", "s/pairing.rs", "s/net.rs", "s/net/pair.rs", "s/net/os.rs"];
        let mut sources = sources(&paths.map(|path| (path, if path == "s/os.rs" { "" } else { declares })));
        forget_test_modules(&mut sources);
        assert_eq!(sources.into_keys().collect::<Vec<_>>(), ["s/lib.rs", "s/net.rs", "s/net/os.rs", "s/pairing.rs"]);
    }
}
