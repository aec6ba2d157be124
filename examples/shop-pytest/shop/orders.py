from . import stock


class NotOpen(Exception):
    pass


def place(db, customer, basket):
    """Orders `{sku: quantity}`: everything or, where one thing is sold out, nothing."""
    if not basket:
        raise ValueError("an empty basket")
    with db.transaction():
        order = db.value("INSERT INTO orders (customer_id) VALUES (?) RETURNING id", customer)
        for sku, quantity in sorted(basket.items()):
            price = stock.take(db, sku, quantity)
            db.change(
                "INSERT INTO order_lines (order_id, sku, quantity, price_cents)"
                " VALUES (?, ?, ?, ?)",
                order, sku, quantity, price,
            )
    return order


def pay(db, order):
    _close(db, order, "paid")


def cancel(db, order):
    with db.transaction():
        _close(db, order, "cancelled")
        for sku, quantity in lines(db, order):
            stock.receive(db, sku, quantity)


def state(db, order):
    return db.value("SELECT state FROM orders WHERE id = ?", order)


def lines(db, order):
    return db.rows("SELECT sku, quantity FROM order_lines WHERE order_id = ? ORDER BY sku", order)


def total(db, order):
    return db.value("SELECT sum(quantity * price_cents) FROM order_lines WHERE order_id = ?", order)


def history(db, customer):
    found = db.rows("SELECT id FROM orders WHERE customer_id = ? ORDER BY id DESC", customer)
    return [order for (order,) in found]


def revenue(db):
    return db.value(
        "SELECT coalesce(sum(quantity * price_cents), 0) FROM order_lines"
        " JOIN orders ON orders.id = order_id WHERE state = 'paid'"
    )


def best_sellers(db, limit):
    return db.rows(
        "SELECT sku, sum(quantity) AS sold FROM order_lines JOIN orders ON orders.id = order_id"
        " WHERE state = 'paid' GROUP BY sku ORDER BY sold DESC, sku LIMIT ?",
        limit,
    )


def _close(db, order, new_state):
    if db.change("UPDATE orders SET state = ? WHERE id = ? AND state = 'open'", new_state, order) == 0:
        raise NotOpen(order)
