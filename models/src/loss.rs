//! Cross-entropy over trained positions only.
//!
//! The label at a position names the token there (the Hugging Face convention); the shift to the next token is made
//! here, within documents, so nothing is ever predicted across a document's edge.

use tch::{Kind, Tensor};

use crate::Result;
use crate::decoder::{Decoder, Segments};
use crate::linear::Pass;
use crate::shim;

/// The label of a token that is not trained.
pub const IGNORED: i64 = -100;

/// Rows to predict from and the tokens to predict.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Targets {
    /// Places in the flat token axis.
    pub rows: Vec<i64>,
    /// Token ids.
    pub ids: Vec<i64>,
}

impl Targets {
    /// The trained positions of documents laid end to end, after the shift.
    pub fn of(labels: &[i64], lengths: &[i64]) -> Self {
        let mut targets = Self::default();
        let mut start = 0;
        for &length in lengths {
            let document = &labels[start as usize..(start + length) as usize];
            for (offset, &label) in document.iter().enumerate().skip(1).filter(|(_, label)| **label != IGNORED) {
                targets.rows.push(start + offset as i64 - 1);
                targets.ids.push(label);
            }
            start += length;
        }
        targets
    }
}

/// The loss of each trained position in nats, `[targets]` f32, with the graph to differentiate it.
pub fn token_losses(decoder: &Decoder, segments: &Segments, targets: &Targets, pass: Pass) -> Result<Tensor> {
    Ok(losses(decoder, segments, targets, pass)?.0)
}

/// The loss of each trained position, and the load-balancing loss of a mixture of experts, weighted.
pub fn losses(
    decoder: &Decoder,
    segments: &Segments,
    targets: &Targets,
    pass: Pass,
) -> Result<(Tensor, Option<Tensor>)> {
    let hidden = decoder.forward(segments, pass)?;
    let rows = hidden.states.index_select(0, &Tensor::from_slice(&targets.rows));
    let ids = Tensor::from_slice(&targets.ids);
    if pass.fused && !decoder.head().requires_grad() {
        let (scale, cap) = (decoder.config.scales.logits, decoder.config.final_softcap.unwrap_or(0.0));
        let losses = shim::head_loss(&rows, decoder.head(), decoder.head_bias.as_ref(), &ids, scale, cap);
        return Ok((losses, hidden.balance));
    }
    let log_probabilities = decoder.logits(&rows).log_softmax(-1, Kind::Float);
    Ok((-log_probabilities.gather(1, &ids.unsqueeze(1), false).squeeze_dim(1), hidden.balance))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_predicted_across_documents() {
        // Two documents; the first label of each has nothing before it.
        let targets = Targets::of(&[5, 6, -100, 7, 8, 9], &[3, 3]);
        assert_eq!(targets, Targets { rows: vec![0, 3, 4], ids: vec![6, 8, 9] });
    }
}
