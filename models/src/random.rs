//! Counter-based random numbers: each draw is a pure function of a key and an index.
//!
//! No state means nothing to save in a checkpoint and no dependence on thread or call order.

/// SplitMix64's finaliser (Steele, Lea and Flood, 2014): a bijection that scatters every input bit.
pub fn scatter(value: u64) -> u64 {
    let mut z = value.wrapping_add(0x9E37_79B9_7F4A_7C15);
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

/// A key derived from another key and a number.
pub fn mix(key: u64, value: u64) -> u64 {
    scatter(scatter(key) ^ value)
}

/// A key for a name (FNV-1a).
pub fn name_key(name: &str) -> u64 {
    name.bytes().fold(0xCBF2_9CE4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01B3))
}

/// Uniform in [0, 1).
pub fn unit(key: u64, index: u64) -> f64 {
    (mix(key, index) >> 11) as f64 / (1u64 << 53) as f64
}

/// Normally distributed with deviation 1 (Box and Muller, 1958).
pub fn normal(key: u64, index: u64) -> f64 {
    let radius = (-2.0 * (1.0 - unit(key, 2 * index)).ln()).sqrt();
    radius * (std::f64::consts::TAU * unit(key, 2 * index + 1)).cos()
}

/// The numbers `0..count` in an order drawn from `key` (Fisher and Yates).
pub fn permutation(key: u64, count: usize) -> Vec<usize> {
    let mut order: Vec<usize> = (0..count).collect();
    for last in (1..count).rev() {
        // The bias of multiply-shift over a 64-bit draw is below 2^-40 for any count that fits in memory.
        let pick = ((u128::from(mix(key, last as u64)) * (last as u128 + 1)) >> 64) as usize;
        order.swap(last, pick);
    }
    order
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn permutation_holds_every_number_once_and_follows_the_key() {
        let order = permutation(7, 100);
        let mut sorted = order.clone();
        sorted.sort_unstable();
        assert_eq!(sorted, (0..100).collect::<Vec<_>>());
        assert_eq!(order, permutation(7, 100));
        assert_ne!(order, permutation(8, 100));
    }

    #[test]
    fn unit_draws_fill_the_interval() {
        let mean = (0..10_000).map(|i| unit(3, i)).sum::<f64>() / 10_000.0;
        assert!((mean - 0.5).abs() < 0.02, "{mean}");
        let draws: Vec<f64> = (0..10_000).map(|i| normal(3, i)).collect();
        let mean = draws.iter().sum::<f64>() / 1e4;
        let spread = draws.iter().map(|x| x * x).sum::<f64>() / 1e4;
        assert!(mean.abs() < 0.04 && (spread - 1.0).abs() < 0.05, "{mean} {spread}");
    }
}
