//! Who bought what.

use postgres::{Client, GenericClient};

use crate::{Refusal, stock};

/// Orders everything in the basket or, where one thing is sold out, nothing.
pub fn place(db: &mut Client, customer: i32, basket: &[(&str, i32)]) -> Result<i32, Refusal> {
    if basket.is_empty() {
        return Err(Refusal::EmptyBasket);
    }
    let mut change = db.transaction()?;
    let order: i32 =
        change.query_one("INSERT INTO orders (customer_id) VALUES ($1) RETURNING id", &[&customer])?.get(0);
    for (sku, quantity) in basket {
        let price = stock::take(&mut change, sku, *quantity)?;
        change.execute(
            "INSERT INTO order_lines (order_id, sku, quantity, price_cents) VALUES ($1, $2, $3, $4)",
            &[&order, sku, quantity, &price],
        )?;
    }
    change.commit()?;
    Ok(order)
}

/// Takes the money.
pub fn pay(db: &mut Client, order: i32) -> Result<(), Refusal> {
    close(db, order, "paid")
}

/// Calls an open order off and puts its things back on the shelf.
pub fn cancel(db: &mut Client, order: i32) -> Result<(), Refusal> {
    let mut change = db.transaction()?;
    close(&mut change, order, "cancelled")?;
    for line in change.query("SELECT sku, quantity FROM order_lines WHERE order_id = $1", &[&order])? {
        stock::receive(&mut change, line.get(0), line.get(1))?;
    }
    Ok(change.commit()?)
}

/// What an order costs.
pub fn total(db: &mut Client, order: i32) -> Result<i64, Refusal> {
    let row = db.query_one("SELECT sum(quantity * price_cents) FROM order_lines WHERE order_id = $1", &[&order])?;
    Ok(row.get(0))
}

/// A customer's orders, the newest first.
pub fn history(db: &mut Client, customer: i32) -> Result<Vec<i32>, Refusal> {
    let rows = db.query("SELECT id FROM orders WHERE customer_id = $1 ORDER BY id DESC", &[&customer])?;
    Ok(rows.iter().map(|row| row.get(0)).collect())
}

/// What all paid orders brought in.
pub fn revenue(db: &mut Client) -> Result<i64, Refusal> {
    let row = db.query_one(
        "SELECT coalesce(sum(quantity * price_cents), 0) FROM order_lines
         JOIN orders ON orders.id = order_id WHERE state = 'paid'",
        &[],
    )?;
    Ok(row.get(0))
}

fn close(db: &mut impl GenericClient, order: i32, state: &str) -> Result<(), Refusal> {
    match db.execute("UPDATE orders SET state = $1 WHERE id = $2 AND state = 'open'", &[&state, &order])? {
        0 => Err(Refusal::NotOpen),
        _ => Ok(()),
    }
}
