"""What a test does, whoever made its database: it finds the seeded state, to the numbers that
sequences give, and commits changes to it."""


def sells(db, n):
    with db.cursor() as at:
        at.execute("SELECT count(*), max(id) FROM orders")
        assert at.fetchone() == (1680, 1680)
        at.execute("SELECT amount FROM products WHERE id = 17")
        (amount,) = at.fetchone()
        assert str(amount) == "2.43"
        at.execute(
            "INSERT INTO orders (user_id, addresse_id, code, name) VALUES (7, 7, %s, 'an order') RETURNING id",
            (f"order-{n}",),
        )
        (order,) = at.fetchone()
        assert order == 1681
        for item in (1, 2):
            at.execute(
                "INSERT INTO order_items (order_id, product_variant_id, code, name) VALUES (%s, %s, %s, 'an item')",
                (order, item, f"item-{n}-{item}"),
            )
        at.execute("UPDATE products SET amount = amount + 1 WHERE id = 17")
        at.execute("SELECT count(*) FROM order_items WHERE order_id = %s", (order,))
        assert at.fetchone() == (2,)
    db.commit()
