//! What a failed test's message tells of things that workers share beside the database.

/// Something that lanes of a database do not separate.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Shared {
    /// A file or directory, mostly in the working directory.
    File,
    /// A port.
    Port,
}

impl Shared {
    /// What the message of a failed test names, as Python, Rust, Node and libc word it.
    pub fn named_in(message: &str) -> Option<Self> {
        let has = |words: &[&str]| words.iter().any(|word| message.contains(word));
        if has(&["Address already in use", "address already in use", "AddrInUse", "EADDRINUSE"]) {
            Some(Self::Port)
        } else if has(&["FileExistsError", "kind: AlreadyExists", "EEXIST"]) {
            Some(Self::File)
        } else {
            None
        }
    }

    /// What the user should read when `n` tests named it, one of them `test`.
    pub fn notice(self, n: usize, test: &str) -> String {
        let (what, own) = match self {
            Self::File => {
                ("a file that was there already", "they share the working directory, ISOLANE_DIR is their own")
            }
            Self::Port => ("a port in use", "ISOLANE_PORT_BASE is the first of 20 ports of their own"),
        };
        let tests = if n == 1 { "1 test".to_owned() } else { format!("{n} tests") };
        format!("{tests} failed over {what}, not over the database ({test}): of several workers, {own}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_and_ports_are_told_from_databases() {
        assert_eq!(Shared::named_in("FileExistsError: [Errno 17] File exists: 'basedir'"), Some(Shared::File));
        assert_eq!(Shared::named_in("OSError: [Errno 98] Address already in use"), Some(Shared::Port));
        assert_eq!(Shared::named_in("relation \"users\" already exists"), None);
    }
}
