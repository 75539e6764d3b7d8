#!/bin/sh
# Mutants of src/model against its own tables, in a crate of nothing else, so that each builds in seconds. What survives is
# then tried by hand against the whole: docs/mutants.md says how, and why the rest is left.
#
#   cargo install cargo-mutants --locked
#   tests/mutants.sh [OPTIONS OF cargo mutants]
set -eu
top=$(cd "$(dirname "$0")/.." && pwd)
work=${MUTANTS_DIR:-$(mktemp -d)}
mkdir -p "$work/src"
rm -rf "$work/src/model"
cp -r "$top/src/model" "$work/src/model"
cat > "$work/Cargo.toml" <<'TOML'
[package]
name = "model"
version = "0.0.0"
edition = "2024"

[dependencies]
percent-encoding = "2.3"
serde = { version = "1", features = ["derive"] }
uuid = { version = "1.29", features = ["v4", "v5", "v7"] }

[dev-dependencies]
proptest = { version = "1.12", default-features = false, features = ["std"] }

[workspace]
TOML
# What the model borrows of the rest: a number.
cat > "$work/src/lib.rs" <<'RUST'
pub mod clock {
    pub type Millis = i64;
}
pub mod model;
RUST
cd "$work"
exec cargo mutants --file 'src/model/**' --timeout 60 "$@"
