use super::*;

fn measure(case: Case, runs: u64, jobs: usize) -> Row {
    measure_stack(case, Stack::Byway, runs, jobs)
}

fn measure_stack(case: Case, stack: Stack, runs: u64, jobs: usize) -> Row {
    let mut rows = Vec::new();
    run(&Plan { runs, seed: 1, cases: vec![case], stack, jobs }, |row| rows.push(row.clone())).unwrap();
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
    assert_eq!([row.lost_bytes, row.duplicated_bytes, row.errors, row.lost_connections], [Some(0); 4]);
    assert_eq!(row.unexplained_datagrams(), Some(0), "{row:?}");
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
    row.lost_bytes = Some(1);
    assert_eq!((row.shortfalls().len(), row.breaches().len()), (2, 2));
    row.lost_datagrams = Some(Lost { count: 7, explained: 7 });
    assert_eq!(row.shortfalls().len(), 2);
    row.lost_datagrams = Some(Lost { count: 8, explained: 7 });
    assert_eq!(row.shortfalls().len(), 3);
}

/// Its header must not wait for its first byte: another stream's would announce it without one.
#[test]
fn a_stream_that_is_opened_long_before_its_first_byte_is_still_one() {
    let row = measure(Case::IdleDeath, 1, 1);
    assert_eq!((row.lost_bytes, row.errors), (Some(0), Some(0)), "{row:?}");
}

#[test]
fn bare_quic_is_lost_with_its_only_path_and_has_no_relay_to_lose() {
    let row = measure_stack(Case::DeathPingpong, Stack::Bare, 1, 1);
    assert_eq!((row.p50_ms, row.lost_connections), (None, Some(1)), "{row:?}");
    assert!(row.shortfalls().is_empty(), "it has no gate");
    let row = serde_json::to_value(measure_stack(Case::RelayDeath, Stack::Bare, 1, 1)).unwrap();
    assert_eq!((&row["stack"], &row["runs"]), (&"bare".into(), &0.into()));
    assert!(row["p50_ms"].is_null() && row["lost_bytes"].is_null() && row["lost_connections"].is_null());
}

#[test]
fn losses_are_explained_by_outages_and_by_what_links_lose() {
    assert_eq!(explained(0, 0, 0.0199), 0);
    assert_eq!(explained(30, 0, 0.0199), 30);
    assert_eq!(explained(30, 10_000, 0.0199), 30 + 306);
}
