//! The configuration: any text either reads as a whole, down to every room's settings, or is refused with a place in it.
#![no_main]

use std::path::Path;

use isthmus::config::Config;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    match Config::parse(Path::new("isthmus.yaml"), text) {
        Err(error) => {
            let said = error.to_string();
            assert!(said.starts_with("isthmus.yaml"), "{said:?} names no place");
            assert!(said.len() < 4096 + 4 * text.len(), "{} bytes about {}", said.len(), text.len());
        }
        Ok(config) => {
            let _ = (config.accept(), config.tls(), config.credentials(), config.credential_files(), config.detect());
            let _ = (config.route(), config.balance(), config.connect(), config.pool(), config.relay(), config.http());
            let _ = (config.admin(), config.probe(), config.logs(), config.access_log(), config.metrics());
            let _ = (config.dns(), config.listeners(), config.services(), config.identify(), config.clusters());
        }
    }
});
