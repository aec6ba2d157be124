//! Who buys.

use postgres::Client;

use crate::Refusal;

/// Opens an account and tells its number.
pub fn register(db: &mut Client, email: &str, name: &str) -> Result<i32, Refusal> {
    let row = db.query_opt(
        "INSERT INTO customers (email, name) VALUES ($1, $2) ON CONFLICT (email) DO NOTHING RETURNING id",
        &[&email.to_lowercase(), &name],
    )?;
    row.map(|row| row.get(0)).ok_or(Refusal::EmailTaken)
}

/// The account of an e-mail address, capitals or not.
pub fn find(db: &mut Client, email: &str) -> Result<Option<i32>, Refusal> {
    let row = db.query_opt("SELECT id FROM customers WHERE email = $1", &[&email.to_lowercase()])?;
    Ok(row.map(|row| row.get(0)))
}

/// All customers by name.
pub fn names(db: &mut Client) -> Result<Vec<String>, Refusal> {
    let rows = db.query("SELECT name FROM customers ORDER BY name", &[])?;
    Ok(rows.iter().map(|row| row.get(0)).collect())
}

/// Removes an account and everything it ordered.
pub fn close_account(db: &mut Client, customer: i32) -> Result<(), Refusal> {
    let mut change = db.transaction()?;
    change.execute("DELETE FROM orders WHERE customer_id = $1", &[&customer])?;
    change.execute("DELETE FROM customers WHERE id = $1", &[&customer])?;
    Ok(change.commit()?)
}
