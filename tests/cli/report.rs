//! The page of a run: what it shows, that it needs nothing else, and that hostile rows stay text.

use super::crash::{read_until, with_training};
use super::harness::{DATA_RECIPE, Project, rows};

/// Elements of HTML and SVG that have no end tag here.
const VOID: [&str; 6] = ["meta", "link", "br", "hr", "img", "input"];

/// An element's name and attributes.
pub struct Tag {
    pub name: String,
    pub attributes: Vec<(String, String)>,
}

/// The elements of a page, which must be well formed: every attribute quoted, every element closed in order.
pub fn tags(page: &str) -> Vec<Tag> {
    let (mut tags, mut open, mut rest) = (Vec::new(), Vec::<String>::new(), page);
    while let Some(at) = rest.find('<') {
        let text = &rest[at + 1..];
        assert!(!rest[..at].contains('>') || open.last().is_some_and(|name| name == "script" || name == "style"));
        let end = text.find('>').expect("a tag ends");
        let (inner, after) = (&text[..end], &text[end + 1..]);
        rest = after;
        if inner.starts_with('!') {
            continue;
        }
        if let Some(name) = inner.strip_prefix('/') {
            assert_eq!(open.pop().as_deref(), Some(name), "an element that is not open is closed");
            continue;
        }
        let tag = tag(inner.trim_end_matches('/'));
        if !inner.ends_with('/') && !VOID.contains(&tag.name.as_str()) {
            open.push(tag.name.clone());
        }
        if tag.name == "script" || tag.name == "style" {
            rest = &rest[rest.find(&format!("</{}>", tag.name)).expect("its end")..];
        }
        tags.push(tag);
    }
    assert!(open.is_empty(), "left open: {open:?}");
    tags
}

fn tag(inner: &str) -> Tag {
    let (name, mut rest) = inner.split_once(char::is_whitespace).unwrap_or((inner, ""));
    assert!(name.chars().all(|c| c.is_ascii_alphanumeric()), "<{inner}> is no element");
    let mut attributes = Vec::new();
    while !rest.trim().is_empty() {
        rest = rest.trim_start();
        let Some((key, after)) = rest.split_once("=\"").filter(|(key, _)| !key.contains(char::is_whitespace)) else {
            let (key, after) = rest.split_once(char::is_whitespace).unwrap_or((rest, ""));
            attributes.push((key.to_string(), String::new()));
            rest = after;
            continue;
        };
        let (value, after) = after.split_once('"').expect("an attribute's end");
        attributes.push((key.to_string(), value.to_string()));
        rest = after;
    }
    Tag { name: name.to_string(), attributes }
}

/// A page that is well formed, runs one script of its own, and loads nothing.
fn checked(page: &str) -> Vec<Tag> {
    let tags = tags(page);
    for tag in &tags {
        for (key, value) in &tag.attributes {
            assert!(!key.starts_with("on"), "<{} {key}>", tag.name);
            if ["src", "href", "xlink:href", "action", "data", "poster", "srcset"].contains(&key.as_str()) {
                assert!(value == "data:," || value.starts_with('#'), "<{} {key}=\"{value}\">", tag.name);
            }
        }
    }
    let scripts: Vec<&Tag> = tags.iter().filter(|tag| tag.name == "script").collect();
    assert_eq!(scripts.len(), 1);
    let nonce = &scripts[0].attributes[0];
    let policy = tags.iter().find(|tag| tag.attributes.iter().any(|(_, v)| v == "Content-Security-Policy"));
    let policy = &policy.expect("a policy").attributes[1].1;
    assert!(policy.starts_with("default-src &#x27;none&#x27;") || policy.starts_with("default-src 'none'"), "{policy}");
    assert!(nonce.0 == "nonce" && policy.contains(&nonce.1));
    for far in ["@import", "url(", "fetch(", "XMLHttpRequest", "import("] {
        assert!(!page.contains(far), "{far}");
    }
    tags
}

/// The page's text, tags and entities resolved.
pub fn text(page: &str) -> String {
    let mut out = String::new();
    let body = &page[page.find("<body").expect("a body")..page.find("<script").expect("a script")];
    for piece in body.split('<') {
        out.push_str(piece.split_once('>').map_or(piece, |(_, text)| text));
        out.push(' ');
    }
    let entities = [("&lt;", "<"), ("&gt;", ">"), ("&quot;", "\""), ("&#x27;", "'"), ("&#x2f;", "/"), ("&amp;", "&")];
    entities.iter().fold(out, |text, (entity, plain)| text.replace(entity, plain))
}

pub fn squeezed(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[test]
fn a_run_leaves_a_page_of_its_rows() {
    let project = Project::with_data_recipe();
    let said = project.pipe(&["run", "recipe.yml"]);
    assert_eq!(said.code, 0, "{}", said.stderr);
    assert!(said.stdout.contains("report  out/report.html"), "{}", said.stdout);
    let page = project.read("out/report.html");
    let tags = checked(&page);
    assert!(tags.iter().filter(|tag| tag.name == "rect").count() > 10, "boxes and bars");
    let text = squeezed(&text(&page));
    for told in [
        "recipe done",
        "docker 20 20",
        "tokenize.docker it has not run yet run 20",
        "pack.train",
        "Rows as they are trained",
    ] {
        assert!(text.contains(told), "no `{told}` in {text}");
    }
    let shown = project.pipe(&["show", "recipe.yml", "tokenize.docker", "--json"]).json();
    let spread = &shown["statistics"][0];
    let tokens = spread["tokens"].as_u64().unwrap();
    let told = format!("{} rows, {},{:03} tokens;", spread["rows"], tokens / 1000, tokens % 1000);
    assert!(text.contains(&told), "no `{told}` in {text}");
    let row = &shown["rows"][0];
    let trained = row["labels"].as_array().unwrap().iter().filter(|label| **label != -100).count();
    let told = format!(
        "{} · {} tokens, {trained} trained",
        row["row_id"].as_str().unwrap(),
        row["labels"].as_array().unwrap().len()
    );
    assert!(text.contains(&told), "no `{told}` in {text}");
}

#[test]
fn hostile_rows_stay_text() {
    let project = Project::with_data_recipe();
    let hostile = "</span><script>alert(1)</script><img src=x onerror=alert(2)> \" ' & \u{202e}txt.exe\u{2066}\u{7}";
    let row = serde_json::json!({"instruction": hostile, "input": "", "output": format!("docker {hostile}")});
    project.write("rows.jsonl", &format!("{row}\n{}", rows(0..8)));
    project.edit("recipe.yml", "label: docker", "label: a.b-c");
    project.write(
        "recipe.yml",
        &format!("{}report:\n  title: '<script>x</script>{}'\n", project.read("recipe.yml"), '\u{202e}'),
    );
    assert_eq!(project.run(&["--set", "split.val=0", "--set", "val_set_size="]).code, 0);
    let page = project.read("out/report.html");
    checked(&page);
    let text = text(&page);
    // The row was split between tokens somewhere, and its pieces are all there.
    assert!(text.contains("<script>x</script>\\u{202e}"), "the title");
    let plain: String = text.chars().filter(|c| !c.is_whitespace()).collect();
    assert!(
        plain.contains("alert(1)") && plain.contains("onerror=alert(2)") && plain.contains("\\u{202e}txt.exe\\u{2066}")
    );
    assert!(!page.contains('\u{202e}') && !page.contains('\u{2066}') && !page.contains('\u{7}'));
}

#[test]
fn a_page_is_made_when_it_is_wanted() {
    let project = Project::with_data_recipe();
    assert_eq!(project.run(&["--set", "report=false"]).code, 0);
    assert!(!project.path("work/out/report.html").exists());
    assert_eq!(project.run(&["--set", "report.title=Mine"]).executed.len(), 0, "no result depends on it");
    assert!(project.read("out/report.html").contains("<title>Mine</title>"));
    let made = || project.path("work/out/report.html").metadata().unwrap().modified().unwrap();
    let before = made();
    project.run(&["--set", "report.title=Mine"]);
    assert_eq!(made(), before, "nothing was done, and it is left as it is");
    project.run(&["--set", "report.title=Yours"]);
    assert!(project.read("out/report.html").contains("<title>Yours</title>"));
    let said = project.pipe(&["report"]);
    assert_eq!(said.code, 0, "{}", said.stderr);
    let path = said.stdout.trim().replace("$ROOT", &project.path("").canonicalize().unwrap().display().to_string());
    checked(&std::fs::read_to_string(path.replace("//", "/")).unwrap());
    let runs = project.pipe(&["runs", "--json"]).json();
    let first = runs["runs"][0]["id"].as_str().unwrap().to_string();
    let said = project.pipe(&["report", &first, "--output", "pages/first.html"]);
    assert_eq!((said.code, said.stdout.trim()), (0, "pages/first.html"));
    let page = project.read("pages/first.html");
    assert!(page.contains(&first) && page.contains("<title>recipe</title>"));
    assert_eq!(project.pipe(&["report", "last", "--output", "-"]).stdout.lines().next(), Some("<!DOCTYPE html>"));
    assert_eq!(project.pipe(&["report", "nothing"]).code, 2);
    assert_eq!(project.pipe(&["report", "--output", "recipe.yml/page.html"]).code, 1);
}

#[test]
fn a_page_never_fails_a_run() {
    let project = Project::with_data_recipe();
    std::fs::create_dir_all(project.path("work/out/report.html/taken")).unwrap();
    let said = project.pipe(&["run", "recipe.yml"]);
    assert_eq!(said.code, 0);
    assert!(said.stderr.contains("warning: no report: cannot write"), "{}", said.stderr);
    let said = project.pipe(&["run", "recipe.yml", "--set", "datasets[0].path=rows.jsonl", "--json"]);
    assert_eq!(said.code, 0);
}

#[test]
fn a_failed_run_has_a_page_that_says_why() {
    let project = Project::with_data_recipe();
    project.write("rows.jsonl", &format!("{}not json\n", rows(0..3)));
    let ran = project.run(&[]);
    assert_ne!(ran.code, 0);
    let page = project.pipe(&["report", "--output", "-"]).stdout;
    checked(&page);
    let text = squeezed(&text(&page));
    assert!(text.contains("recipe failed") && text.contains("ingest.docker failed:"), "{text}");
    assert!(text.contains("rows.jsonl:4"), "{text}");
}

#[test]
fn training_and_evaluation_are_drawn_with_their_numbers() {
    let project = Project::with_worker();
    project.write("rows.jsonl", &rows(0..40));
    let train = DATA_RECIPE.replace("train: false\neval: false\n", TRAINING);
    project.write("recipe.yml", &train);
    let ran = project.run(&[]);
    assert_eq!(ran.code, 0);
    let page = project.read("out/report.html");
    let tags = checked(&page);
    let drawn = |name: &str| -> Vec<(String, String)> {
        let line = tags.iter().find(|tag| tag.attributes.contains(&("data-name".into(), name.into())));
        let points = &line
            .unwrap_or_else(|| panic!("no line {name}"))
            .attributes
            .iter()
            .find(|a| a.0 == "data-points")
            .unwrap()
            .1;
        points
            .split(';')
            .map(|p| p.split('|').map(str::to_string).collect::<Vec<_>>())
            .map(|p| (p[0].clone(), p[1].clone()))
            .collect()
    };
    let metrics: Vec<_> = ran.events.iter().filter(|event| event["event"] == "metric").collect();
    let loss = drawn("each step");
    assert_eq!(loss.len(), metrics.len());
    for (point, metric) in loss.iter().zip(&metrics) {
        assert_eq!(point.0, metric["step"].to_string());
        let (told, loss) = (point.1.parse::<f64>().unwrap(), metric["loss"].as_f64().unwrap());
        assert!((told - loss).abs() <= 0.0005 * loss.max(1.0), "{told} for {loss}");
    }
    let evals: Vec<_> = ran.events.iter().filter(|event| event["event"] == "eval").collect();
    assert!(!evals.is_empty() && drawn("val").len() == evals.len());
    let told = squeezed(&text(&page));
    for curve in ["learning rate", "gradient norm before clipping", "tokens per second", "memory"] {
        assert!(told.contains(curve), "{curve}");
    }
    let finished =
        ran.events.iter().find(|event| event["event"] == "node_finished" && event["node"] == "eval").unwrap();
    let perplexity = finished["stats"]["models"]["tuned"]["val"]["perplexity"].as_f64().unwrap();
    let row = told.split("perplexity val ").nth(1).expect("a row of the table");
    // Base and tuned, each with the ends of its interval below it.
    let cells: Vec<f64> =
        row.split(' ').filter(|word| *word != "to").map_while(|w| w.replace(',', "").parse().ok()).collect();
    let tuned = cells[3];
    assert!(cells[4] <= tuned && tuned <= cells[5], "{cells:?}");
    assert!((tuned - perplexity).abs() <= 0.005 * perplexity, "{tuned} for {perplexity}");
    assert!(told.contains("asked Please list the 3 running container"), "{told}");
    let changes = changes(&ran.events);
    let of_steps = |page: &str| page.matches("<dt>step ").count();
    assert!(changes > 2 && of_steps(&page) == changes, "{changes} answers");
    assert!(told.contains("Answers during training") && told.contains("how varied the answers are"));
    // A run that finds everything shows the curves of the run that did the work, speed and memory too.
    let again = project.pipe(&["run", "recipe.yml", "--set", "output_dir=other"]);
    assert_eq!(again.code, 0);
    let page = project.read("other/report.html");
    assert_eq!(of_steps(&page), changes);
    let text = squeezed(&text(&page));
    assert!(text.contains("train reused") && text.contains("tokens per second") && text.contains("0 run,"), "{text}");
}

/// How many different answers the prompts got one after the other.
fn changes(events: &[serde_json::Value]) -> usize {
    let of = |prompt: &str| {
        let samples = events.iter().filter(|event| event["event"] == "sample" && event["prompt"] == prompt);
        let mut answers: Vec<_> = samples.map(|event| &event["answer"]).collect();
        assert!(answers.len() > 2, "{answers:?}");
        answers.dedup();
        answers.len()
    };
    of("Please list the 3 running container") + of("Please stop")
}

#[test]
fn a_run_that_resumes_shows_the_steps_before_it() {
    let project = with_training();
    let long = ["run", "recipe.yml", "--until", "train", "--json", "--set", "max_steps=40", "--set", "num_epochs=20"];
    let mut stopped = project.start_telling(&long);
    read_until(&mut stopped, |event| event["event"] == "metric" && event["step"] == 4);
    std::process::Command::new("kill").args(["-INT", &stopped.id().to_string()]).status().unwrap();
    stopped.wait().unwrap();
    let ran = project.run(&long[2..4].iter().chain(&long[5..]).copied().collect::<Vec<_>>());
    let own = ran.events.iter().filter(|event| event["event"] == "metric").count();
    assert!((1..40).contains(&own), "{own} of 40 steps were left");
    let page = project.read("out/report.html");
    // Tokens per second are told by events alone.
    let all = page.split_once("data-name=\"all\" data-points=\"").unwrap().1.split_once('"').unwrap().0;
    assert_eq!(all.split(';').count(), 40);
}

const TRAINING: &str = "\
adapter: lora
lora_r: 4
lora_alpha: 8
lora_target_linear: true
micro_batch_size: 1
gradient_accumulation_steps: 2
num_epochs: 2
learning_rate: 0.01
eval_steps: 2
eval:
  metrics: [perplexity]
  max_new_tokens: 4
  samples: ['Please list the 3 running container', 'Please stop']
  sample_every: 2
";
