"""The stock of a warehouse: one system for everybody, of which nobody can have a copy.

It is an SQLite file here, so that the example needs nothing else, and each call takes a moment,
as calls to such systems do.
"""

import os
import sqlite3
import time

FILE = os.environ.get("WAREHOUSE", "warehouse.db")
SKUS = ["teapot-%02d" % number for number in range(100)]
# What a call takes on its way there and back, in seconds.
WAY = 0.002


class SoldOut(Exception):
    """There is none left."""


class Warehouse:
    def __init__(self, path=FILE):
        self.db = sqlite3.connect(path, timeout=60, isolation_level=None)

    def open(self):
        """One piece of each article, and no orders."""
        self.db.execute("PRAGMA journal_mode = WAL")
        self.db.executescript(
            """DROP TABLE IF EXISTS stock;
            DROP TABLE IF EXISTS orders;
            CREATE TABLE stock (sku TEXT PRIMARY KEY, pieces INTEGER NOT NULL CHECK (pieces >= 0));
            CREATE TABLE orders (id INTEGER PRIMARY KEY, sku TEXT NOT NULL, customer TEXT NOT NULL);"""
        )
        self.db.executemany("INSERT INTO stock VALUES (?, 1)", [(sku,) for sku in SKUS])

    def call(self, sql, *values):
        time.sleep(WAY)
        return self.db.execute(sql, values)

    def pieces(self, sku):
        return self.call("SELECT pieces FROM stock WHERE sku = ?", sku).fetchone()[0]

    def buy(self, sku, customer):
        """The number of the order."""
        if self.call("UPDATE stock SET pieces = pieces - 1 WHERE sku = ? AND pieces > 0", sku).rowcount == 0:
            raise SoldOut(sku)
        return self.call("INSERT INTO orders (sku, customer) VALUES (?, ?)", sku, customer).lastrowid

    def cancel(self, order, sku):
        if self.call("DELETE FROM orders WHERE id = ?", order).rowcount == 1:
            self.call("UPDATE stock SET pieces = pieces + 1 WHERE sku = ?", sku)
