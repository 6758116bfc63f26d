//! Text to tokens with their places, by the fastest way that is exact for the tokenizer at hand.

use std::path::Path;
use std::sync::Mutex;

use serde_json::Value as Json;
use tokenizers::Tokenizer;

use crate::FilesError;
use crate::bpe::{Bpe, Scratch, Token};
use crate::tokenizer::{broken, tokenizer_json};

/// A tokenizer for whole data sets. It adds nothing around a text.
pub struct Encoder {
    tokenizer: Tokenizer,
    /// The same, reading special-token text as ordinary text.
    literal: Tokenizer,
    bpe: Option<Bpe>,
    idle: Mutex<Vec<Scratch>>,
}

/// What to do with text that spells a special token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SpecialText {
    /// It is that token.
    Parse,
    /// It is text like any other.
    Literal,
}

impl Encoder {
    /// The tokenizer of a folder, a `tokenizer.json` or a GGUF file.
    pub fn open(path: &Path) -> Result<Encoder, FilesError> {
        let bytes = tokenizer_json(path)?;
        let mut tokenizer = Tokenizer::from_bytes(&bytes).map_err(|e| broken(path, e.to_string()))?;
        let description: Json = serde_json::from_slice(&bytes).map_err(|e| broken(path, e.to_string()))?;
        // Offsets must cover white space too, and special tokens around a row are decided by the row.
        tokenizer.with_post_processor(None::<tokenizers::PostProcessorWrapper>);
        let _ = tokenizer.with_truncation(None);
        tokenizer.with_padding(None);
        let mut literal = tokenizer.clone();
        literal.set_encode_special_tokens(true);
        Ok(Encoder { bpe: Bpe::new(&description, &tokenizer), tokenizer, literal, idle: Mutex::default() })
    }

    pub fn tokenizer(&self) -> &Tokenizer {
        &self.tokenizer
    }

    /// Whether texts go the fast way.
    pub fn is_fast(&self) -> bool {
        self.bpe.is_some()
    }

    /// Working space for a thread; give it back for the next one.
    pub fn scratch(&self) -> Scratch {
        self.idle.lock().ok().and_then(|mut idle| idle.pop()).unwrap_or_default()
    }

    pub fn give_back(&self, scratch: Scratch) {
        if let Ok(mut idle) = self.idle.lock() {
            idle.push(scratch);
        }
    }

    /// The tokens of `text`, appended to `out`.
    ///
    /// # Errors
    /// What the tokenizer says of a text that it cannot encode.
    pub fn encode(
        &self,
        text: &str,
        special: SpecialText,
        scratch: &mut Scratch,
        out: &mut Vec<Token>,
    ) -> Result<(), String> {
        let literal = special == SpecialText::Literal;
        if self.bpe.as_ref().is_some_and(|bpe| bpe.encode(text, literal, scratch, out)) || text.is_empty() {
            return Ok(());
        }
        let tokenizer = if literal { &self.literal } else { &self.tokenizer };
        let encoding = tokenizer.encode(text, false).map_err(|error| error.to_string())?;
        let placed = encoding.get_ids().iter().zip(encoding.get_offsets());
        out.extend(placed.map(|(&id, &(start, end))| Token { id, start, end }));
        Ok(())
    }
}
