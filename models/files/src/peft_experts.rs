//! Adapters of mixtures as PEFT writes them for transformers 5, where one tensor holds the experts of a layer
//! (`target_parameters`).
//!
//! `A` is `[experts * r, inputs]`, expert after expert, and `B` `[outputs, r * experts]` with an expert's columns `experts` apart.
//! Gate and up projection are one matrix there, gate first; either half is a low-rank change with the same `A`.

use crate::ModelConfig;
use crate::parts::Part;
use crate::peft::PeftModule;

/// A module under the model's own name.
pub(crate) struct Placed {
    pub name: String,
    /// What the patterns of ranks and alphas are matched with.
    pub target: String,
    pub module: PeftModule,
}

/// The modules of the model that an adapter's module stands for; `None` where its shape is not that of the model's experts.
/// `by_parameter` where routers were named as parameters.
pub(crate) fn placed(model: &ModelConfig, name: &str, module: PeftModule, by_parameter: bool) -> Option<Vec<Placed>> {
    let inside = name.strip_prefix(model.family.layers).and_then(|rest| rest.strip_prefix('.')?.split_once('.'));
    let layer = inside.and_then(|(layer, _)| layer.parse().ok()).filter(|layer| *layer < model.layers);
    match (layer, inside) {
        (Some(layer), Some((_, "mlp.experts" | "mlp.experts.base_layer"))) => stacked(model, layer, &module),
        (Some(layer), Some((_, "mlp.gate"))) if model.has(layer, Part::Router) => {
            let router = model.layer_tensors(layer).into_iter().find(|place| place.part == Part::Router)?;
            let target = if by_parameter { format!("{name}.weight") } else { name.to_owned() };
            Some(vec![Placed { name: router.module().to_owned(), target, module }])
        }
        _ => Some(vec![Placed { name: name.to_owned(), target: name.to_owned(), module }]),
    }
}

/// Every expert's share of matrices that hold all of a layer.
fn stacked(model: &ModelConfig, layer: usize, all: &PeftModule) -> Option<Vec<Placed>> {
    let experts = model.experts.as_ref()?;
    let shape = (all.outputs, all.inputs);
    let (tensor, parts): (_, &[Part]) = if shape == (2 * experts.intermediate, model.hidden) {
        ("gate_up_proj", &[Part::ExpertGate, Part::ExpertUp])
    } else if shape == (model.hidden, experts.intermediate) {
        ("down_proj", &[Part::ExpertDown])
    } else {
        return None;
    };
    let whole = all.a.len() == all.r * all.inputs && all.b.len() == all.outputs * all.r && all.magnitude.is_none();
    if !whole || !all.r.is_multiple_of(experts.count) || !model.has(layer, parts[0]) {
        return None;
    }
    let (r, outputs) = (all.r / experts.count, all.outputs / parts.len());
    let target = format!("{}.{layer}.mlp.experts.{tensor}", model.family.layers);
    let share = |part: usize, expert: usize| {
        let a = all.a[expert * r * all.inputs..(expert + 1) * r * all.inputs].to_vec();
        let rows = all.b[part * outputs * all.r..(part + 1) * outputs * all.r].chunks_exact(all.r);
        let b = rows.flat_map(|row| row.iter().skip(expert).step_by(experts.count).copied()).collect();
        PeftModule { r, inputs: all.inputs, outputs, a, b, ..PeftModule::default() }
    };
    let places = model.layer_tensors(layer).into_iter().filter_map(|place| {
        let part = parts.iter().position(|part| *part == place.part)?;
        let name = place.module().to_owned();
        Some(Placed { name, target: target.clone(), module: share(part, place.copy) })
    });
    Some(places.collect())
}
