//! The recipe's `output_dir`: the final artifacts under the names the contract gives them.
//!
//! The store makes the links or copies; what is right already it leaves untouched.

use std::path::{Path, PathBuf};

use indexmap::IndexMap;
use pipe_engine::plan::NodeName;
use pipe_engine::store::Store;

use crate::failure::Failure;

/// Stage that makes an artifact, and the folder it gets.
const NAMES: [(&str, &str); 4] = [("convert", "adapter"), ("merge", "merged"), ("quantize", "gguf"), ("eval", "eval")];

/// Puts the artifacts of finished nodes in place; their names and folders.
///
/// # Errors
/// The folder cannot be written; the results are safe in the store.
pub fn publish(
    store: &Store,
    output_dir: &Path,
    outputs: &IndexMap<NodeName, PathBuf>,
) -> Result<Vec<(String, PathBuf)>, Failure> {
    let mut published = Vec::new();
    for (stage, name) in NAMES {
        let Some((_, object)) = outputs.iter().find(|(node, _)| node.as_str() == stage) else { continue };
        // What `convert` publishes is a model where the base's own weights were trained.
        let name = if name == "adapter" && !object.join("adapter_config.json").is_file() { "model" } else { name };
        let target = output_dir.join(name);
        store.export(object, &target).map_err(|error| {
            Failure::stage(format!("cannot put {name} in output_dir: {error}")).hint(format!(
                "the result is safe in {}; set output_dir to a folder that can be written",
                object.display()
            ))
        })?;
        published.push((name.to_string(), target));
    }
    if !published.is_empty() {
        store.memo().save();
    }
    Ok(published)
}
