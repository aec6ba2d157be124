class SoldOut(Exception):
    pass


def add_product(db, sku, title, price_cents, stock=0):
    db.change(
        "INSERT INTO products (sku, title, price_cents, stock) VALUES (?, ?, ?, ?)",
        sku, title, price_cents, stock,
    )


def import_price_list(db, lines):
    """Lines such as `MUG;1250`; all of them or none. Tells how many prices were new."""
    changed = 0
    with db.transaction():
        for line in lines:
            sku, price = line.split(";")
            changed += db.change(
                "UPDATE products SET price_cents = ? WHERE sku = ? AND price_cents <> ?",
                int(price), sku, int(price),
            )
    return changed


def available(db, sku):
    return db.value("SELECT stock FROM products WHERE sku = ?", sku)


def receive(db, sku, quantity):
    db.change("UPDATE products SET stock = stock + ? WHERE sku = ?", quantity, sku)


def take(db, sku, quantity):
    """Takes from the shelf and tells the price; the check and the change are one statement."""
    price = db.value(
        "UPDATE products SET stock = stock - ? WHERE sku = ? AND stock >= ? RETURNING price_cents",
        quantity, sku, quantity,
    )
    if price is None:
        raise SoldOut(sku)
    return price


def running_low(db, below):
    found = db.rows("SELECT sku FROM products WHERE stock < ? ORDER BY sku", below)
    return [sku for (sku,) in found]
