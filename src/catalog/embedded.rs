//! The providers that come with the binary: every TOML file of `providers/`.

/// File names and texts.
pub(super) const FILES: &[(&str, &str)] = &[
    ("github.toml", include_str!("providers/github.toml")),
    ("google.toml", include_str!("providers/google.toml")),
    ("microsoft_365.toml", include_str!("providers/microsoft_365.toml")),
    ("sandbox.toml", include_str!("providers/sandbox.toml")),
    ("slack.toml", include_str!("providers/slack.toml")),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_file_of_the_folder_is_embedded() {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/src/catalog/providers");
        let mut found: Vec<String> =
            std::fs::read_dir(folder).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        found.sort();
        assert_eq!(found, FILES.iter().map(|(name, _)| *name).collect::<Vec<_>>());
    }
}
