//! What a test does, whoever made its database: it finds the state that it should, to the
//! numbers that sequences give, and commits changes to it.

use sqlx::{Connection, PgConnection, PgPool};

/// In a lane, which has all rows.
pub async fn in_lane() {
    let url = std::env::var("DATABASE_URL").expect("a lane");
    let mut db = PgConnection::connect(&url).await.expect("the lane's database");
    sells(&mut db, 250, 12).await;
    db.close().await.expect("it ends");
}

/// In a database that `sqlx::test` has made, which has no rows.
pub async fn in_copy(pool: PgPool) {
    let mut db = pool.acquire().await.expect("a database");
    sells(&mut db, 0, 0).await;
}

async fn sells(db: &mut PgConnection, countries: i64, plans: i64) {
    let count: i64 = sqlx::query_scalar("SELECT count(*) FROM countries").fetch_one(&mut *db).await.expect("a count");
    assert_eq!(count, countries);
    let insert = |table: &str| format!("INSERT INTO {table} (code, name) VALUES ('one', 'one') RETURNING id");
    let country: i64 = sqlx::query_scalar(&insert("countries")).fetch_one(&mut *db).await.expect("a row");
    let plan: i64 = sqlx::query_scalar(&insert("plans")).fetch_one(&mut *db).await.expect("a row");
    assert_eq!((country, plan), (countries + 1, plans + 1));
    for code in ["first", "second"] {
        let sql = "INSERT INTO tenants (countrie_id, plan_id, code, name) VALUES ($1, $2, $3, 'a tenant')";
        sqlx::query(sql).bind(country).bind(plan).bind(code).execute(&mut *db).await.expect("a row");
    }
    sqlx::query("UPDATE plans SET amount = amount + 1 WHERE id = $1").bind(plan).execute(&mut *db).await.expect("a row");
    let sql = "SELECT count(*) FROM tenants WHERE plan_id = $1";
    let tenants: i64 = sqlx::query_scalar(sql).bind(plan).fetch_one(&mut *db).await.expect("a count");
    assert_eq!(tenants, 2);
}
