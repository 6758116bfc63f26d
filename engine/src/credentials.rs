//! Where AWS' own tools keep credentials and the region: the profile files in the home folder.
//!
//! Read when a bucket is opened, handed over, and kept nowhere. What the environment says comes first.

use std::path::{Path, PathBuf};

/// Keys that profile files share with the environment, by the names that object_store knows them.
const KEYS: [&str; 4] = ["aws_access_key_id", "aws_secret_access_key", "aws_session_token", "aws_region"];

/// Settings of the profile in use.
pub(crate) fn aws() -> Vec<(String, String)> {
    let set = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
    // Keys of one source are never mixed with those of another.
    if set("AWS_ACCESS_KEY_ID").is_some() && set("AWS_REGION").or(set("AWS_DEFAULT_REGION")).is_some() {
        return Vec::new();
    }
    let profile = set("AWS_PROFILE").unwrap_or_else(|| "default".to_string());
    let home = std::env::home_dir().unwrap_or_default().join(".aws");
    let file = |name: &str, usual: &str| set(name).map_or_else(|| home.join(usual), PathBuf::from);
    let mut found = read(&file("AWS_SHARED_CREDENTIALS_FILE", "credentials"), &profile);
    let config = if profile == "default" { profile } else { format!("profile {profile}") };
    found.extend(read(&file("AWS_CONFIG_FILE", "config"), &config));
    if set("AWS_ACCESS_KEY_ID").is_some() {
        found.retain(|(name, _)| name == "aws_region");
    }
    found
}

fn read(file: &Path, profile: &str) -> Vec<(String, String)> {
    section(&std::fs::read_to_string(file).unwrap_or_default(), profile)
}

fn section(text: &str, profile: &str) -> Vec<(String, String)> {
    let mut inside = false;
    let mut found = Vec::new();
    for line in text.lines().map(str::trim).filter(|line| !line.starts_with(['#', ';'])) {
        if let Some(name) = line.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
            inside = name.trim() == profile;
        } else if inside && let Some((name, value)) = line.split_once('=') {
            let name = if name.trim() == "region" { "aws_region" } else { name.trim() };
            if KEYS.contains(&name) {
                found.push((name.to_string(), value.trim().to_string()));
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_profile_is_read_by_its_name() {
        let text = "[default]\naws_access_key_id = A\n# no\n[profile work]\nregion=eu-west-1\noutput = json\naws_session_token=T\n";
        let pair = |name: &str, value: &str| (name.to_string(), value.to_string());
        assert_eq!(section(text, "default"), [pair("aws_access_key_id", "A")]);
        assert_eq!(section(text, "profile work"), [pair("aws_region", "eu-west-1"), pair("aws_session_token", "T")]);
        assert_eq!(section(text, "none"), []);
    }
}
