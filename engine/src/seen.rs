//! What each node was when it last had an output; `why` compares with it. Losing it costs an explanation, nothing else.

use std::fs;

use serde::{Deserialize, Serialize};

use crate::digest::Digest;
use crate::key::{Ingredients, Origin};
use crate::lock::Lock;
use crate::plan::NodeName;
use crate::record::Record;
use crate::store::{Store, write_whole};

/// Beyond this the oldest go.
const MOST: usize = 5_000;

/// The last state of every node, oldest first.
#[derive(Default, Serialize, Deserialize)]
pub struct Seen {
    nodes: Vec<LastSeen>,
}

/// A node as it last was.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LastSeen {
    /// Which recipe: nodes of different recipes share names.
    pub scope: String,
    pub node: NodeName,
    pub key: Digest,
    pub ingredients: Ingredients,
    pub origin: Origin,
    /// Rows of the output, where known.
    pub rows: Option<u64>,
}

impl Seen {
    pub fn load(store: &Store) -> Seen {
        let bytes = fs::read(store.root().join("seen.json")).unwrap_or_default();
        serde_json::from_slice(&bytes).unwrap_or_default()
    }

    /// The node of this recipe; else of that name in another one; else another node of the stage (a renamed label).
    pub fn last(&self, scope: &str, node: &NodeName) -> Option<&LastSeen> {
        let latest = |wanted: &dyn Fn(&LastSeen) -> bool| self.nodes.iter().rev().find(|seen| wanted(seen));
        latest(&|seen| &seen.node == node && seen.scope == scope)
            .or_else(|| latest(&|seen| &seen.node == node))
            .or_else(|| latest(&|seen| seen.node.stage() == node.stage()))
    }

    /// Notes these nodes as the latest of their recipe. Failure is no error.
    pub fn note(store: &Store, scope: &str, nodes: &[(NodeName, &Record)]) {
        let seen = Seen::load(store);
        let is_noted = |(node, record): &(NodeName, &Record)| {
            seen.nodes.iter().any(|seen| seen.scope == scope && &seen.node == node && seen.key == record.key)
        };
        if nodes.iter().all(is_noted) {
            return;
        }
        let Ok(Some(_lock)) = Lock::take(&store.root().join("locks").join("seen"), || false) else {
            return;
        };
        let mut seen = Seen::load(store);
        seen.nodes.retain(|old| old.scope != scope || nodes.iter().all(|(node, _)| node != &old.node));
        seen.nodes.extend(nodes.iter().map(|(node, record)| LastSeen {
            scope: scope.to_string(),
            node: node.clone(),
            key: record.key,
            ingredients: record.ingredients.clone(),
            origin: record.origin.clone(),
            rows: record.summary.rows,
        }));
        let surplus = seen.nodes.len().saturating_sub(MOST);
        seen.nodes.drain(..surplus);
        if let Ok(bytes) = serde_json::to_vec(&seen) {
            let _ = write_whole(&store.root().join("seen.json"), &bytes);
        }
    }
}
