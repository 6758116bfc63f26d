#![allow(clippy::unwrap_used)]
use arrow::array::{Array, StringArray};

use super::matching::{RowDigest, origins};

fn digests(rows: &str) -> Vec<RowDigest> {
    rows.bytes().map(|byte| [byte; 16]).collect()
}

fn matched(before: &str, now: &str) -> String {
    let origins = origins(&digests(before), &digests(now));
    let shown = |origin: Option<u64>| origin.map_or('-', |row| char::from_digit(row as u32, 36).unwrap());
    origins.into_iter().map(shown).collect()
}

#[test]
fn rows_find_their_equals_in_order() {
    assert_eq!(matched("abcdef", "abcdef"), "012345");
    assert_eq!(matched("abcdef", "abXdef"), "01-345");
    assert_eq!(matched("abcdef", "XabcdefY"), "-012345-");
    assert_eq!(matched("abcdef", "af"), "05");
    assert_eq!(matched("abcdef", "abdcef"), "01-245");
    assert_eq!(matched("", "ab"), "--");
    assert_eq!(matched("ab", ""), "");
    assert_eq!(matched("aabb", "ab"), "03");
    assert_eq!(matched("abcdefgh", "efghabcd"), "----0123");
}

#[test]
fn origins_are_equal_rows_and_ascend() {
    let mut random = 9u64;
    let mut next = |end: u64| {
        random = random.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (random >> 33) % end
    };
    for _ in 0..500 {
        let mut rows = |letters: u64| -> Vec<RowDigest> { (0..next(30)).map(|_| [next(letters) as u8; 16]).collect() };
        let (before, now) = (rows(6), rows(6));
        let found = origins(&before, &now);
        assert_eq!(found.len(), now.len());
        let pairs: Vec<(usize, u64)> =
            found.iter().enumerate().filter_map(|(i, origin)| Some((i, (*origin)?))).collect();
        assert!(pairs.iter().all(|&(i, origin)| now[i] == before[origin as usize]));
        assert!(pairs.windows(2).all(|pair| pair[0].1 < pair[1].1), "{pairs:?}");
    }
}

#[test]
fn a_table_woven_from_two_has_the_rows_as_named() {
    use std::sync::Arc;

    use arrow::array::{ArrayRef, RecordBatch};
    use arrow::datatypes::{DataType, Field, Schema};

    use super::{Forward, Weave};
    use crate::rows::TableWriter;

    let schema = Arc::new(Schema::new(vec![Field::new("word", DataType::Utf8, false)]));
    let words = |words: Vec<String>| {
        let column: ArrayRef = Arc::new(StringArray::from(words));
        RecordBatch::try_new(schema.clone(), vec![column]).unwrap()
    };
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("words.parquet");
    let mut writer = TableWriter::create(&path, schema.clone()).unwrap();
    writer.write(&words((0..10_000).map(|i| format!("old {i}")).collect())).unwrap();
    writer.finish().unwrap();
    let mut table = Forward::at(&path, &["word"]).unwrap();
    let mut weave = Weave::default();
    weave.fresh();
    for row in [0, 1, 4095, 4096, 9999] {
        weave.earlier(&mut table, row).unwrap();
    }
    weave.fresh();
    assert!(table.row(3).is_err(), "tables are read forwards");
    let woven = weave.finish(words(vec!["new 0".into(), "new 1".into()])).unwrap();
    let column = woven.column(0).as_any().downcast_ref::<StringArray>().unwrap();
    let found: Vec<&str> = (0..column.len()).map(|i| column.value(i)).collect();
    assert_eq!(found, ["new 0", "old 0", "old 1", "old 4095", "old 4096", "old 9999", "new 1"]);
}
