//! Loss and perplexity from what every document cost.

use std::collections::BTreeMap;
use std::path::Path;

use arrow::array::{Float64Array, Int64Array, UInt16Array};
use pipe_engine::task::TaskError;

use super::score::{Formula, Series};
use super::sheet::Block;
use crate::rows::{batches, text_column, typed};

/// What a document cost one model.
#[derive(Clone, Debug, PartialEq)]
pub struct Loss {
    pub source: u16,
    pub row_id: String,
    /// Nats over its trained tokens.
    pub sum: f64,
    pub tokens: i64,
    pub trained_tokens: i64,
}

/// The worker's losses by model and split, in the order of the packs.
pub fn read(path: &Path) -> Result<BTreeMap<(String, String), Vec<Loss>>, TaskError> {
    let mut all: BTreeMap<(String, String), Vec<Loss>> = BTreeMap::new();
    let columns = ["model", "split", "source", "row_id", "loss_sum", "tokens", "trained_tokens"];
    for batch in batches(path, &columns, 4096)? {
        let batch = batch?;
        let (models, splits) = (text_column(&batch, "model")?, text_column(&batch, "split")?);
        let (sources, rows) = (typed::<UInt16Array>(&batch, "source")?, text_column(&batch, "row_id")?);
        let sums = typed::<Float64Array>(&batch, "loss_sum")?;
        let (tokens, trained) =
            (typed::<Int64Array>(&batch, "tokens")?, typed::<Int64Array>(&batch, "trained_tokens")?);
        for i in 0..batch.num_rows() {
            let place = (models.value(i).to_string(), splits.value(i).to_string());
            all.entry(place).or_default().push(Loss {
                source: sources.value(i),
                row_id: rows.value(i).to_string(),
                sum: sums.value(i),
                tokens: tokens.value(i),
                trained_tokens: trained.value(i),
            });
        }
    }
    Ok(all)
}

/// `loss`, `perplexity`, `tokens` and `trained_tokens`; a row that was cut in several documents counts as one.
pub fn block(losses: &[Loss]) -> Block {
    let mut rows: BTreeMap<(u16, &str), [f64; 3]> = BTreeMap::new();
    for loss in losses {
        let row = rows.entry((loss.source, &loss.row_id)).or_default();
        row[0] += loss.sum;
        row[1] += loss.trained_tokens as f64;
        row[2] += loss.tokens as f64;
    }
    let series = |formula, sums: fn(&[f64; 3]) -> Vec<f64>| {
        let mut series = Series::new(formula);
        rows.values().for_each(|row| series.push(&sums(row)));
        series
    };
    Block {
        sources: rows.keys().map(|(source, _)| *source).collect(),
        series: vec![
            ("loss".to_string(), series(Formula::Mean, |row| vec![row[0], row[1]])),
            ("perplexity".to_string(), series(Formula::ExpMean, |row| vec![row[0], row[1]])),
            ("tokens".to_string(), series(Formula::Total, |row| vec![row[2]])),
            ("trained_tokens".to_string(), series(Formula::Total, |row| vec![row[1]])),
        ],
    }
}
