//! Sources that are tables: CSV, TSV, Parquet and Arrow, each row becoming a JSON object.

use std::fs::File;
use std::io::{BufRead, Read, Seek, SeekFrom};
use std::path::Path;

use arrow::array::{Array, ArrayRef, AsArray, RecordBatch};
use arrow::compute::cast;
use arrow::datatypes::{DataType, Float64Type, Int64Type, UInt64Type};
use arrow::error::ArrowError;
use arrow::ipc::reader::{FileReader, StreamReader};
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use pipe_engine::task::TaskError;
use serde_json::{Map, Value};

use super::source::{FileFormat, Flow, Rows, Take, bad_row, cannot_read, cut_off};

const ROWS_PER_CHUNK: usize = 2048;

/// Rows with a header line. Every field is text; an empty one stays empty.
pub fn read_csv(reader: &mut dyn BufRead, delimiter: u8, path: &Path, take: &mut Take<'_>) -> Result<(), TaskError> {
    let mut csv = csv::ReaderBuilder::new().delimiter(delimiter).from_reader(reader);
    let header = csv.headers().map_err(|e| csv_error(path, 1, &e))?.clone();
    check_header(&header, path)?;
    let mut record = csv::StringRecord::new();
    let mut rows = Vec::new();
    loop {
        let before = csv.position().line();
        if !csv.read_record(&mut record).map_err(|e| csv_error(path, before, &e))? {
            break;
        }
        let place = record.position().map_or(before, csv::Position::line);
        let fields = header.iter().zip(record.iter());
        rows.push((place, fields.map(|(name, field)| (name.to_string(), Value::from(field))).collect()));
        if rows.len() == ROWS_PER_CHUNK && take(Rows::Values(std::mem::take(&mut rows)))? == Flow::Enough {
            return Ok(());
        }
    }
    take(Rows::Values(rows)).map(|_| ())
}

/// A name that stands twice would hide a column.
fn check_header(header: &csv::StringRecord, path: &Path) -> Result<(), TaskError> {
    for (i, name) in header.iter().enumerate() {
        if header.iter().take(i).any(|other| other == name) {
            return Err(bad_row(path, 1, format!("the header has the column `{name}` twice; rename one")));
        }
    }
    Ok(())
}

/// Every column of a Parquet file, or of an Arrow IPC file or stream; rows are counted from 1.
pub fn read_table(mut file: File, format: FileFormat, path: &Path, take: &mut Take<'_>) -> Result<(), TaskError> {
    file.seek(SeekFrom::Start(0)).map_err(|e| cannot_read(path, e))?;
    if format == FileFormat::Parquet {
        let builder = ParquetRecordBatchReaderBuilder::try_new(file).map_err(|e| broken(path, e))?;
        let reader = builder.with_batch_size(ROWS_PER_CHUNK).build().map_err(|e| broken(path, e))?;
        return hand_out(reader, path, take);
    }
    let mut magic = [0; 6];
    file.read_exact(&mut magic).map_err(|e| cannot_read(path, e))?;
    file.seek(SeekFrom::Start(0)).map_err(|e| cannot_read(path, e))?;
    if &magic == b"ARROW1" {
        let reader = FileReader::try_new_buffered(file, None).map_err(|e| broken(path, e))?;
        hand_out(reader, path, take)
    } else {
        let reader = StreamReader::try_new_buffered(file, None).map_err(|e| broken(path, e))?;
        hand_out(reader, path, take)
    }
}

fn broken(path: &Path, error: impl std::fmt::Display) -> TaskError {
    let why = error.to_string();
    let remedy = if why.contains("compress") {
        "save it without compression, or as Parquet"
    } else {
        "is it cut off or damaged? Copy or download it again"
    };
    cannot_read(path, format!("{why}; {remedy}"))
}

fn hand_out(
    batches: impl Iterator<Item = Result<RecordBatch, ArrowError>>,
    path: &Path,
    take: &mut Take<'_>,
) -> Result<(), TaskError> {
    let mut place = 0;
    for batch in batches {
        let batch = batch.map_err(|e| broken(path, e))?;
        // Batches are as long as the writer liked; rows as objects take several times their room.
        for start in (0..batch.num_rows()).step_by(ROWS_PER_CHUNK) {
            let part = batch.slice(start, ROWS_PER_CHUNK.min(batch.num_rows() - start));
            let rows = objects(&part).map_err(|why| cannot_read(path, why))?;
            let numbered: Vec<_> = (place + 1..).zip(rows).collect();
            place += numbered.len() as u64;
            if take(Rows::Values(numbered))? == Flow::Enough {
                return Ok(());
            }
        }
    }
    Ok(())
}

/// The rows of a batch as JSON objects.
fn objects(batch: &RecordBatch) -> Result<Vec<Map<String, Value>>, String> {
    let mut rows = vec![Map::new(); batch.num_rows()];
    for (field, column) in batch.schema().fields().iter().zip(batch.columns()) {
        let column = readable(column).map_err(|why| format!("column `{}`: {why}", field.name()))?;
        for (i, row) in rows.iter_mut().enumerate() {
            row.insert(field.name().clone(), value(&column, i)?);
        }
    }
    Ok(rows)
}

/// Casts a column to one of the few types that [`value`] reads.
fn readable(column: &ArrayRef) -> Result<ArrayRef, String> {
    use DataType as T;
    let wanted = match column.data_type() {
        T::Utf8 | T::Boolean | T::Int64 | T::UInt64 | T::Float64 | T::Null | T::List(_) | T::Struct(_) => {
            return Ok(column.clone());
        }
        T::LargeUtf8 | T::Utf8View | T::Date32 | T::Date64 | T::Timestamp(..) | T::Time32(_) | T::Time64(_) => T::Utf8,
        T::Dictionary(_, inner) => (**inner).clone(),
        T::Int8 | T::Int16 | T::Int32 => T::Int64,
        T::UInt8 | T::UInt16 | T::UInt32 => T::UInt64,
        T::Float16 | T::Float32 | T::Decimal128(..) => T::Float64,
        T::LargeList(item) | T::FixedSizeList(item, _) | T::ListView(item) => T::List(item.clone()),
        other => return Err(format!("its type {other} is not readable as data")),
    };
    let cast = cast(column, &wanted).map_err(|e| e.to_string())?;
    readable(&cast)
}

fn value(column: &ArrayRef, i: usize) -> Result<Value, String> {
    if column.is_null(i) {
        return Ok(Value::Null);
    }
    Ok(match column.data_type() {
        DataType::Utf8 => Value::from(column.as_string::<i32>().value(i)),
        DataType::Boolean => Value::from(column.as_boolean().value(i)),
        DataType::Int64 => Value::from(column.as_primitive::<Int64Type>().value(i)),
        DataType::UInt64 => Value::from(column.as_primitive::<UInt64Type>().value(i)),
        DataType::Float64 => Value::from(column.as_primitive::<Float64Type>().value(i)),
        DataType::List(_) => {
            let items = readable(&column.as_list::<i32>().value(i))?;
            Value::Array((0..items.len()).map(|j| value(&items, j)).collect::<Result<_, _>>()?)
        }
        DataType::Struct(fields) => {
            let mut object = Map::new();
            for (field, member) in fields.iter().zip(column.as_struct().columns()) {
                // A column store gives every object every member: an absent one comes back as null. `content` may be
                // null by intention, beside tool calls.
                let member = value(&readable(&member.slice(i, 1))?, 0)?;
                if !member.is_null() || field.name() == "content" {
                    object.insert(field.name().clone(), member);
                }
            }
            Value::Object(object)
        }
        _ => Value::Null,
    })
}

fn csv_error(path: &Path, line: u64, error: &csv::Error) -> TaskError {
    let at = error.position().map_or(line, csv::Position::line);
    match error.kind() {
        csv::ErrorKind::UnequalLengths { expected_len, len, .. } => bad_row(
            path,
            at,
            format!("this row has {len} fields, and the header has {expected_len}; is a quote or a delimiter missing?"),
        ),
        csv::ErrorKind::Io(error) => cut_off(path, at, error),
        csv::ErrorKind::Utf8 { .. } => bad_row(path, at, "this row is not UTF-8; save the file as UTF-8"),
        _ => bad_row(path, at, error),
    }
}
