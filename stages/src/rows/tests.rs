#![allow(clippy::unwrap_used)]
use std::sync::Arc;

use arrow::array::{ArrayRef, ListBuilder, StringBuilder, UInt16Array, UInt64Array};

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
