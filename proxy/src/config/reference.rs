//! The commented reference and the JSON Schema of the configuration, both made from the types that read it, so that
//! neither can say what the code does not do.
//!
//! **Out** a YAML text in which every key stands with its default and its description, and which is itself a valid
//! configuration up to the files it names.

use std::fmt::Write;

use serde_json::Value;

use super::file::File;

/// The JSON Schema (draft 2020-12) of the configuration file.
pub fn schema() -> Value {
    let schema = schemars::schema_for!(File);
    schema.to_value()
}

/// The commented reference.
pub fn reference() -> String {
    let schema = schema();
    let defaults = serde_json::to_value(File::default()).unwrap_or(Value::Null);
    let mut out = String::from(
        "# The configuration of Isthmus, every key with its default.\n# Unknown keys are refused. Durations: 500ms, 10s, 5m, 1h, 1d. Sizes: 16384, 64KiB, 1MiB.\n",
    );
    properties(&mut out, &schema, &schema, &defaults, 0);
    out
}

fn properties(out: &mut String, root: &Value, schema: &Value, defaults: &Value, depth: usize) {
    let schema = resolved(root, schema);
    let Some(properties) = schema.get("properties").and_then(Value::as_object) else { return };
    let indent = "  ".repeat(depth);
    for (key, property) in properties {
        let target = resolved(root, property);
        let default = defaults.get(key).unwrap_or(&Value::Null);
        if depth == 0 {
            out.push('\n');
        }
        comment(out, &indent, property.get("description").or_else(|| target.get("description")));
        if let Some(choices) = choices(root, target) {
            let _ = writeln!(out, "{indent}# One of: {choices}.");
        }
        if default.is_object() && target.get("properties").is_some() {
            let _ = writeln!(out, "{indent}{key}:");
            properties_of(out, root, target, default, depth + 1);
        } else if let Some(items) = row_schema(root, target) {
            let _ = writeln!(out, "{indent}{key}: {}", shown(default));
            let _ = writeln!(out, "{indent}# Each row:");
            let mut row = String::new();
            self::properties(&mut row, root, items, &Value::Null, depth + 1);
            for line in row.lines().filter(|line| !line.is_empty()) {
                let _ = writeln!(out, "#{line}");
            }
        } else if default.is_null() {
            let _ = writeln!(out, "{indent}# {key}:");
        } else {
            let _ = writeln!(out, "{indent}{key}: {}", shown(default));
        }
    }
}

fn properties_of(out: &mut String, root: &Value, schema: &Value, defaults: &Value, depth: usize) {
    properties(out, root, schema, defaults, depth);
}

/// Follows `$ref`, and the single schema inside a nullable `anyOf`.
fn resolved<'a>(root: &'a Value, schema: &'a Value) -> &'a Value {
    if let Some(path) = schema.get("$ref").and_then(Value::as_str) {
        return root.pointer(path.trim_start_matches('#')).map_or(schema, |found| resolved(root, found));
    }
    if let Some(any) = schema.get("anyOf").and_then(Value::as_array) {
        let real = any.iter().find(|schema| schema.get("type").and_then(Value::as_str) != Some("null"));
        return real.map_or(schema, |found| resolved(root, found));
    }
    schema
}

/// The schema of a list's rows, where the rows are tables themselves.
fn row_schema<'a>(root: &'a Value, schema: &'a Value) -> Option<&'a Value> {
    let items = resolved(root, schema.get("items")?);
    items.get("properties").is_some().then_some(items)
}

fn choices(root: &Value, schema: &Value) -> Option<String> {
    let _ = root;
    if let Some(values) = schema.get("enum").and_then(Value::as_array) {
        return Some(values.iter().map(shown).collect::<Vec<_>>().join(", "));
    }
    let variants = schema.get("oneOf")?.as_array()?;
    let words: Option<Vec<String>> = variants
        .iter()
        .map(|variant| {
            let word = variant.get("const").map(shown)?;
            let why = variant.get("description").and_then(Value::as_str);
            Some(why.map_or_else(
                || word.clone(),
                |why| format!("{word} ({})", why.trim_end_matches('.').replace('\n', " ")),
            ))
        })
        .collect();
    words.map(|words| words.join(", "))
}

fn comment(out: &mut String, indent: &str, description: Option<&Value>) {
    if let Some(text) = description.and_then(Value::as_str) {
        for line in text.lines() {
            let _ = writeln!(out, "{indent}# {line}");
        }
    }
}

fn shown(value: &Value) -> String {
    match value {
        Value::String(text)
            if !text.is_empty() && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"._/-".contains(&b)) =>
        {
            text.clone()
        }
        value => value.to_string(),
    }
}
