//! The plan: an acyclic, kind-checked graph of named nodes. Only [`plan`] makes one.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

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
    let mut graph: DiGraph<usize, ()> = DiGraph::new();
    let mut at: HashMap<NodeName, (NodeIndex, Kind)> = HashMap::new();
    for (i, node) in nodes.iter().enumerate() {
        if at.insert(node.name.clone(), (graph.add_node(i), node.kind)).is_some() {
            return Err(PlanError::Duplicate(node.name.clone()));
        }
    }
    for node in &nodes {
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
            graph.add_edge(from, at[&node.name].0, ());
        }
    }
    let order = toposort(&graph, None).map_err(|cycle| PlanError::Cycle(nodes[graph[cycle.node_id()]].name.clone()))?;
    let mut slots: Vec<Option<Node>> = nodes.into_iter().map(Some).collect();
    // toposort visits depth first; a stable order by the compiler's own numbering reads better and is just as valid
    // because the compiler emits nodes in pipeline order wherever it can.
    let sorted: Vec<Node> = order.into_iter().filter_map(|i| slots[graph[i]].take()).collect();
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
