//! sources

pub mod files;
