//! How alike two texts are, and which of many are: MinHash with banding, candidates compared by their sets of word runs
//! (Broder 1997; Leskovec, Rajaraman, Ullman: Mining of Massive Datasets, ch. 3).
//!
//! A text is the set of its runs of a few words. Likeness is Jaccard's: runs in common over runs in either. Texts that agree on
//! a band of least hashes become candidates; these are compared by the smallest 128 hashes of their sets, which is exact
//! for texts of up to 128 runs and within 0.04 (one standard deviation) beyond. Hashes are fixed, texts come in
//! order and the first of a group stays: the outcome never varies, whatever the number of threads.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};

/// Hashes of a set that are kept: exact up to here.
const KEPT: usize = 128;
/// Texts compared for one band at most: a phrase that most texts share would otherwise make the work quadratic.
const MOST_COMPARED: usize = 64;
/// Hashes are kept in blocks of this many, so that growth copies nothing.
const BLOCK: usize = 1 << 18;
const MOST_HASHES: usize = 256;
const NONE: u32 = u32::MAX;

/// How texts are cut and compared.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Likeness {
    pub threshold: f64,
    words: usize,
    /// Hashes that must agree, all of a band, for two texts to be compared.
    rows: usize,
    bands: usize,
}

/// What is known of a text: the keys of its bands, and its smallest hashes in order.
#[derive(Clone, Debug, PartialEq)]
pub struct Sketch {
    bands: Box<[u32]>,
    hashes: Box<[u32]>,
    /// The set has more than [`KEPT`] runs.
    cut: bool,
}

/// Texts seen so far, findable by likeness: about 15 bytes a band and 4 a run for each.
pub struct Index {
    likeness: Likeness,
    /// For every band, the latest text with a key.
    latest: Vec<HashMap<u32, u32, Identity>>,
    /// For every text and band, the text before it with the same key.
    before: Vec<u32>,
    hashes: Blocks,
}

type Identity = BuildHasherDefault<AsIs>;

impl Likeness {
    /// Enough bands that two texts just at the threshold become candidates in 995 of 1000 cases, and likelier ones more often.
    pub fn new(threshold: f64, words: usize) -> Likeness {
        let rows = match threshold {
            t if t >= 0.9 => 6,
            t if t >= 0.75 => 4,
            t if t >= 0.6 => 3,
            t if t >= 0.4 => 2,
            _ => 1,
        };
        let agree = threshold.clamp(0.05, 1.0).powi(rows);
        let bands = if agree > 0.995 { 1.0 } else { (0.005f64.ln() / (1.0 - agree).ln()).ceil() };
        let rows = rows as usize;
        Likeness { threshold, words: words.max(1), rows, bands: (bands as usize).clamp(1, MOST_HASHES / rows) }
    }

    /// Sketches a row: words are lower-cased runs of letters and digits. Fewer words than a run count as one run.
    pub fn sketch<'t>(&self, texts: impl IntoIterator<Item = &'t str>) -> Sketch {
        let mut runs = runs(&words(texts), self.words);
        runs.sort_unstable();
        runs.dedup();
        let mut least = [u32::MAX; MOST_HASHES];
        let least = &mut least[..self.rows * self.bands];
        for &run in &runs {
            // One strong hash, then a cheap independent-enough family: multiply by odd constants, keep the high half.
            for (least, odd) in least.iter_mut().zip(&ODD) {
                *least = (*least).min((run.wrapping_mul(*odd) >> 32) as u32);
            }
        }
        let keys = least.chunks_exact(self.rows);
        let bands = keys.map(|band| band.iter().fold(0, |hash, &value| mix(hash ^ u64::from(value))) as u32).collect();
        let mut hashes: Vec<u32> = runs.iter().map(|&run| (run >> 32) as u32).collect();
        hashes.dedup();
        let cut = hashes.len() > KEPT;
        hashes.truncate(KEPT);
        Sketch { bands, hashes: hashes.into_boxed_slice(), cut }
    }
}

impl Index {
    pub fn new(likeness: Likeness) -> Index {
        let latest = (0..likeness.bands).map(|_| HashMap::default()).collect();
        Index { likeness, latest, before: Vec::new(), hashes: Blocks::default() }
    }

    /// The number of a text seen before that is alike, and how much.
    pub fn find(&self, sketch: &Sketch) -> Option<(usize, f64)> {
        for (band, key) in sketch.bands.iter().enumerate() {
            let mut other = self.latest[band].get(key).copied().unwrap_or(NONE);
            for _ in 0..MOST_COMPARED {
                if other == NONE {
                    break;
                }
                let (hashes, cut) = self.hashes.get(other as usize);
                let alike = jaccard((&sketch.hashes, sketch.cut), (hashes, cut));
                if alike >= self.likeness.threshold {
                    return Some((other as usize, alike));
                }
                other = self.before[other as usize * self.likeness.bands + band];
            }
        }
        None
    }

    /// Remembers a text; its number is how many came before.
    pub fn add(&mut self, sketch: &Sketch) {
        let number = self.hashes.push(sketch);
        for (latest, key) in self.latest.iter_mut().zip(&sketch.bands) {
            self.before.push(latest.insert(*key, number).unwrap_or(NONE));
        }
    }
}

/// Words of texts, as hashes of their lower-cased letters and digits.
pub fn words<'t>(texts: impl IntoIterator<Item = &'t str>) -> Vec<u64> {
    let mut words = Vec::new();
    for text in texts {
        let mut hash = 0;
        for c in text.chars() {
            if c.is_ascii_alphanumeric() {
                hash = step(hash, c.to_ascii_lowercase());
            } else if !c.is_ascii() && c.is_alphanumeric() {
                hash = c.to_lowercase().fold(hash, step);
            } else if hash != 0 {
                words.push(mix(std::mem::take(&mut hash)));
            }
        }
        if hash != 0 {
            words.push(mix(hash));
        }
    }
    words
}

/// Hashes of every run of `length` words, in order; of all of them where they are fewer.
pub fn runs(words: &[u64], length: usize) -> Vec<u64> {
    let length = length.min(words.len()).max(1);
    words.windows(length).map(|run| run.iter().fold(0x9E37_79B9, |hash, &word| mix(hash ^ word))).collect()
}

/// Runs in common over runs in either. Of sets that were cut, by the smallest hashes of both together.
fn jaccard(a: (&[u32], bool), b: (&[u32], bool)) -> f64 {
    let most = if a.1 || b.1 { KEPT } else { usize::MAX };
    let ((a, _), (b, _)) = (a, b);
    let (mut i, mut j, mut either, mut both) = (0, 0, 0usize, 0usize);
    while either < most {
        match (a.get(i), b.get(j)) {
            (Some(x), Some(y)) => {
                both += usize::from(x == y);
                i += usize::from(x <= y);
                j += usize::from(y <= x);
            }
            (Some(_), None) => i += 1,
            (None, Some(_)) => j += 1,
            (None, None) => break,
        }
        either += 1;
    }
    if either == 0 { 0.0 } else { both as f64 / either as f64 }
}

/// Hashes of many texts end to end.
#[derive(Default)]
struct Blocks {
    blocks: Vec<Vec<u32>>,
    /// Block, start, length, and whether the set was cut.
    places: Vec<(u16, u32, u8, bool)>,
}

impl Blocks {
    fn push(&mut self, sketch: &Sketch) -> u32 {
        if self.blocks.last().is_none_or(|block| block.len() + KEPT > BLOCK) {
            self.blocks.push(Vec::with_capacity(BLOCK));
        }
        let at = self.blocks.len() - 1;
        let block = &mut self.blocks[at];
        self.places.push((at as u16, block.len() as u32, sketch.hashes.len() as u8, sketch.cut));
        block.extend_from_slice(&sketch.hashes);
        (self.places.len() - 1) as u32
    }

    fn get(&self, number: usize) -> (&[u32], bool) {
        let (block, start, length, cut) = self.places[number];
        (&self.blocks[block as usize][start as usize..start as usize + length as usize], cut)
    }
}

/// Keys are hashes already.
#[derive(Default)]
struct AsIs(u64);

impl Hasher for AsIs {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|&byte| self.0 = mix(self.0 ^ u64::from(byte)));
    }

    fn write_u32(&mut self, key: u32) {
        // The table looks at the highest bits and at the lowest.
        self.0 = u64::from(key).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    }
}

/// Never 0 for a character, so that 0 says that no word has begun.
fn step(hash: u64, c: char) -> u64 {
    ((hash.rotate_left(7) ^ u64::from(c)).wrapping_mul(0x517C_C1B7_2722_0A95)) | 1
}

/// The finaliser of SplitMix64 (Steele, Lea, Flood 2014).
pub const fn mix(mut x: u64) -> u64 {
    x = x.wrapping_add(0x9E37_79B9_7F4A_7C15);
    x = (x ^ (x >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    x ^ (x >> 31)
}

const ODD: [u64; MOST_HASHES] = {
    let mut odd = [0; MOST_HASHES];
    let mut i = 0;
    while i < MOST_HASHES {
        odd[i] = mix(i as u64 + 1) | 1;
        i += 1;
    }
    odd
};

#[cfg(test)]
mod tests {
    use super::*;

    fn numbered(range: std::ops::Range<usize>) -> String {
        range.map(|i| format!("w{i}")).collect::<Vec<_>>().join(" ")
    }

    fn alike(likeness: Likeness, a: &str, b: &str) -> f64 {
        let (a, b) = (likeness.sketch([a]), likeness.sketch([b]));
        jaccard((&a.hashes, a.cut), (&b.hashes, b.cut))
    }

    #[test]
    fn short_texts_are_compared_exactly_and_long_ones_nearly() {
        let fives = Likeness::new(0.8, 5);
        // 96 runs each, 76 of them common.
        assert_eq!(alike(fives, &numbered(0..100), &numbered(20..120)), 76.0 / 116.0);
        // 996 runs each, 796 of them common.
        let long = alike(fives, &numbered(0..1000), &numbered(200..1200));
        assert!((long - 796.0 / 1196.0).abs() < 0.12, "{long}");
        assert_eq!(alike(fives, "Hello, WORLD", "hello world!"), 1.0);
        assert_eq!(alike(fives, "Ärger im Büro", "ärger IM büro."), 1.0);
        assert_eq!(alike(fives, "...", "!!!"), 0.0);
    }

    #[test]
    fn bands_find_what_is_at_the_threshold() {
        for threshold in [0.1, 0.3, 0.5, 0.7, 0.8, 0.9, 0.95, 1.0] {
            let Likeness { rows, bands, .. } = Likeness::new(threshold, 5);
            let found = 1.0 - (1.0 - f64::powi(threshold, rows as i32)).powi(bands as i32);
            assert!(found >= 0.995 && rows * bands <= MOST_HASHES, "{threshold}: {rows} x {bands} finds {found}");
        }
    }

    #[test]
    fn the_first_of_near_texts_is_found() {
        let likeness = Likeness::new(0.8, 5);
        let mut index = Index::new(likeness);
        let first = likeness.sketch([numbered(0..300).as_str()]);
        assert_eq!(index.find(&first), None);
        index.add(&first);
        index.add(&likeness.sketch([numbered(1000..1300).as_str()]));
        let (number, alike) = index.find(&likeness.sketch([numbered(1..301).as_str()])).unwrap_or_default();
        assert!(number == 0 && alike > 0.9);
        assert_eq!(index.find(&likeness.sketch([numbered(2000..2300).as_str()])), None);
    }
}
