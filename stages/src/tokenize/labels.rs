//! Labels from spans: which token of a row is trained.
//!
//! A token that overlaps a trained span is trained, also when it straddles the header before it. The end-of-turn token is
//! the first special token after a span with nothing but white space between.

use std::collections::HashSet;

use pipe_engine::task::TaskError;
use pipe_files::{Encoder, Scratch, SpecialText};

use super::{Counts, RowView, Tokenize, Tokenized, load_encoder};
use crate::recipe::{SpecialTokensInContent, TrainOn};
use crate::template::detail::{STRETCH, TURN_END};
use crate::template::turns::END;

/// The label of a masked token; PyTorch's and Hugging Face's convention.
pub const MASKED: i32 = -100;
/// Tokens looked at after an answer to find what ends its turn.
const TERMINATOR_REACH: usize = 3;

/// Turns rendered rows into ids and labels.
pub struct Labeller<'a> {
    config: &'a Tokenize,
    encoder: Encoder,
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
    /// 1 yes, 0 no, -1 unsaid, or one of `template::detail`'s.
    pub train: i8,
}

/// A token, the bytes of the row it stands for, and whether it is trained.
#[derive(Clone, Copy, Debug)]
struct Token {
    id: u32,
    start: usize,
    end: usize,
    label: bool,
}

/// What a thread keeps from row to row.
#[derive(Default)]
pub struct Bench {
    scratch: Scratch,
    found: Vec<pipe_files::Token>,
    tokens: Vec<Token>,
}

impl<'a> Labeller<'a> {
    pub fn new(config: &'a Tokenize) -> Result<Self, TaskError> {
        let info = pipe_files::TokenizerInfo::read(&config.tokenizer).map_err(|e| TaskError::Input(e.to_string()))?;
        let mut named = config.eot_tokens.clone();
        named.extend(config.added_tokens.iter().cloned());
        named.extend(config.eos_token.iter().cloned());
        let encoder = load_encoder(&config.tokenizer, &named)?;
        let tokenizer = encoder.tokenizer();
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
            encoder,
        })
    }

    /// Working space for a thread; give it back for the next one.
    pub fn bench(&self) -> Bench {
        Bench { scratch: self.encoder.scratch(), ..Bench::default() }
    }

    pub fn give_back(&self, bench: Bench) {
        self.encoder.give_back(bench.scratch);
    }

    /// Ids and labels of one row.
    pub fn row(&self, row: &RowView<'_>, bench: &mut Bench) -> Result<(Tokenized, Counts), String> {
        if !row.tokens.is_empty() {
            return Ok(given(row));
        }
        let mut counts = Counts { rows: 1, ..Counts::default() };
        let mut tokens = std::mem::take(&mut bench.tokens);
        tokens.clear();
        self.encode(row, bench, &mut tokens, &mut counts)?;
        let ends = self.train_spans(row, &mut tokens, &mut counts);
        let closed = self.wrap(row, &mut tokens)?;
        counts.unended_rows = u64::from(ends == 0 && !closed && counts.by_role.contains_key("assistant"));
        self.look_for_split_tokens(row, &tokens, &mut counts);
        if let [first, second, ..] = tokens.as_slice() {
            counts.double_bos = u64::from(Some(first.id) == self.bos && first.id == second.id);
        }
        let ids: Vec<i32> = tokens.iter().map(|token| token.id as i32).collect();
        let labels = tokens.iter().map(|token| if token.label { token.id as i32 } else { MASKED }).collect();
        bench.tokens = tokens;
        Ok(counted(Tokenized { ids, labels }, counts))
    }

    /// Each piece on its own, offsets in the whole row.
    fn encode(
        &self,
        row: &RowView<'_>,
        bench: &mut Bench,
        tokens: &mut Vec<Token>,
        counts: &mut Counts,
    ) -> Result<(), String> {
        let mut start = 0;
        for &end in row.piece_ends {
            self.encode_part(SpecialText::Parse, row.text, start, end as usize, bench, tokens)?;
            start = end as usize;
        }
        let inside = |token: &Token| {
            let holds = |span: &SpanView<'_>| span.start <= token.start && token.end <= span.end && span.role != END;
            let content = row.spans.iter().any(holds);
            content && token.start < token.end && self.special.contains(&token.id)
        };
        let found: Vec<Token> = tokens.iter().filter(|token| inside(token)).copied().collect();
        let Some(first) = found.first() else { return Ok(()) };
        counts.special_in_content = found.len() as u64;
        match self.config.special_in_content {
            SpecialTokensInContent::Parse => Ok(()),
            SpecialTokensInContent::Error => Err(format!(
                "the special token `{}` occurs inside content; remove it, or set special_tokens_in_content: escape",
                &row.text[first.start..first.end]
            )),
            SpecialTokensInContent::Escape => {
                tokens.clear();
                self.encode_escaped(row, &found, bench, tokens)
            }
        }
    }

    /// The row with the `found` special tokens read as ordinary text.
    fn encode_escaped(
        &self,
        row: &RowView<'_>,
        found: &[Token],
        bench: &mut Bench,
        tokens: &mut Vec<Token>,
    ) -> Result<(), String> {
        let mut start = 0;
        for &end in row.piece_ends {
            let end = end as usize;
            let piece = start..end;
            for token in found.iter().filter(|token| piece.contains(&token.start)) {
                self.encode_part(SpecialText::Parse, row.text, start, token.start, bench, tokens)?;
                self.encode_part(SpecialText::Literal, row.text, token.start, token.end, bench, tokens)?;
                start = token.end;
            }
            self.encode_part(SpecialText::Parse, row.text, start, end, bench, tokens)?;
            start = end;
        }
        Ok(())
    }

    fn encode_part(
        &self,
        special: SpecialText,
        text: &str,
        start: usize,
        end: usize,
        bench: &mut Bench,
        out: &mut Vec<Token>,
    ) -> Result<(), String> {
        bench.found.clear();
        self.encoder.encode(&text[start..end], special, &mut bench.scratch, &mut bench.found)?;
        let placed = bench.found.iter();
        out.extend(placed.map(|t| Token { id: t.id, start: start + t.start, end: start + t.end, label: false }));
        Ok(())
    }

    /// Labels every span that is trained; returns how many ends of turns are.
    fn train_spans(&self, row: &RowView<'_>, tokens: &mut [Token], counts: &mut Counts) -> u64 {
        let mut ends = 0;
        let last = row.spans.iter().rposition(|span| span.train != STRETCH && self.trains(span));
        for (n, span) in row.spans.iter().enumerate() {
            let trained = self.trains(span);
            let first = tokens.partition_point(|token| token.end <= span.start && token.start < span.start);
            let count = tokens[first..].iter().take_while(|token| token.start < span.end).count();
            let after = first + count;
            let mut labelled = 0;
            if trained && span.train != TURN_END {
                for token in tokens[first..after].iter_mut().filter(|token| covers(row.text, span, token)) {
                    labelled += u64::from(!token.label);
                    token.label = true;
                }
            }
            if span.train != STRETCH {
                let end = self.train_end(row, span, tokens, after, trained, last == Some(n), counts);
                ends += end;
                labelled += end;
            }
            if labelled > 0 {
                *counts.by_role.entry(span.role.to_string()).or_default() += labelled;
            }
        }
        ends
    }

    /// Labels what ends a span's turn; returns how many tokens that is.
    fn train_end(
        &self,
        row: &RowView<'_>,
        span: &SpanView<'_>,
        tokens: &mut [Token],
        after: usize,
        trained: bool,
        last: bool,
        counts: &mut Counts,
    ) -> u64 {
        match self.terminator(row, tokens, after, span.limit) {
            Some(at) if self.trains_terminator(tokens[at].id, trained, last) => {
                tokens[at].label = true;
                1
            }
            None if trained && span.role == "assistant" && !row.eos => {
                counts.missing_terminators += 1;
                0
            }
            _ => 0,
        }
    }

    fn trains(&self, span: &SpanView<'_>) -> bool {
        match span.train {
            0 => false,
            1 | STRETCH | TURN_END => true,
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

    /// Counts texts in headers that look like special tokens, such as `<|end|>`, and were cut in pieces.
    fn look_for_split_tokens(&self, row: &RowView<'_>, tokens: &[Token], counts: &mut Counts) {
        for (start, _) in row.text.match_indices("<|") {
            let Some(length) = row.text[start..].find("|>").filter(|&length| length <= 40) else { continue };
            let end = start + length + 2;
            let name = &row.text[start..end];
            let plain = name[2..name.len() - 2].chars().all(|c| c.is_alphanumeric() || c == '_');
            let content = || row.spans.iter().any(|span| span.start <= start && end <= span.end);
            // A token may take the white space beside it along.
            let at = tokens.partition_point(|token| token.end <= start);
            let whole = tokens.get(at).is_some_and(|token| token.start <= start && token.end >= end);
            if plain && !whole && !content() {
                *counts.split_tokens.entry(name.to_string()).or_default() += 1;
            }
        }
    }

    /// BOS and EOS around rows that are not rendered by a chat template; whether an EOS is trained.
    fn wrap(&self, row: &RowView<'_>, tokens: &mut Vec<Token>) -> Result<bool, String> {
        if let (true, true, Some(id)) = (row.bos, self.adds_bos, self.bos) {
            tokens.insert(0, Token { id, start: 0, end: 0, label: false });
        }
        if row.eos {
            let id = self
                .eos
                .ok_or("the tokenizer has no end-of-sequence token; name one under special_tokens.eos_token")?;
            let end = row.text.len();
            let label = self.config.train_on_eos != TrainOn::None;
            tokens.push(Token { id, start: end, end, label });
            return Ok(label);
        }
        Ok(false)
    }
}

/// Whether a token belongs to a span: when it overlaps it, and for a stretch of content when more than one character does or
/// none lies outside on that side, as Axolotl snaps its ranges.
fn covers(text: &str, span: &SpanView<'_>, token: &Token) -> bool {
    if span.train != STRETCH {
        let empty = token.start == token.end;
        return token.end > span.start || empty && token.start >= span.start;
    }
    let width = |c: Option<char>| c.map_or(0, char::len_utf8);
    let within = text.get(span.start..span.end).unwrap_or_default();
    let (first, last) = (width(within.chars().next()), width(within.chars().next_back()));
    (token.start >= span.start || token.end > span.start + first)
        && (token.end <= span.end || token.start + last < span.end)
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
        counts.unended_rows = 0;
        counts.by_role.clear();
    } else {
        counts.tokens = row.ids.len() as u64;
        counts.trained = trained;
    }
    (row, counts)
}
