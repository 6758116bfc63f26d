//! Packed rows as the pack stage stores them, read into memory once.
//!
//! A pack is documents end to end; nothing here reorders or cuts them.

use std::fs::File;
use std::ops::Range;
use std::path::Path;

use arrow::array::{Array, ArrayRef, AsArray, RecordBatch};
use arrow::datatypes::{DataType, Int32Type, Int64Type, UInt16Type, UInt32Type};
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;

use tch::Kind;

use crate::decoder::Segments;
use crate::loss::{IGNORED, Targets};
use crate::{ModelError, Result};

/// Chunks are filled up to a multiple of this many tokens.
const ROUND: usize = 32;
/// And of this in f32, where products of any size are taken as they come.
const ROUND_WIDE: usize = 4;

/// All packs of a file.
#[derive(Debug, Default)]
pub struct Packs {
    ids: Vec<i32>,
    labels: Vec<i32>,
    lengths: Vec<u32>,
    row_ids: Vec<String>,
    /// The dataset of each document.
    sources: Vec<u16>,
    packs: Vec<Extent>,
}

/// Where a pack lies in the flat columns.
#[derive(Clone, Debug)]
struct Extent {
    tokens: Range<usize>,
    documents: Range<usize>,
    row_ids: Range<usize>,
    trained: u64,
}

/// Whole documents that go through the network together.
#[derive(Clone, Debug, Default)]
pub struct Chunk {
    pub segments: Segments,
    pub targets: Targets,
    /// Numbers of the documents, among all of the file.
    documents: Vec<usize>,
}

impl Chunk {
    /// The document of each target.
    pub fn target_documents(&self) -> impl Iterator<Item = usize> {
        let mut ends = self.segments.lengths.iter().zip(&self.documents);
        let mut current = ends.next();
        let mut end = current.map_or(0, |(length, _)| *length);
        self.targets.rows.iter().map(move |&row| {
            while row >= end {
                let Some(next) = ends.next() else { break };
                end += *next.0;
                current = Some(next);
            }
            current.map_or(0, |(_, document)| *document)
        })
    }
}

impl Packs {
    /// Reads `input_ids`, `labels`, `lengths` and, where present, `row_ids` from a Parquet file.
    pub fn open(path: &Path) -> Result<Self> {
        let file = File::open(path).map_err(|e| ModelError::io(path, e))?;
        let broken = |error: &dyn std::fmt::Display| ModelError::input(format!("{}: {error}", path.display()));
        let reader = ParquetRecordBatchReaderBuilder::try_new(file).and_then(|r| r.build()).map_err(|e| broken(&e))?;
        let mut packs = Self::default();
        for batch in reader {
            packs.append(&batch.map_err(|e| broken(&e))?).map_err(|e| broken(&e))?;
        }
        Ok(packs)
    }

    /// Number of packs.
    pub fn len(&self) -> usize {
        self.packs.len()
    }

    /// Whether there is no pack at all.
    pub fn is_empty(&self) -> bool {
        self.packs.is_empty()
    }

    /// Real tokens of a pack.
    pub fn tokens(&self, pack: usize) -> u64 {
        self.packs[pack].tokens.len() as u64
    }

    /// Trained tokens of a pack, after the label shift.
    pub fn trained(&self, pack: usize) -> u64 {
        self.packs[pack].trained
    }

    /// The source rows in a pack, for messages.
    pub fn row_ids(&self, pack: usize) -> &[String] {
        &self.row_ids[self.packs[pack].row_ids.clone()]
    }

    /// Errors if a token id lies outside a vocabulary of `size`, naming it and the rows of its pack.
    pub fn check_vocabulary(&self, size: usize) -> Result<()> {
        let stranger = |id: &i32| usize::try_from(*id).map_or(true, |id| id >= size);
        for (index, extent) in self.packs.iter().enumerate() {
            let found = self.ids[extent.tokens.clone()].iter().find(|id| stranger(id));
            if let Some(id) = found {
                return Err(ModelError::input(format!(
                    "token id {id} lies outside the model's vocabulary of {size}, in {}; the rows were tokenised for \
                     another model",
                    self.name_rows(&[index])
                )));
            }
        }
        Ok(())
    }

    /// "rows a, b, c and 12 more" of some packs, for messages.
    pub fn name_rows(&self, packs: &[usize]) -> String {
        let ids: Vec<&str> = packs.iter().flat_map(|&pack| self.row_ids(pack)).map(String::as_str).collect();
        match ids.len() {
            0 => format!("packs {packs:?}"),
            1..=8 => format!("rows {}", ids.join(", ")),
            more => format!("rows {} and {} more", ids[..8].join(", "), more - 8),
        }
    }

    /// The dataset of a document; 0 where the file does not say.
    pub fn source(&self, document: usize) -> u16 {
        self.sources.get(document).copied().unwrap_or(0)
    }

    /// "row a" for a document, or its pack where rows have no names.
    pub fn name_document(&self, document: usize) -> String {
        let pack = self.packs.iter().position(|extent| extent.documents.contains(&document)).unwrap_or(0);
        let extent = &self.packs[pack];
        let named = self.row_ids(pack);
        match named.len() == extent.documents.len() {
            true => format!("row {}", named[document - extent.documents.start]),
            false => self.name_rows(&[pack]),
        }
    }

    /// A digest of everything trained on, in order.
    pub fn fingerprint(&self) -> u64 {
        let numbers = self.ids.iter().chain(&self.labels).map(|&n| n as u32).chain(self.lengths.iter().copied());
        numbers.fold(self.packs.len() as u64, |hash, n| crate::random::mix(hash, u64::from(n)))
    }

    /// The documents of `packs` in chunks of about `limit` tokens and of sizes as even as whole documents allow (a longer
    /// document is a chunk of its own), filled up for products in `compute`. Chunks bound memory; they never change what a
    /// document attends to.
    pub fn chunks(&self, packs: &[usize], limit: usize, compute: Kind) -> Vec<Chunk> {
        let round = if compute == Kind::Float { ROUND_WIDE } else { ROUND };
        let mut documents = Vec::new();
        for extent in packs.iter().map(|&pack| &self.packs[pack]) {
            let mut start = extent.tokens.start;
            for number in extent.documents.clone() {
                let tokens = start..start + self.lengths[number] as usize;
                start = tokens.end;
                documents.push((number, tokens));
            }
        }
        documents.retain(|(_, tokens)| !tokens.is_empty());
        let total: usize = documents.iter().map(|(_, tokens)| tokens.len()).sum();
        let shares = share_out(&documents, total.div_ceil(limit.max(1)).max(1));
        shares.iter().map(|share| self.chunk(share, round)).collect()
    }

    fn chunk(&self, documents: &[&(usize, Range<usize>)], round: usize) -> Chunk {
        let mut chunk = Chunk::default();
        let mut labels = Vec::new();
        for (number, tokens) in documents {
            let ids: Vec<i64> = self.ids[tokens.clone()].iter().map(|&id| i64::from(id)).collect();
            chunk.segments.push(&ids);
            chunk.documents.push(*number);
            labels.extend(self.labels[tokens.clone()].iter().map(|&label| i64::from(label)));
        }
        chunk.targets = Targets::of(&labels, &chunk.segments.lengths);
        // A filler document that nothing attends to and nothing is trained on: few distinct sizes mean few compiled
        // products in oneDNN.
        let filler = chunk.segments.ids.len().next_multiple_of(round) - chunk.segments.ids.len();
        chunk.segments.push(&vec![0; filler]);
        chunk
    }

    fn append(&mut self, batch: &RecordBatch) -> std::result::Result<(), String> {
        let column =
            |name: &str| batch.column_by_name(name).ok_or_else(|| format!("no column {name}; is this a packed file?"));
        let (ids, labels, lengths) = (column("input_ids")?, column("labels")?, column("lengths")?);
        let row_ids = batch.column_by_name("row_ids");
        let sources = batch.column_by_name("sources");
        for row in 0..batch.num_rows() {
            let (tokens, documents, rows) = (self.ids.len(), self.lengths.len(), self.row_ids.len());
            let lengths = numbers(&list(lengths, row)?)?;
            let total = lengths.iter().map(|&n| n as usize).sum::<usize>();
            let (row_tokens, row_labels) = (numbers(&list(ids, row)?)?, numbers(&list(labels, row)?)?);
            // Anything after the documents is padding.
            if row_tokens.len() < total || row_labels.len() < total {
                return Err(format!(
                    "pack {} has {} tokens, its lengths add to {total}",
                    self.packs.len(),
                    row_tokens.len()
                ));
            }
            self.ids.extend_from_slice(&row_tokens[..total]);
            self.labels.extend_from_slice(&row_labels[..total]);
            self.lengths.extend(lengths.iter().map(|&n| n as u32));
            if let Some(row_ids) = row_ids {
                self.row_ids.extend(strings(&list(row_ids, row)?)?);
            }
            if let Some(sources) = sources {
                let own = list(sources, row)?;
                let own = own.as_primitive_opt::<UInt16Type>().ok_or("sources are not 16-bit numbers")?;
                self.sources.extend_from_slice(own.values());
            }
            let mut extent = Extent {
                tokens: tokens..self.ids.len(),
                documents: documents..self.lengths.len(),
                row_ids: rows..self.row_ids.len(),
                trained: 0,
            };
            extent.trained = self.count_trained(&extent);
            self.packs.push(extent);
        }
        Ok(())
    }

    fn count_trained(&self, extent: &Extent) -> u64 {
        let mut start = extent.tokens.start;
        let mut trained = 0;
        for &length in &self.lengths[extent.documents.clone()] {
            let end = start + length as usize;
            let document = &self.labels[start..end];
            trained += document.iter().skip(1).filter(|&&label| i64::from(label) != IGNORED).count() as u64;
            start = end;
        }
        trained
    }
}

/// At most `most` shares of nearly equal size: the longest document first, each to the share that has least. Documents
/// keep their order within a share, and shares that of their first documents.
fn share_out(documents: &[(usize, Range<usize>)], most: usize) -> Vec<Vec<&(usize, Range<usize>)>> {
    let mut order: Vec<usize> = (0..documents.len()).collect();
    order.sort_by_key(|&i| (std::cmp::Reverse(documents[i].1.len()), i));
    let mut shares: Vec<(usize, Vec<usize>)> = vec![(0, Vec::new()); most];
    for i in order {
        if let Some((size, share)) = shares.iter_mut().min_by_key(|(size, _)| *size) {
            *size += documents[i].1.len();
            share.push(i);
        }
    }
    let mut shares: Vec<Vec<usize>> = shares.into_iter().map(|(_, share)| share).filter(|s| !s.is_empty()).collect();
    shares.iter_mut().for_each(|share| share.sort_unstable());
    shares.sort_unstable();
    shares.into_iter().map(|share| share.into_iter().map(|i| &documents[i]).collect()).collect()
}

fn list(column: &ArrayRef, row: usize) -> std::result::Result<ArrayRef, String> {
    match column.data_type() {
        DataType::List(_) => Ok(column.as_list::<i32>().value(row)),
        DataType::LargeList(_) => Ok(column.as_list::<i64>().value(row)),
        other => Err(format!("expected lists, found {other}")),
    }
}

fn numbers(values: &ArrayRef) -> std::result::Result<Vec<i32>, String> {
    match values.data_type() {
        DataType::Int32 => Ok(values.as_primitive::<Int32Type>().values().to_vec()),
        DataType::Int64 => Ok(values.as_primitive::<Int64Type>().values().iter().map(|&n| n as i32).collect()),
        DataType::UInt32 => Ok(values.as_primitive::<UInt32Type>().values().iter().map(|&n| n as i32).collect()),
        other => Err(format!("expected whole numbers, found {other}")),
    }
}

fn strings(values: &ArrayRef) -> std::result::Result<Vec<String>, String> {
    let text = |value: Option<&str>| value.unwrap_or_default().to_string();
    match values.data_type() {
        DataType::Utf8 => Ok(values.as_string::<i32>().iter().map(text).collect()),
        DataType::LargeUtf8 => Ok(values.as_string::<i64>().iter().map(text).collect()),
        DataType::Utf8View => Ok(values.as_string_view().iter().map(text).collect()),
        other => Err(format!("expected text, found {other}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn packs() -> Packs {
        let ids: Vec<i32> = (1..=50).collect();
        let labels = ids.iter().map(|&id| if id % 2 == 0 { -100 } else { id }).collect();
        let extents = [(0..30, 0..2), (30..50, 2..3)];
        let packs = extents.map(|(tokens, documents)| Extent { tokens, documents, row_ids: 0..0, trained: 0 });
        Packs {
            ids,
            labels,
            lengths: vec![10, 20, 20],
            row_ids: Vec::new(),
            sources: vec![0, 1, 2],
            packs: packs.to_vec(),
        }
    }

    #[test]
    fn chunks_keep_documents_whole_and_targets_in_place() {
        let chunks = packs().chunks(&[0, 1], 25, Kind::BFloat16);
        assert_eq!(chunks.len(), 2);
        assert_eq!(chunks[0].segments.lengths, [10, 20, 2]);
        assert_eq!(chunks[1].segments.lengths, [20, 12]);
        // The first label of the second document (11) has nothing before it.
        assert!(!chunks[0].targets.ids.contains(&11));
        let places = chunks[0].targets.rows.iter().zip(&chunks[0].targets.ids);
        let documents: Vec<usize> = chunks[0].target_documents().collect();
        assert!(
            documents.iter().zip(&chunks[0].targets.rows).all(|(&document, &row)| document == usize::from(row >= 10))
        );
        assert!(chunks[1].target_documents().all(|document| document == 2));
        places.for_each(|(&row, &id)| assert_eq!(chunks[0].segments.ids[row as usize + 1], id));
    }

    #[test]
    fn shares_are_even_and_keep_their_order() {
        let sizes = [45, 40, 20, 21, 3];
        let documents: Vec<(usize, Range<usize>)> = sizes.iter().enumerate().map(|(i, n)| (i, 0..*n)).collect();
        let of = |most: usize| -> Vec<Vec<usize>> {
            share_out(&documents, most)
                .iter()
                .map(|share| share.iter().map(|(_, tokens)| tokens.len()).collect())
                .collect()
        };
        assert_eq!(of(2), [vec![45, 20], vec![40, 21, 3]]);
        assert_eq!(of(1), [sizes.to_vec()]);
        assert_eq!(of(9).len(), 5);
        assert!(share_out(&[], 2).is_empty());
    }

    #[test]
    fn a_document_longer_than_the_limit_goes_alone() {
        let lengths: Vec<_> =
            packs().chunks(&[0, 1], 5, Kind::BFloat16).iter().map(|chunk| chunk.segments.lengths[0]).collect();
        assert_eq!(lengths, [10, 20, 20]);
    }
}
