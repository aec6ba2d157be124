//! What is on the shelf.

use postgres::GenericClient;

use crate::Refusal;

/// How many there are.
pub fn available(db: &mut impl GenericClient, sku: &str) -> Result<i32, Refusal> {
    Ok(db.query_one("SELECT stock FROM products WHERE sku = $1", &[&sku])?.get(0))
}

/// Adds a delivery to the shelf.
pub fn receive(db: &mut impl GenericClient, sku: &str, quantity: i32) -> Result<(), Refusal> {
    db.execute("UPDATE products SET stock = stock + $1 WHERE sku = $2", &[&quantity, &sku])?;
    Ok(())
}

/// Takes from the shelf and tells the price; the check and the change are one statement.
pub fn take(db: &mut impl GenericClient, sku: &str, quantity: i32) -> Result<i32, Refusal> {
    let row = db.query_opt(
        "UPDATE products SET stock = stock - $1 WHERE sku = $2 AND stock >= $1 RETURNING price_cents",
        &[&quantity, &sku],
    )?;
    row.map(|row| row.get(0)).ok_or_else(|| Refusal::SoldOut(sku.to_owned()))
}

/// What there is less of than `below`.
pub fn running_low(db: &mut impl GenericClient, below: i32) -> Result<Vec<String>, Refusal> {
    let rows = db.query("SELECT sku FROM products WHERE stock < $1 ORDER BY sku", &[&below])?;
    Ok(rows.iter().map(|row| row.get(0)).collect())
}
