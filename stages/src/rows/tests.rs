#![allow(clippy::unwrap_used)]
use std::sync::Arc;

use arrow::array::{ArrayRef, ListBuilder, StringBuilder, UInt16Array, UInt64Array};
use proptest::prelude::*;

use super::*;

fn raw_rows(range: std::ops::Range<u64>) -> RecordBatch {
    let ids = StringArray::from_iter_values(range.clone().map(|i| format!("{i:032x}")));
    let data = StringArray::from_iter_values(range.clone().map(|i| "x".repeat((i % 900) as usize)));
    let meta = StringArray::from(vec![None::<&str>; range.clone().count()]);
    let columns: Vec<ArrayRef> = vec![
        Arc::new(ids),
        Arc::new(UInt64Array::from_iter_values(range.clone())),
        Arc::new(data),
        Arc::new(meta),
        Arc::new(UInt16Array::from_iter_values(range.map(|_| 0))),
    ];
    RecordBatch::try_new(shapes::raw(), columns).unwrap()
}

#[test]
fn bytes_do_not_depend_on_how_rows_were_batched() {
    let dir = tempfile::tempdir().unwrap();
    let mut files = Vec::new();
    for step in [1u64, 977, 30_000] {
        let path = dir.path().join(format!("{step}.parquet"));
        let mut writer = TableWriter::create(&path, shapes::raw()).unwrap();
        let mut at = 0;
        while at < 30_000 {
            let end = if step == 1 && at >= 500 { 30_000 } else { (at + step).min(30_000) };
            writer.write(&raw_rows(at..end)).unwrap();
            at = end;
        }
        assert_eq!(writer.finish().unwrap(), 30_000);
        files.push(std::fs::read(path).unwrap());
    }
    assert!(files.windows(2).all(|pair| pair[0] == pair[1]));
}

#[test]
fn rows_come_back_in_order_and_by_column() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("t.parquet");
    let mut writer = TableWriter::create(&path, shapes::raw()).unwrap();
    writer.write(&raw_rows(0..5000)).unwrap();
    writer.finish().unwrap();
    assert_eq!(row_count(&path).unwrap(), 5000);
    let mut next = 0;
    for batch in batches(&path, &["row"], 999).unwrap() {
        let batch = batch.unwrap();
        assert_eq!(batch.num_columns(), 1);
        for &row in typed::<UInt64Array>(&batch, "row").unwrap().values() {
            assert_eq!(row, next);
            next += 1;
        }
    }
    assert_eq!(next, 5000);
    let error = batches(&path, &["rwo"], 10).err().unwrap().to_string();
    assert!(error.contains("row_id, row, data, meta, source"), "{error}");
}

#[test]
fn an_empty_table_is_a_table() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("t.parquet");
    TableWriter::create(&path, shapes::packs()).unwrap().finish().unwrap();
    assert_eq!(row_count(&path).unwrap(), 0);
    assert_eq!(batches(&path, &["input_ids"], 10).unwrap().count(), 0);
}

#[test]
fn lists_built_by_default_builders_fit_the_shapes() {
    let mut builder = ListBuilder::new(StringBuilder::new());
    builder.append_value([Some("a")]);
    let list = builder.finish();
    assert_eq!(list.data_type(), shapes::packs().field_with_name("row_ids").unwrap().data_type());
}

#[test]
fn a_table_cannot_be_written_where_there_is_no_folder() {
    let error = TableWriter::create(Path::new("/nonexistent/t.parquet"), shapes::raw()).err().unwrap();
    assert!(error.to_string().contains("/nonexistent/t.parquet"));
}

/// Rows of token lists of these lengths, with values that tell where they stand.
fn token_rows(lengths: &[usize], first: usize) -> RecordBatch {
    let ends: Vec<i32> = lengths.iter().scan(0, |end, &n| (*end += n as i32, Some(*end)).1).collect();
    let values = |step: i32| (0..ends.last().copied().unwrap_or(0)).map(|i| (i * step) ^ first as i32).collect();
    let row_ids = StringArray::from_iter_values((0..lengths.len()).map(|i| format!("{:032x}", first + i)));
    let counts = Int32Array::from_iter_values(lengths.iter().map(|&n| n as i32));
    let columns: Vec<ArrayRef> =
        vec![Arc::new(row_ids), int_lists(values(7), &ends), int_lists(values(-100), &ends), Arc::new(counts)];
    RecordBatch::try_new(shapes::tokens(), columns).unwrap()
}

fn read_lists(path: &Path, column: &str) -> Vec<Vec<i32>> {
    let read = batches(path, &[column], 100).unwrap().flat_map(|batch| {
        let batch = batch.unwrap();
        let lists = list_column(&batch, column).unwrap();
        (0..batch.num_rows()).map(|i| int_list(lists, i).unwrap().to_vec()).collect::<Vec<_>>()
    });
    read.collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    /// Empty lists, lists longer than a page, pages and row groups that end anywhere.
    #[test]
    fn lists_come_back_as_they_were(
        parts in proptest::collection::vec(
            proptest::collection::vec(prop_oneof![4 => 0usize..90, 1 => 0usize..3, 1 => 300usize..600_000], 0..40),
            1..6,
        ),
        cut in 1usize..50,
    ) {
        let dir = tempfile::tempdir().unwrap();
        let (whole, cuts) = (dir.path().join("whole.parquet"), dir.path().join("cuts.parquet"));
        let mut written = [TableWriter::create(&whole, shapes::tokens()).unwrap(),
            TableWriter::create(&cuts, shapes::tokens()).unwrap()];
        let (mut expected, mut first) = (Vec::new(), 0);
        for lengths in &parts {
            let batch = token_rows(lengths, first);
            first += lengths.len();
            let lists = list_column(&batch, "input_ids").unwrap();
            expected.extend((0..batch.num_rows()).map(|i| int_list(lists, i).unwrap().to_vec()));
            written[0].write(&batch).unwrap();
            for at in (0..batch.num_rows()).step_by(cut) {
                written[1].write(&batch.slice(at, cut.min(batch.num_rows() - at))).unwrap();
            }
        }
        for table in written {
            prop_assert_eq!(table.finish().unwrap(), first as u64);
        }
        prop_assert_eq!(read_lists(&whole, "input_ids"), expected);
        prop_assert!(std::fs::read(whole).unwrap() == std::fs::read(cuts).unwrap());
    }
}

#[test]
fn a_null_in_a_list_of_tokens_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let item = Arc::new(Field::new("item", DataType::Int32, true));
    let holey = ListArray::new(
        item,
        OffsetBuffer::new(vec![0, 2].into()),
        Arc::new(Int32Array::from(vec![Some(1), None])),
        None,
    );
    let columns: Vec<ArrayRef> = vec![Arc::new(holey)];
    let schema = Arc::new(arrow::datatypes::Schema::new(vec![shapes::tokens().field(1).clone()]));
    let mut writer = TableWriter::create(&dir.path().join("t.parquet"), schema.clone()).unwrap();
    writer.write(&RecordBatch::try_new(schema, columns).unwrap()).unwrap();
    assert!(writer.finish().unwrap_err().to_string().contains("holds a null"));
}
