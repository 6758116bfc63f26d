//! AdamW with bitsandbytes' 8-bit state: two codes a weight, a scale per 256 of them (Dettmers et al., arXiv 2110.02861).
//!
//! A block's moments are widened, updated and narrowed while they are in the processor's cache.

use std::sync::OnceLock;

use rayon::prelude::*;
use tch::{Kind, Tensor};

use super::elementwise::{AdamW, Update, bytes_mut, elements, elements_mut};
use crate::nf4::{dynamic_map, unsigned_dynamic_map};

/// Moments that share a scale.
pub const BLOCK: usize = 256;

/// State of a parameter of `count` weights, all zero.
pub fn state(count: usize) -> Vec<(&'static str, Tensor)> {
    let zero = |map: &Map| Tensor::full([count as i64], i64::from(map.narrow(0.0)), (Kind::Uint8, tch::Device::Cpu));
    let scales = || Tensor::zeros([count.div_ceil(BLOCK) as i64], (Kind::Float, tch::Device::Cpu));
    vec![("state1", zero(signed())), ("absmax1", scales()), ("state2", zero(unsigned())), ("absmax2", scales())]
}

/// Codes and scales of the first moment, then of the second.
pub fn adamw(
    update: &Update,
    tensor: &mut Tensor,
    grad: &Tensor,
    [codes1, absmax1, codes2, absmax2]: [&mut Tensor; 4],
) {
    let (p, g) = (elements_mut(tensor), elements(grad));
    let (c1, a1) = (bytes_mut(codes1), elements_mut(absmax1));
    let (c2, a2) = (bytes_mut(codes2), elements_mut(absmax2));
    let rule = AdamW::new(update);
    let first = c1.par_chunks_mut(BLOCK).zip(a1.par_iter_mut());
    let second = c2.par_chunks_mut(BLOCK).zip(a2.par_iter_mut());
    let blocks = p.par_chunks_mut(BLOCK).zip(g.par_chunks(BLOCK)).zip(first).zip(second).with_min_len(64);
    blocks.for_each(|(((p, g), (c1, a1)), (c2, a2))| {
        let (mut m, mut v) = ([0f32; BLOCK], [0f32; BLOCK]);
        signed().widen(c1, *a1, &mut m);
        unsigned().widen(c2, *a2, &mut v);
        for (((p, g), m), v) in p.iter_mut().zip(g).zip(&mut m).zip(&mut v) {
            rule.apply(p, *g, m, v);
        }
        *a1 = signed().narrow_block(&m[..c1.len()], c1);
        *a2 = unsigned().narrow_block(&v[..c2.len()], c2);
    });
}

/// 256 values in order, and how the nearest of them is found.
struct Map {
    values: &'static [f32; 256],
    /// The bounds between them, then infinity.
    bounds: [f32; 256],
    /// Bounds below the smallest number with these upper 16 bits; no two numbers alike in them have two bounds between them.
    below: Box<[u8; 1 << 16]>,
}

impl Map {
    fn new(values: &'static [f32; 256]) -> Self {
        let bounds = std::array::from_fn(|i| match values.get(i + 1) {
            Some(next) => (values[i] + next) * 0.5,
            None => f32::INFINITY,
        });
        let mut below = Box::new([0; 1 << 16]);
        for (upper, below) in (0u32..).zip(below.iter_mut()) {
            let least = f32::from_bits(upper << 16 | if upper >> 15 == 1 { 0xFFFF } else { 0 });
            *below = bounds.partition_point(|&bound| bound < least) as u8;
        }
        Self { values, bounds, below }
    }

    /// The code of the nearest value; of two as near, the smaller one's. A quiet NaN's is 0.
    #[inline]
    fn narrow(&self, value: f32) -> u8 {
        let below = self.below[(value.to_bits() >> 16) as usize];
        below + u8::from(self.bounds[usize::from(below)] < value)
    }

    fn narrow_block(&self, from: &[f32], to: &mut [u8]) -> f32 {
        let top = from.iter().fold(0f32, |top, value| top.max(value.abs()));
        let top = if top == 0.0 { 1.0 } else { top };
        to.iter_mut().zip(from).for_each(|(code, value)| *code = self.narrow(value / top));
        top
    }

    fn widen(&self, from: &[u8], absmax: f32, to: &mut [f32]) {
        to.iter_mut().zip(from).for_each(|(value, code)| *value = self.values[usize::from(*code)] * absmax);
    }
}

fn signed() -> &'static Map {
    static MAP: OnceLock<Map> = OnceLock::new();
    MAP.get_or_init(|| Map::new(dynamic_map()))
}

fn unsigned() -> &'static Map {
    static MAP: OnceLock<Map> = OnceLock::new();
    MAP.get_or_init(|| Map::new(unsigned_dynamic_map()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random;

    #[test]
    fn the_code_is_the_nearest_values() {
        for map in [signed(), unsigned()] {
            let neighbours = |value: f32| [value.next_down(), value, value.next_up()];
            let scattered = (0..200_000).map(|i| f32::from_bits(random::scatter(i) as u32));
            let uppers = (0u32..1 << 16).flat_map(|upper| [upper << 16, upper << 16 | 0xFFFF].map(f32::from_bits));
            let values = map.bounds.into_iter().flat_map(neighbours).chain(scattered).chain(uppers);
            for value in values.filter(|value| !value.is_nan()).chain([0.0, -0.0, 1.0, -1.0, f32::NAN]) {
                let nearest = map.bounds[..255].partition_point(|&bound| bound < value) as u8;
                assert_eq!(map.narrow(value), nearest, "{value:e}, {:#x}", value.to_bits());
            }
        }
    }
}
