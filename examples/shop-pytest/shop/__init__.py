"""A small shop: customers, orders and stock, on SQLite or PostgreSQL."""
