//! The exit codes of the program, as INTERFACE.md fixes them (the numbers are those of sysexits.h and timeout(1)).
//!
//! Owns the numbers and nothing else: who exits with one of them decides when.

/// Success; for `serve`: stopped in order.
pub const OK: u8 = 0;
/// A command failed; for `serve`: stopped, but something had to be abandoned or could not be written.
pub const FAILURE: u8 = 1;
/// Wrong usage.
pub const USAGE: u8 = 2;
/// The daemon does not answer; for `serve`: another daemon owns the state.
pub const UNAVAILABLE: u8 = 69;
/// Internal error.
pub const INTERNAL: u8 = 70;
/// The state directory or the disk is unusable.
pub const STATE: u8 = 74;
/// `serve` ended for a restart.
pub const RESTART: u8 = 75;
/// The configuration or a script is wrong.
pub const CONFIG: u8 = 78;
/// `send` had no answer in time.
pub const TIMEOUT: u8 = 124;
