//! The description of the API, for programs: `GET /openapi.json`.

use axum::Router;
use axum::http::header;
use axum::routing::get;

/// OpenAPI 3.1, kept by hand; a test compares it with the paths that there are.
const DOCUMENT: &str = include_str!("openapi.json");

/// Its path.
pub fn routes() -> Router {
    Router::new().route("/openapi.json", get(|| async { ([(header::CONTENT_TYPE, "application/json")], DOCUMENT) }))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use serde_json::Value;

    /// Paths with their methods, as the sources name them: `.route("PATH", get(…).post(…))`.
    fn routes(source: &str) -> BTreeSet<(String, String)> {
        let mut found = BTreeSet::new();
        for part in source.split(".route(\"").skip(1) {
            let (path, rest) = part.split_once('"').expect("a path ends");
            let line = rest.lines().next().expect("a line");
            for method in ["get", "post", "delete", "put", "patch"] {
                if line.contains(&format!("{method}(")) {
                    found.insert((path.to_owned(), method.to_owned()));
                }
            }
        }
        found
    }

    #[test]
    fn the_description_has_every_path_and_no_other() {
        let sources = [
            include_str!("../api.rs"),
            include_str!("leases.rs"),
            include_str!("pools.rs"),
            include_str!("holders.rs"),
            include_str!("runs.rs"),
            include_str!("../serve.rs"),
        ];
        let there: BTreeSet<_> = sources.iter().flat_map(|source| routes(source)).collect();
        assert!(there.len() > 20, "the test sees the routes: {there:?}");
        let document: Value = serde_json::from_str(super::DOCUMENT).expect("JSON");
        let mut described = BTreeSet::new();
        for (path, operations) in document["paths"].as_object().expect("paths") {
            for (method, operation) in operations.as_object().expect("operations") {
                if method != "parameters" {
                    assert!(operation["summary"].is_string() && operation["responses"].is_object(), "{method} {path}");
                    described.insert((path.clone(), method.clone()));
                }
            }
        }
        // It describes itself, and needs no words for that.
        described.insert(("/openapi.json".to_owned(), "get".to_owned()));
        let there: BTreeSet<_> = there.into_iter().chain([("/openapi.json".to_owned(), "get".to_owned())]).collect();
        assert_eq!(described, there);
    }

    #[test]
    fn every_reference_leads_somewhere() {
        fn walk(value: &Value, document: &Value) {
            match value {
                Value::Object(object) => {
                    if let Some(Value::String(target)) = object.get("$ref") {
                        assert!(document.pointer(target.trim_start_matches('#')).is_some(), "{target}");
                    }
                    object.values().for_each(|value| walk(value, document));
                }
                Value::Array(values) => values.iter().for_each(|value| walk(value, document)),
                _ => {}
            }
        }
        let document: Value = serde_json::from_str(super::DOCUMENT).expect("JSON");
        assert_eq!(document["openapi"], "3.1.0");
        walk(&document, &document);
    }
}
