use super::*;

fn measure(case: Case, runs: u64, jobs: usize) -> Row {
    let mut rows = Vec::new();
    run(&Plan { runs, seed: 1, cases: vec![case], jobs }, |row| rows.push(row.clone())).unwrap();
    let [row] = &rows[..] else { panic!("{rows:?}") };
    row.clone()
}

#[test]
fn names_are_those_of_the_rows() {
    for case in Case::ALL {
        assert_eq!(case.name().parse(), Ok(case));
        assert_eq!(serde_json::to_value(case).unwrap(), case.name());
    }
    assert!("death".parse::<Case>().unwrap_err().to_string().contains("death-pingpong"));
}

#[test]
fn a_death_is_a_pause_and_loses_nothing() {
    let row = measure(Case::DeathPingpong, 2, 1);
    assert_eq!((row.lost_bytes, row.duplicated_bytes, row.errors, row.lost_connections), (0, 0, 0, 0));
    assert!(row.p50_ms.is_some_and(|stall| (150..2_000).contains(&stall)), "{row:?}");
}

#[test]
fn rows_do_not_depend_on_the_number_of_threads() {
    assert_eq!(measure(Case::IdleDeath, 3, 1), measure(Case::IdleDeath, 3, 3));
}

#[test]
fn what_is_lost_or_late_falls_short() {
    let mut row = measure(Case::DeathPingpong, 1, 1);
    row.p50_ms = Some(300);
    row.p99_ms = Some(300);
    assert!(row.shortfalls().is_empty());
    row.p99_ms = Some(901);
    assert_eq!((row.shortfalls().len(), row.breaches().len()), (1, 0));
    row.p99_ms = None;
    assert_eq!((row.shortfalls().len(), row.breaches().len()), (1, 1));
    row.lost_bytes = 1;
    assert_eq!((row.shortfalls().len(), row.breaches().len()), (2, 2));
}

/// Its header must not wait for its first byte: another stream's would announce it without one.
#[test]
fn a_stream_that_is_opened_long_before_its_first_byte_is_still_one() {
    let row = measure(Case::IdleDeath, 1, 1);
    assert_eq!((row.lost_bytes, row.errors), (0, 0), "{row:?}");
}
