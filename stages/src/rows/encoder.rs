//! Turns chunks of rows into the bytes of a Parquet file, on the writer's own thread.

use std::fs::File;
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::Receiver;

use arrow::array::{Array, RecordBatch};
use arrow::compute::concat;
use arrow::datatypes::SchemaRef;
use parquet::arrow::arrow_writer::{ArrowColumnWriter, ArrowRowGroupWriterFactory, compute_leaves};
use parquet::arrow::{ArrowSchemaConverter, add_encoded_arrow_schema_to_metadata};
use parquet::basic::{Compression, ZstdLevel};
use parquet::errors::Result;
use parquet::file::properties::{EnabledStatistics, WriterProperties, WriterVersion};
use parquet::file::writer::SerializedFileWriter;
use pipe_engine::task::TaskError;

use super::int_lists::{IntLists, Press};

/// A row group is closed once it holds this much before compression.
const ROW_GROUP_BYTES: usize = 32 << 20;

/// Rows that are encoded in one go, in parts as they came, and their size.
pub(super) type Chunk = (Vec<RecordBatch>, usize);

/// A table that is being written.
pub(super) struct Encoder {
    schema: SchemaRef,
    press: Press,
    file: SerializedFileWriter<File>,
    factory: ArrowRowGroupWriterFactory,
    /// The open row group.
    columns: Vec<Column>,
    group_bytes: usize,
    groups: usize,
}

/// One leaf column of a row group.
enum Column {
    Ints(IntLists),
    Other(Box<ArrowColumnWriter>),
}

impl Encoder {
    pub(super) fn new(file: File, schema: SchemaRef) -> Result<Self> {
        let level = ZstdLevel::try_new(1)?;
        let mut properties = properties(level);
        let parquet = ArrowSchemaConverter::new().convert(&schema)?;
        add_encoded_arrow_schema_to_metadata(&schema, &mut properties);
        let file = SerializedFileWriter::new(file, parquet.root_schema_ptr(), Arc::new(properties))?;
        let factory = ArrowRowGroupWriterFactory::new(&file, schema.clone());
        Ok(Self { schema, press: Press::new(level)?, file, factory, columns: Vec::new(), group_bytes: 0, groups: 0 })
    }

    /// Encodes everything that comes, then ends the file.
    pub(super) fn run(mut self, chunks: &Receiver<Chunk>, path: &Path) -> std::result::Result<(), TaskError> {
        for (parts, bytes) in chunks {
            self.write(&parts).map_err(|e| super::write_failed(path, &e))?;
            self.group_bytes += bytes;
            if self.group_bytes >= ROW_GROUP_BYTES {
                self.close_group().map_err(|e| super::write_failed(path, &e))?;
            }
        }
        self.close_group().map_err(|e| super::write_failed(path, &e))?;
        let file = self.file.into_inner().map_err(|e| super::write_failed(path, &e))?;
        file.sync_all().map_err(TaskError::io(format!("cannot write {}", path.display())))
    }

    fn write(&mut self, parts: &[RecordBatch]) -> Result<()> {
        if self.columns.is_empty() {
            self.columns = self.open_group()?;
        }
        let mut columns = self.columns.iter_mut();
        for (place, field) in self.schema.fields().iter().enumerate() {
            let arrays: Vec<&dyn Array> = parts.iter().map(|part| part.column(place).as_ref()).collect();
            if IntLists::fit(field) {
                if let Some(Column::Ints(column)) = columns.next() {
                    arrays.iter().try_for_each(|&array| column.write(array, &mut self.press))?;
                }
                continue;
            }
            // The general writer cuts its pages where its batches end, so it is given the chunk as one.
            let whole = concat(&arrays)?;
            for leaf in compute_leaves(field, &whole)? {
                if let Some(Column::Other(column)) = columns.next() {
                    column.write(&leaf)?;
                }
            }
        }
        Ok(())
    }

    fn open_group(&self) -> Result<Vec<Column>> {
        let parquet = self.file.schema_descr();
        let writers = self.factory.create_column_writers(self.groups)?;
        let column = |(leaf, writer)| {
            let root = parquet.get_column_root(leaf).name();
            match self.schema.field_with_name(root) {
                Ok(field) if IntLists::fit(field) => Column::Ints(IntLists::new(parquet.column(leaf))),
                _ => Column::Other(Box::new(writer)),
            }
        };
        Ok(writers.into_iter().enumerate().map(column).collect())
    }

    fn close_group(&mut self) -> Result<()> {
        if self.columns.is_empty() {
            return Ok(());
        }
        let mut group = self.file.next_row_group()?;
        for column in self.columns.drain(..) {
            match column {
                Column::Ints(column) => {
                    let (bytes, close) = column.close(&mut self.press)?;
                    group.append_column(&bytes, close)?;
                }
                Column::Other(column) => column.close()?.append_to_row_group(&mut group)?,
            }
        }
        group.close()?;
        self.group_bytes = 0;
        self.groups += 1;
        Ok(())
    }
}

/// Everything that decides bytes is fixed here. No dictionaries and no statistics: rows are near unique, and nothing
/// filters on them. `created_by` is ours, so that an upgrade of the Parquet library does not make old outputs differ.
fn properties(level: ZstdLevel) -> WriterProperties {
    WriterProperties::builder()
        .set_created_by("pipe".to_string())
        .set_writer_version(WriterVersion::PARQUET_1_0)
        .set_compression(Compression::ZSTD(level))
        .set_dictionary_enabled(false)
        .set_statistics_enabled(EnabledStatistics::None)
        .set_offset_index_disabled(true)
        .set_max_row_group_row_count(Some(usize::MAX))
        .build()
}
