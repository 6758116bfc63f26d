//! The graph of a run as a drawing: layers from top to bottom, narrow enough for a phone and for paper.

use std::collections::HashMap;

use serde::Serialize;

use super::facts::{Node, Outcome};

const BOX: (f64, f64) = (152.0, 40.0);
const GAP: (f64, f64) = (14.0, 26.0);
const MARGIN: f64 = 4.0;
/// A wider layer has the nodes of a stage drawn as one.
const WIDEST: usize = 6;

/// A drawing of nodes and wires.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Drawing {
    pub width: f64,
    pub height: f64,
    pub boxes: Vec<Placed>,
    /// Paths from a box's lower edge to another's upper one.
    pub wires: Vec<String>,
}

/// A node, or the nodes of a stage, in its place.
#[derive(Clone, Debug, Serialize)]
pub struct Placed {
    pub left: f64,
    pub top: f64,
    pub width: f64,
    pub height: f64,
    pub name: String,
    pub note: String,
    pub outcome: Outcome,
}

/// What is drawn as one box.
struct Group {
    name: String,
    note: String,
    outcome: Outcome,
    inputs: Vec<usize>,
}

/// Draws the nodes of a run, which come after what they read.
pub fn drawing(nodes: &[Node]) -> Drawing {
    let groups = groups(nodes, |node| node.name.clone());
    let groups = match widest(&groups) {
        n if n > WIDEST => self::groups(nodes, |node| node.stage.clone()),
        _ => groups,
    };
    place(&groups)
}

fn groups(nodes: &[Node], name: impl Fn(&Node) -> String) -> Vec<Group> {
    let mut groups: Vec<Group> = Vec::new();
    let mut members: Vec<Vec<&Node>> = Vec::new();
    let mut of: HashMap<&str, usize> = HashMap::new();
    for node in nodes {
        let name = name(node);
        let at = groups.iter().position(|group| group.name == name).unwrap_or_else(|| {
            groups.push(Group { name, note: String::new(), outcome: node.outcome, inputs: Vec::new() });
            members.push(Vec::new());
            groups.len() - 1
        });
        members[at].push(node);
        of.insert(&node.name, at);
        for from in node.inputs.iter().filter_map(|input| of.get(input.as_str())) {
            if *from != at && !groups[at].inputs.contains(from) {
                groups[at].inputs.push(*from);
            }
        }
    }
    for (group, members) in groups.iter_mut().zip(&members) {
        group.outcome = members.iter().map(|node| node.outcome).max().unwrap_or(group.outcome);
        group.note = match members[..] {
            [node] => note(node),
            _ => format!("{} nodes, {}", members.len(), group.outcome.word()),
        };
    }
    groups
}

fn note(node: &Node) -> String {
    use crate::report::format::{plural, seconds};
    let mut parts = vec![node.outcome.word().to_string()];
    parts.extend(node.rows.map(|rows| plural(rows, "row")));
    if node.outcome == Outcome::Executed {
        parts.push(seconds(node.seconds));
    }
    parts.join(", ")
}

/// Layer of each group: one below the lowest of what it reads.
fn layers(groups: &[Group]) -> Vec<usize> {
    let mut layers = vec![0; groups.len()];
    for (i, group) in groups.iter().enumerate() {
        layers[i] = group.inputs.iter().filter(|&&from| from < i).map(|&from| layers[from] + 1).max().unwrap_or(0);
    }
    layers
}

fn widest(groups: &[Group]) -> usize {
    let layers = layers(groups);
    let last = layers.iter().max().copied().unwrap_or(0);
    (0..=last).map(|layer| layers.iter().filter(|&&l| l == layer).count()).max().unwrap_or(0)
}

fn place(groups: &[Group]) -> Drawing {
    let layers = layers(groups);
    let last = layers.iter().max().copied().unwrap_or(0);
    let columns = widest(groups).max(1) as f64;
    let width = columns * BOX.0 + (columns - 1.0) * GAP.0 + 2.0 * MARGIN;
    let mut centre = vec![width / 2.0; groups.len()];
    for layer in 0..=last {
        let mut row: Vec<usize> = (0..groups.len()).filter(|&i| layers[i] == layer).collect();
        let above = |i: usize| {
            let inputs = &groups[i].inputs;
            inputs.iter().map(|&from| centre[from]).sum::<f64>() / inputs.len().max(1) as f64
        };
        let wanted: HashMap<usize, f64> = row.iter().map(|&i| (i, above(i))).collect();
        row.sort_by(|a, b| wanted[a].total_cmp(&wanted[b]));
        let taken = row.len() as f64 * (BOX.0 + GAP.0) - GAP.0;
        for (k, &i) in row.iter().enumerate() {
            centre[i] = (width - taken) / 2.0 + BOX.0 / 2.0 + k as f64 * (BOX.0 + GAP.0);
        }
    }
    let top = |i: usize| MARGIN + layers[i] as f64 * (BOX.1 + GAP.1);
    let boxes = groups.iter().enumerate().map(|(i, group)| Placed {
        left: centre[i] - BOX.0 / 2.0,
        top: top(i),
        width: BOX.0,
        height: BOX.1,
        name: crate::report::format::clip_middle(&group.name, 21),
        note: crate::report::format::clip(&group.note, 27),
        outcome: group.outcome,
    });
    let wires = groups.iter().enumerate().flat_map(|(i, group)| group.inputs.iter().map(move |&from| (from, i)));
    let wires = wires.map(|(from, to)| {
        let (x1, y1, x2, y2) = (centre[from], top(from) + BOX.1, centre[to], top(to));
        let bend = (y2 - y1) / 2.0;
        format!("M{x1} {y1}C{x1} {} {x2} {} {x2} {y2}", y1 + bend, y2 - bend)
    });
    Drawing {
        width,
        height: 2.0 * MARGIN + (last + 1) as f64 * (BOX.1 + GAP.1) - GAP.1,
        wires: wires.collect(),
        boxes: boxes.collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(name: &str, inputs: &[&str], outcome: Outcome) -> Node {
        Node {
            name: name.to_string(),
            stage: name.split('.').next().unwrap_or(name).to_string(),
            inputs: inputs.iter().map(|input| input.to_string()).collect(),
            outcome,
            ..Node::default()
        }
    }

    #[test]
    fn nodes_lie_below_what_they_read() {
        let nodes = [
            node("ingest.a", &[], Outcome::Cached),
            node("ingest.b", &[], Outcome::Executed),
            node("pack.train", &["ingest.a", "ingest.b"], Outcome::Executed),
            node("train", &["pack.train"], Outcome::Failed),
        ];
        let drawn = drawing(&nodes);
        let tops: Vec<f64> = drawn.boxes.iter().map(|placed| placed.top).collect();
        assert_eq!(tops, [4.0, 4.0, 70.0, 136.0]);
        assert!(drawn.boxes[0].left + BOX.0 < drawn.boxes[1].left, "no two lie on each other");
        assert_eq!((drawn.wires.len(), drawn.height), (3, 180.0));
    }

    #[test]
    fn many_datasets_are_drawn_as_one() {
        let mut nodes: Vec<Node> = (0..49).map(|i| node(&format!("ingest.{i}"), &[], Outcome::Cached)).collect();
        nodes[7].outcome = Outcome::Executed;
        let names: Vec<String> = nodes.iter().map(|node| node.name.clone()).collect();
        let inputs: Vec<&str> = names.iter().map(String::as_str).collect();
        nodes.push(node("pack.train", &inputs, Outcome::Executed));
        let drawn = drawing(&nodes);
        assert_eq!((drawn.boxes.len(), drawn.wires.len()), (2, 1));
        assert_eq!((drawn.boxes[0].note.as_str(), drawn.boxes[0].outcome), ("49 nodes, run", Outcome::Executed));
    }
}
