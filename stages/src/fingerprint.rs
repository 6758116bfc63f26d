//! How a model's conversations are written, told by digests: what it was trained with, what it is used with, and a warning
//! where the two are not one.
//!
//! A conversation becomes tokens by a chat template, the special tokens that the template names, and a tokenizer. What does
//! not change a single token changes no digest: the line ends of the template's file, special tokens it never names.

use std::path::{Path, PathBuf};

use pipe_engine::digest::Digest;
use pipe_files::{TemplateFingerprint, Tokenizer};

use crate::template::TemplateSource;
use crate::template::render::{SpecialTexts, TemplateError, find, special_texts};

/// A chat template and the special tokens it may name, wherever they come from.
#[derive(Clone, Debug, PartialEq)]
pub struct Written {
    pub source: TemplateSource,
    /// Folder or GGUF whose special tokens are used.
    pub tokenizer: Option<PathBuf>,
    /// Special tokens that replace those.
    pub special: SpecialTexts,
}

impl Written {
    /// The template's text and its special tokens; `None` where no conversation is written.
    pub fn texts(&self) -> Result<Option<(String, SpecialTexts)>, TemplateError> {
        let (text, mut special) = match &self.source {
            TemplateSource::Unused => return Ok(None),
            TemplateSource::Text(text) => (text.clone(), SpecialTexts::default()),
            TemplateSource::File(path) | TemplateSource::Model(path) => find(&path.to_string_lossy())?,
        };
        if let Some(path) = &self.tokenizer {
            special = crate::template::render::specials(path)?;
        }
        let own = [&self.special.bos, &self.special.eos, &self.special.pad, &self.special.unk];
        let all = [&mut special.bos, &mut special.eos, &mut special.pad, &mut special.unk];
        all.into_iter().zip(own).filter(|(_, own)| !own.is_empty()).for_each(|(slot, own)| slot.clone_from(own));
        Ok(Some((text, special)))
    }
}

/// The fingerprint of conversations written with this template and read by this tokenizer.
pub fn fingerprint(template: &str, special: &SpecialTexts, tokenizer: &Tokenizer) -> TemplateFingerprint {
    // Jinja reads every line end as one character, and drops the last.
    let text = template.replace("\r\n", "\n");
    let text = text.strip_suffix('\n').unwrap_or(&text);
    let mut bytes = text.as_bytes().to_vec();
    let named = [
        ("bos_token", &special.bos),
        ("eos_token", &special.eos),
        ("pad_token", &special.pad),
        ("unk_token", &special.unk),
    ];
    for (name, value) in named.into_iter().filter(|(name, _)| text.contains(name)) {
        bytes.extend(format!("\0{name}\0{value}").bytes());
    }
    // The template's own text has the special tokens in it that another tokenizer would cut in pieces.
    let ids = tokenizer.encode_fast(text, false).map(|encoding| encoding.get_ids().to_vec()).unwrap_or_default();
    let ids: Vec<u8> = ids.iter().flat_map(|id| id.to_le_bytes()).collect();
    TemplateFingerprint { template: Digest::of(&bytes).to_string(), tokens: Digest::of(&ids).to_string() }
}

/// The fingerprint of what a folder says itself, with its tokenizer; `None` where it has no chat template.
pub fn of_folder(folder: &Path) -> Result<Option<TemplateFingerprint>, pipe_files::FilesError> {
    let texts = pipe_files::TemplateTexts::read(folder)?;
    let Some(template) = &texts.chat_template else { return Ok(None) };
    Ok(Some(fingerprint(template, &special_texts(&texts), &pipe_files::tokenizer(folder)?)))
}

/// What is to be said where `used` is not what the model or adapter at `path` was trained with; `cure` is what to do about
/// the template. Nothing is said of models that do not tell what they were trained with.
pub fn warning(path: &Path, used: &TemplateFingerprint, cure: &str) -> Option<String> {
    // A damaged file is told by whoever loads the model.
    let trained = TemplateFingerprint::read(path).ok().flatten()?;
    let short = |digest: &str| digest.chars().take(12).collect::<String>();
    if trained.template != used.template {
        return Some(format!(
            "{} was trained on conversations written with another chat template (fingerprint {}) than is used here ({}), and \
             may answer worse; {cure}",
            path.display(),
            short(&trained.template),
            short(&used.template)
        ));
    }
    (trained.tokens != used.tokens).then(|| {
        format!(
            "{} was trained with another tokenizer than is used here: the same conversation becomes other tokens, and it may \
             answer worse; use the base model that it was trained on",
            path.display()
        )
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn tiny() -> Tokenizer {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/tiny-llama");
        pipe_files::tokenizer(&path).unwrap()
    }

    #[test]
    fn only_what_changes_tokens_changes_the_fingerprint() {
        let template = "{% for m in messages %}{{ m.content }}{{ eos_token }}\n{% endfor %}";
        let special =
            |bos: &str, eos: &str| SpecialTexts { bos: bos.into(), eos: eos.into(), ..SpecialTexts::default() };
        let of = |template: &str, special: &SpecialTexts| fingerprint(template, special, &tiny());
        let first = of(template, &special("<s>", "</s>"));
        assert_eq!(first, of(template, &special("", "</s>")), "a token that is not named");
        assert_eq!(first, of(&format!("{}\r\n", template.replace('\n', "\r\n")), &special("<s>", "</s>")), "line ends");
        assert_ne!(first.template, of(template, &special("<s>", "<end>")).template, "a token that is named");
        assert_ne!(first.template, of(&template.replace("content", "text"), &special("<s>", "</s>")).template);
    }

    #[test]
    fn a_folder_that_says_nothing_is_not_warned_of() {
        let folder = tempfile::tempdir().unwrap();
        let (one, other) = (("1", "2"), ("1", "3"));
        let print =
            |(template, tokens): (&str, &str)| TemplateFingerprint { template: template.into(), tokens: tokens.into() };
        assert_eq!(warning(folder.path(), &print(one), "cure"), None);
        print(one).write(folder.path()).unwrap();
        assert_eq!(warning(folder.path(), &print(one), "cure"), None);
        assert!(warning(folder.path(), &print(other), "cure").unwrap().contains("another tokenizer"));
        assert!(warning(folder.path(), &print(("0", "2")), "cure").unwrap().ends_with("cure"));
    }
}
