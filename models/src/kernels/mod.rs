//! Processor kernels for weights at rest, chosen at run time. Each has a scalar twin it equals bit for bit.
//!
//! Raw memory in, raw memory out: no tensors, no threads, no allocation.

#![allow(unsafe_code)]

mod block_formats;
pub mod block_rows;
mod dense_rows;
pub mod eight_bit;
pub mod elementwise;
mod nf4_decode;
mod nf4_encode;
pub mod rows;

use std::sync::OnceLock;

pub use nf4_decode::{Packed, decode};
pub use nf4_encode::encode;
pub use rows::Matrix;

/// The vector instructions that a kernel for 4-bit weights is compiled with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Instructions {
    Scalar,
    Avx2,
    Avx512,
}

impl Instructions {
    /// The fastest this processor has.
    pub fn best() -> Self {
        static BEST: OnceLock<Instructions> = OnceLock::new();
        *BEST.get_or_init(|| Self::all().pop().unwrap_or(Self::Scalar))
    }

    /// Those this processor has, slowest first.
    pub fn all() -> Vec<Self> {
        let mut all = vec![Self::Scalar];
        #[cfg(target_arch = "x86_64")]
        {
            if is_x86_feature_detected!("avx2") {
                all.push(Self::Avx2);
            }
            if is_x86_feature_detected!("avx512bw") && is_x86_feature_detected!("avx512vl") {
                all.push(Self::Avx512);
            }
        }
        all
    }
}

/// The sixteen values of 4-bit codes.
#[unsafe(no_mangle)]
pub extern "C" fn pipe_codebook(fp4: i32) -> *const f32 {
    codebook(fp4).as_ptr()
}

/// The 256 values of codes of scales.
#[unsafe(no_mangle)]
pub extern "C" fn pipe_dynamic_map() -> *const f32 {
    crate::nf4::dynamic_map().as_ptr()
}

fn codebook(fp4: i32) -> &'static [f32; 16] {
    if fp4 == 0 { &crate::nf4::CODEBOOK } else { &crate::nf4::FP4_CODEBOOK }
}

/// The C++ shim's way in; see csrc/functions.h for the layout.
///
/// # Safety
/// The pointers must cover `count` weights: `ceil(count / 2)` bytes, a scale (or code) per 64 weights, an `absmax` per
/// scale or per 256 codes, and `count` elements of f32 (`wide`) or bf16 at `out`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pipe_nf4_decode(
    packed: *const u8,
    scale_codes: *const u8,
    absmax: *const f32,
    offset: f32,
    first: i64,
    last: i64,
    count: i64,
    wide: i32,
    fp4: i32,
    out: *mut std::ffi::c_void,
) {
    use std::slice::from_raw_parts;
    let (first, last, count) = (first as usize, last as usize, count as usize);
    let blocks = count.div_ceil(crate::nf4::BLOCK);
    // SAFETY: the caller's contract above; every range below lies within it.
    unsafe {
        let codes = (!scale_codes.is_null()).then(|| from_raw_parts(scale_codes, blocks));
        let scales = if codes.is_some() { blocks.div_ceil(crate::nf4::SCALE_BLOCK) } else { blocks };
        let weights = Packed {
            bytes: from_raw_parts(packed, count.div_ceil(2)),
            scale_codes: codes,
            absmax: from_raw_parts(absmax, scales),
            offset,
            count,
            codebook: codebook(fp4),
        };
        let start = first * crate::nf4::BLOCK;
        let length = (last * crate::nf4::BLOCK).min(count) - start;
        if wide != 0 {
            let out = std::slice::from_raw_parts_mut(out.cast::<f32>().add(start), length);
            nf4_decode::decode_f32(Instructions::best(), &weights, first, out);
        } else {
            let out = std::slice::from_raw_parts_mut(out.cast::<u16>().add(start), length);
            decode(Instructions::best(), &weights, first, out);
        }
    }
}
