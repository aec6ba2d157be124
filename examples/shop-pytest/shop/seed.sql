INSERT INTO products (sku, title, price_cents, stock) VALUES
    ('MUG', 'Mug, blue', 1200, 10),
    ('SAUCER', 'Saucer, blue', 600, 25),
    ('SPOON', 'Spoon, steel', 350, 40),
    ('TEAPOT', 'Teapot, the last one', 4900, 1)
ON CONFLICT (sku) DO UPDATE SET price_cents = excluded.price_cents, stock = excluded.stock;
