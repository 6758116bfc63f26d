//! Tokenised rows of an earlier output among new ones, with what each of them counts for.
//!
//! Most rows say nothing but their tokens: they are kept, nothing is odd, and what is trained belongs to the role of the last
//! span. Only rows that differ from that get remarks, so that an ordinary run writes none.

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow::array::{ArrayRef, RecordBatch, StringArray};
use pipe_engine::task::{Context, TaskError};

use super::labels::MASKED;
use super::{Counts, Rendered, Tokenized};
use crate::reuse::{Forward, Remark, RemarkReader, RemarkWriter, Weave, with_ids};
use crate::rows::{int_list, list_column};

const UNTRAINED: &str = "untrained";
const TRAINED: &str = "trained";
const SPLIT: &str = "split:";

/// Merges one split's new rows with those of the earlier output.
pub struct Merge<'a> {
    split: &'a str,
    table: Option<Forward>,
    said: RemarkReader,
    /// Rows passed in the earlier input that the earlier table does not have.
    dropped: u64,
    /// Rows merged so far.
    at: u64,
}

impl<'a> Merge<'a> {
    pub fn open(ctx: &Context, split: &'a str) -> Result<Merge<'a>, TaskError> {
        let columns = ["row_id", "input_ids", "labels", "length"];
        let table = Forward::open(ctx, &format!("{split}.parquet"), &columns)?;
        Ok(Merge { split, table, said: RemarkReader::open(ctx, split)?, dropped: 0, at: 0 })
    }

    /// The batch's kept rows: `computed` (from `results`) where a row has no origin, else the earlier output's.
    pub(super) fn batch(
        &mut self,
        rows: &Rendered<'_>,
        origins: &[Option<u64>],
        computed: RecordBatch,
        results: &[(Tokenized, Counts)],
        counts: &mut Counts,
        remarks: &mut RemarkWriter,
    ) -> Result<RecordBatch, TaskError> {
        let mut weave = Weave::default();
        let mut kept = Vec::with_capacity(origins.len());
        let mut results = results.iter();
        for (i, origin) in origins.iter().enumerate() {
            let (seen, usual) = match origin {
                Some(row) => self.taken_over(rows, i, *row, &mut weave)?,
                None => {
                    let Some((row, seen)) = results.next() else { continue };
                    if seen.untrained_rows == 0 {
                        weave.fresh();
                    }
                    (seen.clone(), usual(rows, i, &row.labels))
                }
            };
            if seen.untrained_rows == 0 {
                kept.push(rows.ids.value(i));
            }
            for (what, count) in remarked(&seen, &usual) {
                let (split, row_id) = (self.split.to_string(), rows.ids.value(i).to_string());
                remarks.push(Remark { split, row: self.at + i as u64, row_id, what, count })?;
            }
            counts.add(&seen);
        }
        self.at += origins.len() as u64;
        let ids: ArrayRef = Arc::new(StringArray::from(kept));
        with_ids(&weave.finish(computed)?, ids)
    }

    /// What row `row` of the earlier input counted for, and what would be usual.
    fn taken_over<'r>(
        &mut self,
        rows: &Rendered<'r>,
        i: usize,
        row: u64,
        weave: &mut Weave,
    ) -> Result<(Counts, Usual<'r>), TaskError> {
        let dropped = &mut self.dropped;
        let said = self.said.of(row, |remark| *dropped += u64::from(remark.what == UNTRAINED))?;
        let mut counts = Counts { rows: 1, reused: 1, ..recalled(&said) };
        if counts.untrained_rows > 0 {
            self.dropped += 1;
            return Ok((counts, None));
        }
        let table = self.table.as_mut().ok_or_else(|| TaskError::Failed("there is no earlier output".into()))?;
        let (batch, place) = weave.earlier(table, row - self.dropped)?;
        let labels = int_list(list_column(batch, "labels")?, place)?;
        let usual = usual(rows, i, labels);
        counts.tokens = labels.len() as u64;
        counts.trained = labels.iter().skip(1).filter(|&&label| label != MASKED).count() as u64;
        if said.iter().all(|remark| remark.what != TRAINED) {
            counts.by_role = usual.iter().map(|(role, tokens)| (role.to_string(), *tokens)).collect();
        }
        Ok((counts, usual))
    }
}

/// The one role whose tokens are usually trained, and how many they are: all but the end of sequence around the row.
type Usual<'a> = Option<(&'a str, u64)>;

fn usual<'a>(rows: &Rendered<'a>, i: usize, labels: &[i32]) -> Usual<'a> {
    let around = rows.eos.value(i) && labels.last().is_some_and(|&label| label != MASKED);
    let trained = labels.iter().filter(|&&label| label != MASKED).count() as u64 - u64::from(around);
    rows.last_role(i).filter(|_| trained > 0).map(|role| (role, trained))
}

/// What has to be said of a row so that [`recalled`] knows what it counted for.
fn remarked(seen: &Counts, usual: &Usual<'_>) -> Vec<(String, u64)> {
    let odd = [
        (UNTRAINED, seen.untrained_rows),
        ("missing_terminators", seen.missing_terminators),
        ("unended", seen.unended_rows),
        ("double_bos", seen.double_bos),
        ("special_in_content", seen.special_in_content),
    ];
    let mut said: Vec<(String, u64)> =
        odd.into_iter().filter(|(_, count)| *count > 0).map(|(what, count)| (what.to_string(), count)).collect();
    said.extend(seen.split_tokens.iter().map(|(text, times)| (format!("{SPLIT}{text}"), *times)));
    let is_usual = seen.by_role.iter().map(|(role, tokens)| (role.as_str(), *tokens)).eq(usual.iter().copied());
    if seen.untrained_rows == 0 && !is_usual {
        said.push((TRAINED.to_string(), seen.by_role.values().sum()));
        said.extend(seen.by_role.iter().map(|(role, tokens)| (format!("{TRAINED}:{role}"), *tokens)));
    }
    said
}

fn recalled(said: &[Remark]) -> Counts {
    let count = |what: &str| said.iter().filter(|remark| remark.what == what).map(|remark| remark.count).sum();
    let role =
        |remark: &Remark| Some((remark.what.strip_prefix(TRAINED)?.strip_prefix(':')?.to_string(), remark.count));
    let split = |remark: &Remark| Some((remark.what.strip_prefix(SPLIT)?.to_string(), remark.count));
    Counts {
        untrained_rows: count(UNTRAINED),
        missing_terminators: count("missing_terminators"),
        unended_rows: count("unended"),
        split_tokens: said.iter().filter_map(split).collect(),
        double_bos: count("double_bos"),
        special_in_content: count("special_in_content"),
        by_role: said.iter().filter_map(role).collect::<BTreeMap<_, _>>(),
        ..Counts::default()
    }
}
