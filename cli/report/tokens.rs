//! Rows of tokens with what is trained bright and what is masked dim; who wrote how much of them; histograms of many.

use pipe_stages::show::{Spread, Token};

use super::format::{clip, count, percent};
use super::style::{BOLD, DIM, GOOD, NOTE, paint};
use super::table::{Align, Column, Table};

/// Blocks that fill a character cell by eighths.
const EIGHTHS: [char; 9] = [' ', '▏', '▎', '▍', '▌', '▋', '▊', '▉', '█'];
/// What the template put around messages.
const AROUND: &str = "template";

/// One row: its id, a line of numbers, and the text with neighbouring tokens of one kind joined.
pub fn row(id: &str, tokens: &[Token]) -> String {
    let mut out = head(id, tokens);
    for document in tokens.chunk_by(|a, b| a.segment == b.segment) {
        if document[0].segment > 1 {
            out.push_str(&format!("{}\n", paint(DIM, format!("-- document {} --", document[0].segment))));
        }
        for run in document.chunk_by(|a, b| a.trained == b.trained) {
            let text: String = run.iter().map(|token| visible(&token.text)).collect();
            out.push_str(&styled(&text, run[0].trained));
        }
        if !out.ends_with('\n') {
            out.push('\n');
        }
    }
    out
}

/// One row as a table: place, id, characters, role and text of every token; trained ones are marked, colour or none.
pub fn listing(id: &str, tokens: &[Token], width: usize) -> String {
    let right = |head| Column { head, align: Align::Right, drop: 0 };
    let mut table = Table::new(&[
        Column { head: "token", align: Align::Left, drop: 0 },
        right("id"),
        right("characters"),
        Column { head: "role", align: Align::Left, drop: 1 },
        Column { head: "trained", align: Align::Left, drop: 0 },
        Column { head: "text", align: Align::Left, drop: 0 },
    ]);
    for (i, token) in tokens.iter().enumerate() {
        let text = format!("{:?}", token.text);
        table.row(vec![
            i.to_string(),
            token.id.to_string(),
            format!("{}-{}", token.start, token.end),
            if token.role.is_empty() { String::new() } else { clip(&token.role, 12) },
            if token.trained { "yes" } else { "" }.to_string(),
            text,
        ]);
    }
    let styled = table.lines(width).into_iter().enumerate().map(|(i, line)| match i.checked_sub(1) {
        None => paint(DIM, line),
        Some(i) if tokens[i].trained => paint(GOOD, line),
        Some(_) => line,
    });
    format!("{}{}\n", head(id, tokens), styled.collect::<Vec<_>>().join("\n"))
}

fn head(id: &str, tokens: &[Token]) -> String {
    let trained = tokens.iter().filter(|token| token.trained).count();
    let mut out = format!("{}  {} tokens, {trained} trained\n", paint(BOLD, id), tokens.len());
    if tokens.iter().any(|token| !token.role.is_empty()) {
        out.push_str(&format!("{}\n", paint(DIM, by_role(tokens))));
    }
    out
}

/// `user 12, assistant 20 (20 trained), template 15`, in order of appearance.
fn by_role(tokens: &[Token]) -> String {
    let mut roles: Vec<(&str, usize, usize)> = Vec::new();
    for token in tokens {
        let role = if token.role.is_empty() { AROUND } else { token.role.as_str() };
        let at = roles.iter().position(|(name, ..)| *name == role).unwrap_or_else(|| {
            roles.push((role, 0, 0));
            roles.len() - 1
        });
        roles[at].1 += 1;
        roles[at].2 += usize::from(token.trained);
    }
    let told = roles.into_iter().map(|(role, n, trained)| match trained {
        0 => format!("{role} {n}"),
        trained => format!("{role} {n} ({trained} trained)"),
    });
    told.collect::<Vec<_>>().join(", ")
}

/// Styles each line by itself, so that a pager or `less -R` keeps the colour.
fn styled(text: &str, trained: bool) -> String {
    let style = if trained { GOOD.bold() } else { DIM };
    let lines: Vec<String> =
        text.split('\n').map(|line| if line.is_empty() { String::new() } else { paint(style, line) }).collect();
    lines.join("\n")
}

/// Characters that control a display are shown, not sent to it: all but line breaks and tabs, and those that turn the
/// direction of writing, with which a text can look like another.
pub fn visible(text: &str) -> String {
    let turns =
        |c: char| matches!(c, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    let shown = |c: char| match c {
        '\n' | '\t' => c.to_string(),
        c if c.is_control() || turns(c) => format!("\\u{{{:x}}}", c as u32),
        c => c.to_string(),
    };
    text.chars().map(shown).collect()
}

/// What the colours mean, once per listing.
pub fn legend() -> String {
    format!("{} {}", paint(GOOD.bold(), "trained"), paint(DIM, "masked"))
}

/// What was said in a row, each role before its text.
pub fn conversation(id: &str, said: &[(String, String)]) -> String {
    let widest = said.iter().map(|(role, _)| role.chars().count()).max().unwrap_or(0);
    let mut out = format!("{}\n", paint(BOLD, id));
    for (role, text) in said {
        let text = visible(text).replace('\n', &format!("\n{}", " ".repeat(widest + 4)));
        out.push_str(&format!("  {}  {text}\n", paint(NOTE, format!("{role:<widest$}"))));
    }
    out
}

/// How long the rows of a table are and how much of each is trained, in `width` columns.
pub fn histograms(spread: &Spread, width: usize) -> String {
    let rows = spread.lengths.len() as u64;
    let share = spread.trained as f64 / spread.tokens.max(1) as f64;
    let mut out = format!(
        "{}  {} rows, {} tokens, {} trained\n",
        paint(BOLD, &spread.table),
        count(rows),
        count(spread.tokens),
        percent(share)
    );
    let [least, median, high, most] = [0.0, 0.5, 0.95, 1.0].map(|at| count(u64::from(spread.quantile(at))));
    out.push_str(&format!(
        "{}\n",
        paint(DIM, format!("tokens of a row: {least} to {most}, half up to {median}, 95 % up to {high}"))
    ));
    let bars = spread.bars().into_iter().map(|(from, to, rows)| (label(from, to), rows)).collect::<Vec<_>>();
    out.push_str(&chart(&bars, width));
    out.push_str(&format!("{}\n", paint(DIM, "trained share of a row")));
    let tenths = spread.shares.iter().enumerate();
    let tenths: Vec<(String, u64)> = tenths.map(|(i, &rows)| (format!("{}-{} %", i * 10, i * 10 + 10), rows)).collect();
    let used = |bar: &(String, u64)| bar.1 > 0;
    let first = tenths.iter().position(used).unwrap_or(0);
    let last = tenths.iter().rposition(used).unwrap_or(9);
    out.push_str(&chart(&tenths[first..=last], width));
    out
}

fn label(from: u32, to: u32) -> String {
    if from == to { from.to_string() } else { format!("{from}-{to}") }
}

/// Bars from the left, the longest as wide as there is room for; a row that is there is never drawn as nothing.
fn chart(bars: &[(String, u64)], width: usize) -> String {
    let names = bars.iter().map(|(name, _)| name.chars().count()).max().unwrap_or(0);
    let counts = bars.iter().map(|(_, n)| count(*n).len()).max().unwrap_or(0);
    let room = width.saturating_sub(names + counts + 6).clamp(4, 60);
    let most = bars.iter().map(|(_, n)| *n).max().unwrap_or(0).max(1);
    let mut out = String::new();
    for (name, n) in bars {
        let eighths = ((*n as f64 / most as f64 * (room * 8) as f64).round() as usize).max(usize::from(*n > 0));
        let mut bar: String = std::iter::repeat_n(EIGHTHS[8], eighths / 8).collect();
        if eighths % 8 > 0 {
            bar.push(EIGHTHS[eighths % 8]);
        }
        let gap = if bar.is_empty() { "" } else { " " };
        out.push_str(&format!("  {name:>names$}  {}{gap}{}\n", paint(NOTE, bar), count(*n)));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plain(text: &str) -> String {
        anstream::adapter::strip_str(text).to_string()
    }

    fn token(text: &str, trained: bool, role: &str, start: usize) -> Token {
        Token { id: 7, text: text.into(), trained, segment: 1, start, end: start + text.len(), role: role.into() }
    }

    #[test]
    fn rows_tell_who_wrote_what_with_and_without_colour() {
        let tokens =
            [token("<u>", false, "", 0), token("hi\u{7}", false, "user", 3), token("yo\n", true, "assistant", 6)];
        assert_eq!(
            plain(&row("r1", &tokens)),
            "r1  3 tokens, 1 trained\ntemplate 1, user 1, assistant 1 (1 trained)\n<u>hi\\u{7}yo\n"
        );
        let expected = [
            "r1  3 tokens, 1 trained",
            "template 1, user 1, assistant 1 (1 trained)",
            "token  id  characters  role       trained  text",
            "0       7         0-3                      \"<u>\"",
            "1       7         3-6  user                \"hi\\u{7}\"",
            "2       7         6-9  assistant  yes      \"yo\\n\"",
        ];
        assert_eq!(plain(&listing("r1", &tokens, 80)).lines().collect::<Vec<_>>(), expected);
    }

    #[test]
    fn histograms_fit_the_window() {
        let lengths: Vec<u32> = (1..=100).flat_map(|n| std::iter::repeat_n(n, 1 + (n as usize * 7) % 13)).collect();
        let tokens = lengths.iter().map(|&n| u64::from(n)).sum();
        let spread = Spread {
            table: "train".into(),
            lengths,
            tokens,
            trained: tokens / 4,
            shares: [0, 3, 900, 0, 1, 0, 0, 0, 0, 0],
        };
        for width in [40, 80, 120] {
            let text = plain(&histograms(&spread, width));
            assert!(text.lines().all(|line| line.chars().count() <= width.max(66)), "{width}:\n{text}");
        }
        let text = plain(&histograms(&spread, 80));
        assert!(text.contains("  10-20 %  ▎ 3\n") && text.contains("  40-50 %  ▏ 1\n"), "{text}");
    }
}
