//! Addresses of SQLite files. `sqlite:///x.db` is relative to Python's SQLAlchemy and
//! absolute to Rust's sqlx; the file that exists decides.

use std::path::{Path, PathBuf};

/// The address of an SQLite file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SqliteAddress {
    /// Scheme and slashes, as a path that begins with a slash is put behind them.
    head: String,
    path: PathBuf,
    /// The query with its `?`, or nothing.
    query: String,
}

impl SqliteAddress {
    /// The address of the embedded default, which has no file of the user's.
    pub fn embedded() -> Self {
        Self { head: "sqlite:///".to_owned(), path: PathBuf::new(), query: String::new() }
    }

    /// Reads an address; `None` where it names a database in memory.
    pub(super) fn parse(text: &str, cwd: &Path) -> Option<Self> {
        let (scheme, rest) = text.split_once(':')?;
        let (rest, query) = rest.find('?').map_or((rest, ""), |at| rest.split_at(at));
        let (slashes, path) = if let Some(path) = rest.strip_prefix("///") {
            ("///", path)
        } else if let Some(path) = rest.strip_prefix("//") {
            ("//", path)
        } else {
            ("", rest)
        };
        if path.is_empty() || path == ":memory:" || query.contains("mode=memory") {
            return None;
        }
        // Rust's sqlx reads it encoded, Python's SQLAlchemy as it is; again the file decides.
        let decoded = percent_encoding::percent_decode_str(path).decode_utf8().ok();
        let path = match decoded.as_deref() {
            Some(decoded) if !cwd.join(path).exists() && cwd.join(decoded).exists() => decoded,
            _ => path,
        };
        let relative = cwd.join(path);
        let absolute = Path::new("/").join(path);
        let is_absolute = slashes == "///"
            && !relative.exists()
            && (absolute.exists() || !relative.parent().is_some_and(Path::exists));
        let path = if is_absolute { absolute } else { relative };
        Some(Self { head: format!("{scheme}:{slashes}"), path, query: query.to_owned() })
    }

    /// The user's own file; empty for the embedded default.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The same address with another file, `path` being absolute.
    pub fn with_path(&self, path: &Path) -> String {
        format!("{}{}{}", self.head, path.display(), self.query)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str, cwd: &Path) -> SqliteAddress {
        SqliteAddress::parse(text, cwd).expect("a file")
    }

    #[test]
    fn relative_and_absolute_files_are_told_apart_and_slashes_stay() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let cwd = dir.path();
        std::fs::write(cwd.join("x.db"), "").expect("write");
        for (text, path, lane) in [
            ("sqlite:///x.db", cwd.join("x.db"), "sqlite:////l.db"),
            ("sqlite+aiosqlite:///x.db?a=b", cwd.join("x.db"), "sqlite+aiosqlite:////l.db?a=b"),
            ("sqlite:////x.db", PathBuf::from("/x.db"), "sqlite:////l.db"),
            ("sqlite:///tmp/none/x.db", PathBuf::from("/tmp/none/x.db"), "sqlite:////l.db"),
            ("sqlite://y.db", cwd.join("y.db"), "sqlite:///l.db"),
            ("sqlite:y.db", cwd.join("y.db"), "sqlite:/l.db"),
        ] {
            let address = parse(text, cwd);
            assert_eq!(address.path(), path, "{text}");
            assert_eq!(address.with_path(Path::new("/l.db")), lane, "{text}");
        }
    }

    #[test]
    fn memory_is_no_file() {
        for text in ["sqlite://", "sqlite:///:memory:", "sqlite::memory:", "sqlite:///x?mode=memory"] {
            assert_eq!(SqliteAddress::parse(text, Path::new("/")), None, "{text}");
        }
    }
}
