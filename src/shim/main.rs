//! The binary `ostler-shim`: everything is in [`ostler::shim`]. The daemon starts it; nobody else has a use for it.

fn main() -> std::process::ExitCode {
    ostler::shim::run::main()
}
