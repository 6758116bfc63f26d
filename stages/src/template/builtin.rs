//! Chat templates by name.

/// The text of the built-in template `name`.
pub fn text(name: &str) -> Option<&'static str> {
    TEMPLATES.iter().find(|(known, _)| *known == name).map(|(_, text)| *text)
}

/// Every built-in name.
pub fn names() -> impl Iterator<Item = &'static str> {
    TEMPLATES.iter().map(|(name, _)| *name)
}

const TEMPLATES: &[(&str, &str)] = &[("chatml", include_str!("../../templates/chatml.jinja"))];
