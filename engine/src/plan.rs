//! The plan: an acyclic, kind-checked graph of named nodes. Only [`plan`] makes one.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};
use std::fmt;
use std::sync::Arc;

use petgraph::Direction;
use petgraph::algo::toposort;
use petgraph::graph::{DiGraph, NodeIndex};
use serde::{Deserialize, Serialize};

use crate::task::Task;

/// `stage` or `stage.dataset`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct NodeName(String);

impl NodeName {
    pub fn new(name: impl Into<String>) -> NodeName {
        NodeName(name.into())
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The part before the first dot.
    pub fn stage(&self) -> &str {
        self.0.split('.').next().unwrap_or(&self.0)
    }
}

impl fmt::Display for NodeName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What a node's files are, so that a wire from the wrong kind of node is refused when the plan is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(transparent)]
pub struct Kind(pub &'static str);

/// A wire into a node.
#[derive(Clone, Debug)]
pub struct Input {
    /// The name by which the task asks for it, unique within the node.
    pub role: String,
    pub from: NodeName,
    /// The one file of the upstream output that is read; its digest alone enters the key. `None` reads the whole folder.
    pub file: Option<String>,
    pub kind: Kind,
}

/// A node before planning.
pub struct Node {
    pub name: NodeName,
    pub kind: Kind,
    pub inputs: Vec<Input>,
    pub task: Arc<dyn Task>,
}

/// An acyclic set of nodes in topological order.
pub struct Plan {
    nodes: Vec<Node>,
    index: HashMap<NodeName, usize>,
}

/// Why nodes do not make a plan; a mistake in the compiler of recipes, never a user's.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum PlanError {
    #[error("two nodes are named `{0}`")]
    Duplicate(NodeName),
    #[error("node `{node}` reads `{from}`, which is not in the plan")]
    Missing { node: NodeName, from: NodeName },
    #[error("node `{0}` depends on itself")]
    Cycle(NodeName),
    #[error("node `{node}` wants {wanted} for `{role}`, and `{from}` makes {made}")]
    Kind { node: NodeName, role: String, from: NodeName, wanted: &'static str, made: &'static str },
}

/// Orders and checks nodes.
pub fn plan(nodes: Vec<Node>) -> Result<Plan, PlanError> {
    let mut at: HashMap<NodeName, (usize, Kind)> = HashMap::new();
    for (i, node) in nodes.iter().enumerate() {
        if at.insert(node.name.clone(), (i, node.kind)).is_some() {
            return Err(PlanError::Duplicate(node.name.clone()));
        }
    }
    let mut graph: DiGraph<(), ()> = DiGraph::with_capacity(nodes.len(), nodes.len() * 2);
    let places: Vec<NodeIndex> = nodes.iter().map(|_| graph.add_node(())).collect();
    for (i, node) in nodes.iter().enumerate() {
        for input in &node.inputs {
            let Some(&(from, made)) = at.get(&input.from) else {
                return Err(PlanError::Missing { node: node.name.clone(), from: input.from.clone() });
            };
            if made != input.kind {
                return Err(PlanError::Kind {
                    node: node.name.clone(),
                    role: input.role.clone(),
                    from: input.from.clone(),
                    wanted: input.kind.0,
                    made: made.0,
                });
            }
            graph.add_edge(places[from], places[i], ());
        }
    }
    if let Err(cycle) = toposort(&graph, None) {
        return Err(PlanError::Cycle(nodes[cycle.node_id().index()].name.clone()));
    }
    // Of the nodes that could come next, the one the compiler emitted first: it emits them in pipeline order.
    let mut unmet: Vec<usize> =
        places.iter().map(|&i| graph.neighbors_directed(i, Direction::Incoming).count()).collect();
    let mut next: BinaryHeap<Reverse<usize>> = (0..nodes.len()).filter(|&i| unmet[i] == 0).map(Reverse).collect();
    let mut slots: Vec<Option<Node>> = nodes.into_iter().map(Some).collect();
    let mut sorted: Vec<Node> = Vec::with_capacity(slots.len());
    while let Some(Reverse(i)) = next.pop() {
        sorted.extend(slots[i].take());
        for reader in graph.neighbors(places[i]).map(NodeIndex::index) {
            unmet[reader] -= 1;
            if unmet[reader] == 0 {
                next.push(Reverse(reader));
            }
        }
    }
    let index = sorted.iter().enumerate().map(|(i, node)| (node.name.clone(), i)).collect();
    Ok(Plan { nodes: sorted, index })
}

impl Plan {
    /// Nodes, each after everything it reads.
    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    pub fn node(&self, name: &NodeName) -> Option<&Node> {
        self.index.get(name).map(|&i| &self.nodes[i])
    }

    pub fn position(&self, name: &NodeName) -> Option<usize> {
        self.index.get(name).copied()
    }

    /// The nodes that `selector` names: one node, or all of a stage.
    pub fn select(&self, selector: &str) -> Vec<NodeName> {
        let names = self.nodes.iter().map(|node| &node.name);
        names.filter(|name| name.as_str() == selector || name.stage() == selector).cloned().collect()
    }
}
