//! `isolane.toml`: the same choices as on the command line, under the same names.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use toml::{Table, Value};

use super::env_template::EnvTemplate;
use super::{Choices, Cleaner, Inputs, Setup, Track, pool};

/// The name of the file.
pub const NAME: &str = "isolane.toml";
/// The ledger's usual path, beside the configuration.
pub const LEDGER: &str = ".isolane/ledger.db";

const KEYS: [&str; 19] = [
    "database-url",
    "isolation",
    "setup",
    "setup-input",
    "template",
    "workers",
    "fresh",
    "keep",
    "url-var",
    "ledger",
    "runner",
    "quiet",
    "report",
    "env",
    "cleaner",
    "track",
    "fail-on",
    "pool",
    "leases",
];

/// The file that counts for `cwd`: there, or in the nearest folder above.
pub fn find(cwd: &Path) -> Option<PathBuf> {
    cwd.ancestors().map(|folder| folder.join(NAME)).find(|file| file.is_file())
}

/// Reads the file. The error is one line without the file's name.
pub fn read(path: &Path) -> Result<Choices, String> {
    let text = std::fs::read_to_string(path).map_err(|e| e.to_string())?;
    let table: Table = text.parse().map_err(|e: toml::de::Error| {
        let line = e.span().map_or(1, |span| text[..span.start].matches('\n').count() + 1);
        format!("line {line}: {}", e.message().replace('\n', ", "))
    })?;
    check_keys(&table, &KEYS, "")?;
    let folder = path.parent().unwrap_or(Path::new(""));
    let template = template(&table)?;
    Ok(Choices {
        store: None,
        database_urls: strings(&table, "database-url")?,
        isolation: choice(&table, "isolation")?,
        // So does what it names.
        setup: template.setup.map(|command| Setup { command, folder: folder.to_owned() }),
        inputs: Some(Inputs::of_setup(template.inputs, folder.to_owned())).filter(|inputs| !inputs.patterns.is_empty()),
        keep_templates: template.keep,
        workers: number(&table, "workers", "")?,
        fresh: choice(&table, "fresh")?,
        keep: choice(&table, "keep")?,
        url_vars: strings(&table, "url-var")?,
        // A path in the file counts from the file's folder.
        ledger: string(&table, "ledger")?.map(|ledger| folder.join(ledger)),
        runner: choice(&table, "runner")?,
        quiet: match table.get("quiet") {
            None => None,
            Some(value) => Some(value.as_bool().ok_or("`quiet` takes true or false")?),
        },
        reports: strings(&table, "report")?.into_iter().map(|report| folder.join(report)).collect(),
        env: env(&table)?,
        cleaners: cleaners(&table)?,
        track: match table.get("track") {
            None => None,
            Some(Value::Boolean(false)) => Some(Track::nothing()),
            Some(_) => Some(track(&strings(&table, "track")?)?),
        },
        pools: pool::pools(&table, folder)?,
        leases: string(&table, "leases")?,
        fail_on: strings(&table, "fail-on")?.iter().map(|word| one_of("fail-on", word)).collect::<Result<_, _>>()?,
    })
}

pub(super) fn check_keys(table: &Table, known: &[&str], place: &str) -> Result<(), String> {
    let Some(unknown) = table.keys().find(|key| !known.contains(&key.as_str())) else { return Ok(()) };
    let nearest =
        known.iter().max_by(|a, b| strsim::jaro_winkler(a, unknown).total_cmp(&strsim::jaro_winkler(b, unknown)));
    Err(format!("unknown key `{place}{unknown}`; did you mean `{place}{}`?", nearest.unwrap_or(&"")))
}

pub(super) fn string(table: &Table, key: &str) -> Result<Option<String>, String> {
    match table.get(key) {
        None => Ok(None),
        Some(Value::String(text)) => Ok(Some(text.clone())),
        Some(_) => Err(format!("`{key}` takes a text in quotes")),
    }
}

pub(super) fn strings(table: &Table, key: &str) -> Result<Vec<String>, String> {
    let wrong = || format!("`{key}` takes a text in quotes, or a list of them");
    match table.get(key) {
        Some(Value::Array(values)) => {
            values.iter().map(|value| value.as_str().map(str::to_owned).ok_or_else(wrong)).collect()
        }
        _ => string(table, key).map(|one| one.into_iter().collect()).map_err(|_| wrong()),
    }
}

fn choice<T: clap::ValueEnum>(table: &Table, key: &str) -> Result<Option<T>, String> {
    string(table, key)?.map(|text| one_of(key, &text)).transpose()
}

fn track(patterns: &[String]) -> Result<Track, String> {
    if patterns.is_empty() { Ok(Track::nothing()) } else { Track::parse(patterns).map_err(|e| format!("`track`: {e}")) }
}

fn one_of<T: clap::ValueEnum>(key: &str, text: &str) -> Result<T, String> {
    T::from_str(text, false).map_err(|_| {
        let values: Vec<_> =
            T::value_variants().iter().filter_map(|v| v.to_possible_value().map(|p| p.get_name().to_owned())).collect();
        format!("`{key}` is \"{text}\" and takes one of {}", values.join(", "))
    })
}

fn env(table: &Table) -> Result<Vec<(String, EnvTemplate)>, String> {
    sub_table(table, "env")?
        .into_iter()
        .flatten()
        .map(|(name, value)| {
            let text = value.as_str().ok_or_else(|| format!("`env.{name}` takes a text in quotes"))?;
            Ok((name.clone(), EnvTemplate::parse(text).map_err(|e| format!("`env.{name}`: {e}"))?))
        })
        .collect()
}

/// What the file says of the pristine state, under `setup` and `setup-input` or in `[template]`.
struct Template {
    setup: Option<String>,
    inputs: Vec<String>,
    keep: Option<u32>,
}

fn template(table: &Table) -> Result<Template, String> {
    let (setup, inputs) = (string(table, "setup")?, strings(table, "setup-input")?);
    let Some(own) = sub_table(table, "template")? else { return Ok(Template { setup, inputs, keep: None }) };
    check_keys(own, &["setup", "inputs", "keep"], "template.")?;
    for (above, within) in [("setup", "setup"), ("setup-input", "inputs")] {
        if table.contains_key(above) && own.contains_key(within) {
            return Err(format!("`{above}` and `template.{within}` are the same; leave one of the two out"));
        }
    }
    let within = |error: String| error.replacen('`', "`template.", 1);
    let own_inputs = strings(own, "inputs").map_err(within)?;
    Ok(Template {
        setup: setup.or(string(own, "setup").map_err(within)?),
        inputs: if inputs.is_empty() { own_inputs } else { inputs },
        keep: number(own, "keep", "template.")?,
    })
}

pub(super) fn number(table: &Table, key: &str, place: &str) -> Result<Option<u32>, String> {
    let Some(value) = table.get(key) else { return Ok(None) };
    let number = value.as_integer().and_then(|n| u32::try_from(n).ok()).filter(|n| *n > 0);
    number.map(Some).ok_or_else(|| format!("`{place}{key}` takes a number from 1 on"))
}

fn cleaners(table: &Table) -> Result<BTreeMap<String, Cleaner>, String> {
    sub_table(table, "cleaner")?
        .into_iter()
        .flatten()
        .map(|(kind, value)| {
            let table = value.as_table().ok_or_else(|| format!("`cleaner.{kind}` is a table: [cleaner.{kind}]"))?;
            check_keys(table, &["run"], &format!("cleaner.{kind}."))?;
            let run = string(table, "run")?
                .ok_or_else(|| format!("`cleaner.{kind}` lacks `run`, the command that removes one"))?;
            Ok((kind.clone(), Cleaner { run }))
        })
        .collect()
}

pub(super) fn sub_table<'a>(table: &'a Table, key: &str) -> Result<Option<&'a Table>, String> {
    match table.get(key) {
        None => Ok(None),
        Some(Value::Table(table)) => Ok(Some(table)),
        Some(_) => Err(format!("`{key}` is a table: [{key}]")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read_text(text: &str) -> Result<Choices, String> {
        let dir = tempfile::tempdir().expect("temporary directory");
        let path = dir.path().join(NAME);
        std::fs::write(&path, text).expect("write");
        read(&path)
    }

    #[test]
    fn the_file_that_init_writes_is_usable_as_it_is_and_with_every_line_switched_on() {
        let text = include_str!("init.toml");
        read_text(text).expect("as it is");
        let on: String = text.lines().map(|line| line.strip_prefix("#: ").unwrap_or(line).to_owned() + "\n").collect();
        let choices = read_text(&on).expect("switched on");
        assert!(choices.setup.is_some() && choices.cleaners.len() == 1 && !choices.env.is_empty());
        for key in KEYS {
            assert!(on.contains(key), "{key} is missing in the file that init writes");
        }
    }

    #[test]
    fn mistakes_are_named() {
        for (text, part) in [
            ("isolaton = 'none'", "did you mean `isolation`"),
            ("isolation = 'nothing'", "takes one of auto, database, schema, server, shared, none"),
            ("workers = 0", "from 1 on"),
            ("x = = 3", "line 1"),
            ("[env]\nA = '{nope}'", "`env.A`: `{nope}` is unknown"),
            ("[cleaner.bucket]\nrum = 'x'", "did you mean `cleaner.bucket.run`"),
            ("env = 3", "[env]"),
            ("[template]\nimputs = 'x'", "did you mean `template.inputs`"),
            ("[template]\nkeep = 0", "`template.keep` takes a number from 1 on"),
            ("[template]\ninputs = 3", "`template.inputs` takes a text"),
            ("setup = 'a'\n[template]\nsetup = 'b'", "`setup` and `template.setup` are the same"),
        ] {
            let message = read_text(text).expect_err(text);
            assert!(message.contains(part) && !message.contains('\n'), "{message}");
        }
    }
}
