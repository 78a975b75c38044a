//! The operator's words for this room.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Who may reach what.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema, PartialEq, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// What happens to what no rule allows.
    pub default: DefaultAction,
}

/// What happens to what no rule allows.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum DefaultAction {
    /// Any verified identity is let through.
    Authenticated,
    /// It is refused.
    #[default]
    Deny,
}
