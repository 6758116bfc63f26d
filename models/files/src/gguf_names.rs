//! Which GGUF tensors hold a network's tensor, and in which row order.
//!
//! GGUF alternates the rotary halves of some families' heads, unpacks or reorders packed projections, stacks experts and
//! counts some norm weights from zero. Everything else lies there as in a Hugging Face folder.

use crate::ModelConfig;
use crate::parts::{Part, Place, QkNorm, QkvLayout};

/// Where one of the network's tensors lies in GGUF: rows of one or more tensors laid end to end.
#[derive(Debug)]
pub(crate) struct Spot {
    /// Tensor names; their rows count on from one to the next.
    pub names: Vec<String>,
    /// For each of the network's rows, the row there; `None` where the order is the same.
    pub order: Option<Vec<usize>>,
    /// Which equal share of the tensor's rows, and of how many: an expert of a stack, a head of a stack of norms.
    pub share: Option<(usize, usize)>,
    /// The stored values are larger by one.
    pub plus_one: bool,
}

const PARTS: &[(Part, &str)] = &[
    (Part::Embedding, "token_embd"),
    (Part::Positions, "position_embd"),
    (Part::FinalNorm, "output_norm"),
    (Part::Head, "output"),
    (Part::AttentionNorm, "attn_norm"),
    (Part::Query, "attn_q"),
    (Part::Key, "attn_k"),
    (Part::Value, "attn_v"),
    (Part::QueryKeyValue, "attn_qkv"),
    (Part::Output, "attn_output"),
    (Part::QueryNorm, "attn_q_norm"),
    (Part::KeyNorm, "attn_k_norm"),
    (Part::AttentionPostNorm, "post_attention_norm"),
    (Part::MlpNorm, "ffn_norm"),
    (Part::Gate, "ffn_gate"),
    (Part::Up, "ffn_up"),
    // Phi-3: gate and up together bear the name of up.
    (Part::GateUp, "ffn_up"),
    (Part::Down, "ffn_down"),
    (Part::MlpPostNorm, "post_ffw_norm"),
    (Part::Router, "ffn_gate_inp"),
    (Part::ExpertGate, "ffn_gate_exps"),
    (Part::ExpertUp, "ffn_up_exps"),
    (Part::ExpertDown, "ffn_down_exps"),
];

/// GGUF's name for a part, without layer and suffix.
pub(crate) fn part_name(part: Part) -> &'static str {
    PARTS.iter().find(|(own, _)| *own == part).map_or("", |(_, name)| *name)
}

/// Where `place` lies. `split` says whether queries, keys and values of a packed projection are tensors of their own there.
pub(crate) fn spot(c: &ModelConfig, place: &Place, split: bool) -> Spot {
    let suffix = if place.bias { "bias" } else { "weight" };
    let outer = matches!(place.part, Part::Embedding | Part::Positions | Part::FinalNorm | Part::Head);
    let own = if c.has(place.layer, Part::MlpNorm) { c.family.gguf.two_norms } else { &[] };
    let name = |part: Part| {
        let name = own.iter().find(|(own, _)| *own == part).map_or(part_name(part), |(_, name)| *name);
        if outer { format!("{name}.{suffix}") } else { format!("blk.{}.{name}.{suffix}", place.layer) }
    };
    let names = match place.part {
        Part::QueryKeyValue if split => [Part::Query, Part::Key, Part::Value].map(name).to_vec(),
        part => vec![name(part)],
    };
    let share = match place.part {
        part if part.is_expert() => c.experts.as_ref().map(|experts| (place.copy, experts.count)),
        Part::QueryNorm if c.qk_norm == QkNorm::PerHead => Some((place.copy, c.heads)),
        Part::KeyNorm if c.qk_norm == QkNorm::PerHead => Some((place.copy, c.kv_heads)),
        _ => None,
    };
    let norm = !place.part.is_linear() && !matches!(place.part, Part::Embedding | Part::Positions | Part::Head);
    Spot { names, order: order(c, place.part), share, plus_one: norm && c.norm.from_one && !place.bias }
}

/// Whether a packed projection is unpacked in this family's GGUF files.
pub(crate) fn is_split(c: &ModelConfig) -> bool {
    c.family.gguf.interleaved && c.has(0, Part::QueryKeyValue)
}

fn order(c: &ModelConfig, part: Part) -> Option<Vec<usize>> {
    let interleaved = c.family.gguf.interleaved;
    match part {
        Part::Query if interleaved => Some((0..c.heads * c.head_dim).map(|row| alternated(row, c.head_dim)).collect()),
        Part::Key if interleaved => Some((0..c.kv_heads * c.head_dim).map(|row| alternated(row, c.head_dim)).collect()),
        Part::QueryKeyValue if c.qkv_layout == QkvLayout::Grouped => Some(ungrouped(c, interleaved)),
        _ => None,
    }
}

/// Where GGUF keeps row `row` of a query or key projection with heads of `head` rows: the two rotary halves of a head
/// alternate there, and follow one another in Hugging Face's order.
fn alternated(row: usize, head: usize) -> usize {
    let (base, within) = (row / head * head, row % head);
    base + within % (head / 2) * 2 + within / (head / 2)
}

/// For each row of a projection packed by key-value head, its row where all queries come first, then keys, then values.
fn ungrouped(c: &ModelConfig, interleaved: bool) -> Vec<usize> {
    let (group, dim) = (c.heads / c.kv_heads, c.head_dim);
    let (keys, values) = (c.heads * dim, (c.heads + c.kv_heads) * dim);
    let rows = 0..(c.heads + 2 * c.kv_heads) * dim;
    let place = |row: usize| {
        let (head, slot, within) = (row / ((group + 2) * dim), row / dim % (group + 2), row % dim);
        let turned = if interleaved { alternated(within, dim) } else { within };
        match slot {
            slot if slot < group => (head * group + slot) * dim + turned,
            slot if slot == group => keys + head * dim + turned,
            _ => values + head * dim + within,
        }
    };
    rows.map(place).collect()
}
