import hashlib
import hmac
import os


class EmailTaken(Exception):
    pass


def register(db, email, name, password):
    customer = db.value(
        "INSERT INTO customers (email, name, password) VALUES (?, ?, ?)"
        " ON CONFLICT (email) DO NOTHING RETURNING id",
        email.lower(), name, _hash(password, os.urandom(16)),
    )
    if customer is None:
        raise EmailTaken(email)
    return customer


def log_in(db, email, password):
    """The customer's id, or None where e-mail and password do not fit together."""
    found = db.rows("SELECT id, password FROM customers WHERE email = ?", email.lower())
    if not found:
        return None
    customer, stored = found[0]
    salt = bytes.fromhex(stored.split("$")[0])
    return customer if hmac.compare_digest(stored, _hash(password, salt)) else None


def rename(db, customer, name):
    db.change("UPDATE customers SET name = ? WHERE id = ?", name, customer)


def close_account(db, customer):
    with db.transaction():
        db.change("DELETE FROM orders WHERE customer_id = ?", customer)
        db.change("DELETE FROM customers WHERE id = ?", customer)


def names(db):
    return [name for (name,) in db.rows("SELECT name FROM customers ORDER BY name")]


def _hash(password, salt):
    digest = hashlib.pbkdf2_hmac("sha256", password.encode(), salt, 40_000)
    return f"{salt.hex()}${digest.hex()}"
