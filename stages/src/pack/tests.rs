#![allow(clippy::unwrap_used)]
use std::path::PathBuf;

use arrow::array::ArrayRef;
use proptest::prelude::*;
use tempfile::TempDir;

use super::*;
use crate::rows::harness::{Done, run};
use crate::rows::int_lists;

type Row = (Vec<i32>, Vec<i32>);

fn tokens(rows: &[Row]) -> (TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("train.parquet");
    let ends = |of: fn(&Row) -> usize| -> Vec<i32> {
        rows.iter()
            .scan(0, |end, row| {
                *end += of(row) as i32;
                Some(*end)
            })
            .collect()
    };
    let ids = arrow::array::StringArray::from_iter_values((0..rows.len()).map(|i| format!("{i:032x}")));
    let lengths = arrow::array::Int32Array::from_iter_values(rows.iter().map(|row| row.0.len() as i32));
    let columns: Vec<ArrayRef> = vec![
        Arc::new(ids),
        int_lists(rows.iter().flat_map(|row| row.0.clone()).collect(), &ends(|row| row.0.len())),
        int_lists(rows.iter().flat_map(|row| row.1.clone()).collect(), &ends(|row| row.1.len())),
        Arc::new(lengths),
    ];
    let mut writer = TableWriter::create(&path, shapes::tokens()).unwrap();
    writer.write(&RecordBatch::try_new(shapes::tokens(), columns).unwrap()).unwrap();
    writer.finish().unwrap();
    (dir, path)
}

fn pack(sequence_len: u64, packing: bool, excess_length: ExcessLength) -> Pack {
    Pack {
        sequence_len,
        packing,
        excess_length,
        min_sample_len: 2,
        sequential: false,
        bin_size: None,
        group_size: None,
        mix: None,
    }
}

fn column(done: &Done, name: &str) -> Vec<Vec<i32>> {
    let mut lists = Vec::new();
    for batch in batches(&done.path(PACKS_FILE), &[name], 7).unwrap() {
        let batch = batch.unwrap();
        let list = list_column(&batch, name).unwrap();
        lists.extend((0..batch.num_rows()).map(|i| int_list(list, i).unwrap().to_vec()));
    }
    lists
}

fn all_trained(length: usize, first: i32) -> Row {
    let ids: Vec<i32> = (first..first + length as i32).collect();
    (ids.clone(), ids)
}

#[test]
fn the_example_in_the_head_of_the_module_holds() {
    let rows = [all_trained(5, 10), all_trained(2, 20), all_trained(3, 30)];
    let (_dir, path) = tokens(&rows);
    let done = run(&pack(8, true, ExcessLength::Drop), "pack.train", &[("0", &path)]).unwrap();
    assert_eq!(column(&done, "input_ids"), [vec![10, 11, 12, 13, 14, 30, 31, 32], vec![20, 21]]);
    assert_eq!(column(&done, "segment_ids"), [vec![1, 1, 1, 1, 1, 2, 2, 2], vec![1, 1]]);
    assert_eq!(column(&done, "position_ids"), [vec![0, 1, 2, 3, 4, 0, 1, 2], vec![0, 1]]);
    assert_eq!(column(&done, "labels")[0], [-100, 11, 12, 13, 14, -100, 31, 32]);
    assert_eq!(column(&done, "lengths"), [vec![5, 3], vec![2]]);
    assert_eq!((done.stat("packs"), done.stat("tokens"), done.stat("trained_tokens")), (2, 10, 7));
}

#[test]
fn without_packing_each_row_is_a_pack() {
    let rows = [all_trained(5, 10), all_trained(2, 20)];
    let (_dir, path) = tokens(&rows);
    let done = run(&pack(8, false, ExcessLength::Drop), "pack.train", &[("0", &path), ("1", &path)]).unwrap();
    assert_eq!(column(&done, "lengths"), [vec![5], vec![2], vec![5], vec![2]]);
    assert_eq!(done.summary.stats["by_dataset"][1]["rows"], 2);
}

#[test]
fn long_short_and_untrained_rows_are_counted() {
    let mut masked = all_trained(4, 50);
    masked.1[1..].fill(-100);
    let rows = [all_trained(9, 0), all_trained(1, 20), masked, all_trained(3, 30)];
    let (_dir, path) = tokens(&rows);
    let done = run(&pack(8, true, ExcessLength::Drop), "pack.train", &[("0", &path)]).unwrap();
    let stats = ["rows", "dropped_too_long", "dropped_too_short", "dropped_untrained"].map(|name| done.stat(name));
    assert_eq!(stats, [1, 1, 1, 1]);
    let done = run(&pack(8, true, ExcessLength::Truncate), "pack.train", &[("0", &path)]).unwrap();
    assert_eq!((column(&done, "lengths"), done.stat("truncated")), (vec![vec![8], vec![3]], 1));
    let error = run(&pack(8, true, ExcessLength::Raise), "pack.train", &[("0", &path)]).err().unwrap().to_string();
    assert!(error.contains("has 9 tokens and sequence_len is 8"), "{error}");
    let error = run(&pack(2, true, ExcessLength::Drop), "pack.train", &[("0", &path)]).err().unwrap().to_string();
    assert!(error.contains("none of 4 rows can be used: 3 have more"), "{error}");
    let done = run(&pack(2, true, ExcessLength::Drop), "pack.val", &[("0", &path)]).unwrap();
    assert_eq!((done.summary.rows, done.summary.warnings.len()), (Some(0), 1));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]
    #[test]
    fn every_row_arrives_once_whole_and_apart(lengths in proptest::collection::vec(2usize..40, 1..200)) {
        let rows: Vec<Row> = lengths.iter().enumerate().map(|(i, &n)| all_trained(n, i as i32 * 100)).collect();
        let (_dir, path) = tokens(&rows);
        let done = run(&pack(40, true, ExcessLength::Drop), "pack.train", &[("0", &path)]).unwrap();
        let (ids, labels) = (column(&done, "input_ids"), column(&done, "labels"));
        let (positions, segments) = (column(&done, "position_ids"), column(&done, "segment_ids"));
        let mut seen = vec![false; rows.len()];
        for pack in 0..ids.len() {
            prop_assert!(ids[pack].len() <= 40);
            let mut at = 0;
            for (segment, &length) in column(&done, "lengths")[pack].iter().enumerate() {
                let range = at..at + length as usize;
                let row = (ids[pack][at] / 100) as usize;
                prop_assert!(!std::mem::replace(&mut seen[row], true));
                prop_assert_eq!(&ids[pack][range.clone()], &rows[row].0[..]);
                prop_assert_eq!(labels[pack][at], MASKED);
                prop_assert_eq!(&labels[pack][at + 1..range.end], &rows[row].1[1..]);
                prop_assert_eq!(&positions[pack][range.clone()], &(0..length).collect::<Vec<_>>()[..]);
                prop_assert!(segments[pack][range.clone()].iter().all(|&id| id == segment as i32 + 1));
                at = range.end;
            }
            prop_assert_eq!(at, ids[pack].len());
        }
        prop_assert!(seen.into_iter().all(|seen| seen));
    }
}
