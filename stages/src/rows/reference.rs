//! The columns of every row shape as a page, generated from the schemas, so that the two cannot differ.

use arrow::datatypes::{DataType, SchemaRef};

use super::shapes;

/// A shape: where it is written, what a row is, and its columns.
struct Shape {
    files: &'static str,
    row: &'static str,
    schema: SchemaRef,
}

/// What the columns hold, by name.
const COLUMNS: &[(&str, &str)] = &[
    ("row_id", "32 hex digits: 24 of the content's digest, 8 of how many equal rows came before"),
    (
        "row",
        "place in the source file, from 1: the line of JSONL, CSV and text, the element of JSON, the row of a table",
    ),
    ("data", "the example as JSON; its `shape` is `chat`, `instruct`, `completion`, `segments` or `tokens`"),
    ("meta", "the columns that `split.group_by` and `split.stratify_by` name, as a JSON object; else null"),
    ("source", "which of the dataset's files, from 0"),
    ("from", "the `row_id` in the stage before"),
    ("split", "which table of the input the row is in"),
    (
        "what",
        "`not_located`, `untrained` (the row was dropped), `missing_terminators`, `double_bos`, `special_in_content`; `trained` and `trained:ROLE` where tokens other than those of the last turn's role are trained",
    ),
    ("count", "how often"),
    ("input_ids", "token ids"),
    ("labels", "the same ids where trained, -100 where masked; not shifted"),
    ("length", "number of tokens"),
    ("position_ids", "place of each token in its document, from 0"),
    ("segment_ids", "which document of the pack each token belongs to, from 1"),
    ("row_ids", "`row_id` of each document"),
    ("lengths", "tokens of each document"),
    ("sources", "dataset of each document, from 0, in the order of the recipe"),
];

/// The page, as Markdown.
pub fn markdown() -> String {
    let mut page = String::from(
        "# Row shapes\n\nThe Parquet columns of what data stages write. Generated from the code (`pipe_stages::rows::reference`).\n",
    );
    for shape in all() {
        page.push_str(&format!(
            "\n## {}\n{}\n\n| column | type | holds |\n| --- | --- | --- |\n",
            shape.files, shape.row
        ));
        for field in shape.schema.fields() {
            let holds = COLUMNS.iter().find(|(name, _)| name == field.name()).map_or("", |(_, holds)| holds);
            let null = if field.is_nullable() { ", may be null" } else { "" };
            page.push_str(&format!("| `{}` | {}{null} | {holds} |\n", field.name(), type_name(field.data_type())));
        }
    }
    page
}

fn all() -> Vec<Shape> {
    let shape = |files, row, schema| Shape { files, row, schema };
    vec![
        shape("ingest: `rows.parquet`", "A row of the source, in its order.", shapes::raw()),
        shape(
            "clean: `rows.parquet`, split: `train.parquet`, `val.parquet`, `test.parquet`, augment: `train.parquet`",
            "An example that is used.",
            shapes::example(),
        ),
        shape(
            "clean and augment: `lineage.parquet`",
            "Where a row came from; in the order of the rows beside it. No stage reads it.",
            shapes::lineage(),
        ),
        shape("tokenize: `train.parquet`, `val.parquet`, `test.parquet`", "An example as tokens.", shapes::tokens()),
        shape(
            "template and tokenize: `remarks.parquet`",
            "Something to say of a row of the input; the file is there only when there is. `row` counts from 0 here.",
            shapes::remarks(),
        ),
        shape("pack: `packs.parquet`", "A sequence that the model sees, without padding.", shapes::packs()),
    ]
}

fn type_name(kind: &DataType) -> String {
    match kind {
        DataType::Utf8 => "text".into(),
        DataType::List(item) => format!("list of {}", type_name(item.data_type())),
        other => other.to_string().to_lowercase(),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn every_column_is_described_and_the_page_is_current() {
        let page = markdown();
        assert!(!page.contains("|  |"), "a column lacks its description:\n{page}");
        let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../schemas/rows.md");
        let written = std::fs::read_to_string(&path).unwrap_or_default();
        assert!(written == page, "schemas/rows.md is out of date; it should be:\n{page}");
    }
}
