//! Which type each tensor gets in a GGUF of a named kind, as llama.cpp mixes them.

use crate::blocks::TensorType;
use crate::parts::Part;

/// A kind of GGUF file, by the name users know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GgufKind {
    F32,
    F16,
    Bf16,
    Q8_0,
    Q4_0,
    Q4_1,
    Q5_0,
    Q5_1,
    Q4KS,
    Q4KM,
    Q5KS,
    Q5KM,
    Q6K,
}

impl GgufKind {
    /// Every kind with its name and llama.cpp's file type number.
    pub const ALL: [(Self, &'static str, u32); 13] = [
        (Self::F32, "f32", 0),
        (Self::F16, "f16", 1),
        (Self::Bf16, "bf16", 32),
        (Self::Q8_0, "q8_0", 7),
        (Self::Q4_0, "q4_0", 2),
        (Self::Q4_1, "q4_1", 3),
        (Self::Q5_0, "q5_0", 8),
        (Self::Q5_1, "q5_1", 9),
        (Self::Q4KS, "q4_k_s", 14),
        (Self::Q4KM, "q4_k_m", 15),
        (Self::Q5KS, "q5_k_s", 16),
        (Self::Q5KM, "q5_k_m", 17),
        (Self::Q6K, "q6_k", 18),
    ];

    /// The kind with this name in any case; `q4_k` and `q5_k` mean the medium mixtures.
    pub fn named(name: &str) -> Option<Self> {
        let name = name.to_ascii_lowercase();
        let name = match name.as_str() {
            "q4_k" => "q4_k_m",
            "q5_k" => "q5_k_m",
            other => other,
        };
        Self::ALL.iter().find(|(_, n, _)| *n == name).map(|(kind, _, _)| *kind)
    }

    pub(crate) fn file_type(self) -> u32 {
        Self::ALL.iter().find(|(kind, _, _)| *kind == self).map_or(0, |(_, _, code)| *code)
    }

    /// The type of most matrices.
    fn main(self) -> TensorType {
        match self {
            Self::F32 => TensorType::F32,
            Self::F16 => TensorType::F16,
            Self::Bf16 => TensorType::Bf16,
            Self::Q8_0 => TensorType::Q8_0,
            Self::Q4_0 => TensorType::Q4_0,
            Self::Q4_1 => TensorType::Q4_1,
            Self::Q5_0 => TensorType::Q5_0,
            Self::Q5_1 => TensorType::Q5_1,
            Self::Q4KS | Self::Q4KM => TensorType::Q4K,
            Self::Q5KS | Self::Q5KM => TensorType::Q5K,
            Self::Q6K => TensorType::Q6K,
        }
    }

    /// The type of one tensor. `head` says whether it is the output head, `layer` its layer of `layers`.
    pub(crate) fn choose(
        self,
        name: &str,
        head: bool,
        layer: usize,
        layers: usize,
        shape: &[usize],
        part: Part,
    ) -> TensorType {
        let exact = part == Part::Router || part == Part::Positions || !(part.is_linear() || part.is_table());
        if shape.len() < 2 || exact {
            return TensorType::F32;
        }
        let main = self.main();
        let quantised = main.block().0 > 1;
        let value = name.ends_with("attn_v.weight");
        let down = matches!(part, Part::Down | Part::ExpertDown);
        let sensitive = value || down;
        let wanted = match self {
            _ if !quantised => main,
            Self::Q8_0 => main,
            _ if head => TensorType::Q6K,
            Self::Q4KM | Self::Q5KM if sensitive && needs_bits(layer, layers) => TensorType::Q6K,
            Self::Q4KM if part == Part::QueryKeyValue => TensorType::Q5K,
            Self::Q5KM if part == Part::QueryKeyValue => TensorType::Q6K,
            Self::Q4KS if value && layer < 4 => TensorType::Q5K,
            Self::Q4KS if down && layer < layers / 8 => TensorType::Q5K,
            _ => main,
        };
        fitting(wanted, shape.last().copied().unwrap_or(0))
    }
}

/// First and last eighth of the layers, and every third between.
fn needs_bits(layer: usize, layers: usize) -> bool {
    let eighth = layers / 8;
    layer < eighth || layer >= 7 * layers / 8 || (layer - eighth) % 3 == 2
}

/// A super-block type needs rows of a multiple of 256, a block type of 32; where a row is neither, the next larger type
/// that fits.
fn fitting(wanted: TensorType, row: usize) -> TensorType {
    let wanted = match wanted {
        _ if row.is_multiple_of(wanted.block().0) => return wanted,
        TensorType::Q4K => TensorType::Q5_0,
        TensorType::Q5K => TensorType::Q5_1,
        TensorType::Q6K => TensorType::Q8_0,
        _ => TensorType::F16,
    };
    if row.is_multiple_of(wanted.block().0) { wanted } else { TensorType::F16 }
}
