//! A column of lists of 32-bit integers, encoded page by page: nearly all bytes of a table of tokens.
//!
//! Such a column holds no nulls, so its Parquet levels are runs: one run for the first value of a list, one for the rest.
//! The general writer spells out two levels per value before it finds those runs; here they are written as runs from the
//! start, and values are copied once. What comes out is an ordinary column chunk: data pages of version 1, levels in the
//! hybrid run-length encoding, plain values, Zstandard.

use std::io::Write;

use arrow::array::{Array, Int32Array, ListArray};
use arrow::datatypes::{DataType, Field};
use bytes::Bytes;
use parquet::basic::{Compression, Encoding, EncodingMask, ZstdLevel};
use parquet::column::page::{CompressedPage, Page, PageWriter};
use parquet::column::writer::ColumnCloseResult;
use parquet::errors::{ParquetError, Result};
use parquet::file::metadata::ColumnChunkMetaData;
use parquet::file::writer::{SerializedPageWriter, TrackedWrite};
use parquet::schema::types::ColumnDescPtr;
use zstd::bulk::Compressor;

/// A page is closed by the first row with which its values take this much.
const PAGE_BYTES: usize = 1 << 20;

/// The column chunk of one row group.
pub(super) struct IntLists {
    column: ColumnDescPtr,
    page: PageParts,
    chunk: TrackedWrite<Vec<u8>>,
    /// Levels in the chunk: a value each, and one for every empty list.
    levels: i64,
    rows: u64,
    plain_bytes: i64,
}

/// Compresses pages, one at a time for all columns of a table.
pub(super) struct Press {
    level: ZstdLevel,
    compressor: Compressor<'static>,
    /// The page before and after compression; kept for their room.
    plain: Vec<u8>,
    packed: Vec<u8>,
}

/// A page that is being filled.
#[derive(Default)]
struct PageParts {
    repetition: Runs,
    definition: Runs,
    /// Little endian.
    values: Vec<u8>,
    levels: u32,
}

/// Small numbers in Parquet's hybrid encoding, as runs alone: the length shifted by one as a varint, then the number.
#[derive(Default)]
struct Runs {
    bytes: Vec<u8>,
    number: u8,
    length: u64,
}

impl IntLists {
    /// Whether columns of `field` can be written here.
    pub(super) fn fit(field: &Field) -> bool {
        matches!(field.data_type(), DataType::List(item) if item.data_type() == &DataType::Int32 && item.is_nullable())
            && !field.is_nullable()
    }

    pub(super) fn new(column: ColumnDescPtr) -> Self {
        Self {
            column,
            page: PageParts::default(),
            chunk: TrackedWrite::new(Vec::new()),
            levels: 0,
            rows: 0,
            plain_bytes: 0,
        }
    }

    /// Appends the lists of `column`, which hold no nulls.
    pub(super) fn write(&mut self, column: &dyn Array, press: &mut Press) -> Result<()> {
        let lists = column.as_any().downcast_ref::<ListArray>();
        let values = lists.and_then(|lists| lists.values().as_any().downcast_ref::<Int32Array>());
        let (Some(lists), Some(values)) = (lists, values) else {
            return Err(ParquetError::General("a column of lists of integers has another type".into()));
        };
        if lists.null_count() + values.null_count() > 0 {
            return Err(ParquetError::General("a list of integers holds a null".into()));
        }
        for ends in lists.value_offsets().windows(2) {
            self.page.push(&values.values()[ends[0] as usize..ends[1] as usize]);
            self.rows += 1;
            if self.page.values.len() >= PAGE_BYTES {
                self.close_page(press)?;
            }
        }
        Ok(())
    }

    fn close_page(&mut self, press: &mut Press) -> Result<()> {
        let levels = std::mem::take(&mut self.page.levels);
        self.page.take(&mut press.plain);
        let packed = Page::DataPage {
            buf: press.packed()?,
            num_values: levels,
            encoding: Encoding::PLAIN,
            def_level_encoding: Encoding::RLE,
            rep_level_encoding: Encoding::RLE,
            statistics: None,
        };
        let mut writer = SerializedPageWriter::new(&mut self.chunk);
        let written = writer.write_page(CompressedPage::new(packed, press.plain.len()))?;
        self.plain_bytes += written.uncompressed_size as i64;
        self.levels += i64::from(levels);
        Ok(())
    }

    /// The bytes of the chunk and what the file's footer says of them.
    pub(super) fn close(mut self, press: &mut Press) -> Result<(Bytes, ColumnCloseResult)> {
        if self.page.levels > 0 {
            self.close_page(press)?;
        }
        self.chunk.flush()?;
        let bytes_written = self.chunk.bytes_written() as u64;
        let encodings = [Encoding::PLAIN, Encoding::RLE];
        let metadata = ColumnChunkMetaData::builder(self.column)
            .set_compression(Compression::ZSTD(press.level))
            .set_encodings_mask(EncodingMask::new_from_encodings(encodings.iter()))
            .set_num_values(self.levels)
            .set_total_compressed_size(bytes_written as i64)
            .set_total_uncompressed_size(self.plain_bytes)
            .set_data_page_offset(0)
            .build()?;
        let close = ColumnCloseResult {
            bytes_written,
            rows_written: self.rows,
            metadata,
            bloom_filter: None,
            column_index: None,
            offset_index: None,
        };
        Ok((Bytes::from(self.chunk.into_inner()?), close))
    }
}

impl Press {
    pub(super) fn new(level: ZstdLevel) -> Result<Self> {
        let compressor = Compressor::new(level.compression_level())?;
        Ok(Self { level, compressor, plain: Vec::new(), packed: Vec::new() })
    }

    fn packed(&mut self) -> Result<Bytes> {
        self.packed.clear();
        self.packed.reserve(zstd::zstd_safe::compress_bound(self.plain.len()));
        self.compressor.compress_to_buffer(&self.plain, &mut self.packed)?;
        Ok(Bytes::copy_from_slice(&self.packed))
    }
}

impl PageParts {
    /// Levels as Parquet defines them for a required list of optional items: a repetition level of 0 begins a list; a
    /// definition level of 2 is a value, 0 an empty list.
    fn push(&mut self, list: &[i32]) {
        self.repetition.push(0, 1);
        self.levels += list.len().max(1) as u32;
        if list.is_empty() {
            self.definition.push(0, 1);
            return;
        }
        self.repetition.push(1, list.len() as u64 - 1);
        self.definition.push(2, list.len() as u64);
        self.values.reserve(4 * list.len());
        self.values.extend(list.iter().flat_map(|value| value.to_le_bytes()));
    }

    /// The page as `body`: both kinds of levels, each after its length, then the values. What was filled is empty again.
    fn take(&mut self, body: &mut Vec<u8>) {
        body.clear();
        for levels in [&mut self.repetition, &mut self.definition] {
            levels.end_run();
            body.extend_from_slice(&(levels.bytes.len() as u32).to_le_bytes());
            body.append(&mut levels.bytes);
        }
        body.append(&mut self.values);
    }
}

impl Runs {
    fn push(&mut self, number: u8, length: u64) {
        if length > 0 && number != self.number {
            self.end_run();
            self.number = number;
        }
        self.length += length;
    }

    fn end_run(&mut self) {
        if self.length == 0 {
            return;
        }
        let mut head = self.length << 1;
        while head >= 0x80 {
            self.bytes.push(head as u8 | 0x80);
            head >>= 7;
        }
        self.bytes.extend([head as u8, self.number]);
        self.length = 0;
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn runs_are_a_varint_and_a_number() {
        let mut runs = Runs::default();
        for (number, length) in [(0, 1), (1, 0), (0, 1), (1, 199), (0, 1)] {
            runs.push(number, length);
        }
        runs.end_run();
        assert_eq!(runs.bytes, [2 << 1, 0, 0x8e, 0x03, 1, 1 << 1, 0]);
    }
}
