//! The recipe of a pristine state: the setup command, and the files that it is made from. What
//! was made once by the same recipe is as good as what would be made now.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Read;
use std::path::{Component, Path, PathBuf};

use glob::{MatchOptions, Pattern, PatternError};
use sha2::{Digest, Sha256};

use crate::error::Stop;
use crate::secret::mask_command;
use crate::settings::{Inputs, Settings};

/// As a shell reads a pattern: `*` stays within a folder and does not find hidden files.
const AS_A_SHELL: MatchOptions =
    MatchOptions { case_sensitive: true, require_literal_separator: true, require_literal_leading_dot: true };
/// What Python compiles beside its sources while the setup runs.
const COMPILED: &str = "__pycache__";

/// What a pristine state is made by and from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Recipe {
    /// The command, without passwords.
    pub command: String,
    digest: String,
}

impl Recipe {
    /// Reads the files that the settings name; `None` where they name none, because a command
    /// alone does not say what it reads.
    pub fn read(settings: &Settings) -> anyhow::Result<Option<Self>> {
        let Some(inputs) = &settings.inputs else { return Ok(None) };
        let Some(setup) = &settings.setup else {
            return Err(Stop::usage(
                "--setup-input says what --setup makes the pristine state from, and there is no --setup: name both, or neither",
            ));
        };
        let digest = of_command(&[&setup.command], inputs)?;
        Ok(Some(Self { command: mask_command(&setup.command), digest }))
    }

    /// What this recipe makes where the rest is `surroundings`: 64 hex digits.
    pub fn fingerprint(&self, surroundings: &[&str]) -> String {
        digest(std::iter::once(self.digest.as_str()).chain(surroundings.iter().copied()))
    }
}

/// The digest of a command, in words that say what it does, and of the files that it is made from.
pub fn of_command(words: &[&str], inputs: &Inputs) -> anyhow::Result<String> {
    let mut parts: Vec<Vec<u8>> = words.iter().map(|word| word.as_bytes().to_vec()).collect();
    for (name, path) in files(inputs)? {
        parts.push(name.into_os_string().into_encoded_bytes());
        parts.push(content(&path).map_err(|error| unreadable(inputs, &path, &error))?.to_vec());
    }
    Ok(digest(parts))
}

/// The digest of several parts, such that no two lists of parts have the same: 64 hex digits.
pub fn digest(parts: impl IntoIterator<Item: AsRef<[u8]>>) -> String {
    let mut digest = Sha256::new();
    for part in parts {
        let part = part.as_ref();
        digest.update((part.len() as u64).to_be_bytes());
        digest.update(part);
    }
    digest.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}

fn content(path: &Path) -> std::io::Result<[u8; 32]> {
    let mut file = File::open(path)?;
    let mut digest = Sha256::new();
    let mut buffer = vec![0; 1 << 16];
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(digest.finalize().into()),
            n => digest.update(&buffer[..n]),
        }
    }
}

fn unreadable(inputs: &Inputs, path: &Path, error: &std::io::Error) -> anyhow::Error {
    Stop::usage(format!("cannot read {}, which {} names: {error}", path.display(), inputs.option))
}

/// The files that are meant, by their names as seen from the folder that the patterns count
/// from; a folder stands for all that is in it.
fn files(inputs: &Inputs) -> anyhow::Result<BTreeMap<PathBuf, PathBuf>> {
    let mut files = BTreeMap::new();
    for pattern in &inputs.patterns {
        let found = Search::new(pattern, &inputs.folder)
            .map_err(|error| {
                Stop::usage(format!("{} {pattern:?} is no pattern of files: {}", inputs.option, error.msg))
            })?
            .find(&mut files)
            .map_err(|error| {
                Stop::usage(format!(
                    "cannot read what {} {pattern:?} names in {}: {error}",
                    inputs.option,
                    inputs.folder.display()
                ))
            })?;
        if !found {
            return Err(Stop::usage(format!(
                "{} {pattern:?} matches no file in {}; correct the pattern, or leave it out",
                inputs.option,
                inputs.folder.display()
            )));
        }
    }
    Ok(files)
}

/// The search for one pattern. It does not follow links to folders, which may lead back to where
/// they stand.
struct Search<'a> {
    base: &'a Path,
    /// What comes before the first part that is a pattern.
    fixed: PathBuf,
    pattern: Pattern,
    /// How many folders below `fixed` a name may be.
    depth: usize,
    finds_hidden: bool,
}

impl<'a> Search<'a> {
    fn new(pattern: &str, base: &'a Path) -> Result<Self, PatternError> {
        let parts: Vec<_> = Path::new(pattern).components().filter(|part| *part != Component::CurDir).collect();
        let is_fixed = |part: &&Component<'_>| !part.as_os_str().to_string_lossy().contains(['*', '?', '[']);
        let fixed = parts.iter().take_while(is_fixed).count();
        let whole: PathBuf = parts.iter().collect();
        let is_deep = parts.iter().any(|part| part.as_os_str() == "**");
        Ok(Self {
            base,
            fixed: parts[..fixed].iter().collect(),
            pattern: Pattern::new(&whole.to_string_lossy())?,
            depth: if is_deep { usize::MAX } else { parts.len() - fixed },
            finds_hidden: parts[fixed..].iter().any(|part| part.as_os_str().as_encoded_bytes().starts_with(b".")),
        })
    }

    /// Adds what is found; whether there was any.
    fn find(&self, files: &mut BTreeMap<PathBuf, PathBuf>) -> std::io::Result<bool> {
        if !self.base.join(&self.fixed).exists() {
            return Ok(false);
        }
        if self.depth == 0 { self.add(&self.fixed, files) } else { self.look(&self.fixed, self.depth, files) }
    }

    fn look(&self, folder: &Path, depth: usize, files: &mut BTreeMap<PathBuf, PathBuf>) -> std::io::Result<bool> {
        let mut any = false;
        for (name, is_folder) in self.entries(folder, self.finds_hidden)? {
            if self.pattern.matches_path_with(&name, AS_A_SHELL) {
                any |= self.add(&name, files)?;
            } else if is_folder && depth > 1 {
                any |= self.look(&name, depth - 1, files)?;
            }
        }
        Ok(any)
    }

    /// Adds a file, or all below a folder.
    fn add(&self, name: &Path, files: &mut BTreeMap<PathBuf, PathBuf>) -> std::io::Result<bool> {
        let path = self.base.join(name);
        if !path.is_dir() {
            files.insert(name.to_owned(), path);
            return Ok(true);
        }
        let mut any = false;
        for (name, is_folder) in self.entries(name, false)? {
            if is_folder || !self.base.join(&name).is_dir() {
                any |= self.add(&name, files)?;
            }
        }
        Ok(any)
    }

    /// What is in a folder, and which of it is a folder and no link to one.
    fn entries(&self, folder: &Path, with_hidden: bool) -> std::io::Result<Vec<(PathBuf, bool)>> {
        let mut entries = Vec::new();
        for entry in fs::read_dir(self.base.join(folder))? {
            let entry = entry?;
            let name = entry.file_name();
            if name != COMPILED && (with_hidden || !name.as_encoded_bytes().starts_with(b".")) {
                entries.push((folder.join(name), entry.file_type()?.is_dir()));
            }
        }
        Ok(entries)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(folder: &Path, patterns: &[&str]) -> anyhow::Result<Vec<String>> {
        let patterns = patterns.iter().map(|&pattern| pattern.to_owned()).collect();
        let files = files(&Inputs::of_setup(patterns, folder.to_owned()))?;
        Ok(files.into_keys().map(|name| name.display().to_string()).collect())
    }

    #[test]
    fn patterns_find_what_a_shell_finds_and_folders_stand_for_what_is_in_them() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let folder = dir.path().join("odd [name]*");
        for file in ["m/1.sql", "m/2.sql", "m/deep/3.sql", "m/.1.swp", "m/__pycache__/x.pyc", "seed.sql", "other"] {
            let path = folder.join(file);
            fs::create_dir_all(path.parent().expect("a folder")).expect("a folder");
            fs::write(path, file).expect("a file");
        }
        std::os::unix::fs::symlink(&folder, folder.join("m/loop")).expect("a link");
        let found = |patterns: &[&str]| names(&folder, patterns).expect("files").join(" ");
        assert_eq!(found(&["m/*.sql"]), "m/1.sql m/2.sql");
        assert_eq!(found(&["m", "seed.sql"]), "m/1.sql m/2.sql m/deep/3.sql seed.sql");
        assert_eq!(found(&["m/**/*.sql", "m/1.sql"]), "m/1.sql m/2.sql m/deep/3.sql");
        assert_eq!(found(&["m/[12].sql"]), "m/1.sql m/2.sql");
        assert_eq!(found(&["./m/"]), "m/1.sql m/2.sql m/deep/3.sql");
        assert_eq!(found(&["m/.*"]), "m/.1.swp");
        assert_eq!(found(&["../odd*/seed.sql"]).matches("seed.sql").count(), 1);
        for nothing in ["n/*", "m/[3-9]*", "*.py"] {
            let error = names(&folder, &["m", nothing]).expect_err(nothing).to_string();
            assert!(error.contains("matches no file") && error.contains(nothing), "{error}");
        }
        assert!(names(&folder, &["a["]).expect_err("no pattern").to_string().contains("is no pattern"));
    }

    #[test]
    fn a_recipe_changes_with_command_names_contents_and_surroundings_and_not_with_its_place() {
        let print = |command: &str, files: &[(&str, &str)], around: &str| {
            let dir = tempfile::tempdir().expect("temporary directory");
            for (name, text) in files {
                fs::write(dir.path().join(name), text).expect("a file");
            }
            let flags = crate::settings::Choices {
                setup: Some(crate::settings::Setup { command: command.to_owned(), folder: PathBuf::new() }),
                inputs: Some(Inputs::of_setup(vec!["*".to_owned()], PathBuf::new())),
                ..Default::default()
            };
            let settings = Settings::fold(flags, None, std::iter::empty(), dir.path()).expect("settings");
            Recipe::read(&settings).expect("files").expect("a recipe").fingerprint(&[around])
        };
        let first = print("migrate", &[("a", "1"), ("b", "2")], "15");
        assert_eq!(print("migrate", &[("b", "2"), ("a", "1")], "15"), first);
        let mut all = vec![first];
        all.push(print("migrate!", &[("a", "1"), ("b", "2")], "15"));
        all.push(print("migrate", &[("a", "1"), ("c", "2")], "15"));
        all.push(print("migrate", &[("a", "12"), ("b", "")], "15"));
        all.push(print("migrate", &[("a", "1"), ("b", "2")], "16"));
        let different: std::collections::HashSet<_> = all.iter().collect();
        assert_eq!(different.len(), all.len());
    }
}
