//! The tables of a plan, and SQL for their rows.

/// A table, and how its rows are known.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Table {
    Goods,
    Tags,
    Codes,
    Users,
    Orders,
    Items,
    Sheets,
}

impl Table {
    /// Those that are much alike.
    pub const PLAIN: [Self; 3] = [Self::Goods, Self::Tags, Self::Codes];

    pub fn name(self) -> &'static str {
        match self {
            Self::Goods => "public.goods",
            Self::Tags => "public.tags",
            Self::Codes => "public.codes",
            Self::Users => "public.users",
            Self::Orders => "public.orders",
            Self::Items => "public.items",
            Self::Sheets => "public.sheets",
        }
    }

    pub fn key(self, n: i64) -> String {
        match self {
            Self::Tags => format!(r#"{{"a":{n},"b":"t {n}"}}"#),
            Self::Codes => format!(r#"{{"code":"c{n}"}}"#),
            _ => format!(r#"{{"id":{n}}}"#),
        }
    }

    pub fn is(self, n: i64) -> String {
        match self {
            Self::Tags => format!("(a, b) = ({n}, 't {n}')"),
            Self::Codes => format!("code = 'c{n}'"),
            _ => format!("id = {n}"),
        }
    }

    /// An assignment that makes row `n` of another.
    pub fn becomes(self, n: i64) -> String {
        match self {
            Self::Tags => format!("a = {n}, b = 't {n}'"),
            Self::Codes => format!("code = 'c{n}'"),
            _ => format!("id = {n}"),
        }
    }

    pub fn insert(self, n: i64) -> String {
        let values = match self {
            Self::Tags => format!("({n}, 't {n}', 0)"),
            Self::Codes => format!("('c{n}', 0)"),
            Self::Users => format!("({n}, 'u{n}@example.com', 0)"),
            // The same in all rows but the key.
            _ => format!("({n}, 0)"),
        };
        format!("INSERT INTO {} VALUES {values}", self.name())
    }

    pub fn update(self, n: i64) -> String {
        format!("UPDATE {} SET v = v WHERE {}", self.name(), self.is(n))
    }

    pub fn delete(self, n: i64) -> String {
        format!("DELETE FROM {} WHERE {}", self.name(), self.is(n))
    }
}
