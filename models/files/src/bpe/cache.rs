//! Pieces of text and their tokens, remembered in a table of fixed size: a new piece takes the place of an old one.

/// The longest piece that is remembered, in bytes.
pub const SHORT: usize = 24;
/// The most tokens of a piece that is remembered.
const FEW: usize = 8;
const SLOTS: usize = 1 << 16;

/// A piece's bytes, padded, and its length.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Key {
    bytes: [u64; 3],
    length: u8,
}

#[derive(Clone, Copy)]
struct Entry {
    key: Key,
    count: u8,
    ids: [u32; FEW],
}

const EMPTY: Entry = Entry { key: Key { bytes: [0; 3], length: 0 }, count: 0, ids: [0; FEW] };

/// The table; allocated at first use.
#[derive(Default)]
pub struct Cache {
    entries: Vec<Entry>,
}

impl Cache {
    /// The key of `text[start..end]`, at most [`SHORT`] bytes, and its hash.
    #[inline]
    pub fn key(text: &[u8], start: usize, end: usize) -> (Key, u64) {
        let length = end - start;
        let mut bytes = [0u64; 3];
        match text.get(start..start + SHORT) {
            // Reading past the piece and masking is cheaper than copying an unknown length.
            Some(wide) => {
                let (words, _) = wide.as_chunks::<8>();
                for (i, (slot, word)) in bytes.iter_mut().zip(words).enumerate() {
                    let kept = length.saturating_sub(i * 8).min(8);
                    let mask = if kept == 8 { u64::MAX } else { (1u64 << (kept * 8)) - 1 };
                    *slot = u64::from_le_bytes(*word) & mask;
                }
            }
            None => {
                let mut padded = [0; SHORT];
                padded[..length].copy_from_slice(&text[start..end]);
                for (slot, word) in bytes.iter_mut().zip(padded.as_chunks::<8>().0) {
                    *slot = u64::from_le_bytes(*word);
                }
            }
        }
        let mix = |a: u64, b: u64| {
            let product = u128::from(a) * u128::from(b);
            product as u64 ^ (product >> 64) as u64
        };
        let low = mix(bytes[0] ^ 0x2d35_8dcc_aa6c_78a5, bytes[1] ^ 0x8bb8_4b93_962e_acc9);
        let hash = mix(low ^ bytes[2], 0x4b33_a62e_d433_d4a3 ^ length as u64);
        (Key { bytes, length: length as u8 }, hash)
    }

    #[inline]
    pub fn get(&self, key: &Key, hash: u64) -> Option<&[u32]> {
        let entry = self.entries.get(hash as usize & (SLOTS - 1))?;
        (entry.key == *key).then(|| &entry.ids[..usize::from(entry.count)])
    }

    pub fn put(&mut self, key: Key, hash: u64, ids: &[u32]) {
        if ids.len() > FEW {
            return;
        }
        if self.entries.is_empty() {
            self.entries = vec![EMPTY; SLOTS];
        }
        let entry = &mut self.entries[hash as usize & (SLOTS - 1)];
        entry.key = key;
        entry.count = ids.len() as u8;
        entry.ids[..ids.len()].copy_from_slice(ids);
    }
}
