//! Which rows are answered, and what stands before them.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;

use arrow::array::{ArrayRef, BooleanArray, Int32Array, RecordBatch, StringArray};
use arrow::compute::filter_record_batch;
use pipe_engine::task::TaskError;
use pipe_job::Asked;

use crate::rows::{TableWriter, batches, int_list, int_lists, list_column, shapes, text_column};

/// At most `most` rows of each split, over all its datasets: those with the smallest ids, which are digests of their
/// content, so the choice is arbitrary and stays. Tables with the chosen rows are written to `scratch`.
pub fn limited(asked: Vec<Asked>, most: usize, scratch: &Path) -> Result<Vec<Asked>, TaskError> {
    let mut ids: BTreeMap<String, BTreeSet<(String, u16)>> = BTreeMap::new();
    for asked in &asked {
        let chosen = ids.entry(asked.split.clone()).or_default();
        for batch in batches(&asked.rows, &["row_id"], 4096)? {
            let batch = batch?;
            for id in text_column(&batch, "row_id")?.iter().flatten() {
                chosen.insert((id.to_string(), asked.source));
                if chosen.len() > most {
                    chosen.pop_last();
                }
            }
        }
    }
    let keep = |asked: Asked| {
        let path = scratch.join(format!("asked.{}.{}.parquet", asked.split, asked.source));
        let chosen = ids.get(&asked.split).cloned().unwrap_or_default();
        let mut writer = TableWriter::create(&path, shapes::tokens())?;
        for batch in batches(&asked.rows, &["row_id", "input_ids", "labels", "length"], 1024)? {
            let batch = batch?;
            let rows = text_column(&batch, "row_id")?.iter();
            let mask = rows.map(|id| id.map(|id| chosen.contains(&(id.to_string(), asked.source))));
            let kept = filter_record_batch(&batch, &mask.collect::<BooleanArray>());
            writer.write(&kept.map_err(|e| TaskError::Failed(e.to_string()))?)?;
        }
        writer.finish()?;
        Ok(Asked { rows: path, ..asked })
    };
    asked.into_iter().map(keep).collect()
}

/// Training rows that are shown before a prompt.
pub struct Shots {
    pub rows: usize,
    ids: Vec<i32>,
    bos: Option<i32>,
}

/// What a prompt with its shots must fit in, in tokens.
#[derive(Clone, Copy)]
pub struct Room {
    /// What the model was made for.
    pub context: usize,
    pub answer: usize,
    /// The token that stands once, before everything.
    pub bos: Option<i32>,
}

/// At most `most` training rows, those with the smallest ids, as many as fit before the longest prompt.
pub fn shots(tables: &[&Path], most: usize, asked: &[Asked], room: Room) -> Result<Shots, TaskError> {
    let mut chosen: BTreeMap<String, Vec<i32>> = BTreeMap::new();
    for table in tables {
        for batch in batches(table, &["row_id", "input_ids"], 1024)? {
            let batch = batch?;
            let (names, ids) = (text_column(&batch, "row_id")?, list_column(&batch, "input_ids")?);
            for i in 0..batch.num_rows() {
                chosen.insert(names.value(i).to_string(), int_list(ids, i)?.to_vec());
                if chosen.len() > most {
                    chosen.pop_last();
                }
            }
        }
    }
    let mut longest = 0;
    for asked in asked {
        for batch in batches(&asked.rows, &["labels"], 1024)? {
            let batch = batch?;
            let labels = list_column(&batch, "labels")?;
            for i in 0..batch.num_rows() {
                longest = longest.max(int_list(labels, i)?.iter().take_while(|label| **label == -100).count());
            }
        }
    }
    let mut shots = Shots { rows: 0, ids: Vec::new(), bos: room.bos };
    for ids in chosen.into_values() {
        let ids = if shots.rows > 0 { shots.without_bos(&ids) } else { &ids };
        if shots.ids.len() + ids.len() + longest + room.answer > room.context {
            break;
        }
        shots.ids.extend_from_slice(ids);
        shots.rows += 1;
    }
    Ok(shots)
}

impl Shots {
    fn without_bos<'a>(&self, ids: &'a [i32]) -> &'a [i32] {
        if ids.first().is_some_and(|first| Some(*first) == self.bos) { &ids[1..] } else { ids }
    }
}

/// The same rows with the shots before them, for the base model under the name `few_shot`.
pub fn primed(asked: &[Asked], shots: &Shots, scratch: &Path) -> Result<Vec<Asked>, TaskError> {
    let prime = |asked: &Asked| {
        let path = scratch.join(format!("shots.{}.{}.parquet", asked.split, asked.source));
        let mut writer = TableWriter::create(&path, shapes::tokens())?;
        for batch in batches(&asked.rows, &["row_id", "input_ids", "labels"], 256)? {
            writer.write(&with_shots(&batch?, shots)?)?;
        }
        writer.finish()?;
        Ok(Asked { rows: path, base_as: Some("few_shot".to_string()), ..asked.clone() })
    };
    asked.iter().map(prime).collect()
}

fn with_shots(batch: &RecordBatch, shots: &Shots) -> Result<RecordBatch, TaskError> {
    let (ids, labels) = (list_column(batch, "input_ids")?, list_column(batch, "labels")?);
    let (mut all_ids, mut all_labels, mut ends, mut lengths) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for i in 0..batch.num_rows() {
        let row = int_list(ids, i)?;
        let own = if shots.rows > 0 { shots.without_bos(row) } else { row };
        let labels = int_list(labels, i)?;
        all_ids.extend_from_slice(&shots.ids);
        all_ids.extend_from_slice(own);
        all_labels.resize(all_labels.len() + shots.ids.len(), -100);
        all_labels.extend_from_slice(&labels[row.len() - own.len()..]);
        ends.push(all_ids.len() as i32);
        lengths.push((shots.ids.len() + own.len()) as i32);
    }
    let names: StringArray = text_column(batch, "row_id")?.iter().collect();
    let columns: Vec<ArrayRef> = vec![
        Arc::new(names),
        int_lists(all_ids, &ends),
        int_lists(all_labels, &ends),
        Arc::new(Int32Array::from(lengths)),
    ];
    RecordBatch::try_new(shapes::tokens(), columns).map_err(|e| TaskError::Failed(e.to_string()))
}
