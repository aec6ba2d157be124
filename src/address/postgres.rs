//! Addresses of PostgreSQL databases: URLs and keyword strings, with libpq's defaults
//! (PostgreSQL documentation, "Connection Strings").

use std::path::{Path, PathBuf};

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};

use super::{BadAddress, Variables};
use crate::secret::Secret;

/// Everything but the characters that RFC 3986 leaves plain everywhere.
const ENCODED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// The address of a PostgreSQL database.
#[derive(Clone, PartialEq, Eq)]
pub struct PostgresAddress {
    text: Text,
    hosts: Vec<String>,
    ports: Vec<u16>,
    user: String,
    password: Option<Secret>,
    database: String,
    options: Option<String>,
    parameters: Vec<(String, String)>,
}

/// The user's own text, cut where a lane's differs.
#[derive(Clone, PartialEq, Eq)]
enum Text {
    Url { scheme: String, hosts: String, userinfo: Option<String>, query: Vec<String> },
    Keywords(Vec<(String, String)>),
}

/// What is exchanged for a lane.
#[derive(Clone, Debug, Default)]
pub struct LaneTarget<'a> {
    /// Another database.
    pub database: Option<&'a str>,
    /// Another login, with its password.
    pub login: Option<(&'a str, &'a Secret)>,
    /// A search path, given as an option of the connection.
    pub search_path: Option<&'a str>,
    /// Another server on this machine: its port on loopback. It speaks no TLS.
    pub port: Option<u16>,
    /// What its sessions call themselves.
    pub application: Option<&'a str>,
}

impl std::fmt::Debug for PostgresAddress {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.id())
    }
}

impl PostgresAddress {
    /// Another server with this database and login, and with nothing else of what the user set.
    #[must_use]
    pub fn moved_to(&self, host: &str, port: u16, password: &Secret) -> Self {
        Self {
            hosts: vec![host.to_owned()],
            ports: vec![port],
            password: Some(password.clone()),
            options: None,
            parameters: Vec::new(),
            ..self.clone()
        }
    }

    pub(super) fn from_url(text: &str, variables: &Variables) -> Result<Self, BadAddress> {
        let (scheme, rest) =
            text.split_once("://").ok_or_else(|| BadAddress("lacks `//` behind its scheme".to_owned()))?;
        let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
        let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
        let (userinfo, hosts) =
            authority.rsplit_once('@').map_or((None, authority), |(user, hosts)| (Some(user), hosts));
        if path.contains('/') {
            return Err(BadAddress("has a `/` in the name of its database; write it as %2F".to_owned()));
        }
        let query: Vec<String> = query.split('&').filter(|part| !part.is_empty()).map(str::to_owned).collect();
        let mut parameters = Vec::new();
        for part in &query {
            let (key, value) = part.split_once('=').unwrap_or((part, ""));
            parameters.push((decode(key)?, decode(value)?));
        }
        let mut given = Given::default();
        for host in hosts.split(',').filter(|host| !host.is_empty()) {
            let (name, port) = split_port(host);
            if name.starts_with('[') != name.ends_with(']') {
                return Err(BadAddress("has a `[` without its `]`; an IPv6 address is written [::1]".to_owned()));
            }
            given.hosts.push(decode(name.trim_start_matches('[').trim_end_matches(']'))?);
            given.ports.extend(port.map(parse_port).transpose()?);
        }
        if let Some(userinfo) = userinfo {
            let (user, password) =
                userinfo.split_once(':').map_or((userinfo, None), |(user, password)| (user, Some(password)));
            given.user = Some(decode(user)?).filter(|user| !user.is_empty());
            given.password = password.map(decode).transpose()?;
        }
        given.database = Some(decode(path)?).filter(|name| !name.is_empty());
        let text = Text::Url {
            scheme: scheme.to_owned(),
            hosts: hosts.to_owned(),
            userinfo: userinfo.map(str::to_owned),
            query,
        };
        Self::complete(text, given, parameters, variables)
    }

    pub(super) fn from_keywords(text: &str, variables: &Variables) -> Result<Self, BadAddress> {
        let pairs = split_keywords(text)
            .ok_or_else(|| BadAddress("is neither a URL nor a list of keyword=value".to_owned()))?;
        Self::complete(Text::Keywords(pairs.clone()), Given::default(), pairs, variables)
    }

    fn complete(
        text: Text,
        mut given: Given,
        parameters: Vec<(String, String)>,
        variables: &Variables,
    ) -> Result<Self, BadAddress> {
        let parameter = |key: &str| {
            parameters.iter().rev().find(|(k, _)| k == key).map(|(_, v)| v.clone()).filter(|v| !v.is_empty())
        };
        let variable = |key: &str| variables.get(key).cloned().filter(|v| !v.is_empty());
        if let Some(hosts) = parameter("hostaddr")
            .or_else(|| parameter("host"))
            .or_else(|| given.hosts.is_empty().then(|| variable("PGHOST")).flatten())
        {
            given.hosts = hosts.split(',').map(str::to_owned).collect();
        }
        if given.hosts.is_empty() {
            let sockets =
                ["/var/run/postgresql", "/tmp"].into_iter().find(|dir| Path::new(dir).join(".s.PGSQL.5432").exists());
            given.hosts.push(sockets.unwrap_or("localhost").to_owned());
        }
        if given.ports.is_empty()
            && let Some(ports) = parameter("port").or_else(|| variable("PGPORT"))
        {
            given.ports = ports.split(',').map(parse_port).collect::<Result<_, _>>()?;
        }
        // One port serves all hosts, and none means the standard one (libpq).
        let default = if given.ports.len() == 1 { given.ports[0] } else { 5432 };
        given.ports.resize(given.hosts.len(), default);
        let user = given
            .user
            .or_else(|| parameter("user"))
            .or_else(|| variable("PGUSER"))
            .or_else(|| variable("USER"))
            .or_else(system_user)
            .unwrap_or_else(|| "postgres".to_owned());
        let database = given
            .database
            .or_else(|| parameter("dbname"))
            .or_else(|| variable("PGDATABASE"))
            .unwrap_or_else(|| user.clone());
        let password = given
            .password
            .or_else(|| parameter("password"))
            .or_else(|| variable("PGPASSWORD"))
            .or_else(|| from_password_file(variables, &given.hosts[0], given.ports[0], &database, &user))
            .map(Secret::new);
        let options = parameter("options").or_else(|| variable("PGOPTIONS"));
        Ok(Self { text, hosts: given.hosts, ports: given.ports, user, password, database, options, parameters })
    }

    /// Hosts, or directories of Unix sockets.
    pub fn hosts(&self) -> &[String] {
        &self.hosts
    }

    /// A port for each host.
    pub fn ports(&self) -> &[u16] {
        &self.ports
    }

    /// The login.
    pub fn user(&self) -> &str {
        &self.user
    }

    /// The password, where one is known.
    pub fn password(&self) -> Option<&Secret> {
        self.password.as_ref()
    }

    /// The user's own database.
    pub fn database(&self) -> &str {
        &self.database
    }

    /// Options for the server, from the address or from `PGOPTIONS`.
    pub fn options(&self) -> Option<&str> {
        self.options.as_deref()
    }

    /// A parameter of the connection, such as `sslmode`.
    pub fn parameter(&self, key: &str) -> Option<&str> {
        self.parameters.iter().rev().find(|(k, _)| k == key).map(|(_, v)| v.as_str())
    }

    /// The address in one spelling and without its password: what the ledger calls it.
    pub fn id(&self) -> String {
        let hosts: Vec<_> = self.hosts.iter().zip(&self.ports).map(|(host, port)| format!("{host}:{port}")).collect();
        format!("postgresql://{}@{}/{}", self.user, hosts.join(","), self.database)
    }

    /// The user's text, with what `target` exchanges.
    pub fn with(&self, target: &LaneTarget<'_>) -> String {
        let options = target.search_path.map(|path| {
            let own = self.options.as_ref().map(|own| format!("{own} ")).unwrap_or_default();
            format!("{own}-csearch_path={path}")
        });
        match &self.text {
            Text::Url { scheme, hosts, userinfo, query } => {
                let mut query: Vec<String> = query
                    .iter()
                    .filter(|part| {
                        let key = part.split('=').next().unwrap_or_default();
                        !(key == "dbname" && target.database.is_some()
                            || key == "options" && options.is_some()
                            || key == "application_name" && target.application.is_some()
                            || target.port.is_some() && is_about_the_way(key)
                            || (key == "user" || key == "password") && target.login.is_some())
                    })
                    .cloned()
                    .collect();
                query.extend(options.map(|options| format!("options={}", encode(&options))));
                // SQLAlchemy hands parameters to asyncpg as arguments, which has none of this name.
                let application = target.application.filter(|_| !scheme.ends_with("+asyncpg"));
                query.extend(application.map(|name| format!("application_name={}", encode(name))));
                let userinfo = match target.login {
                    Some((user, password)) => Some(format!("{}:{}", encode(user), encode(password.reveal()))),
                    None => userinfo.clone(),
                };
                let userinfo = userinfo.map(|info| format!("{info}@")).unwrap_or_default();
                let hosts = target.port.map_or(hosts.clone(), |port| format!("{LOOPBACK}:{port}"));
                let database = encode(target.database.unwrap_or(&self.database));
                let query = if query.is_empty() { String::new() } else { format!("?{}", query.join("&")) };
                format!("{scheme}://{userinfo}{hosts}/{database}{query}")
            }
            Text::Keywords(pairs) => {
                let mut pairs = pairs.clone();
                pairs.retain(|(key, _)| target.port.is_none() || !is_about_the_way(key));
                let mut set = |key: &str, value: String| {
                    pairs.retain(|(k, _)| k != key);
                    pairs.push((key.to_owned(), value));
                };
                set("dbname", target.database.unwrap_or(&self.database).to_owned());
                if let Some((user, password)) = target.login {
                    set("user", user.to_owned());
                    set("password", password.reveal().to_owned());
                }
                if let Some(port) = target.port {
                    set("host", LOOPBACK.to_owned());
                    set("port", port.to_string());
                }
                if let Some(options) = options {
                    set("options", options);
                }
                if let Some(name) = target.application {
                    set("application_name", name.to_owned());
                }
                let quoted = |value: &str| format!("'{}'", value.replace('\\', "\\\\").replace('\'', "\\'"));
                pairs.iter().map(|(key, value)| format!("{key}={}", quoted(value))).collect::<Vec<_>>().join(" ")
            }
        }
    }
}

/// Where a server of this machine listens.
pub const LOOPBACK: &str = "127.0.0.1";

/// Whether a parameter says how to get to the user's own server, and nothing about a session.
fn is_about_the_way(key: &str) -> bool {
    let others = ["host", "hostaddr", "port", "channel_binding", "gssencmode", "requiressl", "load_balance_hosts"];
    key.starts_with("ssl") || others.contains(&key)
}

/// What an address says itself, before libpq's defaults.
#[derive(Default)]
struct Given {
    hosts: Vec<String>,
    ports: Vec<u16>,
    user: Option<String>,
    password: Option<String>,
    database: Option<String>,
}

fn decode(text: &str) -> Result<String, BadAddress> {
    percent_decode_str(text)
        .decode_utf8()
        .map(Into::into)
        .map_err(|_| BadAddress("has a %-sequence that is no UTF-8".to_owned()))
}

fn encode(text: &str) -> String {
    utf8_percent_encode(text, ENCODED).to_string()
}

fn parse_port(text: &str) -> Result<u16, BadAddress> {
    text.trim().parse().map_err(|_| BadAddress("has a port that is no number from 1 to 65535".to_owned()))
}

/// `host:port`, where the host may be an IPv6 address in brackets.
fn split_port(host: &str) -> (&str, Option<&str>) {
    let after_brackets = host.rfind(']').map_or(0, |at| at + 1);
    match host[after_brackets..].rfind(':') {
        Some(at) => {
            (&host[..after_brackets + at], Some(&host[after_brackets + at + 1..]).filter(|port| !port.is_empty()))
        }
        None => (host, None),
    }
}

/// `key=value key='va lue'`, with backslash escapes.
fn split_keywords(text: &str) -> Option<Vec<(String, String)>> {
    let mut pairs = Vec::new();
    let mut rest = text.trim_start();
    while !rest.is_empty() {
        let (key, after) = rest.split_once('=')?;
        let after = after.trim_start();
        let quoted = after.starts_with('\'');
        let mut value = String::new();
        let mut characters = after.char_indices().skip(usize::from(quoted));
        let mut end = after.len();
        let mut closed = !quoted;
        while let Some((at, c)) = characters.next() {
            match c {
                '\\' => value.push(characters.next()?.1),
                '\'' if quoted => {
                    (end, closed) = (at + 1, true);
                    break;
                }
                c if !quoted && c.is_whitespace() => {
                    end = at;
                    break;
                }
                c => value.push(c),
            }
        }
        let key = key.trim();
        (closed && !key.is_empty() && !key.contains(char::is_whitespace)).then_some(())?;
        pairs.push((key.to_owned(), value));
        rest = after[end..].trim_start();
    }
    Some(pairs)
}

fn system_user() -> Option<String> {
    nix::unistd::User::from_uid(nix::unistd::geteuid()).ok().flatten().map(|user| user.name)
}

/// The password that `~/.pgpass` has for this connection: lines of
/// `host:port:database:user:password`, where `*` matches all.
fn from_password_file(variables: &Variables, host: &str, port: u16, database: &str, user: &str) -> Option<String> {
    let path = variables
        .get("PGPASSFILE")
        .map(PathBuf::from)
        .or_else(|| variables.get("HOME").map(|home| Path::new(home).join(".pgpass")))?;
    let host = if host.starts_with('/') { "localhost" } else { host };
    let wanted = [host, &port.to_string(), database, user];
    std::fs::read_to_string(path).ok()?.lines().find_map(|line| {
        let mut fields = vec![String::new()];
        let mut characters = line.chars();
        while let Some(c) = characters.next() {
            match c {
                '\\' => fields.last_mut()?.extend(characters.next()),
                ':' if fields.len() < 5 => fields.push(String::new()),
                c => fields.last_mut()?.push(c),
            }
        }
        let matches =
            fields.len() == 5 && fields.iter().zip(wanted).all(|(field, wanted)| field == "*" || field == wanted);
        matches.then(|| fields.pop()).flatten()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn url(text: &str) -> PostgresAddress {
        PostgresAddress::from_url(text, &Variables::new()).expect(text)
    }

    #[test]
    fn only_the_database_is_exchanged() {
        let target = LaneTarget { database: Some("lane"), ..LaneTarget::default() };
        for (text, expected) in [
            (
                "postgresql+psycopg://ann:p%40w@db:5433/shop?sslmode=disable&x=%20y",
                "postgresql+psycopg://ann:p%40w@db:5433/lane?sslmode=disable&x=%20y",
            ),
            ("postgres://db", "postgres://db/lane"),
            ("postgresql:///shop?host=/run/pg&port=5", "postgresql:///lane?host=/run/pg&port=5"),
            ("postgresql://ann@/shop?host=/run/pg", "postgresql://ann@/lane?host=/run/pg"),
            ("postgresql://%2Frun%2Fpg/shop", "postgresql://%2Frun%2Fpg/lane"),
        ] {
            assert_eq!(url(text).with(&target), expected);
        }
    }

    #[test]
    fn a_login_and_a_search_path_are_exchanged() {
        let password = Secret::new("q/w");
        let target = LaneTarget { login: Some(("r", &password)), search_path: Some("s"), ..LaneTarget::default() };
        let address = url("postgresql://ann:pw@db/shop?options=-cwork_mem%3D1MB");
        assert_eq!(address.with(&target), "postgresql://r:q%2Fw@db/shop?options=-cwork_mem%3D1MB%20-csearch_path%3Ds");
    }

    #[test]
    fn another_server_is_reached_without_what_the_users_own_needed() {
        let password = Secret::new("pw");
        let target = LaneTarget { login: Some(("ann", &password)), port: Some(20_001), ..LaneTarget::default() };
        for (text, expected) in [
            (
                "postgresql+psycopg://ann:pw@db:5433,db2/shop?sslmode=require&x=y",
                "postgresql+psycopg://ann:pw@127.0.0.1:20001/shop?x=y",
            ),
            ("postgresql:///shop?host=/run/pg&port=5", "postgresql://ann:pw@127.0.0.1:20001/shop"),
        ] {
            assert_eq!(url(text).with(&target), expected);
        }
        let keywords =
            PostgresAddress::from_keywords("hostaddr=10.0.0.1 dbname=shop sslmode=require", &Variables::new());
        let text = keywords.expect("keywords").with(&target);
        assert_eq!(text, "dbname='shop' user='ann' password='pw' host='127.0.0.1' port='20001'");
    }

    #[test]
    fn keyword_strings_keep_their_form() {
        let address =
            PostgresAddress::from_keywords(r"host=db  dbname = 'my \'shop' user=ann password=x\ y", &Variables::new())
                .expect("keywords");
        assert_eq!((address.database(), address.user(), address.hosts()), ("my 'shop", "ann", &["db".to_owned()][..]));
        let target = LaneTarget { database: Some("lane"), ..LaneTarget::default() };
        assert_eq!(address.with(&target), "host='db' user='ann' password='x y' dbname='lane'");
        assert_eq!(PostgresAddress::from_keywords("host='db", &Variables::new()).ok(), None);
    }

    #[test]
    fn libpq_variables_fill_what_is_missing() {
        let variables: Variables = [("PGHOST", "h"), ("PGPORT", "7"), ("PGUSER", "u"), ("PGPASSWORD", "p")]
            .map(|(k, v)| (k.to_owned(), v.to_owned()))
            .into();
        let address = PostgresAddress::from_url("postgresql:///shop", &variables).expect("address");
        assert_eq!(address.id(), "postgresql://u@h:7/shop");
        assert_eq!(address.password().map(Secret::reveal), Some("p"));
        assert_eq!(format!("{address:?}"), "postgresql://u@h:7/shop");
    }

    #[test]
    fn a_password_file_is_read() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let file = dir.path().join("pgpass");
        std::fs::write(&file, "other:*:*:*:no\ndb:5432:*:ann:a\\:b\n").expect("write");
        let variables = Variables::from([("PGPASSFILE".to_owned(), file.display().to_string())]);
        let address = PostgresAddress::from_url("postgresql://ann@db/shop", &variables).expect("address");
        assert_eq!(address.password().map(Secret::reveal), Some("a:b"));
    }

    #[test]
    fn ports_and_ipv6_hosts_are_told_apart() {
        let address = url("postgresql://u@[::1]:5433/x");
        assert_eq!((address.hosts(), address.ports()), (&["::1".to_owned()][..], &[5433][..]));
        assert_eq!(url("postgresql://u@[::1]/x").ports(), [5432]);
    }
}
