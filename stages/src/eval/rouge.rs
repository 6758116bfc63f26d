//! ROUGE-L (Lin 2004) as rouge-score computes it without stemming: the F-measure of the longest common subsequence of
//! lower-case ASCII words and numbers.
//!
//! Numbers are compared with rouge-score's in tests/fixtures/scores.

/// ROUGE-L of one answer, from 0 to 1.
pub fn rouge_l(answer: &str, reference: &str) -> f64 {
    let (answer, reference) = (answer.to_lowercase(), reference.to_lowercase());
    let (answer, reference) = (words(&answer), words(&reference));
    if answer.is_empty() || reference.is_empty() {
        return 0.0;
    }
    let common = longest_common(&answer, &reference) as f64;
    let (precision, recall) = (common / answer.len() as f64, common / reference.len() as f64);
    if common == 0.0 { 0.0 } else { 2.0 * precision * recall / (precision + recall) }
}

fn words(text: &str) -> Vec<&str> {
    text.split(|c: char| !(c.is_ascii_lowercase() || c.is_ascii_digit())).filter(|word| !word.is_empty()).collect()
}

/// Length of the longest common subsequence, with memory for one row of the table.
fn longest_common(a: &[&str], b: &[&str]) -> usize {
    let mut row = vec![0; b.len() + 1];
    for word in a {
        let mut diagonal = 0;
        for (j, other) in b.iter().enumerate() {
            let above = row[j + 1];
            row[j + 1] = if word == other { diagonal + 1 } else { above.max(row[j]) };
            diagonal = above;
        }
    }
    row[b.len()]
}
