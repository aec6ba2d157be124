import time


def orders_of(db, customer):
    return db.execute("SELECT count(*) FROM orders WHERE customer = %s", (customer,)).fetchone()[0]


def test_orders_are_shipped(db):
    for item in ("teapot", "mug"):
        db.execute("INSERT INTO orders (customer, item) VALUES ('testuser_001', %s)", (item,))
    # The warehouse takes a moment.
    time.sleep(1.5)
    assert orders_of(db, "testuser_001") == 2, "the orders of testuser_001 are gone"
