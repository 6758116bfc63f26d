//! How long the rows of a table are, and how much of each is trained.

use std::path::Path;

use arrow::array::{Array, AsArray};
use arrow::datatypes::Int32Type;
use pipe_engine::task::TaskError;
use serde_json::{Value, json};

use super::tables;
use crate::rows::batches;

const MASKED: i32 = -100;
const ROWS_PER_BATCH: usize = 1024;
/// Bars of a histogram of lengths at most.
const MOST_BARS: u32 = 12;

/// Lengths and trained shares of a table's rows.
#[derive(Clone, Debug, PartialEq)]
pub struct Spread {
    /// File stem of the table.
    pub table: String,
    /// Tokens of each row, in order of size.
    pub lengths: Vec<u32>,
    pub tokens: u64,
    pub trained: u64,
    /// Rows by the tenth that their trained share falls into; the last holds rows that are trained whole.
    pub shares: [u64; 10],
}

/// The spreads of every table of tokens in `output`; none where there are no tokens.
pub fn spreads(output: &Path) -> Result<Vec<Spread>, TaskError> {
    let mut all = Vec::new();
    for path in tables(output)? {
        let Ok(reader) = batches(&path, &["labels"], ROWS_PER_BATCH) else { continue };
        let table = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        let mut spread = Spread { table, lengths: Vec::new(), tokens: 0, trained: 0, shares: [0; 10] };
        for batch in reader {
            let batch = batch?;
            let Some(labels) = batch.column(0).as_list_opt::<i32>() else { return Ok(Vec::new()) };
            for i in 0..labels.len() {
                let row = labels.value(i);
                let Some(row) = row.as_primitive_opt::<Int32Type>() else { return Ok(Vec::new()) };
                spread.add(row.values());
            }
        }
        spread.lengths.sort_unstable();
        if !spread.lengths.is_empty() {
            all.push(spread);
        }
    }
    Ok(all)
}

impl Spread {
    fn add(&mut self, labels: &[i32]) {
        let trained = labels.iter().filter(|&&label| label != MASKED).count() as u64;
        let length = labels.len() as u64;
        self.lengths.push(length as u32);
        self.tokens += length;
        self.trained += trained;
        self.shares[(trained * 10).checked_div(length).unwrap_or(0).min(9) as usize] += 1;
    }

    /// Takes the rows of another table in.
    pub fn join(&mut self, other: Spread) {
        self.lengths.extend(other.lengths);
        self.lengths.sort_unstable();
        self.tokens += other.tokens;
        self.trained += other.trained;
        self.shares.iter_mut().zip(other.shares).for_each(|(share, rows)| *share += rows);
    }

    /// The length that this share of the rows does not exceed.
    pub fn quantile(&self, share: f64) -> u32 {
        let at = (share * self.lengths.len() as f64).ceil() as usize;
        self.lengths[at.clamp(1, self.lengths.len()) - 1]
    }

    /// Rows by length: first and last length of each bar, and how many.
    pub fn bars(&self) -> Vec<(u32, u32, u64)> {
        let (least, most) = (self.quantile(0.0), self.quantile(1.0));
        let width = round((most - least) / MOST_BARS + 1);
        let first = least / width;
        let mut bars: Vec<(u32, u32, u64)> =
            (first..=most / width).map(|bar| (bar * width, (bar + 1) * width - 1, 0)).collect();
        for length in &self.lengths {
            bars[(length / width - first) as usize].2 += 1;
        }
        bars
    }

    pub fn json(&self) -> Value {
        json!({
            "table": self.table, "rows": self.lengths.len(), "tokens": self.tokens, "trained_tokens": self.trained,
            "length": {"min": self.quantile(0.0), "median": self.quantile(0.5), "p95": self.quantile(0.95), "max": self.quantile(1.0)},
            "lengths": self.bars().iter().map(|(from, to, rows)| json!({"from": from, "to": to, "rows": rows})).collect::<Vec<_>>(),
            "trained_share": self.shares,
        })
    }
}

/// The next of 1, 2, 5, 10, 20, 50, ...
fn round(width: u32) -> u32 {
    let mut scale = 1;
    loop {
        for step in [1, 2, 5] {
            if step * scale >= width {
                return step * scale;
            }
        }
        scale *= 10;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bars_and_quantiles_by_hand() {
        let mut spread = Spread { table: "train".into(), lengths: Vec::new(), tokens: 0, trained: 0, shares: [0; 10] };
        for length in [3, 7, 8, 12, 40] {
            let labels: Vec<i32> = (0..length).map(|i| if i % 2 == 0 { i } else { MASKED }).collect();
            spread.add(&labels);
        }
        spread.add(&[1, 2]);
        spread.lengths.sort_unstable();
        assert_eq!((spread.quantile(0.5), spread.quantile(0.95), spread.tokens, spread.trained), (7, 40, 72, 38));
        // From 2 to 40 in bars of 5.
        let bars = spread.bars();
        assert_eq!((bars[0], bars[1], bars[2], bars[8]), ((0, 4, 2), (5, 9, 2), (10, 14, 1), (40, 44, 1)));
        assert_eq!(bars.iter().map(|bar| bar.2).sum::<u64>(), 6);
        // Two thirds, four sevenths, half three times, and all of it.
        assert_eq!((spread.shares[5], spread.shares[6], spread.shares[9]), (4, 1, 1));
    }
}
