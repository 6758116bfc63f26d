//! What a run leaves on the screen: what was done at what cost, base against tuned, sample answers, where the outputs
//! are, and what to type next.

use std::path::PathBuf;

use pipe_engine::event::{NodeFinished, NodeOutcome, RunFinished};
use serde::Serialize;

use super::format::{bytes, clip, count, measure, percent, plural, seconds};
use super::scores::{scale, spoken};
use super::style::{BAD, BOLD, DIM, GOOD, NOTE, paint};
use super::table::{Align, Column, Table};

/// Everything the closing text is made from.
pub struct Summary {
    pub run: RunFinished,
    pub nodes: Vec<NodeFinished>,
    pub scores: Scores,
    pub samples: Vec<Sample>,
    pub outputs: Vec<(String, PathBuf)>,
    pub next: Vec<String>,
    /// Labels of the datasets that pack mixes.
    pub mixed: Vec<String>,
}

/// What was measured, with a column for each model.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Scores {
    pub models: Vec<String>,
    pub rows: Vec<Score>,
}

/// One measure of one split.
#[derive(Clone, Debug, PartialEq)]
pub struct Score {
    /// The measure's name in records.
    pub name: String,
    pub split: String,
    /// The dataset, where it is one of several.
    pub task: Option<String>,
    /// In the order of the models.
    pub cells: Vec<Option<Measured>>,
}

/// A measure and its 95 % interval.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Measured {
    pub value: f64,
    pub interval: Option<[f64; 2]>,
}

/// How a measure is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scale {
    Number,
    /// Between 0 and 1, written as a percentage.
    Share,
    /// Of things that are counted.
    Count,
}

/// A question and what the models made of it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Sample {
    pub prompt: String,
    pub expected: Option<String>,
    pub base: Option<String>,
    pub tuned: Option<String>,
}

/// Beyond this only the nodes that ran are listed; the closing line counts the others.
const MOST_NODES: usize = 24;
/// Sample answers shown.
const SAMPLES: usize = 3;

impl Summary {
    /// The closing text for a window of `width` columns.
    pub fn render(&self, width: usize) -> String {
        let mut parts = Vec::new();
        if self.run.executed.is_empty() && self.run.ok {
            parts.push(self.nothing_to_do());
        } else {
            parts.push(self.stages(width));
            parts.push(self.outcome());
        }
        if !self.run.executed.is_empty() {
            parts.extend(super::counts::section(&self.nodes, &self.mixed));
        }
        parts.extend(self.score_table(width));
        parts.extend(super::agreement::section(&self.nodes, width));
        if !self.run.executed.is_empty() {
            parts.extend(self.sample_answers(width));
        }
        parts.extend(self.output_list());
        parts.extend(self.next_steps());
        parts.join("\n\n")
    }

    fn nothing_to_do(&self) -> String {
        let nodes = plural(self.run.cached.len() as u64, "node");
        let what = paint(GOOD, "nothing to do");
        format!("{what}: nothing changed, {nodes} cached, {}", seconds(self.run.seconds))
    }

    fn outcome(&self) -> String {
        let parts = [
            (self.run.executed.len(), "run"),
            (self.run.cached.len(), "cached"),
            (self.run.failed.len(), "failed"),
            (self.run.skipped.len(), "skipped"),
        ];
        let told = parts.iter().filter(|(n, _)| *n > 0).map(|(n, word)| format!("{n} {word}"));
        let mark = if self.run.ok { paint(GOOD, "done") } else { paint(BAD, "not done") };
        format!("{mark}: {} in {}", told.collect::<Vec<_>>().join(", "), seconds(self.run.seconds))
    }

    fn stages(&self, width: usize) -> String {
        let mut table = Table::new(&[
            Column { head: "node", align: Align::Left, drop: 0 },
            Column { head: "", align: Align::Left, drop: 0 },
            Column { head: "rows", align: Align::Right, drop: 2 },
            Column { head: "time", align: Align::Right, drop: 0 },
            Column { head: "memory", align: Align::Right, drop: 1 },
        ]);
        let is_long = self.nodes.len() > MOST_NODES;
        for node in &self.nodes {
            let executed = node.outcome == NodeOutcome::Executed;
            if is_long && !executed {
                continue;
            }
            table.row(vec![
                node.node.to_string(),
                if executed { "run" } else { "cached" }.to_string(),
                node.rows.map(count).unwrap_or_default(),
                if executed { seconds(node.seconds) } else { String::new() },
                if executed && node.peak_rss_bytes > 0 { bytes(node.peak_rss_bytes) } else { String::new() },
            ]);
        }
        let gone = self.run.failed.iter().map(|node| (node, "failed"));
        for (node, word) in gone.chain(self.run.skipped.iter().map(|node| (node, "skipped"))) {
            table.row(vec![node.to_string(), word.to_string()]);
        }
        headed(&table.lines(width))
    }

    fn score_table(&self, width: usize) -> Option<String> {
        if self.scores.rows.is_empty() {
            return None;
        }
        let models = self.scores.models.iter().map(|model| Column { head: model, align: Align::Right, drop: 0 });
        let measure = Column { head: "measure", align: Align::Left, drop: 0 };
        let mut table = Table::new(&std::iter::once(measure).chain(models).collect::<Vec<_>>());
        for score in &self.scores.rows {
            let cells = score.cells.iter().map(|cell| cell.map(|cell| cell.told(score.scale())).unwrap_or_default());
            table.row(std::iter::once(format!("{} ({})", score.spoken(), score.of())).chain(cells).collect());
        }
        Some(headed(&table.lines(width)))
    }

    fn sample_answers(&self, width: usize) -> Option<String> {
        let shown = self.samples.iter().take(SAMPLES);
        let blocks: Vec<String> = shown.map(|sample| sample.lines(width).join("\n")).collect();
        (!blocks.is_empty()).then(|| format!("{}\n{}", paint(BOLD, "samples"), blocks.join("\n")))
    }

    fn output_list(&self) -> Option<String> {
        let widest = self.outputs.iter().map(|(name, _)| name.chars().count()).max()?;
        let rows = self.outputs.iter().map(|(name, path)| format!("  {name:<widest$}  {}", path.display()));
        Some(format!("{}\n{}", paint(BOLD, "outputs"), rows.collect::<Vec<_>>().join("\n")))
    }

    fn next_steps(&self) -> Option<String> {
        let rows: Vec<String> = self.next.iter().map(|line| format!("  {}", paint(NOTE, line))).collect();
        (!rows.is_empty()).then(|| format!("{}\n{}", paint(BOLD, "next"), rows.join("\n")))
    }
}

impl Score {
    /// The measure as it is spoken of.
    pub fn spoken(&self) -> String {
        spoken(&self.name)
    }

    /// The split, and the dataset where it is one of several.
    pub fn of(&self) -> String {
        self.task.as_ref().map_or(self.split.clone(), |task| format!("{}, {task}", self.split))
    }

    pub fn scale(&self) -> Scale {
        scale(&self.name)
    }
}

impl Measured {
    /// `87.0 % (82.1 to 91.0)`.
    pub fn told(self, scale: Scale) -> String {
        let bare = |value: f64| scale.told(value).trim_end_matches(" %").to_string();
        let interval = self.interval.map(|[low, high]| format!(" ({} to {})", bare(low), bare(high)));
        scale.told(self.value) + &interval.unwrap_or_default()
    }
}

impl Scale {
    pub fn told(self, value: f64) -> String {
        match self {
            Scale::Number => measure(value),
            Scale::Share => percent(value),
            Scale::Count => count(value as u64),
        }
    }
}

impl Sample {
    fn lines(&self, width: usize) -> Vec<String> {
        let room = width.saturating_sub(12).max(10);
        let one_line = |text: &str| clip(&text.split_whitespace().collect::<Vec<_>>().join(" "), room);
        let mut lines = vec![format!("  asked     {}", one_line(&self.prompt))];
        let answers = [("wanted", &self.expected), ("base", &self.base), ("tuned", &self.tuned)];
        for (who, answer) in answers.into_iter().filter_map(|(who, answer)| Some((who, answer.as_ref()?))) {
            let text = one_line(answer);
            let text = if who == "tuned" { paint(GOOD, text) } else { text };
            lines.push(format!("  {}  {text}", paint(DIM, format!("{who:<8}"))));
        }
        lines
    }
}

fn headed(lines: &[String]) -> String {
    let mut out = lines.to_vec();
    if let Some(head) = out.first_mut() {
        *head = paint(DIM, &*head);
    }
    out.join("\n")
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use indexmap::IndexMap;
    use pipe_engine::digest::Digest;
    use pipe_engine::plan::NodeName;

    fn node(name: &str, outcome: NodeOutcome) -> NodeFinished {
        NodeFinished {
            node: NodeName::new(name),
            outcome,
            from_remote: false,
            key: Digest::of(b"k"),
            output: Digest::of(b"o"),
            seconds: 12.5,
            peak_rss_bytes: 41_000_000,
            bytes_read: 1000,
            bytes_written: 2000,
            rows: Some(2400),
            rows_computed: None,
            rows_reused: None,
            stats: IndexMap::new(),
            warnings: Vec::new(),
        }
    }

    fn summary(executed: &[&str], cached: &[&str]) -> Summary {
        let names = |list: &[&str]| list.iter().map(|name| NodeName::new(*name)).collect::<Vec<_>>();
        let run = RunFinished {
            ok: true,
            run: "r1".into(),
            executed: names(executed),
            cached: names(cached),
            skipped: Vec::new(),
            failed: Vec::new(),
            seconds: 13.0,
            outputs: IndexMap::new(),
        };
        let nodes = cached.iter().map(|name| node(name, NodeOutcome::Cached));
        let nodes = nodes.chain(executed.iter().map(|name| node(name, NodeOutcome::Executed))).collect();
        Summary {
            run,
            nodes,
            scores: Scores::default(),
            samples: Vec::new(),
            outputs: Vec::new(),
            next: Vec::new(),
            mixed: Vec::new(),
        }
    }

    fn plain(text: &str) -> String {
        anstream::adapter::strip_str(text).to_string()
    }

    #[test]
    fn a_run_ends_in_tables() {
        let mut summary = summary(&["train", "eval"], &["ingest.docker"]);
        let score = |name: &str, base, tuned, interval| Score {
            name: name.into(),
            split: "test".into(),
            task: None,
            cells: vec![
                Some(Measured { value: base, interval: None }),
                Some(Measured { value: tuned, interval: Some(interval) }),
            ],
        };
        summary.scores.models = vec!["base".into(), "tuned".into()];
        summary.scores.rows.push(score("perplexity", 23.456, 1.234, [1.1, 1.4]));
        summary.scores.rows.push(score("exact_match", 0.012, 0.87, [0.825, 0.91]));
        summary.samples.push(Sample {
            prompt: "list all\ncontainers".into(),
            expected: Some("docker ps -a".into()),
            base: None,
            tuned: Some("docker ps -a".into()),
        });
        summary.nodes[0].stats.insert("dropped_duplicate".into(), 12.into());
        summary.nodes[0].stats.insert("dropped_untrained_rows".into(), 0.into());
        summary.outputs.push(("adapter".into(), "outputs/docker/adapter".into()));
        summary.next.push("pipe chat outputs/docker/merged".into());
        let expected = "\
node                    rows    time  memory
ingest.docker  cached  2,400
train          run     2,400  12.5 s   41 MB
eval           run     2,400  12.5 s   41 MB

done: 2 run, 1 cached in 13.0 s

rows
  ingest.docker  dropped 12 duplicate

measure              base                   tuned
perplexity (test)   23.46  1.234 (1.100 to 1.400)
exact match (test)  1.2 %   87.0 % (82.5 to 91.0)

samples
  asked     list all containers
  wanted    docker ps -a
  tuned     docker ps -a

outputs
  adapter  outputs/docker/adapter

next
  pipe chat outputs/docker/merged";
        assert_eq!(plain(&summary.render(80)), expected);
    }

    #[test]
    fn many_nodes_are_counted_and_those_that_ran_are_listed() {
        let names: Vec<String> = (0..49).map(|i| format!("tokenize.dataset-with-a-long-name-{i}")).collect();
        let cached: Vec<&str> = names.iter().map(String::as_str).collect();
        let text = plain(&summary(&["train"], &cached).render(40));
        assert_eq!(
            text,
            "node         rows    time  memory\ntrain  run  2,400  12.5 s   41 MB\n\ndone: 1 run, 49 cached in 13.0 s"
        );
    }

    #[test]
    fn a_cached_run_says_there_is_nothing_to_do() {
        let text = plain(&summary(&[], &["ingest.docker", "train"]).render(80));
        assert_eq!(text, "nothing to do: nothing changed, 2 nodes cached, 13.0 s");
    }
}
