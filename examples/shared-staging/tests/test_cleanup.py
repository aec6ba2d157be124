import time


def test_tidy_up(db):
    db.execute("INSERT INTO orders (customer, item) VALUES ('testuser_002', 'spoon')")
    time.sleep(0.7)
    # Meant for testuser_002, and anybody like that.
    db.execute("DELETE FROM orders WHERE customer LIKE 'testuser%'")
