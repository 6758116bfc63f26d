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

/// What a chunk's trained positions lost.
pub struct Losses {
    /// Of each position, in nats, `[targets]` f32.
    pub tokens: Tensor,
    /// What is minimised: their sum, and the z-loss where there is one. Has the graph to differentiate it.
    pub objective: Tensor,
    /// The load-balancing loss of a mixture of experts, weighted; for the whole chunk, not summed over its tokens.
    pub balance: Option<Tensor>,
}

/// The losses of the trained positions. `z_loss` weighs the squared log of the softmax's denominator.
pub fn token_losses(
    decoder: &Decoder,
    segments: &Segments,
    targets: &Targets,
    pass: Pass,
    z_loss: f64,
) -> Result<Losses> {
    let hidden = decoder.forward(segments, pass)?;
    let balance = hidden.balance;
    let rows = hidden.states.index_select(0, &Tensor::from_slice(&targets.rows));
    let ids = Tensor::from_slice(&targets.ids);
    let head = decoder.head(pass).tensor().filter(|head| !head.requires_grad());
    if let Some(head) = head.filter(|_| pass.fused && z_loss == 0.0) {
        let (scale, cap) = (decoder.config.scales.logits, decoder.config.final_softcap.unwrap_or(0.0));
        let tokens = shim::head_loss(&rows, head, decoder.head_bias.as_ref(), &ids, scale, cap);
        return Ok(Losses { objective: tokens.sum(Kind::Float), tokens, balance });
    }
    let logits = decoder.logits(&rows, pass);
    let denominators = logits.logsumexp([-1i64].as_slice(), false);
    let tokens = &denominators - logits.gather(1, &ids.unsqueeze(1), false).squeeze_dim(1);
    let objective = tokens.sum(Kind::Float);
    let objective = if z_loss > 0.0 { objective + denominators.square().sum(Kind::Float) * z_loss } else { objective };
    Ok(Losses { tokens, objective, balance })
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
