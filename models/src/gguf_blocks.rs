//! A weight as the blocks of a GGUF file, in memory as few bytes as on disk; for inference alone.
//!
//! A few rows are multiplied with the blocks themselves (see `few`), more with tiles of what the blocks stand for.

use std::sync::Arc;

use pipe_files::TensorType;
use tch::{Kind, Tensor};

use crate::few;
use crate::kernels::block_rows;
use crate::kernels::rows::{self, Matrix};
use crate::shim;

/// Weights of which a dense copy is made at one time.
const TILE: usize = 1 << 24;

/// Weights that a thread should have to decode before a second one is worth waking.
const GRAIN: usize = 1 << 15;

/// A `[rows, columns]` weight; copies share the bytes.
#[derive(Clone, Debug)]
pub struct GgufBlocks {
    pub dtype: TensorType,
    pub rows: i64,
    pub columns: i64,
    /// Arranged for the kernels.
    bytes: Arc<Vec<u8>>,
}

impl GgufBlocks {
    /// Whether weights of this type are held so on this processor.
    pub fn suit(dtype: TensorType, columns: usize) -> bool {
        rows::fast() && block_rows::is_known(dtype) && columns.is_multiple_of(dtype.block().0)
    }

    /// Takes rows as a file holds them; the type must [suit](GgufBlocks::suit).
    pub fn new(dtype: TensorType, columns: usize, stored: &[u8]) -> Self {
        let (from, to) = (dtype.bytes(columns), block_rows::row_bytes(dtype, columns).unwrap_or_default());
        let rows = stored.len() / from.max(1);
        let mut bytes = vec![0; rows * to];
        for (stored, arranged) in stored.chunks_exact(from).zip(bytes.chunks_exact_mut(to)) {
            block_rows::arrange(dtype, columns, stored, arranged);
        }
        Self { dtype, rows: rows as i64, columns: columns as i64, bytes: Arc::new(bytes) }
    }

    pub fn matrix(&self) -> Matrix<'_> {
        Matrix::Blocks(self.dtype, &self.bytes)
    }

    /// Bytes held.
    pub fn bytes(&self) -> usize {
        self.bytes.len()
    }

    /// The weight as `[rows, columns]` of `kind`, f32 or bf16 (rounded once from f32).
    pub fn dequantize(&self, kind: Kind) -> Tensor {
        self.gather(self.rows as usize, kind, |row| row)
    }

    /// Some of the rows, in this order, as `[ids, columns]` of `kind`.
    pub fn select(&self, ids: &[i64], kind: Kind) -> Tensor {
        self.gather(ids.len(), kind, |at| ids[at] as usize)
    }

    /// `x weight^T` for any number of rows, in the type of `x`.
    pub fn product(&self, x: &Tensor) -> Tensor {
        let (rows, step) = (self.rows as usize, (TILE / self.columns.max(1) as usize).max(1));
        let tile = |first: usize| {
            let weight = self.gather(step.min(rows - first), x.kind(), |row| first + row);
            x.matmul(&weight.tr())
        };
        let tiles: Vec<Tensor> = (0..rows).step_by(step).map(tile).collect();
        match &tiles[..] {
            [one] => one.shallow_clone(),
            _ => Tensor::cat(&tiles, 1),
        }
    }

    /// `count` rows; `from` says which of the weight's rows each is.
    fn gather(&self, count: usize, kind: Kind, from: impl Fn(usize) -> usize + Sync) -> Tensor {
        let columns = self.columns as usize;
        let size = self.bytes.len() / self.rows.max(1) as usize;
        let (out, place) = few::room(count, columns, kind);
        shim::parallel(count, (GRAIN / columns.max(1)).max(1), &|first, end| {
            let mut wide = vec![0f32; columns];
            for row in first..end {
                let own = &self.bytes[from(row) * size..][..size];
                block_rows::decode(rows::fast(), self.dtype, own, &mut wide);
                place.put_row(row, &wide);
            }
        });
        out
    }
}
