//! Several adapters on one base: each is put on when its rows' turn comes. The base's weights are held once.

use std::collections::BTreeMap;
use std::path::Path;

use crate::decoder::{Decoder, Tuning};
use crate::tuned::{self, Use};
use crate::{ModelError, Result};

/// A decoder and what it may wear. `None` names the base.
#[derive(Debug)]
pub struct Tunings {
    decoder: Decoder,
    on: Option<String>,
    /// All but the one that is on.
    off: BTreeMap<Option<String>, Tuning>,
}

impl Tunings {
    /// A decoder without adapters.
    pub fn new(decoder: Decoder) -> Self {
        Self { decoder, on: None, off: BTreeMap::new() }
    }

    /// Adds the PEFT adapter in `path` under `name`, in place of an earlier one of that name.
    pub fn add(&mut self, name: &str, path: &Path) -> Result<()> {
        self.wear(None)?;
        let mut tuning = self.decoder.untuned();
        let attached = tuned::attach(&mut self.decoder, path, Use::Inference);
        // What was put on, whole or in part, comes off in exchange for the base.
        self.decoder.swap(&mut tuning);
        attached?;
        self.off.insert(Some(name.to_string()), tuning);
        Ok(())
    }

    pub fn has(&self, name: Option<&String>) -> bool {
        name.is_none() || self.on.as_ref() == name || self.off.contains_key(&name.cloned())
    }

    /// The decoder without an adapter put on or taken off.
    pub fn decoder(&self) -> &Decoder {
        &self.decoder
    }

    /// The decoder with this adapter on.
    pub fn wear(&mut self, name: Option<&String>) -> Result<&Decoder> {
        if self.on.as_ref() != name {
            let Some(mut tuning) = self.off.remove(&name.cloned()) else {
                return Err(ModelError::input(format!("there is no adapter {name:?}")));
            };
            self.decoder.swap(&mut tuning);
            self.off.insert(std::mem::replace(&mut self.on, name.cloned()), tuning);
        }
        Ok(&self.decoder)
    }
}
