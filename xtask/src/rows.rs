//! Rows of JSON, one object a line, as every command of the project prints them with `--json`.

use serde_json::Value;

use crate::Stop;

/// The last line of `output` that is a JSON object; lines before it may be progress.
pub(crate) fn last(output: &str) -> Result<Value, Stop> {
    let rows = output.lines().rev().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let row = rows.into_iter().find(Value::is_object);
    row.ok_or_else(|| Stop::Failed(format!("no JSON object on stdout, which holds {} bytes", output.len())))
}

/// What a row claims: each fault found is one sentence.
#[derive(Debug)]
pub(crate) struct Claims<'a> {
    row: &'a Value,
    faults: Vec<String>,
}

impl<'a> Claims<'a> {
    /// Starts to check `row`.
    pub(crate) fn new(row: &'a Value) -> Self {
        Claims { row, faults: Vec::new() }
    }

    /// Wants `field` to equal `wanted`.
    pub(crate) fn is(&mut self, field: &str, wanted: impl Into<Value>) {
        let (wanted, found) = (wanted.into(), &self.row[field]);
        if *found != wanted {
            self.faults.push(format!("`{field}` is {found}, not {wanted}"));
        }
    }

    /// Wants `field` to be a number of at least `least`.
    pub(crate) fn at_least(&mut self, field: &str, least: f64) {
        let found = &self.row[field];
        if found.as_f64().is_none_or(|found| found < least) {
            self.faults.push(format!("`{field}` is {found}, wanted a number of at least {least}"));
        }
    }

    /// Adds a fault where `holds` is false.
    pub(crate) fn holds(&mut self, holds: bool, fault: &str) {
        if !holds {
            self.faults.push(fault.to_owned());
        }
    }

    /// Fails with all faults, if any; `about` says whose.
    pub(crate) fn finish(self, about: &str) -> Result<(), Stop> {
        if self.faults.is_empty() {
            return Ok(());
        }
        Err(Stop::Failed(format!("{about}: {}", self.faults.join("; "))))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_last_object_is_the_row() {
        assert_eq!(last("building 3\n{\"a\":1}\n{\"a\":2}\n7\n"), Ok(json!({"a": 2})));
        assert!(last("building\n").is_err());
    }

    #[test]
    fn every_fault_is_named() {
        let row = json!({"ok": true, "bytes": 5});
        let mut claims = Claims::new(&row);
        claims.is("ok", true);
        claims.is("path", "direct");
        claims.at_least("bytes", 6.0);
        claims.at_least("missing", 0.0);
        let Err(Stop::Failed(why)) = claims.finish("demo") else { panic!("the row has faults") };
        assert_eq!(why.matches(';').count(), 2, "{why}");
    }
}
