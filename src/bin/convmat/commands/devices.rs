//! `convmat devices`.

use convmat::Device;
use serde_json::{Value, json};

use crate::failure::Failure;
use crate::session::Session;

pub fn run(session: &mut Session) -> Result<(), Failure> {
    let mut devices = Vec::new();
    for probe in Device::probe() {
        let (text, value) = match probe.found {
            Ok(description) => {
                let chosen = probe.name == session.device.to_string();
                let mark = if chosen { " (selected)" } else { "" };
                let value = json!({
                    "name": probe.name,
                    "available": true,
                    "description": description,
                    "selected": chosen,
                });
                (format!("{description}{mark}"), value)
            }
            Err(reason) => {
                let value = json!({ "name": probe.name, "available": false, "reason": reason });
                (format!("not available: {reason}"), value)
            }
        };
        session.report.row(probe.name, text);
        devices.push(value);
    }
    session.report.set("devices", Value::Array(devices));
    Ok(())
}
