//! Near-duplicates by MinHash and banding (Broder 1997; Leskovec, Rajaraman, Ullman: Mining of Massive Datasets, ch. 3).
//!
//! A row's sketch is the least value of each of 64 hash functions over its runs of five words. The share of equal places in two
//! sketches estimates the Jaccard similarity of the rows. Sketches are cut into bands; only rows that agree on a whole band
//! are compared. Hashes are fixed, rows come in order and the first of a group stays: the outcome never varies.

use std::collections::HashMap;

use crate::conversation::Example;

const HASHES: usize = 64;
/// Bands of four: two rows 0.8 alike share one with probability 0.9998, two rows 0.3 alike with 0.12.
const BAND: usize = 4;
const BANDS: usize = HASHES / BAND;
const WORDS: usize = 5;
/// Rows compared for one band at most: a phrase that most rows share would otherwise make the work quadratic.
const MOST_COMPARED: usize = 64;
const NONE: u32 = u32::MAX;

/// The least hash of a row's word runs, by hash function.
pub type Sketch = Box<[u16; HASHES]>;

/// Rows kept so far, findable by bands; about 400 bytes a row.
pub struct NearIndex {
    threshold: f64,
    kept: Vec<Sketch>,
    /// The latest kept row with a band's value.
    latest: HashMap<u32, u32>,
    /// For every kept row and band, the row before it with the same value.
    before: Vec<[u32; BANDS]>,
}

impl NearIndex {
    pub fn new(threshold: f64) -> NearIndex {
        NearIndex { threshold, kept: Vec::new(), latest: HashMap::new(), before: Vec::new() }
    }

    /// Whether a kept row is at least as alike as the threshold; else the row is kept.
    pub fn is_near(&mut self, sketch: &Sketch) -> bool {
        let mut keys = [0; BANDS];
        for (i, (key, band)) in keys.iter_mut().zip(sketch.chunks_exact(BAND)).enumerate() {
            *key = band.iter().fold(i as u64, |hash, &value| mix(hash ^ u64::from(value))) as u32;
        }
        for (band, key) in keys.iter().enumerate() {
            let mut other = self.latest.get(key).copied().unwrap_or(NONE);
            for _ in 0..MOST_COMPARED {
                if other == NONE {
                    break;
                }
                if alike(&self.kept[other as usize], sketch) >= self.threshold {
                    return true;
                }
                other = self.before[other as usize][band];
            }
        }
        let number = self.kept.len() as u32;
        self.kept.push(sketch.clone());
        self.before.push(keys.map(|key| self.latest.insert(key, number).unwrap_or(NONE)));
        false
    }
}

/// Sketches a row: words are lower-cased runs of letters and digits. Rows of fewer words than a run count as one run.
pub fn sketch(example: &Example) -> Sketch {
    let mut words = Vec::new();
    for text in example.texts() {
        for word in text.split(|c: char| !c.is_alphanumeric()).filter(|word| !word.is_empty()) {
            words.push(word.chars().flat_map(char::to_lowercase).fold(0, |hash, c| mix(hash ^ u64::from(c))));
        }
    }
    let mut least = [u32::MAX; HASHES];
    let run = WORDS.min(words.len()).max(1);
    for run in words.windows(run) {
        let hash = run.iter().fold(0x9E37_79B9, |hash, &word| mix(hash ^ word));
        for (i, least) in least.iter_mut().enumerate() {
            // One strong hash, then a cheap independent-enough family: multiply by odd constants, keep the high half.
            let value = (hash.wrapping_mul(ODD[i]) >> 32) as u32;
            *least = (*least).min(value);
        }
    }
    // The low half of a least value is as good as random, and half the memory; equal by chance once in 65,536.
    Box::new(least.map(|value| value as u16))
}

fn alike(a: &Sketch, b: &Sketch) -> f64 {
    let equal = a.iter().zip(b.iter()).filter(|(a, b)| a == b).count();
    equal as f64 / HASHES as f64
}

/// The finaliser of SplitMix64 (Steele, Lea, Flood 2014).
const fn mix(mut x: u64) -> u64 {
    x = x.wrapping_add(0x9E37_79B9_7F4A_7C15);
    x = (x ^ (x >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    x ^ (x >> 31)
}

const ODD: [u64; HASHES] = {
    let mut odd = [0; HASHES];
    let mut i = 0;
    while i < HASHES {
        odd[i] = mix(i as u64 + 1) | 1;
        i += 1;
    }
    odd
};

#[cfg(test)]
mod tests {
    use super::*;

    fn row(text: &str) -> Example {
        Example::Completion { text: text.to_string() }
    }

    fn words(range: std::ops::Range<usize>) -> String {
        range.map(|i| format!("w{i}")).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn sketches_estimate_the_share_of_common_runs() {
        // 196 runs each, 146 of them common: 146 / 246.
        let similarity = alike(&sketch(&row(&words(0..200))), &sketch(&row(&words(50..250))));
        assert!((similarity - 146.0 / 246.0).abs() < 0.2, "{similarity}");
        assert_eq!(alike(&sketch(&row("Hello, WORLD")), &sketch(&row("hello world!"))), 1.0);
    }

    #[test]
    fn the_first_of_near_rows_stays() {
        let mut index = NearIndex::new(0.8);
        assert!(!index.is_near(&sketch(&row(&words(0..300)))));
        assert!(index.is_near(&sketch(&row(&words(1..301)))));
        assert!(!index.is_near(&sketch(&row(&words(1000..1300)))));
    }
}
