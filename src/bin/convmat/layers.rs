//! The layers of a network, as a JSON file lists them: a name for each and what the geometry flags say.

use std::fmt::Display;
use std::path::Path;
use std::str::FromStr;

use convmat::Layout;
use serde_json::{Map, Value};

use crate::failure::Failure;
use crate::geometry::{GeometryFlags, TransposedFlags};
use crate::values::{Extents, PaddingFlag, number};

/// One entry of the list.
#[derive(Debug)]
pub struct LayerEntry {
    /// The name of the weight in the network's file.
    pub name: String,
    pub input_size: Extents,
    pub geometry: GeometryFlags,
    pub transposed: TransposedFlags,
}

const KEYS: [&str; 10] = [
    "name",
    "input_size",
    "stride",
    "padding",
    "dilation",
    "groups",
    "padding_mode",
    "transposed",
    "output_padding",
    "layout",
];

/// Reads the list.
pub fn read(path: &Path) -> Result<Vec<LayerEntry>, Failure> {
    let label = format!("--layers ({})", path.display());
    let text = std::fs::read_to_string(path)
        .map_err(|e| Failure::input(format!("{label} cannot be read: {e}")))?;
    parse(&text).map_err(|reason| Failure::input(format!("{label}: {reason}")))
}

fn parse(text: &str) -> Result<Vec<LayerEntry>, String> {
    let list: Value = serde_json::from_str(text).map_err(|e| format!("this is not JSON: {e}"))?;
    let Value::Array(list) = list else {
        return Err("expected a list of layers, [{\"name\": …, \"input_size\": …}, …]".into());
    };
    if list.is_empty() {
        return Err("the list has no layers".into());
    }
    list.iter().enumerate().map(|(i, value)| entry(i, value)).collect()
}

fn entry(index: usize, value: &Value) -> Result<LayerEntry, String> {
    let Value::Object(fields) = value else {
        return Err(format!("layer {} is {value}, expected an object", index + 1));
    };
    let name = match fields.get("name") {
        Some(Value::String(name)) => name.clone(),
        Some(other) => return Err(format!("layer {}: name is {other}, expected text", index + 1)),
        None => return Err(format!("layer {} has no name", index + 1)),
    };
    let within = |reason: String| format!("layer {} ({name}): {reason}", index + 1);
    let fields = Fields(fields);
    let read = || {
        if let Some(key) = fields.0.keys().find(|key| !KEYS.contains(&key.as_str())) {
            return Err(format!("unknown key {key}, expected one of {}", KEYS.join(", ")));
        }
        let input_size = fields.get("input_size")?.ok_or("it has no input_size")?;
        let geometry = GeometryFlags {
            stride: fields.get("stride")?.unwrap_or(Extents(vec![1])),
            padding: fields.get("padding")?.unwrap_or(PaddingFlag::Sides(vec![(0, 0)])),
            dilation: fields.get("dilation")?.unwrap_or(Extents(vec![1])),
            groups: fields.get_by("groups", number)?.unwrap_or(1),
            padding_mode: fields.get("padding_mode")?.unwrap_or_default(),
            layout: fields.get::<Layout>("layout")?.unwrap_or_default(),
        };
        let transposed = match fields.0.get("transposed") {
            None => false,
            Some(Value::Bool(transposed)) => *transposed,
            Some(other) => return Err(format!("transposed is {other}, expected true or false")),
        };
        let output_padding = fields.get("output_padding")?;
        if output_padding.is_some() && !transposed {
            return Err("output_padding means nothing unless transposed is true".into());
        }
        let transposed = TransposedFlags { transposed, output_padding };
        Ok((input_size, geometry, transposed))
    };
    let (input_size, geometry, transposed) = read().map_err(within)?;
    Ok(LayerEntry { name, input_size, geometry, transposed })
}

/// The keys of a layer and their values.
struct Fields<'a>(&'a Map<String, Value>);

impl Fields<'_> {
    fn get<V: FromStr<Err: Display>>(&self, key: &str) -> Result<Option<V>, String> {
        self.get_by(key, |text| text.parse().map_err(|e: V::Err| e.to_string()))
    }

    fn get_by<V>(
        &self,
        key: &str,
        parse: impl Fn(&str) -> Result<V, String>,
    ) -> Result<Option<V>, String> {
        let Some(value) = self.0.get(key) else { return Ok(None) };
        let text = as_flag(value).ok_or_else(|| format!("{key} is {value}"))?;
        parse(&text).map(Some).map_err(|reason| format!("{key} is {value}: {reason}"))
    }
}

/// A value as a flag has it: 3 is `3`, [1, 2] is `1x2`, and [[0, 1], [2, 3]] is `0:1x2:3`.
fn as_flag(value: &Value) -> Option<String> {
    let joined = |values: &[Value], separator: &str, one: &dyn Fn(&Value) -> Option<String>| {
        Some(values.iter().map(one).collect::<Option<Vec<_>>>()?.join(separator))
    };
    let plain = |value: &Value| match value {
        Value::Number(number) => Some(number.to_string()),
        Value::String(text) => Some(text.clone()),
        _ => None,
    };
    let sides = |value: &Value| match value {
        Value::Array(sides) => joined(sides, ":", &plain),
        other => plain(other),
    };
    match value {
        Value::Array(axes) => joined(axes, "x", &sides),
        other => plain(other),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_written_as_for_flags_or_as_numbers_and_arrays() {
        let layers = parse(
            r#"[{"name": "a", "input_size": 8},
                {"name": "b", "input_size": [8, 9], "stride": "1x2", "padding": [[0, 1], [2, 3]],
                 "dilation": [1, 2], "groups": 4, "padding_mode": "reflect", "layout": "channels-last",
                 "transposed": true, "output_padding": 1},
                {"name": "c", "input_size": "8x9", "padding": "same"}]"#,
        )
        .unwrap();
        let [a, b, c] = &layers[..] else { panic!("{layers:?}") };
        assert_eq!((a.input_size.to_string(), a.geometry.groups), ("8".into(), 1));
        assert_eq!([&b.input_size, &b.geometry.stride].map(Extents::to_string), ["8x9", "1x2"]);
        assert_eq!(b.geometry.padding.to_string(), "0:1x2:3");
        assert_eq!(b.geometry.layout, Layout::ChannelsLast);
        assert_eq!(b.transposed.resolve::<2>().unwrap(), Some([1, 1]));
        assert_eq!(c.geometry.padding, PaddingFlag::Same);
    }

    #[test]
    fn errors_name_the_layer_and_the_key() {
        for (text, parts) in [
            ("[", &["not JSON"][..]),
            ("{}", &["a list of layers"]),
            ("[]", &["no layers"]),
            ("[3]", &["layer 1 is 3"]),
            (r#"[{"input_size": 3}]"#, &["layer 1 has no name"]),
            (r#"[{"name": 3}]"#, &["name is 3"]),
            (r#"[{"name": "a"}]"#, &["layer 1 (a)", "no input_size"]),
            (r#"[{"name": "a", "input_size": 3, "strides": 2}]"#, &["(a)", "strides", "stride,"]),
            (r#"[{"name": "a", "input_size": -3}]"#, &["input_size is -3", "whole number"]),
            (r#"[{"name": "a", "input_size": 3.5}]"#, &["input_size is 3.5"]),
            (r#"[{"name": "a", "input_size": null}]"#, &["input_size is null"]),
            (
                r#"[{"name": "a", "input_size": 3, "padding_mode": "odd"}]"#,
                &["padding_mode", "odd"],
            ),
            (r#"[{"name": "a", "input_size": 3, "transposed": 1}]"#, &["transposed is 1"]),
            (r#"[{"name": "a", "input_size": 3, "output_padding": 1}]"#, &["output_padding"]),
        ] {
            let error = parse(text).unwrap_err();
            assert!(parts.iter().all(|part| error.contains(part)), "{text}: {error}");
        }
    }
}
