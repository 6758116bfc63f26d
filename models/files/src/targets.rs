//! Choosing modules and weights by name, as PEFT and Axolotl do.
//!
//! Python's regular expressions may look around and refer back, so the engine here is one that can: the tokenizers' own.

use onig::{Regex, RegexOptions, Syntax};

/// Chooses linear modules by name.
#[derive(Debug)]
pub enum Selector {
    All,
    /// The whole name, or its end after a dot.
    Names(Vec<String>),
    /// Must match the whole name.
    Pattern {
        written: String,
        regex: Regex,
    },
}

/// Chooses weights by Axolotl's `unfrozen_parameters`.
#[derive(Debug)]
pub struct WeightPattern {
    regex: Regex,
    /// Rows that are trained: from, and up to but not including.
    pub rows: Option<(usize, Option<usize>)>,
}

/// Ranks or alphas of single modules: PEFT's `rank_pattern` and `alpha_pattern`.
#[derive(Debug, Default)]
pub struct Exceptions<T>(Vec<(Regex, T)>);

impl Selector {
    /// A pattern that must match a whole name; the error is one sentence about the pattern.
    pub fn pattern(pattern: &str) -> Result<Self, String> {
        Ok(Self::Pattern { written: pattern.to_owned(), regex: compile(&format!(r"\A(?:{pattern})\z"), pattern)? })
    }

    pub fn matches(&self, name: &str) -> bool {
        match self {
            Self::All => true,
            Self::Names(names) => names.iter().any(|target| is_named(name, target)),
            Self::Pattern { regex, .. } => regex.find(name).is_some(),
        }
    }

    /// What is chosen among `names`, or what is wrong with the choice: a list's every entry must match something.
    pub fn choose<'a>(&self, names: impl Iterator<Item = &'a str>) -> Result<Vec<&'a str>, Unmatched> {
        let all: Vec<&str> = names.collect();
        let chosen: Vec<&str> = all.iter().copied().filter(|name| self.matches(name)).collect();
        let stranger = match self {
            Self::Names(targets) => {
                targets.iter().find(|target| !all.iter().any(|name| is_named(name, target))).cloned()
            }
            Self::Pattern { written, .. } if chosen.is_empty() => Some(written.clone()),
            _ => None,
        };
        match stranger {
            Some(target) => Err(Unmatched { near: nearest(&target, &all), target, known: last_parts(&all) }),
            None => Ok(chosen),
        }
    }
}

/// A target that no module answers to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unmatched {
    pub target: String,
    /// The last part of the module's name that is most like it.
    pub near: Option<String>,
    /// The last parts of all modules' names.
    pub known: Vec<String>,
}

impl std::fmt::Display for Unmatched {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "`{}` matches no linear module of this model", self.target)?;
        if let Some(near) = &self.near {
            write!(f, "; the nearest is `{near}`")?;
        }
        write!(f, "; its modules are {}", self.known.join(", "))
    }
}

impl WeightPattern {
    /// Reads Axolotl's spelling: a dot is a dot unless a `+` follows it, and `[a:b]` at the end names rows.
    pub fn parse(text: &str) -> Result<Self, String> {
        let (name, rows) = split_rows(text)?;
        let mut escaped = String::with_capacity(name.len() + 8);
        let mut chars = name.chars().peekable();
        let mut before = ' ';
        while let Some(c) = chars.next() {
            if c == '.' && before != '\\' && chars.peek() != Some(&'+') {
                escaped.push('\\');
            }
            escaped.push(c);
            before = c;
        }
        Ok(Self { regex: compile(&format!(r"\A(?:{escaped})"), text)?, rows })
    }

    pub fn matches(&self, name: &str) -> bool {
        self.regex.find(name).is_some()
    }
}

impl<T: Copy> Exceptions<T> {
    pub fn new(patterns: &[(String, T)]) -> Result<Self, String> {
        let compiled =
            patterns.iter().map(|(key, value)| Ok((compile(&format!(r"\A(?:.*\.)?(?:{key})\z"), key)?, *value)));
        compiled.collect::<Result<_, String>>().map(Self)
    }

    /// The value of the first pattern that matches the end of a module's name.
    pub fn of(&self, module: &str) -> Option<T> {
        self.0.iter().find(|(regex, _)| regex.find(module).is_some()).map(|(_, value)| *value)
    }
}

/// Whether `target` is `name`, or its end after a dot.
pub fn is_named(name: &str, target: &str) -> bool {
    name == target || name.strip_suffix(target).is_some_and(|head| head.ends_with('.'))
}

fn compile(whole: &str, written: &str) -> Result<Regex, String> {
    Regex::with_options(whole, RegexOptions::REGEX_OPTION_NONE, Syntax::perl_ng())
        .map_err(|e| format!("`{written}` is not a regular expression: {}", e.description()))
}

/// From a row up to another, or to the end.
type Rows = (usize, Option<usize>);

/// `^model.embed_tokens.weight$[:100]` is a name and rows; `[0-9]` at an end is part of a name.
fn split_rows(text: &str) -> Result<(&str, Option<Rows>), String> {
    let Some((name, inside)) = text.strip_suffix(']').and_then(|rest| rest.rsplit_once('[')) else {
        return Ok((text, None));
    };
    let digits = |part: &str| part.chars().all(|c| c.is_ascii_digit());
    let (from, to) = match inside.split_once(':') {
        Some((from, to)) if digits(from) && digits(to) => (from, Some(to)),
        None if digits(inside) && !inside.is_empty() => (inside, None),
        _ => return Ok((text, None)),
    };
    if name.is_empty() {
        return Ok((text, None));
    }
    let start = from.parse().unwrap_or(0);
    let end = match to {
        None => Some(start + 1),
        Some("") => None,
        Some(to) => Some(to.parse().unwrap_or(usize::MAX)),
    };
    if end.is_some_and(|end| end <= start) {
        return Err(format!("`{text}` names no rows: the end must lie after the start"));
    }
    Ok((name, Some((start, end))))
}

fn last_parts(names: &[&str]) -> Vec<String> {
    let mut parts: Vec<String> = Vec::new();
    for part in names.iter().filter_map(|name| name.rsplit('.').next()) {
        if !parts.iter().any(|have| have == part) {
            parts.push(part.to_owned());
        }
    }
    parts
}

/// The module's last part with the most two-letter runs in common, where that is at least a third of them.
fn nearest(target: &str, names: &[&str]) -> Option<String> {
    let runs = |text: &str| -> Vec<[u8; 2]> { text.as_bytes().windows(2).map(|pair| [pair[0], pair[1]]).collect() };
    let wanted = runs(target.rsplit('.').next().unwrap_or(target));
    let score = |part: &str| {
        let own = runs(part);
        let common = wanted.iter().filter(|run| own.contains(run)).count();
        2 * common * 100 / (wanted.len() + own.len()).max(1)
    };
    let scored = last_parts(names).into_iter().map(|part| (score(&part), part));
    let best = scored.fold(None, |best: Option<(usize, String)>, next| match best {
        Some(best) if best.0 >= next.0 => Some(best),
        _ => Some(next),
    });
    best.filter(|(score, _)| *score >= 34).map(|(_, part)| part)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    const MODULES: [&str; 4] = [
        "model.layers.0.self_attn.q_proj",
        "model.layers.0.mlp.up_proj",
        "model.layers.11.self_attn.q_proj",
        "model.layers.11.mlp.up_proj",
    ];

    #[test]
    fn a_list_matches_ends_after_a_dot_and_every_entry_must() {
        let names = |list: &[&str]| Selector::Names(list.iter().map(|s| (*s).to_owned()).collect());
        assert_eq!(names(&["q_proj"]).choose(MODULES.into_iter()).unwrap(), [MODULES[0], MODULES[2]]);
        assert!(!names(&["proj"]).matches(MODULES[0]));
        let error = names(&["q_proj", "up_porj"]).choose(MODULES.into_iter()).unwrap_err();
        assert_eq!((error.target.as_str(), error.near.as_deref()), ("up_porj", Some("up_proj")));
    }

    #[test]
    fn a_pattern_matches_whole_names_as_pythons_fullmatch() {
        let chosen = |pattern: &str| {
            let selector = Selector::pattern(pattern).unwrap();
            MODULES.into_iter().filter(|name| selector.matches(name)).count()
        };
        assert_eq!(chosen(r"model\.layers\.\d+\.mlp\.up_proj"), 2);
        assert_eq!(chosen("q_proj"), 0);
        assert_eq!(chosen(r".*(?<!self_attn)\.(q|up)_proj"), 2);
        assert_eq!(chosen(r"(?!.*layers\.0\.).*q_proj"), 1);
        assert_eq!(chosen("model.layers.0.self_attn.q_proj|x"), 1);
        assert!(Selector::pattern("*_proj").unwrap_err().contains("*_proj"));
    }

    #[test]
    fn exceptions_are_taken_from_the_first_pattern() {
        let ranks = [("layers.0.*q_proj".to_owned(), 4), ("q_proj".to_owned(), 2)];
        let ranks = Exceptions::new(&ranks).unwrap();
        let found: Vec<_> = MODULES.into_iter().map(|name| ranks.of(name)).collect();
        assert_eq!(found, [Some(4), None, Some(2), None]);
    }

    #[test]
    fn weight_patterns_read_as_axolotl_does() {
        let rows = |text: &str| WeightPattern::parse(text).unwrap().rows;
        assert_eq!(rows("^model.embed_tokens.weight$[:32000]"), Some((0, Some(32000))));
        assert_eq!(rows("lm_head[7]"), Some((7, Some(8))));
        assert_eq!(rows("lm_head[7:]"), Some((7, None)));
        assert_eq!(rows("model.layers.2[0-9]"), None);
        assert!(WeightPattern::parse("a[3:2]").is_err());
        let late = WeightPattern::parse("model.layers.1[0-9]+.mlp").unwrap();
        assert!(
            late.matches("model.layers.11.mlp.up_proj.weight") && !late.matches("model.layers.1.mlp.up_proj.weight")
        );
        // A dot is a dot, and the match begins at the start.
        assert!(!WeightPattern::parse("layers.11").unwrap().matches("model.layers.11.mlp"));
        assert!(!WeightPattern::parse("model.layers").unwrap().matches("modelXlayers"));
    }
}
