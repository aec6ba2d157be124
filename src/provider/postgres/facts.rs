//! What the server and the login can do, asked once.

use anyhow::Context;
use postgres::{Client, Row};
use postgres_protocol::escape::escape_literal;

use super::connection::readable;
use super::server::Server;
use crate::address::PostgresAddress;
use crate::settings::Isolation;

/// What was found.
#[derive(Clone, Debug)]
#[expect(clippy::struct_excessive_bools, reason = "each is an answer of the server")]
pub struct Facts {
    /// `15.18`
    pub version_text: String,
    /// `150018`
    pub version: i32,
    pub is_superuser: bool,
    /// Whether what is written must be on the disk.
    pub waits_for_disk: bool,
    pub may_create_databases: bool,
    pub may_create_roles: bool,
    pub may_create_schemas: bool,
    /// Whether the login may have only so many sessions (`CONNECTION LIMIT`).
    pub has_few_places: bool,
    /// Whether the login gets into the database.
    pub may_connect: bool,
    may_copy: bool,
    /// Sessions of others in the user's database.
    others: i64,
    /// The database's owner, quoted for SQL.
    pub owner: String,
    /// Whether the login is the owner, or may act as the owner.
    pub is_owner: bool,
    /// Settings of the database (`ALTER DATABASE … SET`), which a copy does not get: the
    /// role or nothing, quoted for SQL, and `name=value`.
    pub settings: Vec<(Option<String>, String)>,
    /// Grants on the database, where they are not the default: grantee and privilege.
    pub grants: Option<Vec<(String, String)>>,
    /// How to make an empty database that takes this one's content.
    pub template0_options: String,
}

const QUESTIONS: &str = "
SELECT current_setting('server_version') AS version_text,
       current_setting('server_version_num')::int AS version,
       current_setting('fsync') = 'on' AS waits_for_disk, r.rolconnlimit >= 0 AS has_few_places, r.rolsuper, r.rolcreatedb, r.rolcreaterole,
       d.datistemplate OR pg_has_role(d.datdba, 'MEMBER') AS may_copy,
       pg_has_role(d.datdba, 'MEMBER') AS is_owner,
       has_database_privilege(d.oid, 'CREATE') AS may_create_schemas,
       has_database_privilege(d.oid, 'CONNECT') AND d.datallowconn AS may_connect,
       quote_ident(pg_get_userbyid(d.datdba)) AS owner,
       pg_encoding_to_char(d.encoding) AS encoding, d.datcollate, d.datctype,
       to_jsonb(d) ->> 'datlocprovider' AS provider,
       coalesce(to_jsonb(d) ->> 'datlocale', to_jsonb(d) ->> 'daticulocale') AS locale,
       -- The view of it would join every role and database.
       (SELECT count(*) FROM pg_stat_get_activity(NULL) a
         WHERE a.datid = d.oid AND a.pid <> pg_backend_pid() AND coalesce(a.backend_type, 'client backend') = 'client backend'
           -- What others do is hidden from most logins, even what kind of session it is.
           -- Another run that looks in, as this one does, is gone in a moment.
           AND a.application_name NOT LIKE 'isolane run %') AS others,
       d.datacl IS NOT NULL AS has_grants,
       EXISTS (SELECT FROM pg_db_role_setting s WHERE s.setdatabase = d.oid) AS has_settings
  FROM pg_database d, pg_roles r
 WHERE d.datname = $1 AND r.rolname = current_user";

const SETTINGS: &str = "
SELECT quote_ident(r.rolname) AS role, unnest(s.setconfig) AS setting
  FROM pg_db_role_setting s JOIN pg_database d ON d.oid = s.setdatabase LEFT JOIN pg_roles r ON r.oid = s.setrole
 WHERE d.datname = $1";

const GRANTS: &str = "
SELECT CASE a.grantee WHEN 0 THEN 'PUBLIC' ELSE quote_ident(pg_get_userbyid(a.grantee)) END AS grantee, a.privilege_type AS privilege
  FROM pg_database d, aclexplode(d.datacl) a WHERE d.datname = $1";

impl Facts {
    /// What the server says of the user's database. It is asked in another, by the session that
    /// makes databases later, where there will be one.
    pub fn of(server: &Server, address: &PostgresAddress, isolation: Isolation) -> anyhow::Result<Self> {
        let makes_databases = !matches!(isolation, Isolation::Schema | Isolation::Shared);
        if makes_databases
            && let Ok(facts) = server.maintenance.with(|client| Self::ask(client, address.database()))
            && let Some(facts) = facts.filter(|facts| facts.may_connect)
        {
            return Ok(facts);
        }
        // A pooler may know no other, and where the login does not get into it, that says why.
        let facts = server.own.with(|client| Self::ask(client, address.database())).map_err(readable)?;
        facts.with_context(|| format!("somebody dropped the database {} a moment ago", address.database()))
    }

    /// Asks about a database, in whichever; `None` where the server has none of this name.
    pub fn ask(client: &mut Client, database: &str) -> Result<Option<Self>, postgres::Error> {
        let Some(row) = client.query_opt(QUESTIONS, &[&database])? else { return Ok(None) };
        let settings = if row.get("has_settings") { client.query(SETTINGS, &[&database])? } else { Vec::new() };
        let grants = if row.get("has_grants") { Some(client.query(GRANTS, &[&database])?) } else { None };
        let is_superuser = row.get("rolsuper");
        Ok(Some(Self {
            version_text: row.get::<_, String>("version_text").split(' ').next().unwrap_or_default().to_owned(),
            version: row.get("version"),
            is_superuser,
            waits_for_disk: row.get("waits_for_disk"),
            has_few_places: !is_superuser && row.get::<_, bool>("has_few_places"),
            may_create_databases: is_superuser || row.get("rolcreatedb"),
            may_create_roles: is_superuser || row.get("rolcreaterole"),
            may_create_schemas: row.get("may_create_schemas"),
            may_connect: row.get("may_connect"),
            may_copy: row.get("may_copy"),
            others: row.get("others"),
            owner: row.get("owner"),
            is_owner: row.get("is_owner"),
            settings: settings.iter().map(|row| (row.get("role"), row.get("setting"))).collect(),
            grants: grants.map(|rows| rows.iter().map(|row| (row.get("grantee"), row.get("privilege"))).collect()),
            template0_options: template0_options(&row),
        }))
    }

    /// Why there can be no database for each lane; `None` where there can.
    pub fn no_databases(&self, address: &PostgresAddress) -> Option<String> {
        (!self.may_create_databases).then(|| format!("the role {} may not create databases", address.user()))
    }

    /// Why the server cannot copy the user's database itself; `None` where it can.
    pub fn no_copy(&self, address: &PostgresAddress) -> Option<String> {
        if !self.may_copy {
            Some(format!("{} belongs to {}", address.database(), self.owner))
        } else if self.others > 0 {
            // CREATE DATABASE would wait five seconds for them and then refuse.
            Some(format!("others are connected to {}", address.database()))
        } else {
            None
        }
    }
}

fn template0_options(row: &Row) -> String {
    let mut options = format!(
        "ENCODING {} LC_COLLATE {} LC_CTYPE {}",
        escape_literal(row.get("encoding")),
        escape_literal(row.get("datcollate")),
        escape_literal(row.get("datctype"))
    );
    // ICU came with PostgreSQL 15, the built-in provider with 17.
    let provider: Option<String> = row.get("provider");
    let locale: Option<String> = row.get("locale");
    match (provider.as_deref(), locale) {
        (Some("i"), Some(locale)) => {
            options.push_str(&format!(" LOCALE_PROVIDER icu ICU_LOCALE {}", escape_literal(&locale)));
        }
        (Some("b"), Some(locale)) => {
            options.push_str(&format!(" LOCALE_PROVIDER builtin BUILTIN_LOCALE {}", escape_literal(&locale)));
        }
        _ => {}
    }
    options
}
