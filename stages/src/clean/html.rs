//! HTML taken out of text.
//!
//! ```text
//! <p>Fish &amp; chips<br>for <b>two</b></p>   ->   Fish & chips\nfor two
//! ```
//! Only names of HTML elements count as tags, so `a < b`, `Vec<String>` and `<your-name>` stay. Code in fences and backticks
//! stays as it is: there, tags are what the text is about.

/// Elements whose ends are line breaks.
const BLOCKS: &[&str] = &[
    "address",
    "article",
    "aside",
    "blockquote",
    "body",
    "br",
    "center",
    "dd",
    "div",
    "dl",
    "dt",
    "fieldset",
    "figcaption",
    "figure",
    "footer",
    "form",
    "h1",
    "h2",
    "h3",
    "h4",
    "h5",
    "h6",
    "head",
    "header",
    "hr",
    "html",
    "li",
    "main",
    "nav",
    "ol",
    "option",
    "p",
    "pre",
    "section",
    "select",
    "table",
    "tbody",
    "tfoot",
    "thead",
    "title",
    "tr",
    "ul",
];
/// Elements that stand within a line.
const INLINE: &[&str] = &[
    "a", "abbr", "acronym", "audio", "b", "bdi", "bdo", "big", "button", "canvas", "caption", "cite", "code", "col",
    "colgroup", "del", "dfn", "em", "embed", "font", "i", "iframe", "img", "input", "ins", "kbd", "label", "legend",
    "link", "mark", "meta", "noscript", "object", "param", "picture", "q", "s", "samp", "small", "source", "span",
    "strike", "strong", "sub", "summary", "sup", "svg", "path", "td", "textarea", "th", "time", "tt", "u", "var",
    "video", "wbr",
];
/// Elements whose content is no text.
const SILENT: &[&str] = &["script", "style", "noscript", "template"];

/// Named characters that pages use most; numbers are read as such.
const ENTITIES: &[(&str, &str)] = &[
    ("amp", "&"),
    ("lt", "<"),
    ("gt", ">"),
    ("quot", "\""),
    ("apos", "'"),
    ("nbsp", " "),
    ("ensp", " "),
    ("emsp", " "),
    ("thinsp", " "),
    ("ndash", "–"),
    ("mdash", "—"),
    ("hellip", "…"),
    ("lsquo", "‘"),
    ("rsquo", "’"),
    ("ldquo", "“"),
    ("rdquo", "”"),
    ("sbquo", "‚"),
    ("bdquo", "„"),
    ("laquo", "«"),
    ("raquo", "»"),
    ("bull", "•"),
    ("middot", "·"),
    ("copy", "©"),
    ("reg", "®"),
    ("trade", "™"),
    ("deg", "°"),
    ("plusmn", "±"),
    ("times", "×"),
    ("divide", "÷"),
    ("frac12", "½"),
    ("frac14", "¼"),
    ("sect", "§"),
    ("para", "¶"),
    ("euro", "€"),
    ("pound", "£"),
    ("yen", "¥"),
    ("cent", "¢"),
    ("szlig", "ß"),
    ("agrave", "à"),
    ("aacute", "á"),
    ("acirc", "â"),
    ("atilde", "ã"),
    ("auml", "ä"),
    ("aring", "å"),
    ("aelig", "æ"),
    ("ccedil", "ç"),
    ("egrave", "è"),
    ("eacute", "é"),
    ("ecirc", "ê"),
    ("euml", "ë"),
    ("igrave", "ì"),
    ("iacute", "í"),
    ("icirc", "î"),
    ("iuml", "ï"),
    ("ntilde", "ñ"),
    ("ograve", "ò"),
    ("oacute", "ó"),
    ("ocirc", "ô"),
    ("otilde", "õ"),
    ("ouml", "ö"),
    ("oslash", "ø"),
    ("ugrave", "ù"),
    ("uacute", "ú"),
    ("ucirc", "û"),
    ("uuml", "ü"),
    ("Auml", "Ä"),
    ("Ouml", "Ö"),
    ("Uuml", "Ü"),
    ("Eacute", "É"),
    ("Aring", "Å"),
    ("Oslash", "Ø"),
    ("rarr", "→"),
    ("larr", "←"),
    ("uarr", "↑"),
    ("darr", "↓"),
    ("infin", "∞"),
    ("ne", "≠"),
    ("le", "≤"),
    ("ge", "≥"),
];

/// The text without HTML; `None` where there is none.
pub fn strip(text: &str) -> Option<String> {
    if !text.contains(['<', '&']) {
        return None;
    }
    let mut out = String::with_capacity(text.len());
    let mut changed = false;
    for (piece, code) in pieces(text) {
        if code {
            out.push_str(piece);
        } else {
            changed |= strip_piece(piece, &mut out);
        }
    }
    changed.then(|| tidy(&out))
}

/// The text in order, cut where code begins and ends; whether a piece is code.
pub fn pieces(text: &str) -> Vec<(&str, bool)> {
    let mut found = Vec::new();
    let mut rest = text;
    while let Some(start) = rest.find('`') {
        let ticks = rest[start..].bytes().take_while(|&byte| byte == b'`').count();
        let mark = &rest[start..start + ticks];
        let body = start + ticks;
        let closed = rest[body..].find(mark).map(|at| body + at + ticks);
        // A single backtick closes on its line or is no code; an open fence runs to the end.
        let end = match closed {
            Some(end) if ticks >= 3 || !rest[body..end].contains('\n') => end,
            _ if ticks >= 3 => rest.len(),
            _ => {
                found.push((&rest[..body], false));
                rest = &rest[body..];
                continue;
            }
        };
        found.push((&rest[..start], false));
        found.push((&rest[start..end], true));
        rest = &rest[end..];
    }
    found.push((rest, false));
    found.retain(|(piece, _)| !piece.is_empty());
    found
}

fn strip_piece(text: &str, out: &mut String) -> bool {
    let mut changed = false;
    let mut rest = text;
    while let Some(at) = rest.find(['<', '&']) {
        out.push_str(&rest[..at]);
        rest = &rest[at..];
        let taken = if rest.starts_with('<') { markup(rest, out) } else { entity(rest, out) };
        match taken {
            Some(length) => {
                changed = true;
                rest = &rest[length..];
            }
            None => {
                out.push_str(&rest[..1]);
                rest = &rest[1..];
            }
        }
    }
    out.push_str(rest);
    changed
}

/// Length of the markup at the start of `text`, if that is markup; a block leaves a line break.
fn markup(text: &str, out: &mut String) -> Option<usize> {
    if text.starts_with("<!--") {
        return Some(text.find("-->").map_or(text.len(), |at| at + 3));
    }
    if text.get(..9).is_some_and(|start| start.eq_ignore_ascii_case("<!doctype")) {
        return text.find('>').map(|at| at + 1);
    }
    let closing = text[1..].starts_with('/');
    let start = 1 + usize::from(closing);
    let length = text[start..].bytes().take_while(u8::is_ascii_alphanumeric).count();
    let name = text[start..start + length].to_ascii_lowercase();
    let after = text[start + length..].chars().next()?;
    if !(after.is_whitespace() || matches!(after, '>' | '/')) {
        return None;
    }
    let end = tag_end(text)?;
    if SILENT.contains(&name.as_str()) && !closing {
        let close = format!("</{name}");
        let lower = text[end..].to_ascii_lowercase();
        let body = lower.find(&close).map_or(text.len(), |at| end + at);
        return Some(text[body..].find('>').map_or(text.len(), |at| body + at + 1));
    }
    if BLOCKS.contains(&name.as_str()) {
        out.push('\n');
    } else if matches!(name.as_str(), "td" | "th") && closing {
        out.push(' ');
    } else if !INLINE.contains(&name.as_str()) && !SILENT.contains(&name.as_str()) {
        return None;
    }
    Some(end)
}

/// Where a tag ends, `>` in quoted attributes aside. A tag that runs over a kilobyte is none.
fn tag_end(text: &str) -> Option<usize> {
    let mut quote = None;
    for (at, byte) in text.bytes().enumerate().take(4096) {
        match (quote, byte) {
            (None, b'>') => return Some(at + 1),
            (None, b'<') if at > 0 => return None,
            (None, b'"' | b'\'') => quote = Some(byte),
            (Some(open), byte) if open == byte => quote = None,
            _ => {}
        }
    }
    None
}

fn entity(text: &str, out: &mut String) -> Option<usize> {
    let end = text.bytes().take(12).position(|byte| byte == b';')?;
    let name = &text[1..end];
    if let Some(number) = name.strip_prefix('#') {
        let code = match number.strip_prefix(['x', 'X']) {
            Some(hex) => u32::from_str_radix(hex, 16).ok()?,
            None => number.parse().ok()?,
        };
        out.push(char::from_u32(code).filter(|c| !c.is_control() || matches!(c, '\n' | '\t'))?);
    } else {
        out.push_str(ENTITIES.iter().find(|(known, _)| *known == name)?.1);
    }
    Some(end + 1)
}

/// No line of white space more than one in a row, none at the ends: what is left where tags stood.
fn tidy(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut blank = 0;
    let mut fenced = false;
    for line in text.lines() {
        fenced ^= line.trim_start().starts_with("```");
        let line = if fenced { line } else { line.trim_end() };
        blank = if line.is_empty() { blank + 1 } else { 0 };
        if blank < 2 || fenced {
            out.push_str(line);
            out.push('\n');
        }
    }
    out.trim().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tags_go_and_entities_become_characters() {
        let page = "<!DOCTYPE html><head><title>Menu</title><style>p{color:red}</style></head>\
                    <body class=\"a>b\"><!-- note --><p>Fish &amp; chips<br/>for <b>two</b> &#8364;5 &#x41;</p><script>x()</script></body>";
        assert_eq!(strip(page).as_deref(), Some("Menu\n\nFish & chips\nfor two €5 A"));
        let cells = "<table><tr><td>a</td><td>b</td></tr></table>";
        assert_eq!(strip(cells).as_deref(), Some("a b"));
    }

    #[test]
    fn what_only_looks_like_html_stays() {
        for text in [
            "a < b && c > d",
            "Vec<String> and <your-name>",
            "x <- 3",
            "AT&T & co",
            "use `<div>` or\n```html\n<p>hi</p>\n```",
            "an email <me@x.org>",
            "&unknown; &#99999999;",
        ] {
            assert_eq!(strip(text), None, "{text}");
        }
        let mixed = "Write <b>this</b>: ```<b>x</b>```";
        assert_eq!(strip(mixed).as_deref(), Some("Write this: ```<b>x</b>```"));
    }

    #[test]
    fn broken_markup_ends_nothing_early() {
        assert_eq!(strip("a <b"), None);
        assert_eq!(strip("a <p class=\"x"), None);
        assert_eq!(strip("a <!-- open").as_deref(), Some("a"));
        assert_eq!(strip("ä<p>ö&ouml;").as_deref(), Some("ä\nöö"));
    }
}
