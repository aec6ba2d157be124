//! Pools in `isolane.toml`: `[pool.NAME]`, what their items are and what is done to them.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use serde_json::{Map, Value as Json};
use toml::{Table, Value};

use super::file::{check_keys, number, string, strings, sub_table};
use super::inputs::Inputs;
use crate::clock;
use crate::lease::definition::{Definition, Generator, Guard, Input, Need, ResetAfter, Stock, Table as Rows, Usage};
use crate::lease::item::{Item, attributes_of};
use crate::lease::predicate::{Attributes, Predicate, plain};

/// How long one run of a generator may take unless its pool says otherwise, in seconds.
const TIMEOUT: u64 = 60;

const KEYS: [&str; 20] = [
    "items",
    "use",
    "shared",
    "ttl",
    "reset",
    "reset-after",
    "retire",
    "table",
    "where",
    "key",
    "guard",
    "generator",
    "generator-input",
    "minimum",
    "maximum",
    "inputs",
    "stock",
    "needs",
    "timeout",
    "about",
];

/// A pool as the configuration has it.
#[derive(Clone, Debug)]
pub struct PoolSettings {
    /// Its name.
    pub name: String,
    /// What it is.
    pub definition: Definition,
    /// The items that are given.
    pub items: Vec<Attributes>,
    /// The files that its generator is made from.
    pub inputs: Inputs,
}

impl PoolSettings {
    /// With its folders counted from `cwd`.
    #[must_use]
    pub fn within(mut self, cwd: &Path) -> Self {
        self.definition.folder = cwd.join(&self.definition.folder);
        self.inputs.folder = cwd.join(&self.inputs.folder);
        self
    }
}

/// Reads all pools of the file, whose paths count from `folder`.
pub fn pools(table: &Table, folder: &Path) -> Result<Vec<PoolSettings>, String> {
    let tables = sub_table(table, "pool")?.into_iter().flatten();
    let pools = tables
        .map(|(name, value)| {
            let table = value.as_table().ok_or_else(|| format!("`pool.{name}` is a table: [pool.{name}]"))?;
            check_keys(table, &KEYS, &format!("pool.{name}."))?;
            pool(name, table, folder).map_err(|error| error.replacen('`', &format!("`pool.{name}."), 1))
        })
        .collect::<Result<Vec<_>, String>>()?;
    match pools.iter().find_map(|pool| circle(&pools, &mut vec![pool.name.as_str()])) {
        Some(circle) => {
            Err(format!("`needs` go in a circle: {circle}; none of these pools could ever make its first item"))
        }
        None => Ok(pools),
    }
}

/// The circle that a pool's needs lead to, where they do.
fn circle<'a>(pools: &'a [PoolSettings], way: &mut Vec<&'a str>) -> Option<String> {
    let pool = way.last().and_then(|name| pools.iter().find(|pool| pool.name == **name))?;
    for need in pool.definition.generator.iter().flat_map(|generator| &generator.needs) {
        if let Some(at) = way.iter().position(|name| *name == need.pool) {
            return Some(format!("{} needs {}", way[at..].join(" needs "), need.pool));
        }
        way.push(&need.pool);
        if let Some(circle) = circle(pools, way) {
            return Some(circle);
        }
        way.pop();
    }
    None
}

fn pool(name: &str, table: &Table, folder: &Path) -> Result<PoolSettings, String> {
    let generator = generator(table)?;
    let rows = rows(table)?;
    let sources = [table.contains_key("items"), generator.is_some(), rows.is_some()];
    if sources.iter().filter(|is| **is).count() > 1 {
        return Err(
            "`items` come from a list or a file, from a table, or from a generator: leave all but one of these out"
                .to_owned(),
        );
    }
    let usage = usage(table)?;
    if rows.is_some() && usage == Usage::Consume && !table.contains_key("retire") {
        return Err("`retire` is missing: with `table` and use = \"consume\", it is what removes a row that was used"
            .to_owned());
    }
    let definition = Definition {
        usage,
        ttl: time(table, "ttl")?,
        reset: string(table, "reset")?,
        reset_after: match string(table, "reset-after")?.as_deref() {
            None | Some("unclean") => ResetAfter::Unclean,
            Some("each") => ResetAfter::Each,
            Some(other) => return Err(format!("`reset-after` is \"{other}\" and takes one of unclean, each")),
        },
        retire: string(table, "retire")?,
        generator,
        table: rows,
        folder: folder.to_owned(),
        timeout: time(table, "timeout")?,
        ..Definition::default()
    };
    let inputs = Inputs::of_generator(strings(table, "generator-input")?, folder.to_owned());
    let items = items(table, folder)?;
    let mut names = BTreeSet::new();
    let twice =
        items.iter().map(|it| Item::of(name, it.clone(), &definition).name).find(|it| !names.insert(it.clone()));
    if let Some(twice) = twice {
        return Err(format!("`items` has two that are called {twice}; each needs an `id` of its own"));
    }
    Ok(PoolSettings { name: name.to_owned(), definition, items, inputs })
}

fn usage(table: &Table) -> Result<Usage, String> {
    match (string(table, "use")?.as_deref(), number(table, "shared", "")?) {
        (None | Some("exclusive"), None) => Ok(Usage::Exclusive),
        (Some("consume"), None) => Ok(Usage::Consume),
        (None | Some("shared"), Some(n)) => Ok(Usage::Shared(n)),
        (Some("shared"), None) => Err("`shared` says by how many at a time, such as 3".to_owned()),
        (Some("exclusive" | "consume"), Some(_)) => Err("`shared` and `use` exclude each other".to_owned()),
        (Some(other), _) => Err(format!("`use` is \"{other}\" and takes one of exclusive, shared, consume")),
    }
}

fn time(table: &Table, key: &str) -> Result<Option<u64>, String> {
    let text = string(table, key)?;
    let seconds = |text: String| clock::duration(&text).map(|time| time.as_secs().max(1));
    text.map(|text| seconds(text).map_err(|why| format!("`{key}`: {why}"))).transpose()
}

fn items(table: &Table, folder: &Path) -> Result<Vec<Attributes>, String> {
    match table.get("items") {
        None => Ok(Vec::new()),
        Some(Value::String(file)) => read_items(&folder.join(file)).map_err(|why| format!("`items`: {why}")),
        Some(Value::Array(values)) => {
            let items = values.iter().map(|value| attributes_of(json(value)));
            items.collect::<Result<_, _>>().map_err(|why| format!("`items`: {why}"))
        }
        Some(_) => Err("`items` takes a list, or the name of a .json or .csv file".to_owned()),
    }
}

/// Reads items from a file: a JSON array, or CSV whose first line names the attributes.
pub fn read_items(path: &Path) -> Result<Vec<Attributes>, String> {
    let of_file = |error: &dyn std::fmt::Display| format!("{}: {error}", path.display());
    let bytes = fs::read(path).map_err(|error| of_file(&error))?;
    // Some editors begin a file with a mark of how it is encoded.
    let text = bytes.strip_prefix(b"\xEF\xBB\xBF").unwrap_or(&bytes);
    if path.extension().is_some_and(|ending| ending == "csv") {
        return rows_of_csv(text).map_err(|why| of_file(&why));
    }
    let values: Vec<Json> = serde_json::from_slice(text).map_err(|error| of_file(&error))?;
    values.into_iter().map(|value| attributes_of(value).map_err(|error| of_file(&error))).collect()
}

fn rows_of_csv(text: &[u8]) -> Result<Vec<Attributes>, String> {
    if let Some(line) = open_quote(text) {
        return Err(format!("line {line}: a quote begins here and does not end"));
    }
    let mut reader = csv::Reader::from_reader(text);
    let names = reader.headers().map_err(|error| error.to_string())?;
    if let Some((_, twice)) = names.iter().enumerate().find(|(n, name)| names.iter().take(*n).any(|it| it == *name)) {
        return Err(format!("line 1 names the column {twice} twice"));
    }
    reader.deserialize::<Map<String, Json>>().map(|row| row.map_err(|error| error.to_string())).collect()
}

/// The line with a quote that does not end: everything behind it would be one value.
fn open_quote(text: &[u8]) -> Option<usize> {
    let (mut line, mut begun, mut is_start) = (1, None, true);
    let mut bytes = text.iter().peekable();
    while let Some(byte) = bytes.next() {
        match (byte, begun) {
            (b'"', None) if is_start => begun = Some(line),
            // Two within a value stand for one.
            (b'"', Some(_)) if bytes.next_if_eq(&&b'"').is_none() => begun = None,
            _ => {}
        }
        is_start = begun.is_none() && matches!(byte, b',' | b'\n' | b'\r');
        line += usize::from(*byte == b'\n');
    }
    begun
}

fn rows(table: &Table) -> Result<Option<Rows>, String> {
    let Some(name) = string(table, "table")? else {
        let stray = ["where", "key", "guard"].into_iter().find(|key| table.contains_key(*key));
        return stray.map_or(Ok(None), |key| Err(format!("`{key}` says something of `table`, which is missing")));
    };
    let guard = match string(table, "guard")?.as_deref() {
        None | Some("off") => Guard::Off,
        Some("note") => Guard::Note,
        Some("refuse") => Guard::Refuse,
        Some(other) => return Err(format!("`guard` is \"{other}\" and takes one of off, note, refuse")),
    };
    let key = string(table, "key")?.unwrap_or_else(|| "id".to_owned());
    Ok(Some(Rows { name, condition: string(table, "where")?, key, guard }))
}

fn generator(table: &Table) -> Result<Option<Generator>, String> {
    let Some(run) = string(table, "generator")? else {
        let words = ["generator-input", "minimum", "maximum", "inputs", "stock", "needs", "timeout"];
        let has_command = table.contains_key("reset") || table.contains_key("retire");
        let is_stray = |key: &&str| table.contains_key(*key) && !(has_command && *key == "timeout");
        let stray = words.into_iter().find(is_stray);
        return match stray {
            None => Ok(None),
            Some("timeout") => {
                Err("`timeout` says something of `reset`, `retire` or `generator`, which are all missing".to_owned())
            }
            Some(key) => Err(format!("`{key}` says something of `generator`, which is missing")),
        };
    };
    let mut stock = stock(table)?;
    if let Some(minimum) = number(table, "minimum", "")? {
        stock.push(Stock { input: Map::new(), minimum });
    }
    let generator = Generator {
        run,
        inputs: inputs(table)?,
        stock,
        maximum: number(table, "maximum", "")?,
        needs: needs(table)?,
        timeout: time(table, "timeout")?.unwrap_or(TIMEOUT),
        fingerprint: String::new(),
    };
    let wanted: u64 = generator.stock.iter().map(|stock| u64::from(stock.minimum)).sum();
    if let Some(maximum) = generator.maximum.filter(|maximum| u64::from(*maximum) < wanted) {
        return Err(format!("`maximum` is {maximum}, and {wanted} are to be in stock (`minimum`, `stock`)"));
    }
    for input in &generator.inputs {
        if let Some(default) = input.default.as_ref().filter(|default| input.fit(default).is_none()) {
            return Err(format!("`inputs.{}.default`: {}", input.name, input.misfit(&plain(default))));
        }
    }
    for stock in &generator.stock {
        let key = if stock.input.is_empty() { "minimum" } else { "stock" };
        generator.input(&stock.input).map_err(|why| format!("`{key}`: {why}"))?;
    }
    Ok(Some(generator))
}

/// `inputs = { months = { type = "number", default = 6 }, tier = { values = ["gold", "silver"] } }`
fn inputs(table: &Table) -> Result<Vec<Input>, String> {
    let all = sub_table(table, "inputs")?.into_iter().flatten();
    all.map(|(name, value)| {
        let table = value.as_table().ok_or_else(|| format!("`inputs.{name}` is a table: {{ type = \"text\" }}"))?;
        check_keys(table, &["type", "values", "default", "about"], &format!("inputs.{name}."))?;
        let values = match table.get("values") {
            None => Vec::new(),
            Some(Value::Array(values)) => values.iter().map(json).collect(),
            Some(_) => return Err(format!("`inputs.{name}.values` takes a list")),
        };
        let default = table.get("default").map(json);
        let kind = match string(table, "type")?.as_deref() {
            Some(kind @ ("text" | "number" | "boolean")) => kind.to_owned(),
            Some(other) => {
                return Err(format!("`inputs.{name}.type` is \"{other}\" and takes one of text, number, boolean"));
            }
            None => match default.as_ref().or(values.first()) {
                Some(Json::Number(_)) => "number",
                Some(Json::Bool(_)) => "boolean",
                _ => "text",
            }
            .to_owned(),
        };
        Ok(Input { name: name.clone(), kind, values, default, about: string(table, "about")? })
    })
    .collect()
}

/// `stock = [{ minimum = 5, months = 6 }]`
fn stock(table: &Table) -> Result<Vec<Stock>, String> {
    let usage = || "`stock` takes a list such as [{ minimum = 5, tier = \"gold\" }]".to_owned();
    let Some(all) = table.get("stock") else { return Ok(Vec::new()) };
    all.as_array()
        .ok_or_else(usage)?
        .iter()
        .map(|one| {
            let Json::Object(mut input) = json(one) else { return Err(usage()) };
            let minimum = input.remove("minimum").and_then(|it| it.as_u64()).and_then(|it| u32::try_from(it).ok());
            Ok(Stock { input, minimum: minimum.ok_or_else(usage)? })
        })
        .collect()
}

/// `needs = ["acct", { pool = "licence", count = 2, where = { tier = "gold" } }]`
fn needs(table: &Table) -> Result<Vec<Need>, String> {
    let usage = || "`needs` takes a list such as [\"acct\", { pool = \"licence\", count = 2 }]".to_owned();
    let Some(all) = table.get("needs") else { return Ok(Vec::new()) };
    all.as_array()
        .ok_or_else(usage)?
        .iter()
        .map(|one| {
            let mut need = match one {
                Value::String(pool) => Need { pool: pool.clone(), ..Need::default() },
                Value::Table(table) => {
                    check_keys(table, &["pool", "count", "where"], "needs.")?;
                    let Json::Object(conditions) = table.get("where").map_or(Json::Object(Map::new()), json) else {
                        return Err(usage());
                    };
                    Predicate::from_json(&Json::Object(conditions.clone())).map_err(|why| format!("`needs`: {why}"))?;
                    let pool = string(table, "pool")?.ok_or_else(usage)?;
                    Need { pool, count: number(table, "count", "needs.")?.unwrap_or(1), conditions }
                }
                _ => return Err(usage()),
            };
            need.count = need.count.max(1);
            Ok(need)
        })
        .collect()
}

/// A value of the file as JSON has it; a time is its text.
fn json(value: &Value) -> Json {
    match value {
        Value::Datetime(time) => Json::String(time.to_string()),
        Value::Array(values) => values.iter().map(json).collect(),
        Value::Table(table) => table.iter().map(|(name, value)| (name.clone(), json(value))).collect(),
        Value::String(text) => text.as_str().into(),
        Value::Integer(number) => (*number).into(),
        Value::Float(number) => (*number).into(),
        Value::Boolean(is) => (*is).into(),
    }
}
