//! Texts that end an answer, found in a stream that comes in pieces.

/// Holds back what may be the beginning of a stop.
#[derive(Debug, Default)]
pub struct Stops {
    texts: Vec<String>,
    held: String,
}

impl Stops {
    pub fn new(texts: Vec<String>) -> Stops {
        Stops { texts, held: String::new() }
    }

    /// Takes more text; gives what is surely part of the answer, and whether the answer ends with it.
    pub fn push(&mut self, more: &str) -> (String, bool) {
        if self.texts.is_empty() {
            return (more.to_string(), false);
        }
        self.held.push_str(more);
        if let Some(at) = self.texts.iter().filter_map(|text| self.held.find(text.as_str())).min() {
            self.held.truncate(at);
            return (std::mem::take(&mut self.held), true);
        }
        let texts: Vec<&str> = self.texts.iter().map(String::as_str).collect();
        let rest = self.held.split_off(self.held.len() - overlap(&self.held, &texts));
        (std::mem::replace(&mut self.held, rest), false)
    }

    /// What was held back, at the end of the answer.
    pub fn finish(&mut self) -> String {
        std::mem::take(&mut self.held)
    }
}

/// The length of the longest end of `text` that one of `texts` begins with.
pub fn overlap(text: &str, texts: &[&str]) -> usize {
    let of = |other: &&str| {
        let lengths = other.char_indices().map(|(at, _)| at).filter(|&at| at > 0);
        lengths.filter(|&length| text.ends_with(&other[..length])).max().unwrap_or(0)
    };
    texts.iter().map(of).max().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// However a text is cut, the same of it passes.
    #[test]
    fn a_stop_is_found_across_pieces() {
        for (text, passed, found) in [
            ("one END two", "one ", true),
            ("one EN two", "one EN two", false),
            ("one E", "one E", false),
            ("EEND", "E", true),
            ("grüße\n\nmehr", "grüße", true),
        ] {
            let places: Vec<usize> = text.char_indices().map(|(at, _)| at).collect();
            for &cut in &places {
                for &next in places.iter().filter(|&&next| next >= cut) {
                    let mut stops = Stops::new(vec!["END".into(), "\n\n".into()]);
                    let (mut out, mut hit) = (String::new(), false);
                    for piece in [&text[..cut], &text[cut..next], &text[next..]] {
                        if !hit {
                            let (more, ends) = stops.push(piece);
                            out.push_str(&more);
                            hit = ends;
                        }
                    }
                    if !hit {
                        out.push_str(&stops.finish());
                    }
                    assert_eq!((out.as_str(), hit), (passed, found), "{text} cut at {cut}, {next}");
                }
            }
        }
    }
}
