//! Labels from spans: which token of a row is trained.
//!
//! A token that overlaps a trained span is trained, also when it straddles the header before it. The end-of-turn token is
//! the first special token after a span with nothing but white space between.

use std::collections::HashSet;

use pipe_engine::task::TaskError;
use tokenizers::Tokenizer;

use super::{Counts, RowView, Tokenize, Tokenized, load_tokenizer};
use crate::recipe::{SpecialTokensInContent, TrainOn};

/// The label of a masked token; PyTorch's and Hugging Face's convention.
pub const MASKED: i32 = -100;
/// Tokens looked at after an answer to find what ends its turn.
const TERMINATOR_REACH: usize = 3;

/// Turns rendered rows into ids and labels.
pub struct Labeller<'a> {
    config: &'a Tokenize,
    tokenizer: Tokenizer,
    /// The same tokenizer, reading special-token text as ordinary text.
    literal: Tokenizer,
    special: HashSet<u32>,
    eot: HashSet<u32>,
    bos: Option<u32>,
    eos: Option<u32>,
    adds_bos: bool,
}

/// A span of a rendered row, borrowed.
#[derive(Clone, Copy, Debug)]
pub struct SpanView<'a> {
    pub start: usize,
    pub end: usize,
    /// Where the turn ends.
    pub limit: usize,
    pub role: &'a str,
    /// 1 yes, 0 no, -1 unsaid.
    pub train: i8,
}

/// A token and the bytes of the row it stands for.
#[derive(Clone, Copy, Debug)]
struct Token {
    id: u32,
    start: usize,
    end: usize,
    label: bool,
}

impl<'a> Labeller<'a> {
    pub fn new(config: &'a Tokenize) -> Result<Self, TaskError> {
        let info = pipe_files::TokenizerInfo::read(&config.tokenizer).map_err(|e| TaskError::Input(e.to_string()))?;
        let mut named = config.eot_tokens.clone();
        named.extend(config.added_tokens.iter().cloned());
        named.extend(config.eos_token.iter().cloned());
        let tokenizer = load_tokenizer(&config.tokenizer, &named)?;
        let mut literal = tokenizer.clone();
        literal.set_encode_special_tokens(true);
        let special = tokenizer.get_added_tokens_decoder().into_iter().filter(|(_, token)| token.special);
        let own_eos = info.eos.as_ref().map(|token| token.id);
        let id = |token: &String| tokenizer.token_to_id(token);
        Ok(Labeller {
            special: special.map(|(id, _)| id).collect(),
            eot: config.eot_tokens.iter().filter_map(id).collect(),
            bos: info.bos.as_ref().map(|token| token.id),
            eos: config.eos_token.as_ref().and_then(id).or(own_eos),
            adds_bos: info.add_bos,
            config,
            literal,
            tokenizer,
        })
    }

    /// Ids and labels of one row.
    pub fn row(&self, row: &RowView<'_>) -> Result<(Tokenized, Counts), String> {
        if !row.tokens.is_empty() {
            return Ok(given(row));
        }
        let mut counts = Counts { rows: 1, ..Counts::default() };
        let mut tokens = self.encode(row, &mut counts)?;
        self.train_spans(row, &mut tokens, &mut counts);
        self.wrap(row, &mut tokens)?;
        if let [first, second, ..] = tokens.as_slice() {
            counts.double_bos = u64::from(Some(first.id) == self.bos && first.id == second.id);
        }
        let ids: Vec<i32> = tokens.iter().map(|token| token.id as i32).collect();
        let labels = tokens.iter().map(|token| if token.label { token.id as i32 } else { MASKED }).collect();
        Ok(counted(Tokenized { ids, labels }, counts))
    }

    /// Each piece on its own, offsets in the whole row.
    fn encode(&self, row: &RowView<'_>, counts: &mut Counts) -> Result<Vec<Token>, String> {
        let mut tokens = Vec::with_capacity(row.text.len() / 3);
        let mut start = 0;
        for &end in row.piece_ends {
            self.encode_part(&self.tokenizer, row.text, start, end as usize, &mut tokens)?;
            start = end as usize;
        }
        let inside = |token: &Token| {
            let content = row.spans.iter().any(|span| span.start <= token.start && token.end <= span.end);
            content && token.start < token.end && self.special.contains(&token.id)
        };
        let found: Vec<Token> = tokens.iter().filter(|token| inside(token)).copied().collect();
        let Some(first) = found.first() else { return Ok(tokens) };
        counts.special_in_content = found.len() as u64;
        match self.config.special_in_content {
            SpecialTokensInContent::Parse => Ok(tokens),
            SpecialTokensInContent::Error => Err(format!(
                "the special token `{}` occurs inside content; remove it, or set special_tokens_in_content: escape",
                &row.text[first.start..first.end]
            )),
            SpecialTokensInContent::Escape => self.encode_escaped(row, &found),
        }
    }

    /// The row with the `found` special tokens read as ordinary text.
    fn encode_escaped(&self, row: &RowView<'_>, found: &[Token]) -> Result<Vec<Token>, String> {
        let mut tokens = Vec::new();
        let mut start = 0;
        for &end in row.piece_ends {
            let end = end as usize;
            let piece = start..end;
            for token in found.iter().filter(|token| piece.contains(&token.start)) {
                self.encode_part(&self.tokenizer, row.text, start, token.start, &mut tokens)?;
                self.encode_part(&self.literal, row.text, token.start, token.end, &mut tokens)?;
                start = token.end;
            }
            self.encode_part(&self.tokenizer, row.text, start, end, &mut tokens)?;
            start = end;
        }
        Ok(tokens)
    }

    fn encode_part(
        &self,
        tokenizer: &Tokenizer,
        text: &str,
        start: usize,
        end: usize,
        out: &mut Vec<Token>,
    ) -> Result<(), String> {
        if start == end {
            return Ok(());
        }
        let encoding = tokenizer.encode(&text[start..end], false).map_err(|error| error.to_string())?;
        let placed = encoding.get_ids().iter().zip(encoding.get_offsets());
        out.extend(placed.map(|(&id, &(from, to))| Token { id, start: start + from, end: start + to, label: false }));
        Ok(())
    }

    fn train_spans(&self, row: &RowView<'_>, tokens: &mut [Token], counts: &mut Counts) {
        let last = row.spans.iter().rposition(|span| self.trains(span));
        for (n, span) in row.spans.iter().enumerate() {
            let trained = self.trains(span);
            let first = tokens.partition_point(|token| token.end <= span.start && token.start < span.start);
            let mut after = first;
            let mut labelled = 0;
            for token in &mut tokens[first..] {
                let empty = token.start == token.end;
                let overlaps = token.start < span.end && (token.end > span.start || empty && token.start >= span.start);
                if token.start >= span.end {
                    break;
                }
                after += 1;
                if overlaps && trained {
                    token.label = true;
                    labelled += 1;
                }
            }
            let terminator = self.terminator(row, tokens, after, span.limit);
            if let Some(at) = terminator {
                if self.trains_terminator(tokens[at].id, trained, last == Some(n)) {
                    tokens[at].label = true;
                    labelled += 1;
                }
            } else if trained && span.role == "assistant" && !row.eos {
                counts.missing_terminators += 1;
            }
            if labelled > 0 {
                *counts.by_role.entry(span.role.to_string()).or_default() += labelled;
            }
        }
    }

    fn trains(&self, span: &SpanView<'_>) -> bool {
        match span.train {
            0 => false,
            1 => true,
            _ => self.config.train_on_inputs || self.config.roles_to_train.iter().any(|role| role == span.role),
        }
    }

    /// The token that ends the turn whose content ends before token `from`.
    fn terminator(&self, row: &RowView<'_>, tokens: &[Token], from: usize, limit: usize) -> Option<usize> {
        for (i, token) in tokens.iter().enumerate().skip(from).take(TERMINATOR_REACH) {
            // Beyond the turn only a token that can mean nothing else ends it: another special token opens the next.
            let ends = self.eot.contains(&token.id) || Some(token.id) == self.eos;
            if ends || self.special.contains(&token.id) && token.start < limit {
                return Some(i);
            }
            let text = row.text.get(token.start..token.end).unwrap_or("x");
            if !text.trim().is_empty() {
                return None;
            }
        }
        None
    }

    fn trains_terminator(&self, id: u32, turn_trained: bool, last: bool) -> bool {
        let rule = if Some(id) == self.eos { self.config.train_on_eos } else { self.config.train_on_eot };
        match rule {
            TrainOn::Turn => turn_trained,
            TrainOn::All => true,
            TrainOn::Last => last,
            TrainOn::None => false,
        }
    }

    /// BOS and EOS around rows that are not rendered by a chat template.
    fn wrap(&self, row: &RowView<'_>, tokens: &mut Vec<Token>) -> Result<(), String> {
        if let (true, true, Some(id)) = (row.bos, self.adds_bos, self.bos) {
            tokens.insert(0, Token { id, start: 0, end: 0, label: false });
        }
        if row.eos {
            let id = self
                .eos
                .ok_or("the tokenizer has no end-of-sequence token; name one under special_tokens.eos_token")?;
            let end = row.text.len();
            tokens.push(Token { id, start: end, end, label: self.config.train_on_eos != TrainOn::None });
        }
        Ok(())
    }
}

/// A row that came tokenised keeps its ids and labels.
fn given(row: &RowView<'_>) -> (Tokenized, Counts) {
    let tokenized = Tokenized { ids: row.tokens.to_vec(), labels: row.labels.to_vec() };
    counted(tokenized, Counts { rows: 1, ..Counts::default() })
}

/// Counts what can be trained: the first token of a row never is, because nothing comes before it.
fn counted(row: Tokenized, mut counts: Counts) -> (Tokenized, Counts) {
    let trained = row.labels.iter().skip(1).filter(|&&label| label != MASKED).count() as u64;
    if trained == 0 {
        counts.untrained_rows = 1;
        counts.by_role.clear();
    } else {
        counts.tokens = row.ids.len() as u64;
        counts.trained = trained;
    }
    (row, counts)
}
