//! What each node was when it last had an output; `why` compares with it. Losing it costs an explanation, nothing else.

use std::fs;

use serde::{Deserialize, Serialize};

use crate::digest::Digest;
use crate::key::{Ingredients, Origin};
use crate::lock::Lock;
use crate::plan::{NodeName, Plan};
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

/// Where a node's last state is looked for.
#[derive(Clone, Copy)]
pub struct Past<'a> {
    pub seen: &'a Seen,
    pub scope: &'a str,
    pub plan: &'a Plan,
}

impl<'a> Past<'a> {
    /// The node of this recipe; else of that name in another one; else a node of its stage that this recipe had and the
    /// plan no longer has (a renamed label).
    pub fn last(&self, node: &NodeName) -> Option<&'a LastSeen> {
        let latest = |wanted: &dyn Fn(&LastSeen) -> bool| self.seen.nodes.iter().rev().find(|seen| wanted(seen));
        let renamed = |seen: &LastSeen| seen.node.stage() == node.stage() && self.plan.position(&seen.node).is_none();
        latest(&|seen| &seen.node == node && seen.scope == self.scope)
            .or_else(|| latest(&|seen| &seen.node == node))
            .or_else(|| latest(&|seen| renamed(seen) && seen.scope == self.scope))
            .or_else(|| latest(&renamed))
    }
}

impl Seen {
    pub fn load(store: &Store) -> Seen {
        let bytes = fs::read(store.root().join("seen.json")).unwrap_or_default();
        serde_json::from_slice(&bytes).unwrap_or_default()
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
