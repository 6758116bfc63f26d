//! Plain text tables that fit the window: columns by importance, the first one clipped before anything wraps.

use super::format::clip;

/// Which edge a column's cells keep to.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Align {
    Left,
    Right,
}

/// One column: its head, its edge, and how early it goes when the window is narrow (0 stays).
#[derive(Clone, Copy)]
pub struct Column<'a> {
    pub head: &'a str,
    pub align: Align,
    pub drop: u8,
}

/// Rows of cells under columns.
pub struct Table<'a> {
    columns: Vec<Column<'a>>,
    rows: Vec<Vec<String>>,
}

/// Fewest characters the first column keeps.
const FIRST_MIN: usize = 8;
const GAP: usize = 2;

impl<'a> Table<'a> {
    pub fn new(columns: &[Column<'a>]) -> Table<'a> {
        Table { columns: columns.to_vec(), rows: Vec::new() }
    }

    pub fn row(&mut self, cells: Vec<String>) {
        self.rows.push(cells);
    }

    /// Lines of at most `width` characters; the first is the head. Columns without any cell text are left out.
    pub fn lines(&self, width: usize) -> Vec<String> {
        let mut kept: Vec<usize> = (0..self.columns.len()).filter(|&c| c == 0 || self.is_used(c)).collect();
        let mut widths = self.widths(&kept);
        while total(&widths) > width {
            let least = kept.iter().enumerate().filter(|&(_, &c)| self.columns[c].drop > 0);
            let Some((at, _)) = least.max_by_key(|&(_, &c)| self.columns[c].drop) else { break };
            let spare = widths[0].saturating_sub(FIRST_MIN);
            if total(&widths) - width <= spare / 2 {
                break;
            }
            kept.remove(at);
            widths.remove(at);
        }
        let excess = total(&widths).saturating_sub(width);
        let spare = widths[0].saturating_sub(FIRST_MIN);
        widths[0] -= excess.min(spare);
        let still = excess.saturating_sub(spare);
        if let Some(last) = widths.last_mut() {
            *last = last.saturating_sub(still).max(1);
        }
        let head: Vec<String> = self.columns.iter().map(|column| column.head.to_string()).collect();
        let all = std::iter::once(&head).chain(&self.rows);
        all.map(|row| self.line(row, &kept, &widths)).collect()
    }

    fn is_used(&self, column: usize) -> bool {
        self.rows.iter().any(|row| row.get(column).is_some_and(|cell| !cell.is_empty()))
    }

    fn widths(&self, kept: &[usize]) -> Vec<usize> {
        let cell = |row: &Vec<String>, c: usize| row.get(c).map_or(0, |cell| cell.chars().count());
        let widest = |c: usize| self.rows.iter().map(|row| cell(row, c)).max().unwrap_or(0);
        kept.iter().map(|&c| widest(c).max(self.columns[c].head.chars().count())).collect()
    }

    fn line(&self, row: &[String], kept: &[usize], widths: &[usize]) -> String {
        let mut out = String::new();
        for (&column, &width) in kept.iter().zip(widths) {
            if !out.is_empty() {
                out.push_str(&" ".repeat(GAP));
            }
            let cell = clip(row.get(column).map_or("", String::as_str), width);
            match self.columns[column].align {
                Align::Left => out.push_str(&format!("{cell:<width$}")),
                Align::Right => out.push_str(&format!("{cell:>width$}")),
            }
        }
        out.trim_end().to_string()
    }
}

fn total(widths: &[usize]) -> usize {
    widths.iter().sum::<usize>() + GAP * widths.len().saturating_sub(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Table<'static> {
        let mut table = Table::new(&[
            Column { head: "node", align: Align::Left, drop: 0 },
            Column { head: "rows", align: Align::Right, drop: 2 },
            Column { head: "time", align: Align::Right, drop: 1 },
            Column { head: "note", align: Align::Left, drop: 3 },
        ]);
        table.row(vec!["ingest.docker-commands".into(), "2,400".into(), "0.12 s".into(), String::new()]);
        table.row(vec!["train".into(), String::new(), "4 min 02 s".into(), String::new()]);
        table
    }

    #[test]
    fn wide_windows_show_everything_that_is_there() {
        let expected = [
            "node                     rows        time",
            "ingest.docker-commands  2,400      0.12 s",
            "train                          4 min 02 s",
        ];
        assert_eq!(sample().lines(80), expected);
    }

    #[test]
    fn narrow_windows_lose_columns_then_letters() {
        for width in 12..80 {
            let lines = sample().lines(width);
            assert!(lines.iter().all(|line| line.chars().count() <= width.max(20)), "{width}: {lines:?}");
        }
        assert_eq!(sample().lines(30)[1], "ingest.docker-com…      0.12 s");
    }
}
