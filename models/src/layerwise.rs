//! A model that rows are passed through one layer at a time: all rows go through a layer before the next one is read.
//!
//! Memory holds the tables, one layer and the rows' states, so a model that training held in four bits can be measured on the
//! same machine in all its bits. The numbers are those of a whole decoder. Few rows are meant: their states stay in memory.

use pipe_files::PeftAdapter;
use pipe_job::ModelSource;
use tch::Tensor;

use crate::decoder::{Decoder, Segments};
use crate::events::Events;
use crate::layer::Layer;
use crate::linear::{Pass, Weight};
use crate::load::Loader;
use crate::token_rows::{PackRow, each_pack};
use crate::tuned::{self, Use};
use crate::{Result, device};

/// Documents go through a layer in groups of this many tokens.
const PASS_TOKENS: usize = 1024;

/// A model without its layers, and where they are read.
pub struct Layerwise {
    loader: Loader,
    adapter: Option<PeftAdapter>,
    /// Tables, last norm and configuration.
    pub decoder: Decoder,
}

impl Layerwise {
    /// Opens a model with its adapter; layers are read when they are passed.
    pub fn open(source: &ModelSource) -> Result<Self> {
        let loader = Loader::open(&source.path, source.base, source.compute)?;
        let mut decoder = loader.outside()?;
        let open = |path| PeftAdapter::open(path, &decoder.config);
        let mut adapter = source.adapter.as_deref().map(open).transpose()?;
        if let Some(adapter) = &mut adapter {
            tuned::put_tables(&mut decoder, adapter, Use::Inference)?;
        }
        Ok(Self { loader, adapter, decoder })
    }

    /// What the rows become after the last norm, `[tokens, hidden]` for each group. `prepare` sees every layer before the rows
    /// go through it, `finish` after.
    pub fn pass(
        &mut self,
        groups: &[Segments],
        prepare: &mut dyn FnMut(&mut Layer),
        finish: &mut dyn FnMut(Layer) -> Result<()>,
        progress: &mut dyn FnMut(u64, u64),
        events: &Events,
    ) -> Result<Vec<Tensor>> {
        let pass = Pass::INFERENCE;
        let embedded = groups.iter().map(|group| tch::no_grad(|| self.decoder.embedded(group, pass)));
        let mut states = embedded.collect::<Result<Vec<_>>>()?;
        let layers = self.decoder.config.layers;
        for index in 0..layers {
            let mut layer = self.layer(index)?;
            prepare(&mut layer);
            for (state, group) in states.iter_mut().zip(groups) {
                events.check()?;
                *state = tch::no_grad(|| self.decoder.through(&layer, group, state, pass));
            }
            finish(layer)?;
            device::release_memory();
            progress(index as u64 + 1, layers as u64);
        }
        if let Some((adapter, name)) = self.adapter.as_ref().and_then(|a| Some((a, a.modules.keys().next()?))) {
            return Err(tuned::stranger(&adapter.path, name));
        }
        Ok(states.iter().map(|state| tch::no_grad(|| self.decoder.norm.forward(state, pass))).collect())
    }

    /// One layer with its adapter, its weights unpacked: it is used for all rows.
    fn layer(&mut self, index: usize) -> Result<Layer> {
        let mut layer = self.loader.layer(index)?;
        for linear in layer.linears_mut() {
            if let Some(adapter) = &mut self.adapter {
                tuned::put_on(linear, adapter, Use::Inference)?;
            }
            if !matches!(linear.weight, Weight::Dense(_)) {
                linear.weight = Weight::Dense(linear.dense(self.decoder.compute));
            }
        }
        Ok(layer)
    }
}

/// The first `most` documents of a file of packs, in groups that go through the network together.
pub fn documents(path: &std::path::Path, most: usize) -> Result<Vec<PackRow>> {
    let (mut groups, mut left) = (Vec::<PackRow>::new(), most);
    each_pack(path, |pack| {
        let mut at = 0;
        for (place, &length) in pack.lengths.iter().enumerate().take(left) {
            let end = at + length as usize;
            let one = PackRow {
                ids: pack.ids[at..end].to_vec(),
                labels: pack.labels[at..end].to_vec(),
                lengths: vec![length],
                row_ids: pack.row_ids.get(place).cloned().into_iter().collect(),
                sources: pack.sources.get(place).copied().into_iter().collect(),
            };
            at = end;
            match groups.last_mut() {
                Some(group) if group.ids.len() + one.ids.len() <= PASS_TOKENS => group.extend(one),
                _ => groups.push(one),
            }
        }
        left -= pack.lengths.len().min(left);
        Ok(())
    })?;
    Ok(groups)
}

/// A group as the network takes it.
pub fn segments(group: &PackRow) -> Segments {
    Segments { ids: group.ids.clone(), lengths: group.lengths.clone() }
}
