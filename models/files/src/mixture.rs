//! Which type each tensor gets in a GGUF of a named kind, as llama.cpp mixes them.

use crate::ModelConfig;
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
    Q2K,
    Q3KM,
    Q4KS,
    Q4KM,
    Q5KS,
    Q5KM,
    Q6K,
    Iq4Nl,
}

impl GgufKind {
    /// Every kind with its name and llama.cpp's file type number.
    pub const ALL: [(Self, &'static str, u32); 16] = [
        (Self::F32, "f32", 0),
        (Self::F16, "f16", 1),
        (Self::Bf16, "bf16", 32),
        (Self::Q8_0, "q8_0", 7),
        (Self::Q4_0, "q4_0", 2),
        (Self::Q4_1, "q4_1", 3),
        (Self::Q5_0, "q5_0", 8),
        (Self::Q5_1, "q5_1", 9),
        (Self::Q2K, "q2_k", 10),
        (Self::Q3KM, "q3_k_m", 12),
        (Self::Q4KS, "q4_k_s", 14),
        (Self::Q4KM, "q4_k_m", 15),
        (Self::Q5KS, "q5_k_s", 16),
        (Self::Q5KM, "q5_k_m", 17),
        (Self::Q6K, "q6_k", 18),
        (Self::Iq4Nl, "iq4_nl", 25),
    ];

    /// The kind with this name in any case; `q3_k`, `q4_k` and `q5_k` mean the medium mixtures.
    pub fn named(name: &str) -> Option<Self> {
        let name = name.to_ascii_lowercase();
        let name = match name.as_str() {
            "q3_k" => "q3_k_m",
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
            Self::Q2K => TensorType::Q2K,
            Self::Q3KM => TensorType::Q3K,
            Self::Q4KS | Self::Q4KM => TensorType::Q4K,
            Self::Q5KS | Self::Q5KM => TensorType::Q5K,
            Self::Q6K => TensorType::Q6K,
            Self::Iq4Nl => TensorType::Iq4Nl,
        }
    }
}

/// A kind's choices for one model, as llama.cpp makes them.
pub(crate) struct Mixture {
    kind: GgufKind,
    layers: usize,
    /// Query heads that share a key-value head.
    group: usize,
    experts: usize,
    falcon: bool,
    /// The 70B models of Llama and Qwen: their values are small beside what hangs on them.
    large: bool,
    /// Whether an importance matrix guides the encoders.
    guided: bool,
}

/// What [`Mixture::choose`] asks of a tensor.
pub(crate) struct Wanted<'a> {
    pub name: &'a str,
    pub part: Part,
    /// Whether it is the output head, or the embedding in its place.
    pub head: bool,
    pub layer: usize,
    pub shape: &'a [usize],
}

impl Mixture {
    pub(crate) fn new(kind: GgufKind, config: &ModelConfig, guided: bool) -> Self {
        let architecture = config.family.gguf.architecture;
        let group = config.heads / config.kv_heads.max(1);
        Self {
            kind,
            layers: config.layers,
            group,
            experts: config.experts.as_ref().map_or(0, |experts| experts.count),
            falcon: architecture == "falcon",
            large: config.layers == 80 && (architecture == "qwen2" || (architecture == "llama" && group > 1)),
            guided,
        }
    }

    pub(crate) fn choose(&self, tensor: &Wanted<'_>) -> TensorType {
        let part = tensor.part;
        let exact = part == Part::Router || part == Part::Positions || !(part.is_linear() || part.is_table());
        if tensor.shape.len() < 2 || exact {
            return TensorType::F32;
        }
        let (main, row) = (self.kind.main(), tensor.shape.last().copied().unwrap_or(0));
        if main.block().0 == 1 {
            return main;
        }
        let wanted = if tensor.head {
            let plain = self.falcon || !row.is_multiple_of(main.block().0) || main == TensorType::Q8_0;
            if plain { TensorType::Q8_0 } else { TensorType::Q6K }
        } else if tensor.name.ends_with("attn_v.weight") || tensor.name.ends_with("attn_qkv.weight") {
            self.value(tensor.layer)
        } else if tensor.name.ends_with("attn_k.weight") && self.experts == 8 {
            TensorType::Q8_0
        } else {
            match part {
                Part::Down | Part::ExpertDown => self.down(tensor.layer),
                Part::Output => self.output(),
                _ => main,
            }
        };
        fitting(wanted, row)
    }

    fn value(&self, layer: usize) -> TensorType {
        let main = self.kind.main();
        let wanted = match self.kind {
            _ if self.experts == 8 => return TensorType::Q8_0,
            GgufKind::Q2K if self.group >= 4 => TensorType::Q4K,
            GgufKind::Q2K => TensorType::Q3K,
            GgufKind::Q3KM if layer < 2 => TensorType::Q5K,
            GgufKind::Q3KM => TensorType::Q4K,
            GgufKind::Iq4Nl if self.group >= 4 => TensorType::Q5K,
            GgufKind::Q4KM | GgufKind::Q5KM if self.needs_bits(layer) => TensorType::Q6K,
            GgufKind::Q4KS if layer < 4 => TensorType::Q5K,
            _ => main,
        };
        if self.large && matches!(wanted, TensorType::Q3K | TensorType::Q4K) { TensorType::Q5K } else { wanted }
    }

    fn down(&self, layer: usize) -> TensorType {
        let first_eighth = layer < self.layers / 8;
        match self.kind {
            GgufKind::Q2K => TensorType::Q3K,
            GgufKind::Q3KM if layer < self.layers / 16 => TensorType::Q5K,
            GgufKind::Q3KM if self.falcon && !self.needs_bits(layer) => TensorType::Q3K,
            GgufKind::Q3KM => TensorType::Q4K,
            GgufKind::Q4KM if self.falcon && layer < self.layers / 16 => TensorType::Q6K,
            GgufKind::Q4KM if self.falcon && self.needs_bits(layer) => TensorType::Q5K,
            GgufKind::Q4KM if self.falcon => TensorType::Q4K,
            GgufKind::Q4KM | GgufKind::Q5KM if self.needs_bits(layer) => TensorType::Q6K,
            GgufKind::Q4KS if !self.falcon && first_eighth => TensorType::Q5K,
            GgufKind::Iq4Nl if first_eighth && !self.guided => TensorType::Q5K,
            GgufKind::Q4_0 if first_eighth && self.guided => TensorType::Q4_1,
            GgufKind::Q5_0 if first_eighth && self.guided => TensorType::Q5_1,
            kind => kind.main(),
        }
    }

    fn output(&self) -> TensorType {
        match self.kind {
            kind if self.falcon => kind.main(),
            GgufKind::Q2K | GgufKind::Q3KM | GgufKind::Q4KS | GgufKind::Q4KM | GgufKind::Iq4Nl if self.experts == 8 => {
                TensorType::Q5K
            }
            kind if self.experts == 8 => kind.main(),
            GgufKind::Q2K => TensorType::Q3K,
            GgufKind::Q3KM => TensorType::Q4K,
            kind => kind.main(),
        }
    }

    /// First and last eighth of the layers, and every third between.
    fn needs_bits(&self, layer: usize) -> bool {
        let eighth = self.layers / 8;
        layer < eighth || layer >= 7 * self.layers / 8 || (layer - eighth) % 3 == 2
    }
}

/// A super-block type needs rows of a multiple of 256, a block type of 32; where a row is neither, the next larger type
/// that fits.
fn fitting(wanted: TensorType, row: usize) -> TensorType {
    let wanted = match wanted {
        _ if row.is_multiple_of(wanted.block().0) => return wanted,
        TensorType::Q2K | TensorType::Q3K => TensorType::Q4_0,
        TensorType::Q4K => TensorType::Q5_0,
        TensorType::Q5K => TensorType::Q5_1,
        TensorType::Q6K => TensorType::Q8_0,
        _ => TensorType::F16,
    };
    if row.is_multiple_of(wanted.block().0) { wanted } else { TensorType::F16 }
}
