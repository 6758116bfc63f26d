//! Which rows of a table are byte-equal to rows of an earlier one, in the same order.

use std::collections::HashMap;
use std::path::Path;

use arrow::error::ArrowError;
use arrow::row::{RowConverter, SortField};
use pipe_engine::task::{Cancel, TaskError};
use rayon::prelude::*;

use super::BATCH_ROWS;
use crate::rows::batches;

/// Sixteen bytes of BLAKE3: no two different rows share them.
pub type RowDigest = [u8; 16];

/// A digest per row over `columns`, whatever their types.
pub fn digests(path: &Path, columns: &[&str], cancel: &Cancel) -> Result<Vec<RowDigest>, TaskError> {
    let failed =
        |error: ArrowError| TaskError::Failed(format!("cannot compare the rows of {}: {error}", path.display()));
    let mut all = Vec::new();
    for batch in batches(path, columns, BATCH_ROWS)? {
        cancel.check()?;
        let batch = batch?;
        let fields = batch.schema().fields().iter().map(|field| SortField::new(field.data_type().clone())).collect();
        let rows = RowConverter::new(fields).and_then(|converter| converter.convert_columns(batch.columns()));
        let rows = rows.map_err(failed)?;
        all.par_extend((0..batch.num_rows()).into_par_iter().map(|i| digest(rows.row(i).as_ref())));
    }
    Ok(all)
}

fn digest(bytes: &[u8]) -> RowDigest {
    let mut short = [0; 16];
    short.copy_from_slice(&blake3::hash(bytes).as_bytes()[..16]);
    short
}

/// For each row of `now` the number of its equal in `before`: ascending, each at most once, as many as possible of those
/// that pair the n-th occurrence of a row with its n-th before.
pub fn origins(before: &[RowDigest], now: &[RowDigest]) -> Vec<Option<u64>> {
    let mut origins = vec![None; now.len()];
    let head = before.iter().zip(now).take_while(|(a, b)| a == b).count();
    let tail = before[head..].iter().rev().zip(now[head..].iter().rev()).take_while(|(a, b)| a == b).count();
    (0..head).for_each(|i| origins[i] = Some(i as u64));
    (1..=tail).for_each(|i| origins[now.len() - i] = Some((before.len() - i) as u64));
    let (old, new) = (head..before.len() - tail, head..now.len() - tail);
    let mut places: HashMap<RowDigest, Vec<usize>> = HashMap::new();
    for i in old.rev() {
        places.entry(before[i]).or_default().push(i);
    }
    let pairs = new.filter_map(|i| Some((i, places.get_mut(&now[i])?.pop()?)));
    for (i, origin) in ascending(&pairs.collect::<Vec<_>>()) {
        origins[i] = Some(origin as u64);
    }
    origins
}

/// The longest subsequence whose second parts ascend (patience sorting).
fn ascending(pairs: &[(usize, usize)]) -> Vec<(usize, usize)> {
    // For each length, the pair that ends the best run of it; for each pair, the one before it in its run.
    let mut ends: Vec<usize> = Vec::new();
    let mut previous = vec![usize::MAX; pairs.len()];
    for (i, &(_, origin)) in pairs.iter().enumerate() {
        let length = ends.partition_point(|&end| pairs[end].1 < origin);
        if length > 0 {
            previous[i] = ends[length - 1];
        }
        match ends.get_mut(length) {
            Some(end) => *end = i,
            None => ends.push(i),
        }
    }
    let mut run = Vec::with_capacity(ends.len());
    let mut at = ends.last().copied().unwrap_or(usize::MAX);
    while let Some(&pair) = pairs.get(at) {
        run.push(pair);
        at = previous[at];
    }
    run.reverse();
    run
}
