//! Copies through pg_dump and psql, where the server cannot copy by itself.

use std::collections::HashSet;
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, bail};

use super::facts::Facts;
use crate::address::PostgresAddress;
use crate::error::Stop;
use crate::os::process;
use crate::secret::Secret;

/// A dump of one schema, as text.
#[derive(Debug)]
pub struct SchemaDump<'a> {
    /// The schema's name as SQL spells it.
    pub schema: String,
    /// Names in it that stay where they are: members of extensions.
    pub shared: &'a [String],
}

/// PostgreSQL's programs, at work for one run in one database.
#[derive(Debug)]
pub struct Programs<'a> {
    /// The user's database.
    pub address: &'a PostgresAddress,
    /// Of its server.
    pub facts: &'a Facts,
    /// What their sessions are called on the server.
    pub application: &'a str,
}

impl Programs<'_> {
    /// Fills the empty database `target` with what the user's holds.
    pub fn copy_database(&self, target: &str) -> anyhow::Result<()> {
        let mut dump = self.program("pg_dump", None)?;
        if !self.facts.is_superuser {
            dump.args(["--no-owner", "--no-privileges"]);
        }
        let mut dump = dump
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .stdin(Stdio::null())
            .spawn()
            .context("cannot start pg_dump")?;
        let mut restore = self.program("psql", None)?;
        let text = dump.stdout.take().context("pg_dump has an output")?;
        let restored = restore
            .args(PSQL)
            .env("PGDATABASE", target)
            .stdin(text)
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .output()
            .context("cannot start psql")?;
        let dumped = dump.wait_with_output()?;
        succeed("pg_dump", dumped.status, &dumped.stderr)?;
        succeed("psql", restored.status, &restored.stderr)
    }

    /// Writes a dump of one schema to a file.
    pub fn dump_schema(&self, schema: &str, file: &Path) -> anyhow::Result<()> {
        let mut dump = self.program("pg_dump", None)?;
        dump.args(["--no-owner", "--no-privileges", "--no-publications", "--no-subscriptions", "--no-tablespaces"]);
        // In quotes, because pg_dump takes a pattern.
        let exact = if schema.starts_with('"') { schema.to_owned() } else { format!("\"{schema}\"") };
        let output = dump
            .arg("--schema")
            .arg(exact)
            .arg("--file")
            .arg(file)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .output()
            .context("cannot start pg_dump")?;
        succeed("pg_dump", output.status, &output.stderr)
    }

    /// Replays a dump into the schema `target`, which exists and is empty.
    pub fn restore_schema(
        &self,
        as_login: Option<(&str, &Secret)>,
        dump: &SchemaDump<'_>,
        file: &Path,
        target: &str,
    ) -> anyhow::Result<()> {
        let text = fs::read(file).with_context(|| format!("cannot read {}", file.display()))?;
        let text = rename_schema(&text, &dump.schema, target, &dump.shared.iter().map(String::as_str).collect());
        let renamed = file.with_extension(format!("{target}.sql"));
        File::create(&renamed)
            .and_then(|mut f| f.write_all(&text))
            .with_context(|| format!("cannot write {}", renamed.display()))?;
        let mut restore = self.program("psql", as_login)?;
        let output = restore
            .args(PSQL)
            .arg("--single-transaction")
            .arg("--file")
            .arg(&renamed)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .output()
            .context("cannot start psql")?;
        fs::remove_file(&renamed).with_context(|| format!("cannot remove {}", renamed.display()))?;
        succeed("psql", output.status, &output.stderr)
    }

    /// A program that logs in as the user, or as somebody else.
    fn program(&self, name: &str, as_login: Option<(&str, &Secret)>) -> anyhow::Result<Command> {
        let address = self.address;
        let mut command = program(name, self.facts)?;
        let ports: Vec<_> = address.ports().iter().map(u16::to_string).collect();
        let (user, password) =
            as_login.map_or((address.user(), address.password()), |(user, password)| (user, Some(password)));
        // Through the environment: arguments are for everybody to read.
        command.env("PGHOST", address.hosts().join(",")).env("PGPORT", ports.join(",")).env("PGUSER", user);
        // So is the database: as an argument it might be taken for a connection string.
        command.env("PGDATABASE", address.database()).env_remove("PGOPTIONS").env_remove("PGSERVICE");
        command.env("PGAPPNAME", self.application);
        match password {
            Some(password) => command.env("PGPASSWORD", password.reveal()),
            None => command.env_remove("PGPASSWORD"),
        };
        Ok(command)
    }
}

/// No user's start file, no chatter, and an end at the first error.
const PSQL: [&str; 5] = ["--no-psqlrc", "--quiet", "--no-password", "--set", "ON_ERROR_STOP=1"];

/// A program of PostgreSQL, at least as new as the server: the first on the path that is,
/// else the newest where Debian keeps versions side by side.
fn program(name: &str, facts: &Facts) -> anyhow::Result<Command> {
    let wanted = facts.version / 10_000;
    let mut seen = Vec::new();
    for path in candidates(name) {
        let output = process::command(&path).arg("--version").output();
        let text = output.map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default();
        let major = text.split(|c: char| !c.is_ascii_digit()).find_map(|word| word.parse::<i32>().ok()).unwrap_or(0);
        if major >= wanted {
            return Ok(process::command(path));
        }
        seen.push(format!("{} ({major})", path.display()));
    }
    if seen.is_empty() {
        return Err(missing(name));
    }
    bail!(Stop::not_started(format!(
        "{} cannot copy from a server of version {}; install postgresql-client-{wanted}",
        seen.join(", "),
        facts.version_text
    )))
}

fn candidates(name: &str) -> Vec<PathBuf> {
    let on_path = which::which_all(name).into_iter().flatten();
    let versions = fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    let mut side_by_side: Vec<_> = versions
        .filter_map(|entry| {
            let version: u32 = entry.file_name().to_str()?.parse().ok()?;
            Some((version, entry.path().join("bin").join(name)))
        })
        .filter(|(_, path)| path.is_file())
        .collect();
    side_by_side.sort();
    on_path.chain(side_by_side.into_iter().rev().map(|(_, path)| path)).collect()
}

fn missing(name: &str) -> anyhow::Error {
    Stop::not_started(format!(
        "the program {name} is missing, which copies a schema, or a database that is in use; install it (Debian: apt-get install postgresql-client)"
    ))
}

/// The first line that says why it failed.
pub fn succeed(name: &str, status: std::process::ExitStatus, stderr: &[u8]) -> anyhow::Result<()> {
    if status.success() {
        return Ok(());
    }
    let text = String::from_utf8_lossy(stderr);
    let first = text
        .lines()
        .find(|line| line.contains("ERROR") || line.contains("error:") || line.contains("FATAL"))
        .or(text.lines().next());
    let hint = if text.contains("permission denied") {
        "; the login must be able to read all of it: GRANT SELECT ON ALL TABLES IN SCHEMA …, GRANT SELECT ON ALL SEQUENCES IN SCHEMA …"
    } else {
        ""
    };
    bail!("{name} failed: {}{hint}", first.unwrap_or("it said nothing").trim())
}

/// A dump with the schema `from` (as SQL spells it) called `to`, a plain name. Names in
/// `shared` stay where they are. The data of COPY and the content of literals stay as
/// they are, except for literals that are names (`'public.orders_id_seq'::regclass`).
fn rename_schema(dump: &[u8], from: &str, to: &str, shared: &HashSet<&str>) -> Vec<u8> {
    let mut out = Vec::with_capacity(dump.len() + dump.len() / 16);
    let mut in_copy = false;
    let mut scanner = Scanner::default();
    for line in dump.split_inclusive(|byte| *byte == b'\n') {
        let trimmed = line.trim_ascii_end();
        if in_copy {
            in_copy = trimmed != b"\\.";
            out.extend_from_slice(line);
            continue;
        }
        if scanner.is_outside() {
            // The schema is there already, and is isolane's, with isolane's comment.
            let own = [format!("CREATE SCHEMA {from};"), format!("COMMENT ON SCHEMA {from} IS ")];
            if trimmed == own[0].as_bytes() || trimmed.starts_with(own[1].as_bytes()) {
                continue;
            }
            if is_watching(trimmed) {
                continue;
            }
            in_copy = trimmed.starts_with(b"COPY ") && trimmed.ends_with(b"FROM stdin;");
        }
        scanner.rename_line(line, from.as_bytes(), to.as_bytes(), shared, &mut out);
    }
    out
}

/// Whether a statement makes a trigger of isolane's, of this run or another: who replays the dump
/// may not use what is behind it, and copies are watched by triggers of their own.
fn is_watching(statement: &[u8]) -> bool {
    let Some(name) = statement.strip_prefix(b"CREATE TRIGGER isolane_") else { return false };
    let calls = b" EXECUTE FUNCTION isolane_";
    name.get(..13).is_some_and(|tag| tag[..12].iter().all(u8::is_ascii_hexdigit) && tag[12] == b'_')
        && name.windows(calls.len()).any(|words| words == calls)
}

/// Where in SQL text a scan stands, from line to line.
#[derive(Debug, Default)]
struct Scanner {
    /// Within a literal in single quotes.
    literal: bool,
    /// Within dollar quotes, with this tag: the body of a function.
    dollar: Option<Vec<u8>>,
}

impl Scanner {
    fn is_outside(&self) -> bool {
        !self.literal && self.dollar.is_none()
    }

    fn rename_line(&mut self, line: &[u8], from: &[u8], to: &[u8], shared: &HashSet<&str>, out: &mut Vec<u8>) {
        let mut at = 0;
        while at < line.len() {
            let rest = &line[at..];
            if self.is_outside() && rest.starts_with(b"--") {
                out.extend_from_slice(rest);
                return;
            }
            if !self.literal
                && rest[0] == b'$'
                && let Some(tag) = dollar_tag(rest)
            {
                match &self.dollar {
                    Some(open) if open == tag => self.dollar = None,
                    None => self.dollar = Some(tag.to_vec()),
                    Some(_) => {}
                }
                out.extend_from_slice(tag);
                at += tag.len();
                continue;
            }
            if self.dollar.is_none() && rest[0] == b'\'' {
                self.literal = !self.literal;
            }
            let before = line[..at].last().copied().unwrap_or(b' ');
            let starts_name = !(before.is_ascii_alphanumeric() || b"_$.\"".contains(&before) || before >= 0x80);
            let is_name = is_regclass_literal(rest) || line.starts_with(b"SELECT pg_catalog.setval(");
            let in_place = !self.literal || (before == b'\'' && is_name);
            if starts_name
                && in_place
                && rest.starts_with(from)
                && rest.get(from.len()) == Some(&b'.')
                && !shared.contains(name_at(&rest[from.len() + 1..]).as_str())
            {
                out.extend_from_slice(to);
                at += from.len();
                continue;
            }
            out.push(rest[0]);
            at += 1;
        }
    }
}

/// `$tag$` at the beginning of `text`.
fn dollar_tag(text: &[u8]) -> Option<&[u8]> {
    let end = 1 + text[1..].iter().position(|byte| *byte == b'$')?;
    text[1..end].iter().all(|byte| byte.is_ascii_alphanumeric() || *byte == b'_').then(|| &text[..=end])
}

/// Whether the literal whose inside begins here is followed by a cast to `regclass` or
/// one of its kin.
fn is_regclass_literal(inside: &[u8]) -> bool {
    inside.iter().position(|byte| *byte == b'\'').is_some_and(|end| inside[end + 1..].starts_with(b"::reg"))
}

/// The name at the beginning of `text`, without its quotes.
fn name_at(text: &[u8]) -> String {
    let bytes: Vec<u8> = match text.first() {
        Some(b'"') => text[1..].iter().copied().take_while(|byte| *byte != b'"').collect(),
        _ => text
            .iter()
            .copied()
            .take_while(|byte| byte.is_ascii_alphanumeric() || *byte == b'_' || *byte >= 0x80)
            .collect(),
    };
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rename(dump: &str, from: &str) -> String {
        String::from_utf8(rename_schema(dump.as_bytes(), from, "lane", &HashSet::from(["citext"]))).expect("UTF-8")
    }

    #[test]
    fn names_are_renamed_and_data_and_literals_are_not() {
        let dump = "CREATE SCHEMA public;\nCOMMENT ON SCHEMA public IS 'standard';\n\
            CREATE TABLE public.t (a public.citext, b public.mood DEFAULT 'x'::public.mood, c text DEFAULT 'see public.t');\n\
            ALTER TABLE ONLY public.t ALTER COLUMN id SET DEFAULT nextval('public.t_id_seq'::regclass);\n\
            COPY public.t (c) FROM stdin;\npublic.t\n\\.\n\
            CREATE FUNCTION public.f() AS $_$ SELECT 'it''s' FROM public.t -- public.t $_$;\n\
            SELECT pg_catalog.setval('public.t_id_seq', 1, true);\n\
            SELECT republic.x, public_x.y, other.public.z;\n";
        let expected = "CREATE TABLE lane.t (a public.citext, b lane.mood DEFAULT 'x'::lane.mood, c text DEFAULT 'see public.t');\n\
            ALTER TABLE ONLY lane.t ALTER COLUMN id SET DEFAULT nextval('lane.t_id_seq'::regclass);\n\
            COPY lane.t (c) FROM stdin;\npublic.t\n\\.\n\
            CREATE FUNCTION lane.f() AS $_$ SELECT 'it''s' FROM lane.t -- lane.t $_$;\n\
            SELECT pg_catalog.setval('lane.t_id_seq', 1, true);\n\
            SELECT republic.x, public_x.y, other.public.z;\n";
        assert_eq!(rename(dump, "public"), expected);
    }

    #[test]
    fn triggers_of_isolane_stay_behind_and_others_do_not() {
        let own = "CREATE TRIGGER isolane_b70678bde132_insert AFTER INSERT ON public.t REFERENCING NEW TABLE AS isolane_new FOR EACH STATEMENT EXECUTE FUNCTION isolane_b70678bde132.t0();\n";
        let users = "CREATE TRIGGER isolane_t AFTER INSERT ON public.t FOR EACH ROW EXECUTE FUNCTION public.f();\n";
        assert_eq!(rename(&format!("{own}{users}"), "public"), users.replace("public", "lane"));
    }

    #[test]
    fn a_name_in_quotes_is_renamed() {
        assert_eq!(rename("CREATE TABLE \"My App\".\"T\" ();\n", "\"My App\""), "CREATE TABLE lane.\"T\" ();\n");
    }

    #[test]
    fn a_literal_over_several_lines_stays() {
        let dump = "COMMENT ON TABLE public.t IS 'one\npublic.t\n';\nSELECT public.f();\n";
        assert_eq!(rename(dump, "public"), "COMMENT ON TABLE lane.t IS 'one\npublic.t\n';\nSELECT lane.f();\n");
    }
}
