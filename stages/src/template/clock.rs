//! The only look at the clock: `strftime_now`, which templates use for today's date.
//!
//! What is cached must not depend on the moment: rows are rendered as of midnight of a day that is part of their key, so a
//! template that names the clock is rendered anew once a day, and one that does not never for that reason.

use std::fs::{self, File};
use std::io::Read;
use std::path::Path;

use jiff::Zoned;
use jiff::civil::Date;
use jiff::tz::TimeZone;

use super::TemplateSource;

/// The function's name in templates.
const NAME: &str = "strftime_now";
/// The files of a model folder that may hold its chat template.
const TEMPLATE_FILES: [&str; 3] = ["chat_template.jinja", "chat_template.json", "tokenizer_config.json"];
/// A GGUF file's metadata lies before its weights, and is smaller than this.
const GGUF_HEAD: u64 = 32 << 20;

/// The local time, or the midnight that `day` began with, as C's `strftime` writes it.
pub fn strftime(format: &str, day: Option<&str>) -> Result<String, String> {
    let failed = |error: jiff::Error| format!("strftime_now({format:?}): {error}");
    let time = match day {
        Some(day) => day.parse::<Date>().and_then(|day| day.to_zoned(TimeZone::system())).map_err(failed)?,
        None => Zoned::now(),
    };
    jiff::fmt::strtime::format(format, &time).map_err(failed)
}

/// The local date, as 2026-01-31.
pub fn today() -> String {
    Zoned::now().date().to_string()
}

/// The day that rows rendered by this template depend on; none when it does not look at the clock.
pub fn day_of(source: &TemplateSource) -> Option<String> {
    let named = match source {
        TemplateSource::Text(text) => text.contains(NAME),
        TemplateSource::File(path) => holds_name(path, u64::MAX),
        TemplateSource::Model(path) if path.is_dir() => {
            TEMPLATE_FILES.iter().any(|file| holds_name(&path.join(file), u64::MAX))
        }
        TemplateSource::Model(path) => holds_name(path, GGUF_HEAD),
        TemplateSource::Unused => false,
    };
    named.then(today)
}

/// Whether the name occurs in the first bytes of a file; one that cannot be read is complained about when it is used.
fn holds_name(path: &Path, most: u64) -> bool {
    if fs::metadata(path).is_ok_and(|metadata| metadata.len() <= most) {
        return fs::read(path).is_ok_and(|bytes| holds(&bytes));
    }
    let mut head = Vec::new();
    File::open(path).is_ok_and(|file| file.take(most).read_to_end(&mut head).is_ok()) && holds(&head)
}

fn holds(bytes: &[u8]) -> bool {
    // Only as plain text: JSON has no need to escape any of its letters.
    let name = NAME.as_bytes();
    let mut rest = bytes;
    while let Some(at) = rest.iter().position(|&byte| byte == b'_') {
        // The underscore is rarer than letters: `strftime` comes before it, `now` after.
        let (start, end) = (at.checked_sub(NAME.len() - 4), at + 4);
        if start.is_some_and(|start| rest.get(start..end) == Some(name)) {
            return true;
        }
        rest = &rest[at + 1..];
    }
    false
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_day_has_one_time() {
        assert_eq!(strftime("%d %b %Y %H:%M", Some("2026-01-31")).unwrap(), "31 Jan 2026 00:00");
        assert_eq!(strftime("%Y-%m-%d", None).unwrap(), today());
    }

    #[test]
    fn only_templates_that_name_the_clock_have_a_day() {
        let text = |text: &str| day_of(&TemplateSource::Text(text.into()));
        assert_eq!(text("{{ strftime_now('%Y') }}"), Some(today()));
        assert_eq!(text("{{ messages }}"), None);
        let folder = tempfile::tempdir().unwrap();
        let model = TemplateSource::Model(folder.path().into());
        assert_eq!(day_of(&model), None);
        let config = folder.path().join("tokenizer_config.json");
        fs::write(&config, "{\"chat_template\": \"a_b {{ _strftime_now(1) }}\"}").unwrap();
        assert_eq!(day_of(&model), Some(today()));
        fs::write(&config, "{\"chat_template\": \"strftime_no w_ow strftime _now\"}").unwrap();
        assert_eq!(day_of(&model), None);
        assert_eq!(day_of(&TemplateSource::Unused), None);
    }
}
