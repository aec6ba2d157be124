//! What `--setup` makes the pristine state from.

use std::path::PathBuf;

/// How many templates of one login are kept on a server, where nobody says.
pub const KEPT: u32 = 8;

/// Files, by patterns.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Inputs {
    /// `migrations/*.sql`; a folder stands for all that is in it.
    pub patterns: Vec<String>,
    /// Where they count from: beside the file that names them, or where the user is.
    pub folder: PathBuf,
}
