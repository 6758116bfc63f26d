//! The schema of a source as its rows show it: which columns there are and what they hold, with the first row of each kind.
//!
//! It explains: a value of another kind than its column's others is named with both rows. It decides nothing.

use indexmap::IndexMap;
use serde_json::{Map, Value, json};

/// Where a row is: the source it is in, counted from 0, and its line or row there.
pub type Place = (usize, u64);

/// A kind of value, the rows that hold it, and the first of them.
pub type Found = (&'static str, u64, Place);

/// What was seen of every column, in order of appearance.
#[derive(Debug, Default)]
pub struct Columns {
    seen: Vec<Column>,
    rows: u64,
}

#[derive(Debug)]
struct Column {
    name: String,
    kinds: [Kind; KINDS.len()],
}

#[derive(Clone, Copy, Debug, Default)]
struct Kind {
    rows: u64,
    first: Place,
}

const KINDS: [&str; 6] = ["null", "boolean", "number", "text", "list", "object"];
const NULL: usize = 0;

impl Columns {
    /// Notes a row.
    pub fn note(&mut self, place: Place, row: &Map<String, Value>) {
        self.rows += 1;
        for (i, (name, value)) in row.iter().enumerate() {
            let at = match self.seen.get(i) {
                Some(column) if column.name == *name => i,
                _ => self.find(name),
            };
            let kind = &mut self.seen[at].kinds[kind(value)];
            if kind.rows == 0 {
                kind.first = place;
            }
            kind.rows += 1;
        }
    }

    /// Adds what was seen of later rows.
    pub fn extend(&mut self, later: Columns) {
        self.rows += later.rows;
        for column in later.seen {
            let at = self.find(&column.name);
            for (mine, other) in self.seen[at].kinds.iter_mut().zip(column.kinds) {
                if mine.rows == 0 {
                    mine.first = other.first;
                }
                mine.rows += other.rows;
            }
        }
    }

    /// For a message about a value that does not fit: what the column held before.
    pub fn before(&self, name: &str) -> Option<(&'static str, Place)> {
        let column = self.seen.iter().find(|column| column.name == name)?;
        let usual = (1..KINDS.len()).max_by_key(|&kind| column.kinds[kind].rows)?;
        let kind = column.kinds[usual];
        (kind.rows > 0).then_some((KINDS[usual], kind.first))
    }

    /// Columns that hold more than one kind: the name, and per kind how many rows and the first.
    pub fn conflicts(&self) -> Vec<(&str, Vec<Found>)> {
        let kinds = |column: &Column| {
            let mut kinds: Vec<Found> = (1..KINDS.len())
                .filter(|&kind| column.kinds[kind].rows > 0)
                .map(|kind| (KINDS[kind], column.kinds[kind].rows, column.kinds[kind].first))
                .collect();
            kinds.sort_by_key(|(_, rows, _)| std::cmp::Reverse(*rows));
            kinds
        };
        let all = self.seen.iter().map(|column| (column.name.as_str(), kinds(column)));
        all.filter(|(_, kinds)| kinds.len() > 1).collect()
    }

    /// How many rows have a value in this column.
    pub fn filled(&self, name: &str) -> u64 {
        let column = self.seen.iter().find(|column| column.name == name);
        column.map_or(0, |column| column.kinds.iter().skip(1).map(|kind| kind.rows).sum())
    }

    /// Rows by kind, for each column; rows that lack it count as `absent`.
    pub fn to_json(&self) -> Value {
        let one = |column: &Column| {
            let mut kinds: IndexMap<&str, u64> = IndexMap::new();
            kinds.extend(KINDS.iter().zip(column.kinds).filter(|(_, k)| k.rows > 0).map(|(name, k)| (*name, k.rows)));
            let there: u64 = column.kinds.iter().map(|kind| kind.rows).sum();
            if there < self.rows {
                kinds.insert("absent", self.rows - there);
            }
            json!(kinds)
        };
        Value::Object(self.seen.iter().map(|column| (column.name.clone(), one(column))).collect())
    }

    fn find(&mut self, name: &str) -> usize {
        match self.seen.iter().position(|column| column.name == name) {
            Some(at) => at,
            // Data with a column per row would make this list long; what it shows is then of no use.
            None if self.seen.len() == MOST => MOST - 1,
            None => {
                let name = if self.seen.len() == MOST - 1 { "and more" } else { name };
                self.seen.push(Column { name: name.to_string(), kinds: Default::default() });
                self.seen.len() - 1
            }
        }
    }
}

/// Columns that are told apart.
const MOST: usize = 256;

fn kind(value: &Value) -> usize {
    match value {
        Value::Null => NULL,
        Value::Bool(_) => 1,
        Value::Number(_) => 2,
        Value::String(_) => 3,
        Value::Array(_) => 4,
        Value::Object(_) => 5,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn columns(rows: &[&str], from: u64) -> Columns {
        let mut columns = Columns::default();
        for (i, row) in rows.iter().enumerate() {
            columns.note((0, from + i as u64), &serde_json::from_str(row).unwrap());
        }
        columns
    }

    #[test]
    fn kinds_are_counted_with_their_first_rows() {
        let mut all = columns(&[r#"{"a": "x", "b": null}"#, r#"{"b": 1, "a": "y"}"#], 1);
        all.extend(columns(&[r#"{"a": 7}"#, r#"{"c": [], "a": "z"}"#], 3));
        let expected = json!({
            "a": {"number": 1, "text": 3}, "b": {"null": 1, "number": 1, "absent": 2}, "c": {"list": 1, "absent": 3}
        });
        assert_eq!(all.to_json(), expected);
        assert_eq!(all.conflicts(), [("a", vec![("text", 3, (0, 1)), ("number", 1, (0, 3))])]);
        assert_eq!(all.before("a"), Some(("text", (0, 1))));
        assert_eq!((all.before("zzz"), all.filled("b")), (None, 1));
    }

    #[test]
    fn endless_columns_do_not_fill_memory() {
        let rows: Vec<String> = (0..1000).map(|i| format!("{{\"k{i}\": 1}}")).collect();
        let rows: Vec<&str> = rows.iter().map(String::as_str).collect();
        assert_eq!(columns(&rows, 1).seen.len(), MOST);
    }
}
