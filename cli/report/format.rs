//! Numbers as people read them.

/// `2400` as `2,400`.
pub fn count(n: u64) -> String {
    let digits = n.to_string();
    let mut out = String::with_capacity(digits.len() + digits.len() / 3);
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

/// Seconds as `0.04 s`, `12.3 s`, `4 min 02 s` or `3 h 05 min`.
pub fn seconds(s: f64) -> String {
    if !s.is_finite() || s < 0.0 {
        return "-".to_string();
    }
    if s < 0.995 {
        return format!("{s:.2} s");
    }
    if s < 59.95 {
        return format!("{s:.1} s");
    }
    let whole = s.round() as u64;
    if whole < 3600 {
        return format!("{} min {:02} s", whole / 60, whole % 60);
    }
    format!("{} h {:02} min", whole / 3600, whole % 3600 / 60)
}

/// Bytes in decimal units: `41 MB`, `1.32 GB`.
pub fn bytes(n: u64) -> String {
    let n = n as f64;
    match n {
        n if n < 1e3 => format!("{n} B"),
        n if n < 1e6 => format!("{:.0} kB", n / 1e3),
        n if n < 1e9 => format!("{:.0} MB", n / 1e6),
        n => format!("{:.2} GB", n / 1e9),
    }
}

/// A rate per second, such as `1.2k` or `350`.
pub fn rate(per_second: f64) -> String {
    match per_second {
        r if !r.is_finite() => "-".to_string(),
        r if r < 10.0 => format!("{r:.1}"),
        r if r < 10_000.0 => count(r.round() as u64),
        r if r < 1e6 => format!("{:.0}k", r / 1e3),
        r => format!("{:.1}M", r / 1e6),
    }
}

/// A loss or a perplexity with four significant digits.
pub fn measure(x: f64) -> String {
    if !x.is_finite() {
        return x.to_string();
    }
    let magnitude = x.abs();
    match magnitude {
        m if m >= 1e6 => format!("{x:.2e}"),
        m if m >= 1000.0 => count(x.round() as u64),
        m if m >= 100.0 => format!("{x:.1}"),
        m if m >= 10.0 => format!("{x:.2}"),
        _ => format!("{x:.3}"),
    }
}

/// A share as `87.5 %`.
pub fn percent(share: f64) -> String {
    format!("{:.1} %", share * 100.0)
}

/// The thing and its number: `1 row`, `2 rows`.
pub fn plural(n: u64, one: &str) -> String {
    if n == 1 { format!("1 {one}") } else { format!("{} {one}s", count(n)) }
}

/// At most `width` characters, the last being `…` when something was cut.
pub fn clip(text: &str, width: usize) -> String {
    if text.chars().count() <= width {
        return text.to_string();
    }
    let mut out: String = text.chars().take(width.saturating_sub(1)).collect();
    if width > 0 {
        out.push('…');
    }
    out
}

/// At most `width` characters, with `…` for what was cut out of the middle: names differ at their ends.
pub fn clip_middle(text: &str, width: usize) -> String {
    let length = text.chars().count();
    if length <= width || width < 3 {
        return clip(text, width);
    }
    let (head, tail) = (width / 2, width - width / 2 - 1);
    let head: String = text.chars().take(head).collect();
    let tail: String = text.chars().skip(length - tail).collect();
    format!("{head}…{tail}")
}

/// A line, its colours included, broken between words so that no part is wider than `width`; what follows is indented
/// below its first word. A word that is wider by itself stays whole, to be copied.
pub fn wrap(line: &str, width: usize) -> Vec<String> {
    let plain = anstream::adapter::strip_str(line).to_string();
    if plain.chars().count() <= width {
        return vec![line.to_string()];
    }
    let indent = " ".repeat(plain.len() - plain.trim_start().len() + 2);
    let mut out = vec![String::new()];
    let mut used = 0;
    for word in line.split_inclusive(' ') {
        let shown = anstream::adapter::strip_str(word).to_string();
        let wide = shown.trim_end().chars().count();
        if used + wide > width && used > indent.len() && wide > 0 {
            let last = out.len() - 1;
            let kept = out[last].trim_end().len();
            out[last].truncate(kept);
            out.push(indent.clone());
            used = indent.len();
        }
        let last = out.len() - 1;
        out[last].push_str(word);
        used += shown.chars().count();
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_read_well() {
        assert_eq!([0, 999, 1000, 1_234_567].map(count), ["0", "999", "1,000", "1,234,567"]);
        assert_eq!([0.042, 12.34, 242.0, 11_100.0].map(seconds), ["0.04 s", "12.3 s", "4 min 02 s", "3 h 05 min"]);
        assert_eq!([12, 41_200_000, 1_320_000_000].map(bytes), ["12 B", "41 MB", "1.32 GB"]);
        assert_eq!([0.5, 350.0, 12_345.0, 2e6].map(rate), ["0.5", "350", "12k", "2.0M"]);
        assert_eq!([1.23456, 45.678, 456.78, 4567.8].map(measure), ["1.235", "45.68", "456.8", "4,568"]);
    }

    #[test]
    fn clipping_marks_the_cut() {
        assert_eq!(clip("tokenize", 8), "tokenize");
        assert_eq!(clip("tokenize", 5), "toke…");
        assert_eq!(clip("tokenize", 0), "");
        assert_eq!(clip_middle("tokenize.docker-2", 9), "toke…er-2");
        assert_eq!(clip_middle("tokenize", 8), "tokenize");
        assert_eq!(clip_middle("tokenize", 2), "t…");
    }

    #[test]
    fn long_lines_break_between_words() {
        assert_eq!(wrap("short", 10), ["short"]);
        let line = "warning: the disk is nearly full, free space";
        assert_eq!(wrap(line, 20), ["warning: the disk is", "  nearly full, free", "  space"]);
        let path = "  in /a/very/long/path/that/stays/whole now";
        assert_eq!(wrap(path, 20), ["  in", "    /a/very/long/path/that/stays/whole", "    now"]);
        let coloured = wrap("\u{1b}[1mtwo words\u{1b}[0m here", 9);
        assert_eq!(coloured, ["\u{1b}[1mtwo words\u{1b}[0m", "  here"]);
    }
}
