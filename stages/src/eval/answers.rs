//! Answers against the rows they should repeat: decoded, scored and written as a readable table.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use arrow::array::{Array, BooleanArray, Float64Array, RecordBatch, StringArray, UInt16Array};
use arrow::datatypes::{DataType, Field, Schema};
use pipe_engine::task::TaskError;
use pipe_job::Asked;
use tokenizers::Tokenizer;

use super::score::{Answered, Formula, Measure, Series};
use super::sheet::{Block, Sheet};
use crate::rows::{TableWriter, batches, int_list, list_column, text_column, typed};

/// A row's prompt and the answer it should get, as text.
pub struct Expected {
    pub prompt: String,
    pub answer: String,
}

/// Rows by split, dataset and id.
pub type Rows = BTreeMap<(String, u16, String), Expected>;

/// Tokens to text, and where an answer ends.
pub struct Decoder<'a> {
    pub tokenizer: &'a Tokenizer,
    /// Texts that end an answer.
    pub stops: &'a [String],
}

impl Decoder<'_> {
    /// The text without special tokens and surrounding white space.
    pub fn text(&self, ids: &[i32]) -> Result<String, TaskError> {
        Ok(self.raw(ids, true)?.trim().to_string())
    }

    /// The same, up to the first stop text.
    pub fn answer(&self, ids: &[i32]) -> Result<String, TaskError> {
        Ok(self.written(ids)?.trim().to_string())
    }

    /// The text up to the first stop text, with white space and without special tokens.
    pub fn written(&self, ids: &[i32]) -> Result<String, TaskError> {
        let mut text = self.raw(ids, true)?;
        let end = self.stops.iter().filter_map(|stop| text.find(stop.as_str())).min().unwrap_or(text.len());
        text.truncate(end);
        Ok(text)
    }

    /// The text with special tokens and white space.
    pub fn whole(&self, ids: &[i32]) -> Result<String, TaskError> {
        self.raw(ids, false)
    }

    fn raw(&self, ids: &[i32], skip_special: bool) -> Result<String, TaskError> {
        let ids: Vec<u32> = ids.iter().filter_map(|&id| u32::try_from(id).ok()).collect();
        self.tokenizer.decode(&ids, skip_special).map_err(|e| TaskError::Failed(format!("decoding tokens: {e}")))
    }
}

/// Expected answers, from the rows' own labels.
pub fn expected(asked: &[Asked], decoder: &Decoder<'_>) -> Result<Rows, TaskError> {
    let mut rows = Rows::new();
    for asked in asked.iter().filter(|asked| asked.base_as.is_none()) {
        for batch in batches(&asked.rows, &["row_id", "input_ids", "labels"], 1024)? {
            let batch = batch?;
            let (names, ids) = (text_column(&batch, "row_id")?, list_column(&batch, "input_ids")?);
            let labels = list_column(&batch, "labels")?;
            for i in 0..batch.num_rows() {
                let (ids, labels) = (int_list(ids, i)?, int_list(labels, i)?);
                let start = labels.iter().position(|&label| label != -100).unwrap_or(labels.len());
                let end = labels[start..].iter().position(|&label| label == -100).map_or(labels.len(), |n| start + n);
                let row = Expected { prompt: decoder.text(&ids[..start])?, answer: decoder.text(&ids[start..end])? };
                rows.insert((asked.split.clone(), asked.source, names.value(i).to_string()), row);
            }
        }
    }
    Ok(rows)
}

/// One line of the readable table.
struct Line {
    model: String,
    split: String,
    source: u16,
    row_id: String,
    answer: String,
    /// Sums of each measure.
    sums: Vec<Vec<f64>>,
}

/// Scores the worker's answers, adds them to the sheet and writes the readable table.
pub fn score(
    answers: &Path,
    expected: &Rows,
    measures: Vec<Measure>,
    decoder: &Decoder<'_>,
    sheet: &mut Sheet,
) -> Result<Scored, TaskError> {
    let mut scored = Scored { measures, lines: Vec::new() };
    for batch in batches(answers, &["model", "split", "source", "row_id", "output_ids"], 1024)? {
        let batch = batch?;
        let (models, splits) = (text_column(&batch, "model")?, text_column(&batch, "split")?);
        let sources = typed::<UInt16Array>(&batch, "source")?;
        let (names, outputs) = (text_column(&batch, "row_id")?, list_column(&batch, "output_ids")?);
        for i in 0..batch.num_rows() {
            let (split, source, row_id) = (splits.value(i).to_string(), sources.value(i), names.value(i).to_string());
            let place = (split, source, row_id);
            let Some(row) = expected.get(&place) else { continue };
            let answer = decoder.answer(int_list(outputs, i)?)?;
            let told = Answered { prompt: &row.prompt, expected: &row.answer, answer: &answer };
            let sums = scored.measures.iter().map(|measure| measure.sums(told)).collect::<Result<_, String>>();
            let sums = sums.map_err(|why| TaskError::Input(format!("{why}; row {}, answer `{answer}`", place.2)))?;
            let (split, source, row_id) = place;
            scored.lines.push(Line { model: models.value(i).to_string(), split, source, row_id, answer, sums });
        }
    }
    scored.fill(sheet);
    Ok(scored)
}

/// Scored answers.
pub struct Scored {
    measures: Vec<Measure>,
    lines: Vec<Line>,
}

impl Scored {
    fn fill(&self, sheet: &mut Sheet) {
        let mut places: BTreeMap<(&str, &str), Vec<&Line>> = BTreeMap::new();
        for line in &self.lines {
            places.entry((&line.model, &line.split)).or_default().push(line);
        }
        for ((model, split), lines) in places {
            let series = self.measures.iter().enumerate().map(|(place, measure)| {
                let mut series = Series::new(measure.formula());
                lines.iter().for_each(|line| series.push(&line.sums[place]));
                (measure.name(), series)
            });
            let mut count = Series::new(Formula::Total);
            lines.iter().for_each(|_| count.push(&[1.0]));
            let series = series.chain([("rows".to_string(), count)]).collect();
            sheet.add(model, split, Block { sources: lines.iter().map(|line| line.source).collect(), series });
        }
    }

    /// Writes `answers.parquet`: one line per model and row, with every measure of that row alone.
    pub fn write(&self, expected: &Rows, labels: &BTreeMap<String, Vec<String>>, path: &Path) -> Result<(), TaskError> {
        let mut columns: [Vec<String>; 7] = Default::default();
        for line in &self.lines {
            let place = (line.split.clone(), line.source, line.row_id.clone());
            let Some(row) = expected.get(&place) else { continue };
            let task = labels.get(&line.split).and_then(|names| names.get(usize::from(line.source)));
            let task = task.cloned().unwrap_or_default();
            let cells = [&line.model, &line.split, &task, &line.row_id, &row.prompt, &row.answer, &line.answer];
            columns.iter_mut().zip(cells).for_each(|(column, cell)| column.push(cell.clone()));
        }
        let exact: Vec<bool> = columns[5].iter().zip(&columns[6]).map(|(wanted, given)| wanted == given).collect();
        let names = ["model", "split", "task", "row_id", "prompt", "expected", "answer"];
        let mut fields: Vec<Field> = names.iter().map(|name| Field::new(*name, DataType::Utf8, false)).collect();
        let mut arrays: Vec<Arc<dyn Array>> = Vec::new();
        arrays.extend(columns.into_iter().map(|column| Arc::new(StringArray::from(column)) as Arc<dyn Array>));
        fields.push(Field::new("exact", DataType::Boolean, false));
        arrays.push(Arc::new(BooleanArray::from(exact)));
        for (place, measure) in self.measures.iter().enumerate() {
            fields.push(Field::new(measure.name(), DataType::Float64, true));
            let values = self.lines.iter().map(|line| measure.formula().of(&line.sums[place]));
            arrays.push(Arc::new(values.collect::<Float64Array>()));
        }
        let schema = Arc::new(Schema::new(fields));
        let batch = RecordBatch::try_new(schema.clone(), arrays).map_err(|e| TaskError::Failed(e.to_string()))?;
        let mut writer = TableWriter::create(path, schema)?;
        writer.write(&batch)?;
        writer.finish().map(|_| ())
    }
}
