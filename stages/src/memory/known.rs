//! Shapes of models that people name by their hub id, so that a plan can say what they take before they are downloaded.
//!
//! Numbers from the models' published configurations. A model that is on this machine is read instead.

use super::shape::{Again, Module, Shape};

/// How a family names and joins its linear modules.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Layout {
    /// q, k, v, o; gate, up, down.
    Llama,
    /// qkv in one, gate and up in one.
    Phi3,
    InternLm2,
    /// query_key_value, dense; two dense layers.
    NeoX,
    Gpt2,
    Phi2,
    Falcon,
    Starcoder2,
    /// A mixture: experts, experts of a token.
    Mixtral(u64, u64),
    QwenMoe(u64, u64),
}

use Layout::{Falcon, Gpt2, InternLm2, Llama, Mixtral, NeoX, Phi2, Phi3, QwenMoe, Starcoder2};

/// Id (compared without regard to case), layout, `[layers, hidden, inner, heads, kv heads, head size, vocabulary]`, tied.
type Row = (&'static str, Layout, [u64; 7], bool);

const KNOWN: &[Row] = &[
    ("HuggingFaceTB/SmolLM2-135M*", Llama, [30, 576, 1536, 9, 3, 64, 49_152], true),
    ("HuggingFaceTB/SmolLM2-360M*", Llama, [32, 960, 2560, 15, 5, 64, 49_152], true),
    ("HuggingFaceTB/SmolLM2-1.7B*", Llama, [24, 2048, 8192, 32, 32, 64, 49_152], true),
    ("TinyLlama/TinyLlama*1.1B*", Llama, [22, 2048, 5632, 32, 4, 64, 32_000], false),
    ("huggyllama/llama-7b", Llama, [32, 4096, 11_008, 32, 32, 128, 32_000], false),
    ("huggyllama/llama-13b", Llama, [40, 5120, 13_824, 40, 40, 128, 32_000], false),
    ("*/Llama-2-7b*", Llama, [32, 4096, 11_008, 32, 32, 128, 32_000], false),
    ("*/Llama-2-13b*", Llama, [40, 5120, 13_824, 40, 40, 128, 32_000], false),
    ("*/Llama-2-70b*", Llama, [80, 8192, 28_672, 64, 8, 128, 32_000], false),
    ("*/Meta-Llama-3*-8B*", Llama, [32, 4096, 14_336, 32, 8, 128, 128_256], false),
    ("*/Llama-3.1-8B*", Llama, [32, 4096, 14_336, 32, 8, 128, 128_256], false),
    ("*/Llama-3-8B*", Llama, [32, 4096, 14_336, 32, 8, 128, 128_256], false),
    ("*/Meta-Llama-3*-70B*", Llama, [80, 8192, 28_672, 64, 8, 128, 128_256], false),
    ("*/Llama-3.*-70B*", Llama, [80, 8192, 28_672, 64, 8, 128, 128_256], false),
    ("*/Llama-3.2-1B*", Llama, [16, 2048, 8192, 32, 8, 64, 128_256], true),
    ("*/Llama-3.2-3B*", Llama, [28, 3072, 8192, 24, 8, 128, 128_256], true),
    ("lmsys/vicuna-7b*", Llama, [32, 4096, 11_008, 32, 32, 128, 32_000], false),
    ("lmsys/vicuna-13b*", Llama, [40, 5120, 13_824, 40, 40, 128, 32_000], false),
    ("01-ai/Yi-6B*", Llama, [32, 4096, 11_008, 32, 4, 128, 64_000], false),
    ("01-ai/Yi-34B*", Llama, [60, 7168, 20_480, 56, 8, 128, 64_000], false),
    ("deepseek-ai/deepseek-coder-6.7b*", Llama, [32, 4096, 11_008, 32, 32, 128, 32_256], false),
    ("internlm/internlm2*1_8b*", InternLm2, [24, 2048, 8192, 16, 8, 128, 92_544], false),
    ("internlm/internlm2*7b*", InternLm2, [32, 4096, 14_336, 32, 8, 128, 92_544], false),
    ("internlm/internlm2*20b*", InternLm2, [48, 6144, 16_384, 48, 8, 128, 92_544], false),
    ("mistralai/Mistral-7B-v0.3", Llama, [32, 4096, 14_336, 32, 8, 128, 32_768], false),
    ("mistralai/Mistral-7B-Instruct-v0.3", Llama, [32, 4096, 14_336, 32, 8, 128, 32_768], false),
    ("mistralai/Mistral-7B*", Llama, [32, 4096, 14_336, 32, 8, 128, 32_000], false),
    ("HuggingFaceH4/zephyr-7b*", Llama, [32, 4096, 14_336, 32, 8, 128, 32_000], false),
    ("mistralai/Mixtral-8x7B*", Mixtral(8, 2), [32, 4096, 14_336, 32, 8, 128, 32_000], false),
    ("Qwen/Qwen2*-0.5B*", Llama, [24, 896, 4864, 14, 2, 64, 151_936], true),
    ("Qwen/Qwen2*-1.5B*", Llama, [28, 1536, 8960, 12, 2, 128, 151_936], true),
    ("Qwen/Qwen2.5-3B*", Llama, [36, 2048, 11_008, 16, 2, 128, 151_936], true),
    ("Qwen/Qwen2*-7B*", Llama, [28, 3584, 18_944, 28, 4, 128, 152_064], false),
    ("Qwen/Qwen2.5-14B*", Llama, [48, 5120, 13_824, 40, 8, 128, 152_064], false),
    ("Qwen/Qwen2.5-32B*", Llama, [64, 5120, 27_648, 40, 8, 128, 152_064], false),
    ("Qwen/Qwen2*-72B*", Llama, [80, 8192, 29_568, 64, 8, 128, 152_064], false),
    ("Qwen/Qwen1.5-0.5B*", Llama, [24, 1024, 2816, 16, 16, 64, 151_936], true),
    ("Qwen/Qwen1.5-1.8B*", Llama, [24, 2048, 5504, 16, 16, 128, 151_936], false),
    ("Qwen/Qwen1.5-4B*", Llama, [40, 2560, 6912, 20, 20, 128, 151_936], false),
    ("Qwen/Qwen1.5-7B*", Llama, [32, 4096, 11_008, 32, 32, 128, 151_936], false),
    ("Qwen/Qwen1.5-14B*", Llama, [40, 5120, 13_696, 40, 40, 128, 152_064], false),
    ("Qwen/Qwen1.5-72B*", Llama, [80, 8192, 24_576, 64, 64, 128, 152_064], false),
    ("Qwen/Qwen3-30B-A3B*", QwenMoe(128, 8), [48, 2048, 768, 32, 4, 128, 151_936], false),
    ("Qwen/Qwen3-0.6B*", Llama, [28, 1024, 3072, 16, 8, 128, 151_936], true),
    ("Qwen/Qwen3-1.7B*", Llama, [28, 2048, 6144, 16, 8, 128, 151_936], true),
    ("Qwen/Qwen3-4B*", Llama, [36, 2560, 9728, 32, 8, 128, 151_936], true),
    ("Qwen/Qwen3-8B*", Llama, [36, 4096, 12_288, 32, 8, 128, 151_936], false),
    ("Qwen/Qwen3-14B*", Llama, [40, 5120, 17_408, 40, 8, 128, 151_936], false),
    ("Qwen/Qwen3-32B*", Llama, [64, 5120, 25_600, 64, 8, 128, 151_936], false),
    ("google/gemma-2b*", Llama, [18, 2048, 16_384, 8, 1, 256, 256_000], true),
    ("google/gemma-7b*", Llama, [28, 3072, 24_576, 16, 16, 256, 256_000], true),
    ("google/gemma-2-2b*", Llama, [26, 2304, 9216, 8, 4, 256, 256_000], true),
    ("google/gemma-2-9b*", Llama, [42, 3584, 14_336, 16, 8, 256, 256_000], true),
    ("google/gemma-2-27b*", Llama, [46, 4608, 36_864, 32, 16, 128, 256_000], true),
    ("google/gemma-3-1b*", Llama, [26, 1152, 6912, 4, 1, 256, 262_144], true),
    ("microsoft/phi-2", Phi2, [32, 2560, 10_240, 32, 32, 80, 51_200], false),
    ("microsoft/Phi-3-mini*", Phi3, [32, 3072, 8192, 32, 32, 96, 32_064], false),
    ("microsoft/phi-4", Phi3, [40, 5120, 17_920, 40, 10, 128, 100_352], false),
    ("*gpt2", Gpt2, [12, 768, 3072, 12, 12, 64, 50_257], true),
    ("*gpt2-medium", Gpt2, [24, 1024, 4096, 16, 16, 64, 50_257], true),
    ("*gpt2-large", Gpt2, [36, 1280, 5120, 20, 20, 64, 50_257], true),
    ("*gpt2-xl", Gpt2, [48, 1600, 6400, 25, 25, 64, 50_257], true),
    ("EleutherAI/pythia-70m*", NeoX, [6, 512, 2048, 8, 8, 64, 50_304], false),
    ("EleutherAI/pythia-160m*", NeoX, [12, 768, 3072, 12, 12, 64, 50_304], false),
    ("EleutherAI/pythia-410m*", NeoX, [24, 1024, 4096, 16, 16, 64, 50_304], false),
    ("EleutherAI/pythia-1.4b*", NeoX, [24, 2048, 8192, 16, 16, 128, 50_304], false),
    ("EleutherAI/pythia-2.8b*", NeoX, [32, 2560, 10_240, 32, 32, 80, 50_304], false),
    ("EleutherAI/pythia-6.9b*", NeoX, [32, 4096, 16_384, 32, 32, 128, 50_432], false),
    ("allenai/OLMo-1B-hf", Llama, [16, 2048, 8192, 16, 16, 128, 50_304], true),
    ("allenai/OLMo-7B-hf", Llama, [32, 4096, 11_008, 32, 32, 128, 50_304], false),
    ("allenai/OLMo-2-0425-1B*", Llama, [16, 2048, 8192, 16, 16, 128, 100_352], false),
    ("allenai/OLMo-2-1124-7B*", Llama, [32, 4096, 11_008, 32, 32, 128, 100_352], false),
    ("stabilityai/stablelm-2-1_6b*", Llama, [24, 2048, 5632, 32, 32, 64, 100_352], false),
    ("bigcode/starcoder2-3b", Starcoder2, [30, 3072, 12_288, 24, 2, 128, 49_152], true),
    ("bigcode/starcoder2-7b", Starcoder2, [32, 4608, 18_432, 36, 4, 128, 49_152], true),
    ("ibm-granite/granite-3.1-2b*", Llama, [40, 2048, 8192, 32, 8, 64, 49_155], true),
    ("ibm-granite/granite-3.1-8b*", Llama, [40, 4096, 12_800, 32, 8, 128, 49_155], true),
    ("tiiuae/falcon-7b*", Falcon, [32, 4544, 18_176, 71, 1, 64, 65_024], true),
];

/// The shape that an id is known for.
pub(super) fn shape(id: &str) -> Option<Shape> {
    let wanted = id.to_lowercase();
    let (_, layout, sizes, tied) = KNOWN.iter().find(|(pattern, ..)| matches(&pattern.to_lowercase(), &wanted))?;
    Some(build(*layout, *sizes, *tied))
}

/// `*` stands for anything.
fn matches(pattern: &str, text: &str) -> bool {
    let mut parts = pattern.split('*');
    let Some(rest) = parts.next().and_then(|first| text.strip_prefix(first)) else { return false };
    let mut rest = rest;
    let mut last = None;
    for part in parts {
        let Some(at) = rest.find(part) else { return false };
        rest = &rest[at + part.len()..];
        last = Some(part);
    }
    last.map_or(rest.is_empty(), |part| part.is_empty() || text.ends_with(part))
}

fn build(layout: Layout, sizes: [u64; 7], tied: bool) -> Shape {
    let [layers, hidden, inner, heads, kv_heads, head, vocab] = sizes;
    let (q, kv) = (heads * head, kv_heads * head);
    let mut modules = Vec::new();
    for layer in 0..layers {
        let (stem, parts) = parts(layout, hidden, inner, q, kv);
        modules.extend(parts.into_iter().map(|(name, outputs, inputs)| Module {
            name: format!("{stem}.{layer}.{name}"),
            outputs,
            inputs,
        }));
    }
    let linear: u64 = modules.iter().map(Module::size).sum();
    let tables = vocab * hidden * if tied { 1 } else { 2 };
    let experts = match layout {
        Mixtral(count, per_token) | QwenMoe(count, per_token) => Some((count, per_token)),
        _ => None,
    };
    // Norms are all that is left; biases, where a family has them, are a thousandth.
    let parameters = linear + tables + (2 * layers + 1) * hidden;
    let again = match layout {
        NeoX | Gpt2 | Phi2 | Falcon | Starcoder2 => Again::default(),
        Llama | Phi3 | InternLm2 | Mixtral(..) | QwenMoe(..) => Again { norms: true, gates: true },
    };
    Shape { hidden, layers, heads, vocab, tied, modules, parameters, experts, again }
}

type Part = (String, u64, u64);

fn parts(layout: Layout, h: u64, i: u64, q: u64, kv: u64) -> (&'static str, Vec<Part>) {
    let attention = [
        ("self_attn.q_proj", q, h),
        ("self_attn.k_proj", kv, h),
        ("self_attn.v_proj", kv, h),
        ("self_attn.o_proj", h, q),
    ];
    let with = |more: &[(&str, u64, u64)]| [own(&attention), own(more)].concat();
    let routed = |router: &str, count: u64, expert: &dyn Fn(u64) -> [Part; 3]| {
        let mut all = own(&attention);
        all.push((router.to_string(), count, h));
        all.extend((0..count).flat_map(expert));
        ("model.layers", all)
    };
    match layout {
        Llama => ("model.layers", with(&[("mlp.gate_proj", i, h), ("mlp.up_proj", i, h), ("mlp.down_proj", h, i)])),
        Phi2 => {
            let [query, key, value, _] = attention;
            let rest = [("self_attn.dense", h, q), ("mlp.fc1", i, h), ("mlp.fc2", h, i)];
            ("model.layers", [own(&[query, key, value]), own(&rest)].concat())
        }
        Starcoder2 => ("model.layers", with(&[("mlp.c_fc", i, h), ("mlp.c_proj", h, i)])),
        Mixtral(count, _) => routed("block_sparse_moe.gate", count, &|e| {
            let name = |w: &str| format!("block_sparse_moe.experts.{e}.{w}");
            [(name("w1"), i, h), (name("w3"), i, h), (name("w2"), h, i)]
        }),
        QwenMoe(count, _) => routed("mlp.gate", count, &|e| {
            let name = |part: &str| format!("mlp.experts.{e}.{part}");
            [(name("gate_proj"), i, h), (name("up_proj"), i, h), (name("down_proj"), h, i)]
        }),
        Phi3 | InternLm2 | NeoX | Falcon | Gpt2 => fused(layout, h, i, q, kv),
    }
}

/// Layouts that keep queries, keys and values in one module.
fn fused(layout: Layout, h: u64, i: u64, q: u64, kv: u64) -> (&'static str, Vec<Part>) {
    let all = q + 2 * kv;
    let (layers, attention, more): (_, _, &[(&str, u64, u64)]) = match layout {
        Phi3 => (
            "model.layers",
            [("self_attn.qkv_proj", all, h), ("self_attn.o_proj", h, q)],
            &[("mlp.gate_up_proj", 2 * i, h), ("mlp.down_proj", h, i)],
        ),
        InternLm2 => (
            "model.layers",
            [("attention.wqkv", all, h), ("attention.wo", h, q)],
            &[("feed_forward.w1", i, h), ("feed_forward.w3", i, h), ("feed_forward.w2", h, i)],
        ),
        NeoX => (
            "gpt_neox.layers",
            [("attention.query_key_value", all, h), ("attention.dense", h, q)],
            &[("mlp.dense_h_to_4h", i, h), ("mlp.dense_4h_to_h", h, i)],
        ),
        Falcon => (
            "transformer.h",
            [("self_attention.query_key_value", all, h), ("self_attention.dense", h, q)],
            &[("mlp.dense_h_to_4h", i, h), ("mlp.dense_4h_to_h", h, i)],
        ),
        // GPT-2 has as many keys as queries.
        _ => (
            "transformer.h",
            [("attn.c_attn", 3 * q, h), ("attn.c_proj", h, q)],
            &[("mlp.c_fc", i, h), ("mlp.c_proj", h, i)],
        ),
    };
    (layers, [own(&attention), own(more)].concat())
}

fn own(parts: &[(&str, u64, u64)]) -> Vec<Part> {
    parts.iter().map(|&(name, outputs, inputs)| (name.to_string(), outputs, inputs)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_match_and_counts_are_the_published_ones() {
        let millions = |id: &str| shape(id).unwrap().parameters / 1_000_000;
        assert_eq!(millions("HuggingFaceTB/SmolLM2-135M-Instruct"), 134);
        assert_eq!(millions("NousResearch/Llama-2-7b-hf"), 6738);
        assert_eq!(millions("mistralai/Mistral-7B-v0.1"), 7241);
        assert_eq!(millions("meta-llama/Meta-Llama-3.1-8B-Instruct"), 8030);
        assert_eq!(millions("mistralai/Mixtral-8x7B-Instruct-v0.1"), 46_702);
        assert_eq!(millions("Qwen/Qwen3-30B-A3B"), 30_532);
        assert_eq!(millions("openai-community/gpt2"), 123);
        assert_eq!(millions("microsoft/Phi-3-mini-4k-instruct"), 3821);
        assert!(shape("somebody/something-7b").is_none());
        assert!(shape("mistralai/Mistral-Nemo").is_none());
    }
}
