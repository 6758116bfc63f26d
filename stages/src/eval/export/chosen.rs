//! Tasks of questions with choices: the harness' `multiple_choice`.

use std::collections::BTreeMap;

use serde_json::json;

use super::{Doc, Outcome, Sample, Source, Task, mean, metric_list, task_name};
use crate::eval::choices::{Choices, Picked, Question};

const METRICS: [(&str, &str); 2] = [("acc", "mean"), ("acc_norm", "mean")];
/// The harness' name for answers as they came.
const FILTER: &str = "none";
/// Whether a choice is what the model would have written itself is not measured.
const UNKNOWN: &str = "None";

/// A task for each file of choices.
pub(super) fn tasks(source: &Source<'_>) -> Vec<Task> {
    let task = |(choices, questions): (&Choices, &[Question])| {
        let mut outcomes = BTreeMap::new();
        for ((model, _), losses) in source.losses.iter().filter(|((_, split), _)| *split == choices.name) {
            outcomes.insert(model.clone(), outcome(choices, questions, &choices.picked(questions, losses)));
        }
        Task {
            name: task_name(&choices.name),
            config: vec![
                ("output_type", json!("multiple_choice")),
                ("doc_to_text", json!("prompt")),
                ("doc_to_choice", json!("choices")),
                ("doc_to_target", json!("answer")),
                ("target_delimiter", json!(choices.delimiter)),
                ("metric_list", metric_list(&METRICS)),
            ],
            filter: FILTER,
            docs: questions.iter().map(doc).collect(),
            outcomes,
        }
    };
    source.questions.each().map(task).collect()
}

fn doc(question: &Question) -> Doc {
    Doc {
        columns: json!({
            "prompt": question.context, "choices": question.choices, "answer": question.answer,
        }),
        prompt: question.context.clone(),
        target: question.answer.to_string(),
    }
}

fn outcome(choices: &Choices, questions: &[Question], picked: &[Picked]) -> Outcome {
    let share = |right: bool| f64::from(u8::from(right));
    let sample = |(question, picked): (&Question, &Picked)| {
        let request = |choice: &String| [json!(question.context), json!(format!("{}{choice}", choices.delimiter))];
        let answer = |logprob: &f64| json!([format!("{logprob:?}"), UNKNOWN]);
        Sample {
            requests: question.choices.iter().map(request).collect(),
            resps: picked.logprobs.iter().map(|logprob| json!([answer(logprob)])).collect(),
            filtered: picked.logprobs.iter().map(answer).collect(),
            metrics: vec![("acc", json!(share(picked.right))), ("acc_norm", json!(share(picked.right_by_length)))],
        }
    };
    let values = |right: fn(&Picked) -> bool| picked.iter().map(|picked| share(right(picked))).collect::<Vec<_>>();
    Outcome {
        samples: questions.iter().zip(picked).map(sample).collect(),
        scores: vec![
            mean("acc", &values(|picked| picked.right)),
            mean("acc_norm", &values(|picked| picked.right_by_length)),
        ],
    }
}
