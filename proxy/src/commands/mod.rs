//! A person's doors: one file, or folder, per subcommand. Each parses its own flags, prints its own tables and knows no
//! other.

pub mod certs;
