//! What `--setup` makes the pristine state from, or a generator its items.

use std::path::PathBuf;

/// How many templates of one login are kept on a server, where nobody says.
pub const KEPT: u32 = 8;

/// Files, by patterns.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Inputs {
    /// The option that names them.
    pub option: &'static str,
    /// `migrations/*.sql`; a folder stands for all that is in it.
    pub patterns: Vec<String>,
    /// Where they count from: beside the file that names them, or where the user is.
    pub folder: PathBuf,
}

impl Inputs {
    /// Files that `--setup-input` names.
    pub fn of_setup(patterns: Vec<String>, folder: PathBuf) -> Self {
        Self { option: "--setup-input", patterns, folder }
    }

    /// Files that `generator-input` names.
    pub fn of_generator(patterns: Vec<String>, folder: PathBuf) -> Self {
        Self { option: "generator-input", patterns, folder }
    }
}
